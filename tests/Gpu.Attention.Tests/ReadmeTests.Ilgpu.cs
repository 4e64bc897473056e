namespace Gpu.Attention.Tests;

public sealed partial class ReadmeTests
{
    [Fact]
    public void The_example_of_an_own_accelerator_runs_as_printed() => Assert.Empty(Run(ReadmeOwnAccelerator.Run));
}
