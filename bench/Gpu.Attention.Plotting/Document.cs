using System.Text;

namespace Gpu.Attention.Plotting;

/// <summary>A part of the report that is written to the console and, the same, to Markdown.</summary>
public sealed class Document(string heading)
{
    private const int Columns = 88;

    private readonly List<object> _blocks = [];

    /// <summary>Adds a paragraph; where its lines end does not matter.</summary>
    public Document Say(string paragraph) => Add(paragraph);

    /// <summary>Adds a table.</summary>
    public Document Show(Table table) => Add(table);

    /// <summary>Adds a picture; the console leaves it out.</summary>
    public Document Show(Picture picture) => Add(picture);

    /// <summary>For the console.</summary>
    public string ToText()
    {
        var text = new StringBuilder();
        text.Append(heading).Append('\n').Append('=', heading.Length).Append('\n');
        foreach (object block in _blocks.Where(b => b is not Picture))
        {
            text.Append(block is Table table ? table.ToText() : Wrap((string)block)).Append('\n');
        }

        return text.ToString();
    }

    /// <summary>For Markdown, with a heading of a level.</summary>
    public string ToMarkdown(int level)
    {
        var text = new StringBuilder();
        text.Append('#', level).Append(' ').Append(heading).Append("\n\n");
        foreach (object block in _blocks)
        {
            text.Append(block switch
            {
                Table table => table.ToMarkdown(),
                Picture picture => $"![{picture.Text}]({picture.File})\n",
                _ => Wrap((string)block),
            }).Append('\n');
        }

        return text.ToString();
    }

    private static string Wrap(string paragraph)
    {
        var text = new StringBuilder();
        int column = 0;
        foreach (string word in paragraph.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries))
        {
            bool fits = column + 1 + word.Length <= Columns;
            text.Append(column == 0 ? "" : fits ? " " : "\n").Append(word);
            column = column == 0 || !fits ? word.Length : column + 1 + word.Length;
        }

        return text.Append('\n').ToString();
    }

    private Document Add(object block)
    {
        _blocks.Add(block);
        return this;
    }
}

/// <summary>A picture beside the report.</summary>
/// <param name="Text">What it shows, for those who cannot see it.</param>
/// <param name="File">Its file name.</param>
public sealed record Picture(string Text, string File);
