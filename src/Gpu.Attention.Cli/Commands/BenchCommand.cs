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
        Option<int> repeats = Size("--repeats", "Timed calls of each case; the median is shown.", 5);
        var device = new DeviceOptions();
        Option<bool> json = CommonOptions.Json();
        var command = new Command(
            "bench",
            "Checks attention against a float64 oracle, then times it; refuses to time what is wrong. Operations are counted as 2·D·m + 2·r·Dv for a query and " +
            "for a key, (64 + 1)·(r + Dv) more for a causal query, and 2·(D + Dv) for a query and key of exact attention.")
        {
            features, lengths, heads, dimension, numFeatures, batch, causal, compare, repeats, json,
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
                    () => Measure(device, new BenchCase(features, shape, plan.NumFeatures, plan.Causal), plan.Repeats, peak, cancellationToken));
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
            WriteTable(terminal, device, plan, results, peak);
        }

        List<BenchResult> refused = results.FindAll(r => r.Refusal is not null);
        refused.ForEach(r => terminal.Complain($"{r.Case}: {r.Refusal}"));
        return refused.Count == 0 ? ExitCode.Done : ExitCode.Failed;
    }

    private static BenchResult Measure(ComputeDevice device, BenchCase problem, int repeats, double? peak, CancellationToken cancellationToken)
    {
        float[] output = new float[problem.Shape.OutputElements];
        using Operation operation = MakeOperation(device, problem, output);
        DeviceInfo? checkedDevice = null;
        BenchResult result = Measurement.Run(problem, Forward, output, repeats, cancellationToken);
        result = result with
        {
            Device = operation.LastDevice.ToString(),
            DeviceId = operation.LastDevice.Id,
            Fallbacks = operation.Fallbacks,
            WorkspaceBytes = operation.WorkspaceBytes,
            PeakShare = operation.LastDevice.Kind == DeviceKind.Cpu ? result.Gflops / peak : null,
        };
        return operation.LastDevice == checkedDevice
            ? result
            : result with
            {
                Ms = null,
                FastestMs = null,
                Gflops = null,
                PeakShare = null,
                TokensPerSecond = null,
                Refusal = $"not timed, for {checkedDevice} ran the call that was checked and {operation.LastDevice} later ones",
            };

        void Forward()
        {
            operation.Forward();
            checkedDevice ??= operation.LastDevice;
        }
    }

    private static Operation MakeOperation(ComputeDevice device, BenchCase problem, float[] output)
    {
        if (problem.Features == FeatureKind.Softmax)
        {
            var softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = problem.Causal });
            return new Operation(softmax, problem.Shape, () => softmax.Forward(problem.Shape, problem.Query, problem.Key, problem.Value, output));
        }

        FeatureMap map = FeatureKind.Create(problem.Features, problem.Projection);
        var linear = new LinearAttention(device, map, new LinearAttentionOptions { Causal = problem.Causal });
        return new Operation(linear, problem.Shape, () => linear.Forward(problem.Shape, problem.Query, problem.Key, problem.Value, output));
    }

    private static void WriteTable(Terminal terminal, ComputeDevice device, Plan plan, List<BenchResult> results, double? peak)
    {
        string measuredPeak = peak is { } gflops ? $", measured peak {Format.Short(gflops)} GFLOPS" : "";
        string direction = plan.Causal ? "causal" : "bidirectional";
        terminal.WriteLine($"{device} ({device.Reason}){measuredPeak}");
        terminal.WriteLine($"{direction}, B {plan.Batch}, H {plan.Heads}, D {plan.Dimension}, Dv {plan.Dimension}");
        terminal.WriteTable(
            [
                ("Features", false), ("ran on", false), ("T", true), ("r", true), ("ms", true), ("GFLOPS", true), ("of peak", true), ("tokens/s", true),
                ("workspace", true), ("max error", true), ("RMS ratio", true),
            ],
            results.Select(r => (string[])
            [
                r.Features, r.DeviceId!, Format.Number(r.Length), r.FeatureDimension == 0 ? "-" : Format.Number(r.FeatureDimension), Or(r.Ms),
                Or(r.Gflops), Format.Percent(r.PeakShare), Or(r.TokensPerSecond), Format.Bytes(r.WorkspaceBytes), Or(r.MaxAbsError), Or(r.RmsRatio),
            ]));

        static string Or(double? value) => value is { } v ? Format.Short(v) : "-";
    }

    private static Option<int> Size(string name, string description, int value) => CommonOptions.Number(name, description, 1, MaxSize, value);

    private sealed record Plan(
        string[] Features, int[] Lengths, int Batch, int Heads, int Dimension, int NumFeatures, bool Causal, int Repeats);
}
