using System.Diagnostics;
using System.Globalization;

namespace Gpu.Attention.Benchmarks;

/// <summary>Whether a token of causal FAVOR+ costs the same however long the sequence is.</summary>
internal static class Linearity
{
    private const int Rounds = 7;

    /// <summary>How far a length may be from the mean of all, as a share of it.</summary>
    private const double Bar = 0.15;

    private static readonly int[] Lengths = [4096, 16384, 65536, 262144];

    public static int Run(string[] args)
    {
        if (args.Length > 0)
        {
            Console.Error.WriteLine("usage: linearity (it takes no options)");
            return 2;
        }

        // Every sample is the same number of tokens, so that each length is as long exposed to whatever else the machine does.
        int sampleTokens = Lengths.Max();
        AttentionCase[] cases = [.. Lengths.Select(length => new AttentionCase("favor", true, length))];
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using AttentionRun run = cases[0].Open(device);
        var data = new AttentionData(cases.MaxBy(c => c.Length)!.Shape);
        var samples = cases.ToDictionary(c => c, _ => new List<double>());
        for (int round = -1; round < Rounds; round++)
        {
            foreach (AttentionCase problem in cases)
            {
                AttentionShape shape = problem.Shape;
                run.Forward(shape, data);
                long start = Stopwatch.GetTimestamp();
                for (int tokens = 0; tokens < sampleTokens; tokens += problem.Length)
                {
                    run.Forward(shape, data);
                }

                if (round >= 0)
                {
                    samples[problem].Add(Stopwatch.GetElapsedTime(start).TotalNanoseconds / sampleTokens);
                }
            }
        }

        double[] medians = [.. cases.Select(c => Median.Of(samples[c]))];
        double mean = medians.Average();
        double spread = medians.Max(m => Math.Abs((m / mean) - 1));
        Console.WriteLine(Machine.Describe());
        Console.WriteLine();
        Console.WriteLine("| tokens | ns a token | against the mean |");
        Console.WriteLine("| ---: | ---: | ---: |");
        foreach ((AttentionCase problem, double median) in cases.Zip(medians))
        {
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"| {problem.Length} | {median:0} | {(median / mean) - 1:+0.0 %;-0.0 %} |"));
        }

        Console.WriteLine();
        Console.WriteLine(string.Create(
            CultureInfo.InvariantCulture, $"Spread ±{spread:0.0 %} against the mean of {mean:0} ns; the bar is ±{Bar:0 %}. Medians of {Rounds} rounds."));
        return spread <= Bar ? 0 : 1;
    }
}
