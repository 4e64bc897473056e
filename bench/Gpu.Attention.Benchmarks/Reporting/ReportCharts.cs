using Gpu.Attention.Plotting;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>The pictures of a report.</summary>
internal static class ReportCharts
{
    public const string TimeForward = "time-forward.svg";
    public const string TimeTraining = "time-training.svg";
    public const string TokensByMap = "tokens-by-map.svg";
    public const string ShareOfPeak = "share-of-peak.svg";
    public const string Stages = "stages.svg";
    public const string Memory = "memory.svg";
    public const string Decode = "decode.svg";

    private const string Causal = "causal";
    private const double Mebibyte = 1 << 20;
    private const int Width = 880;

    private static readonly Axis Tokens = new("tokens", AxisScale.Logarithmic) { Format = TickFormat.Count };

    /// <summary>The pictures that a report has numbers for, by file name.</summary>
    public static IEnumerable<(string File, string Svg)> All(ReportFile report)
    {
        foreach ((string file, string pass) in new[] { (TimeForward, Passes.Forward), (TimeTraining, Passes.Training) })
        {
            IReadOnlyList<(string Map, TimingCurve Curve)> curves = [.. report.Curves(pass, Causal).Where(c => c.Curve.Points.Count > 2)];
            if (curves.Count > 0)
            {
                yield return (file, Time(report, pass, curves).ToSvg());
            }
        }

        if (report.Times.Any(t => t.Map != MapNames.Copy))
        {
            yield return (TokensByMap, ByMap(report).ToSvg());
        }

        if (report.Times.Any(t => t.PeakShare is not null))
        {
            yield return (ShareOfPeak, Share(report).ToSvg());
        }

        if (report.Stages.Any(s => s.PeakShare is not null))
        {
            yield return (Stages, ByStage(report).ToSvg());
        }

        if (report.Memory.Count > 0)
        {
            yield return (Memory, WorkspaceAgainstLength(report).ToSvg());
        }

        if (report.Decode.Count > 0)
        {
            yield return (Decode, DecodeCost(report).ToSvg());
        }
    }

    /// <summary>The length at which every map and direction was timed.</summary>
    public static int MapLength(ReportFile report) =>
        report.Times.Where(t => t.Map != MapNames.Copy).GroupBy(t => t.Length).OrderByDescending(g => g.Count()).ThenByDescending(g => g.Key).First().Key;

    private static LineChart Time(ReportFile report, string pass, IReadOnlyList<(string Map, TimingCurve Curve)> curves) => new(
        $"One causal attention layer, {pass}: time against length", Tokens, new Axis("time of a call", AxisScale.Logarithmic) { Format = TickFormat.Seconds },
        [.. curves.Select(c => new Series(NameWithSlope(report, c.Map, pass), [.. c.Curve.Points.Select(p => new PlotPoint(p.Length, p.Seconds, p.Fastest, p.Slowest))])
        {
            IsReference = c.Map == MapNames.Copy, Style = MapNames.Style(c.Map),
        })])
    {
        Width = Width, Caption = Caption(report, "Medians; bars from the fastest to the slowest sample."),
    };

    private static string NameWithSlope(ReportFile report, string map, string pass) =>
        report.Slopes.FirstOrDefault(s => s.Map == map && s.Pass == pass && s.Direction == Causal) is { } slope
            ? FormattableString.Invariant($"{MapNames.Of(map)}, slope {slope.Slope:0.00}")
            : MapNames.Of(map);

    private static BarChart ByMap(ReportFile report)
    {
        int length = MapLength(report);
        List<TimeLine> lines = [.. report.Times.Where(t => t.Length == length && t.Map != MapNames.Copy)];
        string[] maps = [.. lines.Select(t => t.Map).Distinct()];
        return new BarChart(
            FormattableString.Invariant($"Tokens a second by feature map, {length:N0} tokens"), [.. maps.Select(MapNames.Of)],
            new Axis("tokens a second") { Format = value => TickFormat.Count(Rounded(value)) },
            [.. lines.GroupBy(t => (t.Pass, t.Direction)).OrderBy(g => g.Key.Pass, StringComparer.Ordinal).ThenByDescending(g => g.Key.Direction, StringComparer.Ordinal)
                .Select(g => new BarSeries(
                    $"{g.Key.Pass}, {g.Key.Direction}", [.. maps.Select(map => g.FirstOrDefault(t => t.Map == map)?.TokensPerSecond)]))])
        {
            Width = Width, Caption = Caption(report),
        };
    }

    // Three digits: what is measured has no more.
    private static double Rounded(double value)
    {
        double unit = value > 0 ? Math.Pow(10, Math.Floor(Math.Log10(value)) - 2) : 1;
        return Math.Round(value / unit) * unit;
    }

    private static LineChart Share(ReportFile report) => new(
        "Share of the cores' multiply-add peak, causal", Tokens, new Axis("share of the measured peak") { Minimum = 0, Format = Percent },
        [.. from pass in new[] { Passes.Forward, Passes.Training }
            from curve in report.Times.Where(t => t.Pass == pass && t.Direction == Causal && t.PeakShare is not null).GroupBy(t => t.Map)
            where curve.Count() > 2
            select new Series($"{MapNames.Of(curve.Key)}, {pass}", [.. curve.OrderBy(t => t.Length).Select(t => new PlotPoint(t.Length, t.PeakShare!.Value))])])
    {
        Width = Width, Caption = Caption(report, "Exponentials, sums and maxima are not counted as operations."),
    };

    private static BarChart ByStage(ReportFile report)
    {
        List<StageLine> counted = [.. report.Stages.Where(s => s.PeakShare is not null)];
        string[] stages = [.. counted.Select(s => $"{s.Pass}: {s.Stage}").Distinct()];
        return new BarChart(
            "Share of one core's multiply-add peak by stage", stages, new Axis("share of the measured peak") { Format = Percent },
            [.. counted.GroupBy(s => s.Map).Select(g => new BarSeries(
                MapNames.Of(g.Key), [.. stages.Select(stage => g.FirstOrDefault(s => $"{s.Pass}: {s.Stage}" == stage)?.PeakShare)]))])
        {
            Width = Width, Caption = Caption(report, "Stages without counted operations are in the table."),
        };
    }

    private static LineChart WorkspaceAgainstLength(ReportFile report)
    {
        var series = new List<Series>
        {
            new("inputs and outputs", [.. report.Memory.Where(m => m.Pass == Passes.Forward).GroupBy(m => m.Length).OrderBy(g => g.Key)
                .Select(g => new PlotPoint(g.Key, g.First().TensorBytes / Mebibyte))]) { IsReference = true },
        };
        series.AddRange(report.Memory.GroupBy(m => (m.Map, m.Pass)).Select(g =>
            new Series($"{MapNames.Of(g.Key.Map)}, {g.Key.Pass}", [.. g.OrderBy(m => m.Length).Select(m => new PlotPoint(m.Length, m.WorkspaceBytes / Mebibyte))])));
        return new LineChart("Memory beside inputs and outputs against length, causal", Tokens, new Axis("MiB of a call", AxisScale.Logarithmic), series)
        {
            Width = Width, Caption = Caption(report, "As operators report them; measured peaks of the process stand in the report."),
        };
    }

    private static LineChart DecodeCost(ReportFile report) => new(
        "A token of a stream: time against position", new Axis("position in the stream", AxisScale.Logarithmic) { Format = TickFormat.Count },
        new Axis("time of a token", AxisScale.Logarithmic) { Format = TickFormat.Seconds },
        [.. report.Decode.GroupBy(d => d.Map).Select(g => new Series(
            MapNames.Of(g.Key), [.. g.OrderBy(d => d.Position).Select(d => new PlotPoint(d.Position, d.Us * 1e-6, d.FastestUs * 1e-6, d.SlowestUs * 1e-6))])
        {
            Style = MapNames.Style(g.Key),
        })])
    {
        Width = Width, Caption = Caption(report, "Medians; bars from the fastest to the slowest sample."),
    };

    private static string[] Caption(ReportFile report, string? first = null)
    {
        ProblemLine p = report.Problem;
        string sizes = FormattableString.Invariant($"B = {p.Batch}, H = {p.Heads}, d = dv = {p.Dimension}, {p.NumFeatures} random features, {p.Storage}.");
        return [(first is null ? "" : first + " ") + sizes, report.Machine.Line, report.Command];
    }

    private static string Percent(double value) => value.ToString("0%", System.Globalization.CultureInfo.InvariantCulture);
}
