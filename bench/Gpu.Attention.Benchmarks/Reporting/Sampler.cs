using System.Diagnostics;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>A call that is timed in several samples.</summary>
/// <param name="call">The call.</param>
/// <param name="callSeconds">What one took when it was tried.</param>
internal sealed class Sample(Action call, double callSeconds)
{
    private readonly List<double> _seconds = [];
    private readonly List<double> _possible = [];

    public int Calls { get; private set; }

    public int Count => _seconds.Count;

    /// <summary>Seconds of a call.</summary>
    public double Median => Benchmarks.Median.Of(_seconds);

    public double Fastest => _seconds.Min();

    public double Slowest => _seconds.Max();

    /// <summary>10⁹ operations that the cores could have done in the time of a call, at the peak measured beside each sample; null where none was.</summary>
    public double? PossibleGigaflop => _possible.Count == _seconds.Count ? Benchmarks.Median.Of(_possible) : null;

    /// <summary>Samples that it gets where others get <paramref name="rounds"/>: fewer where a call takes long.</summary>
    public int Rounds(int rounds) => callSeconds > 2 ? Math.Min(3, rounds) : callSeconds > 0.25 ? Math.Min(5, rounds) : rounds;

    public void Take(double sampleSeconds)
    {
        Calls = (int)Math.Clamp(Math.Ceiling(sampleSeconds / callSeconds), 1, 10_000);
        long start = Stopwatch.GetTimestamp();
        for (int i = 0; i < Calls; i++)
        {
            call();
        }

        _seconds.Add(Stopwatch.GetElapsedTime(start).TotalSeconds / Calls);
    }

    /// <summary>The cores' peak beside the last sample.</summary>
    public void SetPeak(double gflops) => _possible.Add(gflops * _seconds[^1]);
}

/// <summary>Takes samples in turn, so that all cases meet what else the machine does.</summary>
internal static class Sampler
{
    private const double WarmSeconds = 0.02;
    private const int MinRounds = 3;

    /// <summary>Calls until code is compiled and memory is there; the seconds of the last call.</summary>
    public static double Warm(Action call)
    {
        long begin = Stopwatch.GetTimestamp();
        double seconds;
        int calls = 0;
        do
        {
            long start = Stopwatch.GetTimestamp();
            call();
            seconds = Stopwatch.GetElapsedTime(start).TotalSeconds;
            calls++;
        }
        while (Stopwatch.GetElapsedTime(begin).TotalSeconds < WarmSeconds || (calls == 1 && seconds < 1));
        return seconds;
    }

    /// <summary>Round by round, every sample in its turn.</summary>
    /// <param name="samples">The samples.</param>
    /// <param name="rounds">Rounds.</param>
    /// <param name="sampleSeconds">What a sample takes, if a call does not take longer.</param>
    /// <param name="budgetSeconds">After this, no round beyond the third is begun.</param>
    /// <param name="measurePeak">Measures the cores' peak beside every sample, where there is a use for it.</param>
    /// <param name="afterRound">What else has its turn.</param>
    public static void Run(
        IReadOnlyCollection<Sample> samples, int rounds, double sampleSeconds, double budgetSeconds, Func<double>? measurePeak, Action afterRound)
    {
        long begin = Stopwatch.GetTimestamp();
        for (int round = 0; round < rounds; round++)
        {
            if (round >= MinRounds && Stopwatch.GetElapsedTime(begin).TotalSeconds > budgetSeconds)
            {
                break;
            }

            double before = measurePeak?.Invoke() ?? 0;
            foreach (Sample sample in samples.Where(s => s.Count < s.Rounds(rounds)))
            {
                sample.Take(sampleSeconds);
                if (measurePeak is not null)
                {
                    double after = measurePeak();
                    sample.SetPeak(Math.Max(before, after));
                    before = after;
                }
            }

            afterRound();
        }
    }
}
