using System.Diagnostics;
using System.Globalization;
using Gpu.Attention.Benchmarks.Reporting;

namespace Gpu.Attention.Benchmarks;

/// <summary>
/// Short calls over and over: on a machine that others share, times jump from one level to another for milliseconds to seconds. A median of long calls shows a mixture, and not which part is whose.
/// </summary>
internal static class Company
{
    private const int Tokens = 128;
    private const double PeakSeconds = 5e-4;
    private const double DefaultSeconds = 10;

    public static int Run(string[] args)
    {
        double seconds = DefaultSeconds;
        if (args.Length > 1 || (args is [string text] && !(double.TryParse(text, CultureInfo.InvariantCulture, out seconds) && seconds > 0)))
        {
            Console.Error.WriteLine("usage: company [SECONDS]");
            return 2;
        }

        // One head and few tokens: a call is to be shorter than what it is to show.
        var shape = new AttentionShape(1, Tokens, 1, AttentionCase.Dimension);
        var data = new AttentionData(shape);
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        Console.WriteLine(Machine.Describe());
        Console.WriteLine();
        Console.WriteLine("| | calls | fastest hundredth | tenth | median | slowest tenth |");
        Console.WriteLine("| --- | ---: | ---: | ---: | ---: | ---: |");
        var runs = new Dictionary<string, (AttentionRun Run, List<double> Nanoseconds)>();
        foreach (string map in new[] { MapNames.Favor, MapNames.Elu, MapNames.Exact })
        {
            runs[map] = (new AttentionCase(map, true, Tokens).Open(device), []);
        }

        var peaks = new List<double>();
        for (long start = Stopwatch.GetTimestamp(); Stopwatch.GetElapsedTime(start).TotalSeconds < seconds;)
        {
            foreach ((AttentionRun run, List<double> nanoseconds) in runs.Values)
            {
                run.Forward(shape, data);
                long begin = Stopwatch.GetTimestamp();
                run.Forward(shape, data);
                nanoseconds.Add(Stopwatch.GetElapsedTime(begin).TotalNanoseconds / Tokens);
            }

            peaks.Add(HostPeak.MeasureGflops(threads: 1, rounds: 1, PeakSeconds));
        }

        foreach ((string map, (AttentionRun run, List<double> nanoseconds)) in runs)
        {
            run.Dispose();
            Write($"{MapNames.Of(map)}, causal, ns a token", nanoseconds);
        }

        Write("multiply-add peak, GFLOP/s", [.. peaks.Select(p => -p)]);
        return 0;
    }

    // Rates come negative, so that the fastest come first.
    private static void Write(string name, List<double> samples)
    {
        samples.Sort();
        double At(double share) => Math.Abs(samples[(int)(share * (samples.Count - 1))]);
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"| {name} | {samples.Count} | {At(0.01):0} | {At(0.1):0} | {At(0.5):0} | {At(0.9):0} |"));
    }
}
