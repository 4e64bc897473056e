using System.Text;

namespace Gpu.Attention.Samples.Book;

/// <summary>A table for the console and for Markdown. The first column holds names, the others numbers.</summary>
internal sealed class Table(params string[] header)
{
    private readonly List<string[]> _rows = [];

    public void Add(params string[] cells) => _rows.Add(cells);

    public string ToText() => Write("  ", "  ", "", isMarkdown: false);

    public string ToMarkdown() => Write("| ", " | ", " |", isMarkdown: true);

    private string Write(string start, string between, string end, bool isMarkdown)
    {
        int[] widths = [.. header.Select((_, column) => _rows.Append(header).Max(row => row[column].Length))];
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
