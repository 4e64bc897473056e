using System.Diagnostics;
using System.Globalization;
using System.Numerics.Tensors;
using Gpu.Attention.Benchmarks.Reporting;

namespace Gpu.Attention.Benchmarks;

/// <summary>What one token costs, beside reading and writing its state once: the least that any implementation has to do.</summary>
internal static class StepTable
{
    private const int Rounds = 15;
    private const int Heads = 8;
    private const int Dimension = 64;

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
        foreach (StepLine line in Lines(device, MemoryBytes, Rounds))
        {
            Console.WriteLine(string.Create(
                CultureInfo.InvariantCulture, $"| {MapNames.Of(line.Map)} | {(line.InMemory ? "memory" : "cache")} | {1e3 * line.Us:0} | {1e3 * line.PassUs:0} | {line.Ratio:0.00} |"));
            worst = line.InMemory ? Math.Max(worst, line.Ratio) : worst;
        }

        Console.WriteLine();
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"worst ratio from memory: {worst:0.00}"));
        return worst <= bar ? 0 : 1;
    }

    /// <summary>Both maps, with states from memory and with one that stays in a cache.</summary>
    public static IEnumerable<StepLine> Lines(ComputeDevice device, long memoryBytes, int rounds)
    {
        foreach (string map in new[] { MapNames.Favor, MapNames.Elu })
        {
            using var attention = new LinearAttention(device, new AttentionCase(map, true, 1).Map, new LinearAttentionOptions { Causal = true });
            AttentionState one = attention.CreateState(1, Heads, Dimension, Dimension);
            long bytes = sizeof(float) * ((long)one.Sums.Length + one.Normalizers.Length + one.LogScale.Length);
            foreach (bool inMemory in new[] { true, false })
            {
                AttentionState[] states = inMemory ? [.. Enumerable.Range(0, (int)(memoryBytes / bytes)).Select(_ => one.Fork())] : [one];
                (double step, double pass) = Measure(attention, states, rounds);
                yield return new StepLine { Map = map, InMemory = inMemory, Us = step / 1e3, PassUs = pass / 1e3 };
            }
        }
    }

    private static (double Step, double Pass) Measure(LinearAttention attention, AttentionState[] states, int rounds)
    {
        var shape = new AttentionShape(1, 1, Heads, Dimension);
        float[] q = Row(1);
        float[] k = Row(2);
        float[] v = Row(3);
        float[] output = new float[Heads * Dimension];
        int calls = Math.Max(states.Length, 2000);
        var steps = new List<double>();
        var passes = new List<double>();
        for (int round = -1; round < rounds; round++)
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
