using System.Diagnostics;
using System.Globalization;
using System.Numerics.Tensors;

namespace Gpu.Attention.Benchmarks;

/// <summary>What one token costs, beside reading and writing its state once: the least that any implementation has to do.</summary>
internal static class StepTable
{
    private const int Rounds = 15;
    private const int Heads = 8;
    private const int Dimension = 64;
    private const int Features = 256;

    /// <summary>States that together are far larger than any cache.</summary>
    private const long MemoryBytes = 512L << 20;

    public static int Run(string[] args)
    {
        double bar = double.PositiveInfinity;
        if (args is ["--require", string ratio])
        {
            bar = double.Parse(ratio, CultureInfo.InvariantCulture);
        }
        else if (args.Length > 0)
        {
            Console.Error.WriteLine("usage: step [--require RATIO]");
            return 2;
        }

        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        Console.WriteLine(Machine.Describe());
        Console.WriteLine();
        Console.WriteLine("| map | state lies in | ns a token | ns a pass | ratio |");
        Console.WriteLine("| --- | --- | ---: | ---: | ---: |");
        double worst = 0;
        foreach ((string name, FeatureMap map) in new[]
        {
            ("favor+", FeatureMap.FavorPlus(RandomProjection.Orthogonal(Features, Dimension, 42))),
            ("elu", FeatureMap.EluPlusOne),
        })
        {
            using var attention = new LinearAttention(device, map, new LinearAttentionOptions { Causal = true });
            AttentionState one = attention.CreateState(1, Heads, Dimension, Dimension);
            long bytes = sizeof(float) * ((long)one.Sums.Length + one.Normalizers.Length + one.LogScale.Length);
            foreach (bool inMemory in new[] { true, false })
            {
                AttentionState[] states = inMemory ? [.. Enumerable.Range(0, (int)(MemoryBytes / bytes)).Select(_ => one.Fork())] : [one];
                (double step, double pass) = Measure(attention, states);
                Console.WriteLine(string.Create(
                    CultureInfo.InvariantCulture, $"| {name} | {(inMemory ? "memory" : "cache")} | {step:0} | {pass:0} | {step / pass:0.00} |"));
                worst = inMemory ? Math.Max(worst, step / pass) : worst;
            }
        }

        Console.WriteLine();
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"worst ratio from memory: {worst:0.00}"));
        return worst <= bar ? 0 : 1;
    }

    private static (double Step, double Pass) Measure(LinearAttention attention, AttentionState[] states)
    {
        var shape = new AttentionShape(1, 1, Heads, Dimension);
        float[] q = Row(1);
        float[] k = Row(2);
        float[] v = Row(3);
        float[] output = new float[Heads * Dimension];
        int calls = Math.Max(states.Length, 2000);
        var steps = new List<double>();
        var passes = new List<double>();
        for (int round = -1; round < Rounds; round++)
        {
            // In turn, so that both meet what else the machine does.
            long start = Stopwatch.GetTimestamp();
            for (int i = 0; i < calls; i++)
            {
                attention.Step(states[i % states.Length], shape, q, k, v, output);
            }

            double step = Stopwatch.GetElapsedTime(start).TotalNanoseconds / calls;
            start = Stopwatch.GetTimestamp();
            for (int i = 0; i < calls; i++)
            {
                // A head at a time: the framework writes past the caches where an array is large, and a cached state is then slower than it need be.
                AttentionState state = states[i % states.Length];
                int head = state.Sums.Length / Heads;
                for (int h = 0; h < Heads; h++)
                {
                    Span<float> sums = state.Sums.Slice(h * head, head);
                    TensorPrimitives.Multiply(sums, 0.999f, sums);
                }

                TensorPrimitives.Multiply(state.Normalizers, 0.999f, state.Normalizers);
                TensorPrimitives.Multiply(state.LogScale, 1, state.LogScale);
            }

            double pass = Stopwatch.GetElapsedTime(start).TotalNanoseconds / calls;
            if (round >= 0)
            {
                steps.Add(step);
                passes.Add(pass);
            }
        }

        return (Median.Of(steps), Median.Of(passes));
    }

    private static float[] Row(int seed)
    {
        using var numbers = new NativeFloats(Heads * Dimension, seed);
        unsafe
        {
            return new ReadOnlySpan<float>(numbers.Pointer, Heads * Dimension).ToArray();
        }
    }
}
