using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using Gpu.Attention.Cli.Benchmarking;

namespace Gpu.Attention.Cli.Commands;

/// <summary><c>bench</c>: times attention, once it is known to be right.</summary>
internal static class BenchCommand
{
    // Code that is still being compiled, and clocks that are still rising, are not what is measured.
    private const double WarmUpSeconds = 0.3;
    private const int MaxLength = 1 << 27;
    private const int MaxSize = 1 << 20;

    public static Command Create(Terminal terminal)
    {
        Option<string[]> features = CommonOptions.Choices(
            "--features", "Feature maps to time, separated by commas; softmax is exact attention.", FeatureKind.All, FeatureKind.FavorPlus);
        Option<int[]?> lengths = CommonOptions.Numbers(
            "--lengths", "Sequence lengths, separated by commas.", "1024,4096,16384", 1, MaxLength, [1024, 4096, 16384]);
        Option<int> heads = Size("--heads", "Heads.", 8);
        Option<int> dimension = Size("--dim", "The size of a query, key or value row.", 64);
        Option<int> numFeatures = CommonOptions.NumFeatures();
        Option<int> batch = Size("--batch", "Sequences.", 1);
        Option<bool> causal = CommonOptions.Causal();
        Option<string?> compare = CommonOptions.Choice("--compare", "Time exact attention beside the feature maps.", [FeatureKind.Softmax]);
        Option<int> repeats = Size("--repeats", "Timed calls of each case; the median is shown.", 5);
        Option<string?> device = CommonOptions.Device();
        Option<bool> json = CommonOptions.Json();
        var command = new Command("bench", "Checks attention against a float64 oracle, then times it; refuses to time what is wrong.")
        {
            features, lengths, heads, dimension, numFeatures, batch, causal, compare, repeats, device, json,
        };
        command.SetAction((parsed, token) => Application.Guard(terminal, () =>
        {
            string[] names = parsed.GetValue(features)!;
            var plan = new Plan(
                parsed.GetValue(compare) is { } other ? [.. names.Append(other).Distinct()] : names,
                parsed.GetValue(lengths)!,
                parsed.GetValue(batch),
                parsed.GetValue(heads),
                parsed.GetValue(dimension),
                parsed.GetValue(numFeatures),
                parsed.GetValue(causal),
                parsed.GetValue(repeats));
            using ComputeDevice opened = CommonOptions.Open(parsed.GetValue(device));
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
        var complaints = new List<string>();
        foreach (int length in plan.Lengths)
        {
            foreach (string features in plan.Features)
            {
                cancellationToken.ThrowIfCancellationRequested();
                var shape = new AttentionShape(plan.Batch, length, plan.Heads, plan.Dimension);
                BenchResult result = terminal.Busy(
                    $"{features}, T = {length}", () => Measure(device, new BenchCase(features, shape, plan.NumFeatures, plan.Causal), plan, peak, complaints, cancellationToken));
                results.Add(result);
                if (json)
                {
                    terminal.WriteJson(result);
                }
            }
        }

        if (!json)
        {
            WriteTable(terminal, device, results, peak);
        }

        complaints.ForEach(terminal.Complain);
        return complaints.Count == 0 ? ExitCode.Done : ExitCode.Failed;
    }

    private static BenchResult Measure(
        ComputeDevice device, BenchCase problem, Plan plan, double? peak, List<string> complaints, CancellationToken cancellationToken)
    {
        AttentionShape shape = problem.Shape;
        float[] output = new float[shape.OutputElements];
        using IDisposable attention = MakeOperator(device, problem, output, out Action forward, out Func<long> workspaceBytes);
        forward();
        GateResult gate = Gate.Check(problem, output);
        var result = new BenchResult
        {
            Device = device.ToString(),
            Case = problem.Name,
            Batch = shape.Batch,
            Length = shape.QueryLength,
            Heads = shape.Heads,
            KeyDimension = shape.KeyDimension,
            ValueDimension = shape.ValueDimension,
            Features = problem.Features,
            FeatureDimension = problem.FeatureDimension,
            Direction = problem.Direction,
            WorkspaceBytes = workspaceBytes(),
            MaxAbsError = FiniteOrNull(gate.MaxAbsError),
            RmsRatio = FiniteOrNull(gate.RmsRatio),
            Passed = gate.Passed,
        };
        if (!gate.Passed)
        {
            complaints.Add(string.Create(
                CultureInfo.InvariantCulture,
                $"{problem.Name}: not timed, for it is wrong: largest error {gate.MaxAbsError:g2} (limit {gate.MaxAbsLimit:g2}), RMS ratio {gate.RmsRatio:g2} (limit {gate.RmsLimit:g2})."));
            return result;
        }

        long warmUp = Stopwatch.GetTimestamp();
        do
        {
            cancellationToken.ThrowIfCancellationRequested();
            forward();
        }
        while (Stopwatch.GetElapsedTime(warmUp).TotalSeconds < WarmUpSeconds);

        double[] times = new double[plan.Repeats];
        for (int i = 0; i < times.Length; i++)
        {
            cancellationToken.ThrowIfCancellationRequested();
            long start = Stopwatch.GetTimestamp();
            forward();
            times[i] = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
        }

        double milliseconds = Median(times);
        double gflops = problem.Flops() / milliseconds / 1e6;
        return result with
        {
            Repeats = plan.Repeats,
            Ms = milliseconds,
            Gflops = gflops,
            PeakShare = gflops / peak,
            TokensPerSecond = (double)shape.Batch * shape.QueryLength / (milliseconds / 1e3),
        };
    }

    private static IDisposable MakeOperator(
        ComputeDevice device, BenchCase problem, float[] output, out Action forward, out Func<long> workspaceBytes)
    {
        if (problem.Features == FeatureKind.Softmax)
        {
            var softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = problem.Causal });
            forward = () => softmax.Forward(problem.Shape, problem.Query, problem.Key, problem.Value, output);
            workspaceBytes = () => softmax.WorkspaceBytes(problem.Shape);
            return softmax;
        }

        FeatureMap map = FeatureKind.Create(problem.Features, problem.Projection);
        var linear = new LinearAttention(device, map, new LinearAttentionOptions { Causal = problem.Causal });
        forward = () => linear.Forward(problem.Shape, problem.Query, problem.Key, problem.Value, output);
        workspaceBytes = () => linear.WorkspaceBytes(problem.Shape);
        return linear;
    }

    private static void WriteTable(Terminal terminal, ComputeDevice device, List<BenchResult> results, double? peak)
    {
        terminal.WriteLine(peak is { } gflops ? $"{device}, measured peak {Format.Short(gflops)} GFLOPS" : device.ToString());
        terminal.WriteTable(
            [
                ("Features", false), ("Direction", false), ("B", true), ("T", true), ("H", true), ("D", true), ("Dv", true), ("r", true), ("ms", true),
                ("GFLOPS", true), ("of peak", true), ("tokens/s", true), ("workspace", true), ("max error", true), ("RMS ratio", true),
            ],
            results.Select(r => (string[])
            [
                r.Features, r.Direction, Format.Number(r.Batch), Format.Number(r.Length), Format.Number(r.Heads), Format.Number(r.KeyDimension),
                Format.Number(r.ValueDimension), r.FeatureDimension == 0 ? "-" : Format.Number(r.FeatureDimension), Or(r.Ms), Or(r.Gflops),
                Format.Percent(r.PeakShare), Or(r.TokensPerSecond), Format.Bytes(r.WorkspaceBytes), Or(r.MaxAbsError), Or(r.RmsRatio),
            ]));

        static string Or(double? value) => value is { } v ? Format.Short(v) : "-";
    }

    private static double Median(double[] values)
    {
        double[] sorted = [.. values.Order()];
        int middle = sorted.Length / 2;
        return sorted.Length % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
    }

    private static double? FiniteOrNull(double value) => double.IsFinite(value) ? value : null;

    private static Option<int> Size(string name, string description, int value) => CommonOptions.Number(name, description, 1, MaxSize, value);

    private sealed record Plan(
        string[] Features, int[] Lengths, int Batch, int Heads, int Dimension, int NumFeatures, bool Causal, int Repeats);
}
