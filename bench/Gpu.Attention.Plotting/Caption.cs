namespace Gpu.Attention.Plotting;

/// <summary>Lines of small text under a chart, broken where they would leave it.</summary>
internal sealed class Caption
{
    private const double LineHeight = 16;
    private const double CharacterWidth = 5.9;
    private const double Left = 12;

    private readonly List<string> _lines = [];

    public Caption(IEnumerable<string> paragraphs, int width)
    {
        int columns = (int)((width - (2 * Left)) / CharacterWidth);
        foreach (string paragraph in paragraphs)
        {
            string line = "";
            foreach (string word in paragraph.Split(' ', StringSplitOptions.RemoveEmptyEntries))
            {
                if (line.Length > 0 && line.Length + 1 + word.Length > columns)
                {
                    _lines.Add(line);
                    line = "";
                }

                line += line.Length == 0 ? word : " " + word;
            }

            _lines.Add(line);
        }
    }

    /// <summary>What the lines add to the height of the picture.</summary>
    public double Height => _lines.Count == 0 ? 0 : (_lines.Count * LineHeight) + 8;

    public void Write(SvgWriter svg, double top)
    {
        for (int i = 0; i < _lines.Count; i++)
        {
            svg.Text("text", _lines[i], ("class", "caption"), ("x", Left), ("y", top + ((i + 1) * LineHeight)));
        }
    }
}
