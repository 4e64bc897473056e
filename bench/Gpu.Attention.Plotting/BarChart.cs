namespace Gpu.Attention.Plotting;

/// <summary>The bars of one colour.</summary>
/// <param name="Name">Its name in the legend.</param>
/// <param name="Values">A value for each category; null for no bar.</param>
public sealed record BarSeries(string Name, IReadOnlyList<double?> Values);

/// <summary>A chart of horizontal bars in groups, each with its value written out, as SVG text.</summary>
/// <remarks>Colours, grounds and text are those of <see cref="LineChart"/>. The bars start at zero.</remarks>
/// <param name="Title">The heading, and the picture's accessible name.</param>
/// <param name="Categories">The names of the groups, from the top.</param>
/// <param name="Value">The axis along which bars reach.</param>
/// <param name="Series">The bars of a group, from the top.</param>
public sealed record BarChart(string Title, IReadOnlyList<string> Categories, Axis Value, IReadOnlyList<BarSeries> Series)
{
    private const double Top = 44;
    private const double Bottom = 56;
    private const double Bar = 13;
    private const double Gap = 11;
    private const double LegendSwatch = 22;
    private const double LegendLine = 22;
    private const double CharacterWidth = 6.9;

    /// <summary>What the chart shows, for those who cannot see it.</summary>
    public string Description { get; init; } = "";

    /// <summary>Lines under the chart: where it was measured, and with which command.</summary>
    public IReadOnlyList<string> Caption { get; init; } = [];

    /// <summary>The width in user units.</summary>
    public int Width { get; init; } = 760;

    /// <summary>Writes the chart.</summary>
    public string ToSvg()
    {
        double[] values = [.. Series.SelectMany(s => s.Values).OfType<double>()];
        var axis = new AxisRange(Value with { Scale = AxisScale.Linear, Minimum = 0 }, values);
        double group = (Series.Count * Bar) + Gap;
        double bottom = Top + (Categories.Count * group);
        double height = Math.Max(bottom, Top + (Series.Count * LegendLine)) + Bottom;
        double left = 24 + (CharacterWidth * Categories.Select(c => c.Length).DefaultIfEmpty(0).Max());
        double right = Width - (LegendSwatch + (CharacterWidth * Series.Select(s => s.Name.Length).DefaultIfEmpty(0).Max()) + 64);
        var caption = new Caption(Caption, Width);

        var svg = new SvgWriter();
        svg.Open("svg", ("xmlns", "http://www.w3.org/2000/svg"), ("viewBox", $"0 0 {Width} {SvgWriter.Number(height + caption.Height)}"), ("role", "img"));
        svg.Text("title", Title);
        svg.Text("desc", Description.Length > 0 ? Description : $"{Value.Label} of {string.Join(", ", Categories)}.");
        svg.Text("style", Palette.StyleSheet);
        svg.Text("text", Title, ("class", "heading"), ("x", left), ("y", 24));
        foreach (double tick in axis.Major)
        {
            svg.Line("grid", Across(tick), Top, Across(tick), bottom);
            svg.Text("text", Value.Format(tick), ("x", Across(tick)), ("y", bottom + 18), ("text-anchor", "middle"));
        }

        for (int category = 0; category < Categories.Count; category++)
        {
            double top = Top + (category * group) + (Gap / 2);
            svg.Text("text", Categories[category], ("x", left - 8), ("y", top + (Series.Count * Bar / 2) + 4), ("text-anchor", "end"));
            for (int series = 0; series < Series.Count; series++)
            {
                if (Series[series].Values[category] is { } value)
                {
                    double y = top + (series * Bar);
                    svg.Open("g", ("class", Stroke.Number(series).Class));
                    svg.Empty("rect", ("class", "bar"), ("x", left), ("y", y + 1), ("width", Math.Max(0, Across(value) - left)), ("height", Bar - 2));
                    svg.Close();
                    svg.Text("text", Value.Format(value), ("class", "caption"), ("x", Across(value) + 4), ("y", y + Bar - 3));
                }
            }
        }

        svg.Line("axis", left, Top, left, bottom);
        svg.Text("text", Value.Label, ("x", (left + right) / 2), ("y", bottom + 42), ("text-anchor", "middle"));
        for (int series = 0; series < Series.Count; series++)
        {
            double y = Top + (series * LegendLine);
            svg.Open("g", ("class", Stroke.Number(series).Class));
            svg.Empty("rect", ("class", "bar"), ("x", right + 48), ("y", y), ("width", LegendSwatch - 8), ("height", Bar));
            svg.Close();
            svg.Text("text", Series[series].Name, ("x", right + 48 + LegendSwatch), ("y", y + 11));
        }

        caption.Write(svg, height);
        svg.Close();
        return svg.ToString();

        double Across(double value) => left + ((right - left) * axis.Place(value));
    }
}
