using System.Diagnostics;

namespace Gpu.Attention.Samples.Streaming;

/// <summary>The middle one of several times.</summary>
internal static class Median
{
    public static double Seconds(ReadOnlySpan<long> ticks)
    {
        long[] sorted = ticks.ToArray();
        Array.Sort(sorted);
        return sorted[sorted.Length / 2] / (double)Stopwatch.Frequency;
    }
}
