using System.Text;

namespace Gpu.Attention.Plotting;

/// <summary>A table for the console and for Markdown. The first column holds names, the others numbers.</summary>
public sealed class Table(params string[] header)
{
    private readonly List<string[]> _rows = [];

    /// <summary>Adds a row of as many cells as the header has.</summary>
    public void Add(params string[] cells) => _rows.Add(cells);

    /// <summary>For the console.</summary>
    public string ToText() => Write("  ", "  ", "", isMarkdown: false);

    /// <summary>For Markdown.</summary>
    public string ToMarkdown() => Write("| ", " | ", " |", isMarkdown: true);

    private string Write(string start, string between, string end, bool isMarkdown)
    {
        // A hyphen and a colon say in Markdown that a column holds numbers.
        const int Narrowest = 2;
        int[] widths = [.. header.Select((_, column) => Math.Max(Narrowest, _rows.Append(header).Max(row => row[column].Length)))];
        var text = new StringBuilder();
        Line(header);
        Line([.. widths.Select((width, column) => isMarkdown && column > 0 ? new string('-', width - 1) + ":" : new string('-', width))]);
        _rows.ForEach(Line);
        return text.ToString();

        void Line(string[] cells)
        {
            IEnumerable<string> padded = cells.Select((cell, column) => column == 0 ? cell.PadRight(widths[0]) : cell.PadLeft(widths[column]));
            text.Append(start).AppendJoin(between, padded).Append(end).Append('\n');
        }
    }
}
