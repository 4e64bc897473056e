using System.Diagnostics;
using System.Globalization;

namespace Gpu.Attention.Benchmarks;

/// <summary>What the gradients cost beside the forward pass.</summary>
internal static class BackwardTable
{
    private const int Rounds = 9;

    public static int Run(string[] args)
    {
        if (args.Length > 1 || (args.Length == 1 && !int.TryParse(args[0], CultureInfo.InvariantCulture, out _)))
        {
            Console.Error.WriteLine("usage: backward [LENGTH]");
            return 2;
        }

        int length = args.Length == 1 ? int.Parse(args[0], CultureInfo.InvariantCulture) : 4096;
        Console.WriteLine(Machine.Describe());
        Console.WriteLine();
        Console.WriteLine("| case | ms forward | ms backward | both, times forward | both, GFLOP/s | share of peak |");
        Console.WriteLine("| --- | ---: | ---: | ---: | ---: | ---: |");
        double peak = HostPeak.MeasureGflops(Environment.ProcessorCount);
        foreach ((string features, bool causal) in new[] { ("favor", true), ("favor", false), ("elu", true) })
        {
            var work = new AttentionCase(features, causal, length);
            (double forward, double backward) = Measure(work);
            double gflops = (work.Flops + work.BackwardFlops) / (forward + backward) * 1e-9;
            Console.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"| {work} | {forward * 1e3:0.0} | {backward * 1e3:0.0} | {(forward + backward) / forward:0.00} | {gflops:0} | {gflops / peak:P0} |"));
        }

        return 0;
    }

    private static unsafe (double Forward, double Backward) Measure(AttentionCase work)
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
            for (int round = -2; round < Rounds; round++)
            {
                // In turn, so that both meet what else the machine does.
                long start = Stopwatch.GetTimestamp();
                engine.Forward(problem, buffers);
                long middle = Stopwatch.GetTimestamp();
                engine.Backward(problem, buffers, gradientBuffers);
                if (round >= 0)
                {
                    forward.Add(Stopwatch.GetElapsedTime(start, middle).TotalSeconds);
                    backward.Add(Stopwatch.GetElapsedTime(middle).TotalSeconds);
                }
            }

            return (Median.Of(forward), Median.Of(backward));
        }

        TensorBuffer Tensor(float* start) => TensorBuffer.Dense(MemoryRegion.Host(start, elements), shape.QueryLength, shape.Heads, shape.KeyDimension);
    }
}
