using Gpu.Attention.Samples.Devices;
using Xunit;

namespace Gpu.Attention.Samples.Tests;

public sealed class DevicesTests
{
    [Fact]
    public void EveryDevice_AgreesWithTheHostOrSaysWhyNot()
    {
        using var console = new StringWriter();

        Assert.True(new DevicesRun(console).Run(), console.ToString());

        string[] lines = console.ToString().Split('\n');
        Assert.All(ComputeDevice.Enumerate(), device => Assert.Contains(lines, line => line.StartsWith($"{device.Id}, ", StringComparison.Ordinal)));
        Assert.Equal(ComputeDevice.Enumerate().Count(d => d.IsUsable), lines.Count(line => line.Contains("two layers", StringComparison.Ordinal)));
        Assert.DoesNotContain(lines, line => line.Contains("fallback", StringComparison.Ordinal));
        if (ComputeDevice.Enumerate().All(d => d.Kind == DeviceKind.Cpu))
        {
            Assert.Equal(3, lines.Count(line => line.Contains("made without the ILGPU package", StringComparison.Ordinal)));
        }
    }
}
