namespace Gpu.Attention.Tests;

/// <summary>The README's examples are compiled from the README itself (see the project file) and run.</summary>
[Collection(nameof(AllocationTests))]
public sealed partial class ReadmeTests
{
    [Fact]
    public void The_example_runs_as_printed() => Assert.Contains("because it is", Run(ReadmeExample.Run), StringComparison.Ordinal);

    [Fact]
    public void The_example_of_sequences_runs_as_printed() => Assert.Contains("state [2, 4, 128, 32]", Run(ReadmeSequences.Run), StringComparison.Ordinal);

    [Fact]
    public void The_example_of_gradients_runs_as_printed() => Assert.Contains("bytes of scratch memory", Run(ReadmeGradients.Run), StringComparison.Ordinal);

    [Fact]
    public void The_example_of_device_tensors_runs_as_printed() => Assert.Contains("bytes at most", Run(ReadmeDeviceTensors.Run), StringComparison.Ordinal);

    private static string Run(Action example)
    {
        TextWriter console = Console.Out;
        using var written = new StringWriter();
        Console.SetOut(written);
        try
        {
            example();
        }
        finally
        {
            Console.SetOut(console);
        }

        Assert.DoesNotContain("NaN", written.ToString(), StringComparison.Ordinal);
        return written.ToString();
    }
}
