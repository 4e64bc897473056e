namespace Gpu.Attention.Plotting;

/// <summary>A point of a series, with the range that it was measured in when there is one.</summary>
/// <param name="X">The value along.</param>
/// <param name="Y">The value up.</param>
/// <param name="Low">The lower end of the error bar.</param>
/// <param name="High">The upper end of the error bar.</param>
public readonly record struct PlotPoint(double X, double Y, double? Low = null, double? High = null);

/// <summary>One line of a chart.</summary>
/// <param name="Name">Its name in the legend.</param>
/// <param name="Points">Its points, in the order in which they are joined.</param>
public sealed record Series(string Name, IReadOnlyList<PlotPoint> Points)
{
    /// <summary>
    /// True for what the others are compared with, such as a floor or a limit: dashed, without markers, in the colour of the text.
    /// </summary>
    public bool IsReference { get; init; }

    /// <summary>Which colour and marker it takes, so that a thing can look the same in several charts; null for the next in order.</summary>
    public int? Style { get; init; }
}

/// <summary>A chart of lines over two axes, written as SVG text.</summary>
/// <remarks>
/// The background is transparent and text follows the viewer's light or dark preference. Series take the Okabe–Ito colours and
/// different markers in their order, so that no pair is told apart by colour alone. The same chart gives the same text.
/// </remarks>
/// <param name="Title">The heading, and the picture's accessible name.</param>
/// <param name="X">The axis along.</param>
/// <param name="Y">The axis up.</param>
/// <param name="Series">The lines, in the order of the legend.</param>
public sealed record LineChart(string Title, Axis X, Axis Y, IReadOnlyList<Series> Series)
{
    private const double Left = 76;
    private const double Top = 44;
    private const double Bottom = 56;
    private const double LegendSwatch = 30;
    private const double LegendLine = 22;
    private const double CharacterWidth = 6.9;

    /// <summary>What the chart shows, for those who cannot see it.</summary>
    public string Description { get; init; } = "";

    /// <summary>Lines under the chart: where it was measured, and with which command.</summary>
    public IReadOnlyList<string> Caption { get; init; } = [];

    /// <summary>The width in user units; the legend takes its part of it.</summary>
    public int Width { get; init; } = 760;

    /// <summary>The height in user units.</summary>
    public int Height { get; init; } = 420;

    /// <summary>Writes the chart.</summary>
    /// <exception cref="ArgumentException">A logarithmic axis is to show a value that is not above zero.</exception>
    public string ToSvg()
    {
        PlotPoint[] all = [.. Series.SelectMany(s => s.Points)];
        var x = new AxisRange(X, [.. all.Select(p => p.X)]);
        var y = new AxisRange(Y, [.. all.SelectMany(p => new[] { p.Y, p.Low ?? p.Y, p.High ?? p.Y })]);
        double legendWidth = LegendSwatch + (CharacterWidth * Series.Select(s => s.Name.Length).DefaultIfEmpty(0).Max()) + 32;
        var frame = new Frame(Left, Top, Width - legendWidth, Height - Bottom, x, y);

        var svg = new SvgWriter();
        var caption = new Caption(Caption, Width);
        svg.Open("svg", ("xmlns", "http://www.w3.org/2000/svg"), ("viewBox", $"0 0 {Width} {SvgWriter.Number(Height + caption.Height)}"), ("role", "img"));
        svg.Text("title", Title);
        string names = string.Join(", ", Series.Select(s => s.Name));
        svg.Text("desc", Description.Length > 0 ? Description : $"{Y.Label} against {X.Label}: {names}.");
        svg.Text("style", Palette.StyleSheet);
        svg.Text("text", Title, ("class", "heading"), ("x", Left), ("y", 24));
        WriteAxes(svg, frame);
        for (int index = 0, color = 0; index < Series.Count; index++)
        {
            Stroke stroke = Series[index].IsReference ? Stroke.Reference : Stroke.Number(Series[index].Style ?? color++);
            WriteSeries(svg, frame, Series[index], stroke);
            WriteLegendEntry(svg, frame.Right + 16, Top + 10 + (index * LegendLine), Series[index].Name, stroke);
        }

        caption.Write(svg, Height);
        svg.Close();
        return svg.ToString();
    }

    private void WriteAxes(SvgWriter svg, Frame frame)
    {
        foreach (double value in frame.X.Minor)
        {
            svg.Line("minor", frame.Across(value), frame.Top, frame.Across(value), frame.Bottom);
        }

        foreach (double value in frame.Y.Minor)
        {
            svg.Line("minor", frame.Left, frame.Up(value), frame.Right, frame.Up(value));
        }

        foreach (double value in frame.X.Major)
        {
            svg.Line("grid", frame.Across(value), frame.Top, frame.Across(value), frame.Bottom);
            svg.Text("text", X.Format(value), ("x", frame.Across(value)), ("y", frame.Bottom + 18), ("text-anchor", "middle"));
        }

        foreach (double value in frame.Y.Major)
        {
            svg.Line("grid", frame.Left, frame.Up(value), frame.Right, frame.Up(value));
            svg.Text("text", Y.Format(value), ("x", frame.Left - 8), ("y", frame.Up(value) + 4), ("text-anchor", "end"));
        }

        svg.Line("axis", frame.Left, frame.Bottom, frame.Right, frame.Bottom);
        svg.Line("axis", frame.Left, frame.Top, frame.Left, frame.Bottom);
        double middle = (frame.Top + frame.Bottom) / 2;
        svg.Text("text", X.Label, ("x", (frame.Left + frame.Right) / 2), ("y", frame.Bottom + 42), ("text-anchor", "middle"));
        string upwards = $"rotate(-90 16 {SvgWriter.Number(middle)})";
        svg.Text("text", Y.Label, ("x", 16), ("y", middle), ("text-anchor", "middle"), ("transform", upwards));
    }

    private static void WriteSeries(SvgWriter svg, Frame frame, Series series, Stroke stroke)
    {
        svg.Open("g", ("class", stroke.Class));
        svg.Text("title", series.Name);
        if (series.Points.Count > 1)
        {
            svg.Empty("polyline", ("points", SvgWriter.Points(series.Points.Select(p => (frame.Across(p.X), frame.Up(p.Y))))));
        }

        foreach (PlotPoint point in series.Points)
        {
            double across = frame.Across(point.X);
            if (point.Low is double low && point.High is double high && high > low)
            {
                svg.Line("error", across, frame.Up(low), across, frame.Up(high));
            }

            stroke.WriteMarker(svg, across, frame.Up(point.Y));
        }

        svg.Close();
    }

    private static void WriteLegendEntry(SvgWriter svg, double left, double middle, string name, Stroke stroke)
    {
        svg.Open("g", ("class", stroke.Class));
        svg.Line(null, left, middle, left + LegendSwatch - 8, middle);
        stroke.WriteMarker(svg, left + ((LegendSwatch - 8) / 2), middle);
        svg.Close();
        svg.Text("text", name, ("x", left + LegendSwatch), ("y", middle + 4));
    }

    /// <summary>The rectangle that the lines are drawn in, and where values lie in it.</summary>
    private sealed record Frame(double Left, double Top, double Right, double Bottom, AxisRange X, AxisRange Y)
    {
        public double Across(double value) => Left + ((Right - Left) * X.Place(value));

        public double Up(double value) => Bottom - ((Bottom - Top) * Y.Place(value));
    }
}
