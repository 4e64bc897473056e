using System.Text;

namespace Gpu.Attention.Plotting;

/// <summary>Colours that stay apart for colour-blind readers, on light and on dark ground.</summary>
/// <remarks>
/// M. Okabe and K. Ito, "Color Universal Design" (2008); without black, and yellow last, since either vanishes on one of the grounds.
/// </remarks>
internal static class Palette
{
    public static readonly string[] Colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"];

    /// <summary>Classes <c>s0</c>, <c>s1</c>, … for series and <c>ref</c> for references.</summary>
    public static string StyleSheet { get; } = Write();

    private static string Write()
    {
        var css = new StringBuilder();
        css.Append("text{font:12px system-ui,\"Segoe UI\",\"DejaVu Sans\",sans-serif;fill:#24292f}");
        css.Append(".heading{font-size:14px;font-weight:600}.caption{font-size:11px}");
        css.Append(".bar{stroke:none}");
        css.Append("line,polyline{fill:none;stroke-width:2;stroke-linejoin:round}");
        css.Append("line.axis{stroke:#57606a;stroke-width:1}line.grid{stroke:#8c959f;stroke-opacity:.35;stroke-width:1}");
        css.Append("line.minor{stroke:#8c959f;stroke-opacity:.15;stroke-width:1}line.error{stroke-width:1;stroke-dasharray:none}");
        css.Append(".ref{stroke:#57606a;stroke-dasharray:5 4}");
        for (int i = 0; i < Colors.Length; i++)
        {
            css.Append(System.Globalization.CultureInfo.InvariantCulture, $".s{i}{{stroke:{Colors[i]}}}.s{i} .dot,.s{i} .bar{{fill:{Colors[i]}}}");
        }

        css.Append("@media(prefers-color-scheme:dark){text{fill:#e6edf3}line.axis,.ref{stroke:#b1bac4}}");
        return css.ToString();
    }
}

/// <summary>How one series is drawn: its class in the style sheet and the shape of its markers.</summary>
internal sealed record Stroke(string Class, int Shape)
{
    private const double Radius = 3.6;

    public static Stroke Reference { get; } = new("ref", -1);

    public static Stroke Number(int index) => new($"s{index % Palette.Colors.Length}", index % 4);

    public void WriteMarker(SvgWriter svg, double x, double y)
    {
        const double R = Radius;
        switch (Shape)
        {
            case 0:
                svg.Empty("circle", ("class", "dot"), ("cx", x), ("cy", y), ("r", R));
                break;
            case 1:
                svg.Empty("rect", ("class", "dot"), ("x", x - R), ("y", y - R), ("width", 2 * R), ("height", 2 * R));
                break;
            case 2:
                Polygon(svg, (x, y - (1.3 * R)), (x + (1.2 * R), y + R), (x - (1.2 * R), y + R));
                break;
            case 3:
                Polygon(svg, (x, y - (1.4 * R)), (x + (1.4 * R), y), (x, y + (1.4 * R)), (x - (1.4 * R), y));
                break;
        }
    }

    private static void Polygon(SvgWriter svg, params (double X, double Y)[] corners) =>
        svg.Empty("polygon", ("class", "dot"), ("points", SvgWriter.Points(corners)));
}
