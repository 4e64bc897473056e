namespace Gpu.Attention.Plotting;

/// <summary>How long one length took: the median of the repetitions, and their range.</summary>
public readonly record struct Timing(int Length, double Seconds, double Fastest, double Slowest);

/// <summary>Times against lengths.</summary>
/// <param name="Name">What was timed.</param>
/// <param name="Points">The timings, by length.</param>
public sealed record TimingCurve(string Name, List<Timing> Points)
{
    /// <summary>Shorter calls are mostly overhead and take no part in the slope.</summary>
    public const int SlopeFrom = 4_096;

    /// <summary>
    /// The exponent <c>p</c> of <c>time ≈ c · length^p</c>, by least squares on the logarithms; null with fewer than three points.
    /// </summary>
    /// <param name="from">Shorter lengths take no part.</param>
    public double? Slope(int from = SlopeFrom)
    {
        (double X, double Y)[] logs = [.. Points.Where(p => p.Length >= from).Select(p => (Math.Log(p.Length), Math.Log(p.Seconds)))];
        if (logs.Length < 3)
        {
            return null;
        }

        double meanX = logs.Average(l => l.X);
        double meanY = logs.Average(l => l.Y);
        return logs.Sum(l => (l.X - meanX) * (l.Y - meanY)) / logs.Sum(l => (l.X - meanX) * (l.X - meanX));
    }

    /// <summary>The length from which this curve stays below another, read off between measured lengths; null when it does not.</summary>
    /// <param name="other">The other curve.</param>
    public double? FasterThan(TimingCurve other)
    {
        // The logarithm of the ratio of times, at the lengths that both were measured at.
        (double Length, double Ratio)[] ratios = [.. from mine in Points
                                                     join theirs in other.Points on mine.Length equals theirs.Length
                                                     orderby mine.Length
                                                     select ((double)mine.Length, Math.Log(mine.Seconds / theirs.Seconds))];
        int slower = Array.FindLastIndex(ratios, r => r.Ratio >= 0);
        if (slower == ratios.Length - 1)
        {
            return null;
        }

        if (slower < 0)
        {
            return ratios[0].Length;
        }

        ((double Length, double Ratio) before, (double Length, double Ratio) after) = (ratios[slower], ratios[slower + 1]);
        return before.Length * Math.Pow(after.Length / before.Length, before.Ratio / (before.Ratio - after.Ratio));
    }
}
