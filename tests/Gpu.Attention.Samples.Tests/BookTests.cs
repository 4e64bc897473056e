using System.Xml.Linq;
using Gpu.Attention.Plotting;
using Gpu.Attention.Samples.Book;
using Xunit;

namespace Gpu.Attention.Samples.Tests;

/// <summary>The whole sample, once, at a size that takes seconds.</summary>
public sealed class SmallBookRun : IDisposable
{
    public SmallBookRun()
    {
        // Small enough for builds without optimisation, whose arithmetic is slow.
        var options = new BookOptions
        {
            ExactSeconds = 1,
            Prefix = 4_096,
            Length = 10_000,
            LongestCall = 1_024,
            Features = [32, 256],
            Output = Directory.CreateTempSubdirectory("gpu-attention-book-").FullName,
        };
        Results = new BookRun(options, Book, Console, isTerminal: false).Run();
    }

    internal static Corpus Book { get; } = Corpus.Load(Path.Combine(AppContext.BaseDirectory, "moby-dick.txt"));

    internal BookResults Results { get; }

    internal StringWriter Console { get; } = new();

    internal string PathOf(string file) => Path.Combine(Results.Options.Output, file);

    public void Dispose()
    {
        Directory.Delete(Results.Options.Output, recursive: true);
        Console.Dispose();
    }
}

public sealed class BookTests(SmallBookRun run) : IClassFixture<SmallBookRun>
{
    [Fact]
    public void Corpus_IsTheBook()
    {
        Assert.Equal(1_189_652, SmallBookRun.Book.Length);
        Assert.Equal(81, SmallBookRun.Book.Alphabet.Length);
        Assert.Contains('—', SmallBookRun.Book.Alphabet);
    }

    [Fact]
    public void Methods_StandInTheOrderThatTheReportExplains()
    {
        double[] bits = [.. run.Results.Comparison.Select(p => p.BitsPerCharacter)];
        (double uniform, double elu, double few, double many, double exact) = (bits[0], bits[1], bits[2], bits[3], bits[4]);

        Assert.True(uniform < Math.Log2(81), "frequencies beat a blind guess");
        Assert.True(elu <= uniform, "elu+1 is no worse than uniform weights");
        Assert.True(few < uniform, "random features beat uniform weights");
        Assert.True(many < few + 0.05, "more random features are no worse, but for the luck of the draw");
        Assert.True(exact < many && exact < uniform - 0.3, "exact attention at the same temperature is best, and clearly so");
    }

    [Fact]
    public void ExactAttention_GainsMostFromSharperAttention()
    {
        double[] lowest = [.. run.Results.TemperatureCurves.Select(c => c.Spreads.Min(s => s.Mean))];

        Assert.All(lowest.Skip(1), bits => Assert.True(lowest[0] < bits - 0.2));
    }

    [Fact]
    public void WholeBook_IsReadToItsEnd() => Assert.All(run.Results.WholeBook, pass => Assert.Equal(10_000, pass.Length));

    [Theory]
    [InlineData("time-vs-length.svg")]
    [InlineData("bits-vs-temperature.svg")]
    public void Picture_IsWellFormedAndLinkedFromTheReport(string file)
    {
        XElement root = XElement.Load(run.PathOf(file));

        Assert.Equal("svg", root.Name.LocalName);
        Assert.NotNull(root.Attribute("viewBox"));
        Assert.Contains($"({file})", File.ReadAllText(run.PathOf("report.md")), StringComparison.Ordinal);
    }

    [Fact]
    public void ReportAndConsole_SayTheSameNumbers()
    {
        string[] report = File.ReadAllLines(run.PathOf("report.md"));
        string[] console = run.Console.ToString().Split('\n');

        foreach (PassResult pass in run.Results.Comparison.Concat(run.Results.WholeBook))
        {
            string bits = Numbers.Bits(pass.BitsPerCharacter);
            Assert.Contains(report, IsRow);
            Assert.Contains(console, IsRow);

            bool IsRow(string line) => line.Contains(pass.Method.Name, StringComparison.Ordinal) && line.Contains(bits, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void ConsoleText_FitsNinetyColumns() =>
        Assert.DoesNotContain(run.Console.ToString().Split('\n').TakeWhile(l => !l.StartsWith("Written:", StringComparison.Ordinal)), l => l.Length > 90);
}
