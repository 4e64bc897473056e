using Gpu.Attention.Plotting;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>What is read off the times: slopes, and where linear attention overtakes exact attention.</summary>
internal static class Curves
{
    private const int SlopeFrom = 4_096;

    // The part of a curve that a slope is taken of, where the curve ends early: its last four lengths.
    private const int SlopeSpan = 8;

    // Of calls shorter than this at the end of a curve too much is overhead.
    private const int SlopeTo = 2_048;

    /// <summary>The exponents of the length, where a curve is long enough for one.</summary>
    public static IEnumerable<SlopeLine> Slopes(IEnumerable<TimeLine> times) =>
        from curve in Grouped(times)
        let points = curve.Curve.Points
        where points[^1].Length >= SlopeTo
        let start = Math.Min(SlopeFrom, points[^1].Length / SlopeSpan)
        let slope = curve.Curve.Slope(start)
        where slope is not null
        select new SlopeLine(curve.Map, curve.Direction, curve.Pass, start, slope.Value);

    /// <summary>The crossover lengths of all curves beside which exact attention was timed at three lengths or more.</summary>
    public static IEnumerable<CrossoverLine> Crossovers(IReadOnlyCollection<TimeLine> times)
    {
        foreach (var curve in Grouped(times).Where(c => c.Map is not MapNames.Exact and not MapNames.Copy))
        {
            TimingCurve? exact = Grouped(times.Where(t => t.Map == MapNames.Exact && t.Direction == curve.Direction && t.Pass == curve.Pass))
                .Select(c => c.Curve).FirstOrDefault();
            if (exact is not null && exact.Points.Select(p => p.Length).Intersect(curve.Curve.Points.Select(p => p.Length)).Count() >= 3)
            {
                double? length = curve.Curve.FasterThan(exact);
                yield return new CrossoverLine(curve.Map, curve.Direction, curve.Pass, length, OrLess: length == exact.Points[0].Length);
            }
        }
    }

    private static IEnumerable<(string Map, string Direction, string Pass, TimingCurve Curve)> Grouped(IEnumerable<TimeLine> times) =>
        from t in times
        group t by (t.Map, t.Direction, t.Pass) into g
        select (g.Key.Map, g.Key.Direction, g.Key.Pass, new TimingCurve(g.Key.Map, [.. g.OrderBy(t => t.Length).Select(t => t.Timing())]));
}
