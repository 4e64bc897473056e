using System.Globalization;
using System.Text.Json;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>An earlier revision in a git worktree of its own, built and run in turn with this one: <c>gpu-attention bench</c> of both.</summary>
internal static class BaseComparison
{
    private const string Tool = "src/Gpu.Attention.Cli";
    private const string Features = "favor+,elu,softmax";

    private static readonly string ToolFile = Path.Combine("artifacts", "bin", "Gpu.Attention.Cli", "release", "gpu-attention.dll");

    /// <summary>Runs both.</summary>
    /// <param name="revision">What git is to check out.</param>
    /// <param name="scale">Lengths and rounds.</param>
    /// <param name="say">Receives what is being done.</param>
    /// <exception cref="InvalidOperationException">There is no such revision, or it does not build.</exception>
    public static BaseLine Run(string revision, ReportScale scale, Action<string> say)
    {
        string commit = Command.Require("git", ["rev-parse", "--short", "--verify", revision + "^{commit}"], Tree.Root);
        string folder = Path.Combine(Path.GetTempPath(), $"gpu-attention-{commit}-{Environment.ProcessId}");
        Command.Require("git", ["worktree", "add", "--detach", folder, commit], Tree.Root);
        try
        {
            say($"building {commit} and this revision");
            Build(folder);
            Build(Tree.Root);
            return Measure(revision, commit, folder, scale, say);
        }
        finally
        {
            Command.Run("git", ["worktree", "remove", "--force", folder], Tree.Root);
        }
    }

    /// <summary>The ratios of cases that both revisions ran.</summary>
    internal static IEnumerable<BaseRatioLine> Ratios(IReadOnlyList<ToolLine> then, IReadOnlyList<ToolLine> now)
    {
        foreach (var key in now.Select(l => (l.Features, l.Direction, l.Length)).Distinct().OrderBy(k => k.Direction, StringComparer.Ordinal).ThenBy(k => k.Features, StringComparer.Ordinal).ThenBy(k => k.Length))
        {
            ToolLine[] ours = [.. now.Where(l => (l.Features, l.Direction, l.Length) == key)];
            ToolLine[] theirs = [.. then.Where(l => (l.Features, l.Direction, l.Length) == key)];
            if (theirs.Length == 0)
            {
                continue;
            }

            yield return Line(key, Passes.Forward, theirs, ours, l => l.ForwardMs, l => l.FastestForwardMs);
            if (ours.All(l => l.BothMs is not null) && theirs.All(l => l.BothMs is not null))
            {
                yield return Line(key, Passes.Training, theirs, ours, l => l.BothMs!.Value, l => l.FastestBothMs!.Value);
            }
        }
    }

    private static BaseRatioLine Line(
        (string Features, string Direction, int Length) key, string pass, ToolLine[] then, ToolLine[] now, Func<ToolLine, double> ms, Func<ToolLine, double> fastest) => new()
    {
        Map = key.Features == "favor+" ? MapNames.Favor : key.Features, Direction = key.Direction, Pass = pass, Length = key.Length,
        BaseMs = Median.Of(then.Select(ms)), BaseFastestMs = then.Min(fastest), Ms = Median.Of(now.Select(ms)), FastestMs = now.Min(fastest),
    };

    private static void Build(string tree) => Command.Require("dotnet", ["build", Path.Combine(tree, Tool), "-c", "Release", "--nologo", "-v", "quiet"], tree);

    private static BaseLine Measure(string revision, string commit, string folder, ReportScale scale, Action<string> say)
    {
        var then = new List<ToolLine>();
        var now = new List<ToolLine>();
        var unknown = new List<string>();

        // Gradients where both revisions time them; direction by direction, since the tool takes one.
        string[][] passes = [["--causal", "--backward"], ["--causal"], []];
        bool hasBackward = Knows(folder, passes[0]) && Knows(Tree.Root, passes[0]);
        if (!hasBackward)
        {
            unknown.Add("One of the revisions has no `bench --backward`: forward passes alone are compared.");
        }

        foreach (string[] options in passes.Where(p => p.Contains("--backward") == hasBackward || p.Length == 0))
        {
            for (int round = 0; round < scale.Rounds / 2; round++)
            {
                say($"against {commit}: round {round + 1} of {scale.Rounds / 2}{string.Concat(options.Select(o => " " + o))}");
                foreach (int length in scale.PeerLengths)
                {
                    CommandResult theirs = Bench(folder, length, options);
                    if (theirs.ExitCode != 0)
                    {
                        unknown.Add($"{commit} fails at `bench --lengths {length} {string.Join(' ', options)}`: {theirs.Complaint}");
                        continue;
                    }

                    CommandResult ours = Bench(Tree.Root, length, options);
                    if (ours.ExitCode != 0)
                    {
                        throw new InvalidOperationException($"`bench --lengths {length} {string.Join(' ', options)}` fails here: {ours.Complaint}");
                    }

                    then.AddRange(Lines(theirs));
                    now.AddRange(Lines(ours));
                }
            }
        }

        return new BaseLine { Revision = revision, Commit = commit, Ratios = [.. Ratios(then, now)], Unknown = [.. unknown.Distinct()] };
    }

    private static bool Knows(string tree, string[] options) => Command.Run(
        "dotnet", [Path.Combine(tree, ToolFile), "bench", "--lengths", "64", "--repeats", "1", .. options], tree).ExitCode == 0;

    private static CommandResult Bench(string tree, int length, string[] options) => Command.Run(
        "dotnet",
        [
            Path.Combine(tree, ToolFile), "bench", "--json", "--device", "cpu", "--no-fallback", "--lengths", length.ToString(CultureInfo.InvariantCulture), "--features", Features,
            .. options,
        ],
        tree);

    private static IEnumerable<ToolLine> Lines(CommandResult result) =>
        result.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => JsonSerializer.Deserialize<ToolLine>(line)!);
}
