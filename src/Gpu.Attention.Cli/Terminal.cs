using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using Spectre.Console;

namespace Gpu.Attention.Cli;

/// <summary>Where results and messages go: tables with lines and colours on a terminal, plain columns everywhere else.</summary>
internal sealed class Terminal
{
    private static readonly JsonSerializerOptions Json = new(JsonSerializerDefaults.Web)
    {
        // Results are read by programs and people, not embedded in HTML.
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
        Converters = { new JsonStringEnumConverter(new LowerCase()) },
    };

    private readonly TextWriter _output;
    private readonly TextWriter _error;
    private readonly bool _isTerminal;
    private readonly bool _isErrorTerminal;

    public Terminal(TextWriter output, TextWriter error)
    {
        (_output, _error) = (output, error);
        _isTerminal = ReferenceEquals(output, Console.Out) && !Console.IsOutputRedirected;
        _isErrorTerminal = ReferenceEquals(error, Console.Error) && !Console.IsErrorRedirected;
    }

    /// <summary>A line of results.</summary>
    public void WriteLine(string text) => _output.WriteLine(text);

    /// <summary>One result on one line of JSON.</summary>
    public void WriteJson<T>(T value)
    {
        _output.WriteLine(JsonSerializer.Serialize(value, Json));
        _output.Flush();
    }

    /// <summary>A table of results.</summary>
    public void WriteTable(IReadOnlyList<(string Title, bool IsNumber)> columns, IEnumerable<IReadOnlyList<string>> rows)
    {
        List<IReadOnlyList<string>> lines = [[.. columns.Select(c => c.Title)], .. rows];
        int[] widths = [.. columns.Select((_, i) => lines.Max(line => line[i].Length))];
        const int Frame = 3;
        IAnsiConsole? console = _isTerminal ? MakeConsole(_output) : null;
        if (console is null || widths.Sum(width => width + Frame) + 1 > console.Profile.Width)
        {
            WritePlain(lines, widths, [.. columns.Select(c => c.IsNumber)]);
            return;
        }

        var table = new Table { Border = TableBorder.Rounded };
        foreach ((string title, bool isNumber) in columns)
        {
            table.AddColumn(new TableColumn(new Text(title)) { Alignment = isNumber ? Justify.Right : Justify.Left });
        }

        foreach (IReadOnlyList<string> line in lines.Skip(1))
        {
            table.AddRow(line.Select(cell => new Text(cell)));
        }

        console.Write(table);
    }

    /// <summary>What the user should know although nothing went wrong.</summary>
    public void Note(string text) => _error.WriteLine(text);

    /// <summary>Why other devices ran what was asked of one, or it ran in smaller segments than planned.</summary>
    public void NoteFallbacks(IEnumerable<string> fallbacks)
    {
        foreach (string step in fallbacks)
        {
            Note($"fallback: {step}");
        }
    }

    /// <summary>What went wrong.</summary>
    public void Complain(string text)
    {
        string message = text.ReplaceLineEndings(" ").Trim();
        if (_isErrorTerminal)
        {
            MakeConsole(_error).MarkupLineInterpolated($"[red]gpu-attention:[/] {message}");
        }
        else
        {
            _error.WriteLine($"gpu-attention: {message}");
        }
    }

    /// <summary>Runs work under a line that says what is going on; silent when nobody is looking.</summary>
    /// <remarks>Nothing moves: what is timed has the machine for itself.</remarks>
    public T Busy<T>(string text, Func<T> work)
    {
        if (!_isErrorTerminal)
        {
            return work();
        }

        _error.Write($"{text} …");
        try
        {
            return work();
        }
        finally
        {
            _error.Write('\r' + new string(' ', text.Length + 2) + '\r');
        }
    }

    private static IAnsiConsole MakeConsole(TextWriter writer) => AnsiConsole.Create(new AnsiConsoleSettings
    {
        Out = new AnsiConsoleOutput(writer),
        ColorSystem = string.IsNullOrEmpty(Environment.GetEnvironmentVariable("NO_COLOR")) ? ColorSystemSupport.Detect : ColorSystemSupport.NoColors,
    });

    private void WritePlain(List<IReadOnlyList<string>> lines, int[] widths, bool[] isNumber)
    {
        foreach (IReadOnlyList<string> line in lines)
        {
            IEnumerable<string> cells = line.Select((cell, i) => isNumber[i] ? cell.PadLeft(widths[i]) : cell.PadRight(widths[i]));
            _output.WriteLine(string.Join("  ", cells).TrimEnd());
        }
    }

    // Kinds of devices are spelt as --device takes them.
    private sealed class LowerCase : JsonNamingPolicy
    {
        public override string ConvertName(string name) => string.Create(name.Length, name, (letters, text) => text.AsSpan().ToLowerInvariant(letters));
    }
}
