using System.Globalization;
using System.Text;

namespace Gpu.Attention.Plotting;

/// <summary>Writes SVG elements one a line, escaped, with numbers the same in every culture.</summary>
internal sealed class SvgWriter
{
    private readonly StringBuilder _text = new();
    private readonly Stack<string> _open = new();

    /// <summary>A coordinate, to a hundredth of a unit.</summary>
    public static string Number(double value) => (Math.Round(value, 2) + 0.0).ToString("0.##", CultureInfo.InvariantCulture);

    /// <summary>The corners of a line or polygon.</summary>
    public static string Points(IEnumerable<(double X, double Y)> corners) =>
        string.Join(' ', corners.Select(c => $"{Number(c.X)},{Number(c.Y)}"));

    public void Open(string name, params (string Name, object Value)[] attributes)
    {
        Start(name, attributes).Append(">\n");
        _open.Push(name);
    }

    public void Close()
    {
        string name = _open.Pop();
        Indent().Append("</").Append(name).Append(">\n");
    }

    public void Empty(string name, params (string Name, object Value)[] attributes) => Start(name, attributes).Append("/>\n");

    public void Text(string name, string text, params (string Name, object Value)[] attributes) =>
        Start(name, attributes).Append('>').Append(Escape(text)).Append("</").Append(name).Append(">\n");

    public void Line(string? className, double x1, double y1, double x2, double y2)
    {
        (string, object)[] ends = [("x1", x1), ("y1", y1), ("x2", x2), ("y2", y2)];
        Empty("line", className is null ? ends : [("class", className), .. ends]);
    }

    public override string ToString() => _text.ToString();

    private static string Escape(string text) =>
        text.Replace("&", "&amp;", StringComparison.Ordinal)
            .Replace("<", "&lt;", StringComparison.Ordinal)
            .Replace(">", "&gt;", StringComparison.Ordinal)
            .Replace("\"", "&quot;", StringComparison.Ordinal);

    private StringBuilder Start(string name, (string Name, object Value)[] attributes)
    {
        Indent().Append('<').Append(name);
        foreach ((string attribute, object value) in attributes)
        {
            string text = value is string s ? s : Number(Convert.ToDouble(value, CultureInfo.InvariantCulture));
            _text.Append(' ').Append(attribute).Append("=\"").Append(Escape(text)).Append('"');
        }

        return _text;
    }

    private StringBuilder Indent() => _text.Append(' ', 2 * _open.Count);
}
