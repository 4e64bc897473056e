namespace Gpu.Attention.Tests;

/// <summary>The README's example is compiled from the README itself (see the project file) and runs.</summary>
[Collection(nameof(AllocationTests))]
public sealed class ReadmeTests
{
    [Fact]
    public void The_example_runs_as_printed()
    {
        TextWriter console = Console.Out;
        using var written = new StringWriter();
        Console.SetOut(written);
        try
        {
            ReadmeSnippet.Run();
        }
        finally
        {
            Console.SetOut(console);
        }

        Assert.Contains("because it is", written.ToString(), StringComparison.Ordinal);
        Assert.DoesNotContain("NaN", written.ToString(), StringComparison.Ordinal);
    }
}
