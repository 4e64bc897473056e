using System.Globalization;
using System.Xml.Linq;
using Gpu.Attention.Plotting;
using Xunit;

namespace Gpu.Attention.Samples.Tests;

public sealed class LineChartTests
{
    private static readonly XNamespace Svg = "http://www.w3.org/2000/svg";

    [Fact]
    public void Chart_HasTitleDescriptionAndViewBox()
    {
        XElement root = Parse(Chart(new Series("one", [new(1, 1), new(2, 4)])) with { Description = "What it shows." });

        Assert.Equal("0 0 760 420", root.Attribute("viewBox")!.Value);
        Assert.Equal("a chart", root.Element(Svg + "title")!.Value);
        Assert.Equal("What it shows.", root.Element(Svg + "desc")!.Value);
    }

    [Fact]
    public void Names_AreEscaped()
    {
        const string Name = "a < b & \"c\"";

        XElement root = Parse(Chart(new Series(Name, [new(1, 1), new(2, 4)])));

        Assert.Contains(root.Elements(Svg + "text"), text => text.Value == Name);
    }

    [Fact]
    public void Text_IsTheSameInEveryCulture()
    {
        LineChart chart = Chart(new Series("one", [new(0.5, 1.25), new(2.75, 4.125, 3.5, 4.5)]));
        string expected = chart.ToSvg();
        CultureInfo before = CultureInfo.CurrentCulture;
        try
        {
            var commas = (CultureInfo)CultureInfo.InvariantCulture.Clone();
            (commas.NumberFormat.NumberDecimalSeparator, commas.NumberFormat.NegativeSign) = (",", "minus");
            CultureInfo.CurrentCulture = commas;

            Assert.Equal(expected, chart.ToSvg());
        }
        finally
        {
            CultureInfo.CurrentCulture = before;
        }
    }

    [Fact]
    public void LogarithmicAxes_PlaceEqualRatiosAtEqualDistances()
    {
        LineChart chart = Chart(new Series("one", [new(1, 1), new(10, 10), new(100, 100)])) with
        {
            X = new Axis("x", AxisScale.Logarithmic),
            Y = new Axis("y", AxisScale.Logarithmic),
        };

        (double X, double Y)[] points = Corners(Parse(chart));

        Assert.Equal(points[1].X - points[0].X, points[2].X - points[1].X, 0.02);
        Assert.Equal(points[1].Y - points[0].Y, points[2].Y - points[1].Y, 0.02);
        Assert.True(points[2].X > points[0].X, "larger x lies to the right");
        Assert.True(points[2].Y < points[0].Y, "larger y lies higher up");
    }

    [Fact]
    public void LogarithmicAxis_RefusesZero()
    {
        LineChart chart = Chart(new Series("one", [new(1, 0), new(2, 4)])) with { Y = new Axis("y", AxisScale.Logarithmic) };

        Assert.Throws<ArgumentException>(chart.ToSvg);
    }

    [Theory]
    [InlineData(0, 1, "0 0.2 0.4 0.6 0.8 1")]
    [InlineData(3.175, 4.469, "3 3.5 4 4.5")]
    [InlineData(-7, 23, "-10 0 10 20 30")]
    [InlineData(5, 5, "5 6")]
    public void LinearTicks_AreRoundAndCoverTheValues(double low, double high, string expected)
    {
        LineChart chart = Chart(new Series("one", [new(1, low), new(2, high)]));

        Assert.Equal(expected, string.Join(' ', TickLabels(chart, "end")));
    }

    [Theory]
    [InlineData(256, 1_189_652, "1k 10k 100k 1M")]
    [InlineData(1.5, 24, "1 2 5 10 20 50")]
    [InlineData(1, 10, "1 2 5 10")]
    public void LogarithmicTicks_AreDecadesWhereThereAreEnough(double low, double high, string expected)
    {
        LineChart chart = Chart(new Series("one", [new(low, 1), new(high, 2)])) with
        {
            X = new Axis("x", AxisScale.Logarithmic) { Format = TickFormat.Count },
        };

        Assert.Equal(expected, string.Join(' ', TickLabels(chart, "middle").SkipLast(2)));
    }

    [Fact]
    public void ErrorBars_AreDrawnWhereThereIsARange()
    {
        XElement root = Parse(Chart(new Series("one", [new(1, 1, 0.5, 1.5), new(2, 4), new(3, 4, 4, 4)])));

        Assert.Single(root.Descendants(Svg + "line"), line => line.Attribute("class")?.Value == "error");
    }

    [Fact]
    public void Reference_TakesNoColourAndNoMarkers()
    {
        XElement root = Parse(Chart(
            new Series("floor", [new(1, 1), new(2, 1)]) { IsReference = true },
            new Series("one", [new(1, 1), new(2, 4)])));

        XElement[] groups = [.. root.Elements(Svg + "g")];
        Assert.Equal("ref", groups[0].Attribute("class")!.Value);
        Assert.Empty(groups[0].Descendants(Svg + "circle"));
        Assert.Contains(groups, g => g.Attribute("class")!.Value == "s0" && g.Descendants(Svg + "circle").Count() == 2);
    }

    [Fact]
    public void EmptyChart_IsStillAChart() => Assert.NotNull(Parse(Chart()));

    [Theory]
    [InlineData(0, "0 s")]
    [InlineData(2e-7, "200 ns")]
    [InlineData(1e-5, "10 µs")]
    [InlineData(0.5, "500 ms")]
    [InlineData(100, "100 s")]
    public void Seconds_TakeTheUnitThatSuits(double value, string expected) => Assert.Equal(expected, TickFormat.Seconds(value));

    private static LineChart Chart(params Series[] series) => new("a chart", new Axis("x"), new Axis("y"), series);

    private static XElement Parse(LineChart chart) => XElement.Parse(chart.ToSvg());

    private static IEnumerable<string> TickLabels(LineChart chart, string anchor) =>
        Parse(chart).Elements(Svg + "text").Where(t => t.Attribute("text-anchor")?.Value == anchor).Select(t => t.Value);

    private static (double X, double Y)[] Corners(XElement root) =>
        [.. root.Descendants(Svg + "polyline").Single().Attribute("points")!.Value.Split(' ').Select(p => p.Split(','))
            .Select(p => (double.Parse(p[0], CultureInfo.InvariantCulture), double.Parse(p[1], CultureInfo.InvariantCulture)))];
}
