using System.CommandLine;
using Gpu.Attention.Cli.Benchmarking;

namespace Gpu.Attention.Cli.Commands;

/// <summary><c>bench</c>: times attention, once it is known to be right.</summary>
internal static class BenchCommand
{
    private const int MaxLength = 1 << 27;
    private const int MaxSize = 1 << 20;
    private static readonly int[] UsualLengths = [1024, 4096, 16384];

    // A second for the longer one, at the other default sizes.
    private static readonly int[] SimulatedLengths = [16, 64];

    public static Command Create(Terminal terminal)
    {
        Option<string[]> features = CommonOptions.Choices(
            "--features", "Feature maps to time, separated by commas; softmax is exact attention.", FeatureKind.All, FeatureKind.FavorPlus);
        Option<int[]?> lengths = CommonOptions.Numbers(
            "--lengths", "Sequence lengths, separated by commas.", string.Join(',', UsualLengths), 1, MaxLength, UsualLengths);
        Option<int> heads = Size("--heads", "Heads.", 8);
        Option<int> dimension = Size("--dim", "The size of a query, key or value row.", 64);
        Option<int> numFeatures = CommonOptions.NumFeatures();
        Option<int> batch = Size("--batch", "Sequences.", 1);
        Option<bool> causal = CommonOptions.Causal();
        Option<string?> compare = CommonOptions.Choice("--compare", "Time exact attention beside the feature maps.", [FeatureKind.Softmax]);
        Option<bool> backward = new("--backward") { Description = "Time the backward pass too, in turn with the forward pass." };
        Option<int> repeats = Size("--repeats", "Timed calls of each case; the median is shown.", 5);
        var device = new DeviceOptions();
        Option<bool> json = CommonOptions.Json();
        var command = new Command(
            "bench",
            "Checks attention against a float64 oracle, then times it; refuses to time what is wrong. Operations are counted as 2·D·m + 2·r·Dv for a query and " +
            "for a key, (64 + 1)·(r + Dv) more for a causal query, and 2·(D + Dv) for a query and key of exact attention; the README has those of --backward.")
        {
            features, lengths, heads, dimension, numFeatures, batch, causal, compare, backward, repeats, json,
        };
        device.AddTo(command);
        command.SetAction((parsed, token) => Application.Guard(terminal, () =>
        {
            using ComputeDevice opened = device.Open(terminal, parsed);
            int[] counts = parsed.GetValue(lengths)!;
            if (opened.Info.Kind == DeviceKind.Simulator)
            {
                terminal.Note("note: the simulator shows that kernels are right and nothing of how fast they are; thousands of tokens take it minutes.");
                counts = parsed.IsGiven(lengths) ? counts : SimulatedLengths;
            }

            string[] names = parsed.GetValue(features)!;
            var plan = new Plan(
                parsed.GetValue(compare) is { } other ? [.. names.Append(other).Distinct()] : names,
                counts,
                parsed.GetValue(batch),
                parsed.GetValue(heads),
                parsed.GetValue(dimension),
                parsed.GetValue(numFeatures),
                parsed.GetValue(causal),
                parsed.GetValue(backward),
                parsed.GetValue(repeats));
            return Run(terminal, opened, plan, parsed.GetValue(json), token);
        }));
        return command;
    }

    private static int Run(Terminal terminal, ComputeDevice device, Plan plan, bool json, CancellationToken cancellationToken)
    {
        double? peak = device.Info.Kind == DeviceKind.Cpu
            ? terminal.Busy("measuring the peak", () => HostPeak.MeasureGflops(Environment.ProcessorCount))
            : null;
        var results = new List<BenchResult>();
        var noted = new HashSet<string>();
        foreach (int length in plan.Lengths)
        {
            foreach (string features in plan.Features)
            {
                cancellationToken.ThrowIfCancellationRequested();
                var shape = new AttentionShape(plan.Batch, length, plan.Heads, plan.Dimension);
                BenchResult result = terminal.Busy(
                    $"{features}, T = {length}",
                    () => Measure(device, new BenchCase(features, shape, plan.NumFeatures, plan.Causal), plan.Backward, plan.Repeats, cancellationToken));

                // On a busy machine the peak of one minute says nothing of another, and it only ever reads low.
                peak = peak is { } best ? Math.Max(best, HostPeak.MeasureGflops(Environment.ProcessorCount, rounds: 1)) : null;
                result = OfPeak(result, peak);
                results.Add(result);
                terminal.NoteFallbacks(result.Fallbacks.Where(noted.Add));
                if (json)
                {
                    terminal.WriteJson(result);
                }
            }
        }

        if (!json)
        {
            WriteTable(terminal, device, plan, results.ConvertAll(r => OfPeak(r, peak)), peak);
        }

        List<BenchResult> refused = results.FindAll(r => r.Refusal is not null);
        refused.ForEach(r => terminal.Complain($"{r.Case}: {r.Refusal}"));
        return refused.Count == 0 ? ExitCode.Done : ExitCode.Failed;
    }

    private static BenchResult Measure(ComputeDevice device, BenchCase problem, bool backward, int repeats, CancellationToken cancellationToken)
    {
        float[] output = new float[problem.Shape.OutputElements];
        BenchGradients? gradients = backward ? new BenchGradients(problem.Shape) : null;
        using Operation operation = MakeOperation(device, problem, output, gradients);
        var forwards = new Watched(operation, operation.Forward);
        Watched? backwards = gradients is null ? null : new Watched(operation, operation.Backward!);
        BenchResult result = Measurement.Run(
            problem, forwards.Run, output, repeats, gradients is null ? null : (backwards!.Run, gradients), cancellationToken);
        result = result with
        {
            Device = forwards.Last!.ToString(),
            DeviceId = forwards.Last.Id,
            BackwardDeviceId = backwards?.Last?.Id,
            Fallbacks = [.. forwards.FirstFallbacks.Union(operation.Fallbacks)],
            WorkspaceBytes = operation.WorkspaceBytes,
            BackwardWorkspaceBytes = backward ? operation.BackwardWorkspaceBytes : null,
        };
        return (forwards.Moved ?? backwards?.Moved) is not { } moved ? result : result with
        {
            Ms = null,
            FastestMs = null,
            Gflops = null,
            TokensPerSecond = null,
            BackwardMs = null,
            BothMs = null,
            FastestBothMs = null,
            TimesForward = null,
            BothGflops = null,
            Refusal = $"not timed, for {moved}",
        };
    }

    // Other devices than the host have no measured peak, and nothing that the host is asked for runs elsewhere.
    private static BenchResult OfPeak(BenchResult result, double? peak) =>
        result with { PeakShare = result.Gflops / peak, BothPeakShare = result.BothGflops / peak };

    private static Operation MakeOperation(ComputeDevice device, BenchCase problem, float[] output, BenchGradients? gradients)
    {
        if (problem.Features == FeatureKind.Softmax)
        {
            var softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = problem.Causal });
            return new Operation(
                softmax, problem.Shape, () => softmax.Forward(problem.Shape, problem.Query, problem.Key, problem.Value, output),
                gradients is null ? null : () => softmax.Backward<float>(
                    problem.Shape, problem.Query, problem.Key, problem.Value, output, problem.OutputGradient, gradients.Query, gradients.Key, gradients.Value));
        }

        FeatureMap map = FeatureKind.Create(problem.Features, problem.Projection);
        var linear = new LinearAttention(device, map, new LinearAttentionOptions { Causal = problem.Causal });
        return new Operation(
            linear, problem.Shape, () => linear.Forward(problem.Shape, problem.Query, problem.Key, problem.Value, output),
            gradients is null ? null : () => linear.Backward<float>(
                problem.Shape, problem.Query, problem.Key, problem.Value, output, problem.OutputGradient, gradients.Query, gradients.Key, gradients.Value));
    }

    private static void WriteTable(Terminal terminal, ComputeDevice device, Plan plan, List<BenchResult> results, double? peak)
    {
        string measuredPeak = peak is { } gflops ? $", measured peak {Format.Short(gflops)} GFLOPS" : "";
        string direction = plan.Causal ? "causal" : "bidirectional";
        terminal.WriteLine($"{device} ({device.Reason}){measuredPeak}");
        terminal.WriteLine($"{direction}, B {plan.Batch}, H {plan.Heads}, D {plan.Dimension}, Dv {plan.Dimension}");
        (string, bool)[] times = plan.Backward ? [("ms forward", true), ("ms backward", true), ("both / forward", true)] : [("ms", true)];
        terminal.WriteTable(
            [
                ("Features", false), ("ran on", false), ("T", true), ("r", true), .. times, ("GFLOPS", true), ("of peak", true), ("tokens/s", true),
                ("workspace", true), ("max error", true), ("RMS ratio", true),
            ],
            results.Select(r => (string[])
            [
                r.Features, RanOn(r), Format.Number(r.Length), r.FeatureDimension == 0 ? "-" : Format.Number(r.FeatureDimension), Or(r.Ms),
                .. plan.Backward ? Both(r) : [Or(r.Gflops), Format.Percent(r.PeakShare), Or(r.TokensPerSecond), Format.Bytes(r.WorkspaceBytes)],
                Or(Larger(r.MaxAbsError, r.GradientMaxAbsError)), Or(Larger(r.RmsRatio, r.GradientRmsRatio)),
            ]));

        static string[] Both(BenchResult r) =>
        [
            Or(r.BackwardMs), Or(r.TimesForward), Or(r.BothGflops), Format.Percent(r.BothPeakShare), Or((double)r.Batch * r.Length / (r.BothMs / 1e3)),
            Format.Bytes(Math.Max(r.WorkspaceBytes, r.BackwardWorkspaceBytes!.Value)),
        ];

        static string RanOn(BenchResult r) => r.BackwardDeviceId is { } id && id != r.DeviceId ? $"{r.DeviceId}, {id}" : r.DeviceId!;

        static double? Larger(double? output, double? gradient) => gradient is { } g && !(output > g) ? g : output;

        static string Or(double? value) => value is { } v ? Format.Short(v) : "-";
    }

    private static Option<int> Size(string name, string description, int value) => CommonOptions.Number(name, description, 1, MaxSize, value);

    /// <summary>A pass, and the device that ran it the first time, when it was checked, and the last.</summary>
    private sealed class Watched(Operation operation, Action pass)
    {
        private DeviceInfo? _first;

        public DeviceInfo? Last { get; private set; }

        /// <summary>Why the checked call ran elsewhere than asked for.</summary>
        public IReadOnlyList<string> FirstFallbacks { get; private set; } = [];

        /// <summary>What is wrong when it was not one device all along.</summary>
        public string? Moved => _first == Last ? null : $"{_first} ran the call that was checked and {Last} later ones";

        public void Run()
        {
            pass();
            Last = operation.LastDevice;
            if (_first is null)
            {
                (_first, FirstFallbacks) = (Last, operation.Fallbacks);
            }
        }
    }

    private sealed record Plan(
        string[] Features, int[] Lengths, int Batch, int Heads, int Dimension, int NumFeatures, bool Causal, bool Backward, int Repeats);
}
