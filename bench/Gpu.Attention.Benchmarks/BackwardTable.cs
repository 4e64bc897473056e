using System.Diagnostics;
using System.Globalization;

namespace Gpu.Attention.Benchmarks;

/// <summary>What the gradients cost beside the forward pass.</summary>
internal static class BackwardTable
{
    private const int Rounds = 9;
    private static readonly string[] AllCases = ["favor-causal", "favor-bidirectional", "elu-causal"];

    public static int Run(string[] args)
    {
        if (!TryParse(args, out int length, out string[] cases, out double mostRatio, out double leastShare))
        {
            Console.Error.WriteLine($"usage: backward [LENGTH] [--cases {string.Join(',', AllCases)}] [--require-ratio MOST] [--require-peak LEAST]");
            return 2;
        }

        Console.WriteLine(Machine.Describe());
        Console.WriteLine();
        Console.WriteLine("| case | ms forward | ms backward | both, times forward | both, GFLOP/s | peak, GFLOP/s | share of peak |");
        Console.WriteLine("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
        int missed = 0;
        foreach (string name in cases)
        {
            string features = name.Split('-')[0];
            var work = new AttentionCase(features, name.EndsWith("-causal", StringComparison.Ordinal), length);
            (double forward, double backward, double ratio, double possible) = Measure(work);
            double gflops = (work.Flops + work.BackwardFlops) / (forward + backward) * 1e-9;
            double share = (work.Flops + work.BackwardFlops) * 1e-9 / possible;
            Console.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"| {work} | {forward * 1e3:0.0} | {backward * 1e3:0.0} | {ratio:0.00} | {gflops:0} | {gflops / share:0} | {share:0 %} |"));

            // Of elu+1 there is too little to multiply for either bar.
            if (features == "favor" && !(ratio <= mostRatio && share >= leastShare))
            {
                Console.Error.WriteLine(string.Create(
                    CultureInfo.InvariantCulture,
                    $"{work}: {ratio:0.00} times forward, {share:0.0 %} of the peak; at most {mostRatio} and at least {leastShare:0 %} are required"));
                missed++;
            }
        }

        return missed == 0 ? 0 : 1;
    }

    private static bool TryParse(string[] args, out int length, out string[] cases, out double mostRatio, out double leastShare)
    {
        (length, cases, mostRatio, leastShare) = (4096, AllCases, double.PositiveInfinity, 0);
        bool hasLength = args.Length > 0 && !args[0].StartsWith("--", StringComparison.Ordinal);
        bool isRight = !hasLength || (int.TryParse(args[0], NumberStyles.None, CultureInfo.InvariantCulture, out length) && length > 0);
        for (int i = hasLength ? 1 : 0; i < args.Length; i += 2)
        {
            string value = i + 1 < args.Length ? args[i + 1] : "";
            cases = args[i] == "--cases" ? value.Split(',') : cases;
            isRight &= args[i] switch
            {
                "--cases" => cases.All(AllCases.Contains),
                "--require-ratio" => double.TryParse(value, CultureInfo.InvariantCulture, out mostRatio),
                "--require-peak" => double.TryParse(value, CultureInfo.InvariantCulture, out leastShare),
                _ => false,
            };
        }

        return isRight;
    }

    private static unsafe (double Forward, double Backward, double Ratio, double PossibleGigaflop) Measure(AttentionCase work)
    {
        AttentionShape shape = work.Shape;
        var problem = new AttentionProblem { Shape = shape, Features = work.Map.Lower(shape.KeyDimension, work.Map.DefaultScale(shape.KeyDimension)), Causal = work.Causal };
        var engine = new SimdEngine();
        int elements = (int)shape.QueryElements;
        long workspaceBytes = Math.Max(engine.WorkspaceBytes(problem), engine.BackwardWorkspaceBytes(problem));
        var data = new AttentionData(shape);
        using var outputGradient = new NativeFloats(elements, 4);
        using var gradients = new NativeFloats(3 * elements, 5);
        using var workspace = new NativeFloats((int)(workspaceBytes / sizeof(float)), 6);
        fixed (float* query = data.Query, key = data.Key, value = data.Value, output = data.Output)
        {
            var buffers = new AttentionBuffers
            {
                Query = Tensor(query), Key = Tensor(key), Value = Tensor(value), Output = Tensor(output),
                Workspace = MemoryRegion.Host(workspace.Pointer, workspaceBytes / sizeof(float)),
            };
            var gradientBuffers = new GradientBuffers
            {
                OutputGradient = Tensor(outputGradient.Pointer), QueryGradient = Tensor(gradients.Pointer), KeyGradient = Tensor(gradients.Pointer + elements),
                ValueGradient = Tensor(gradients.Pointer + (2 * elements)),
            };
            var forward = new List<double>();
            var backward = new List<double>();
            var ratios = new List<double>();
            var possible = new List<double>();
            double before = HostPeak.MeasureBrieflyGflops();
            for (int round = -2; round < Rounds; round++)
            {
                // In turn, so that all three meet what else the machine does.
                long start = Stopwatch.GetTimestamp();
                engine.Forward(problem, buffers);
                long middle = Stopwatch.GetTimestamp();
                engine.Backward(problem, buffers, gradientBuffers);
                long end = Stopwatch.GetTimestamp();
                double after = HostPeak.MeasureBrieflyGflops();
                if (round >= 0)
                {
                    forward.Add(Stopwatch.GetElapsedTime(start, middle).TotalSeconds);
                    backward.Add(Stopwatch.GetElapsedTime(middle, end).TotalSeconds);
                    ratios.Add((forward[^1] + backward[^1]) / forward[^1]);
                    possible.Add(Math.Max(before, after) * Stopwatch.GetElapsedTime(start, end).TotalSeconds);
                }

                before = after;
            }

            return (Median.Of(forward), Median.Of(backward), Median.Of(ratios), Median.Of(possible));
        }

        TensorBuffer Tensor(float* start) => TensorBuffer.Dense(MemoryRegion.Host(start, elements), shape.QueryLength, shape.Heads, shape.KeyDimension);
    }
}
