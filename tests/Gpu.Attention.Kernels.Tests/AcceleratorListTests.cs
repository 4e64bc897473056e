using ILGPU.Runtime;

namespace Gpu.Attention.Kernels.Tests;

public class AcceleratorListTests
{
    [Fact]
    public void Every_device_is_described()
    {
        Assert.All(AcceleratorList.Devices, device =>
        {
            Assert.False(string.IsNullOrWhiteSpace(device.Name));
            Assert.False(device.Refusal is not null && string.IsNullOrWhiteSpace(device.Refusal));
            Assert.True(device.MemoryBytes > 0);
            Assert.True(device.ComputeUnits > 0);
            Assert.True(device.MaxGroupSize > 0);
            Assert.True(device.SharedMemoryBytes > 0);
            Assert.True(device.WarpSize > 0);
        });
    }

    [Fact]
    public void There_is_one_usable_simulator()
    {
        AcceleratorDescription simulator = Assert.Single(AcceleratorList.Devices, d => d.Type == AcceleratorType.CPU);
        Assert.Null(simulator.Refusal);
        Assert.False(simulator.IsGpu);
        using Accelerator accelerator = simulator.Device.CreateAccelerator(AcceleratorList.Context);
        Assert.Equal(simulator.MaxGroupSize, accelerator.MaxNumThreadsPerGroup);
    }

    [Theory]
    [InlineData(AcceleratorType.Cuda)]
    [InlineData(AcceleratorType.OpenCL)]
    public void A_missing_kind_has_a_reason(AcceleratorType type)
    {
        Assert.SkipWhen(AcceleratorList.Devices.Any(d => d.Type == type), "This machine has such a device.");
        string reason = AcceleratorList.WhyNone(type);
        Assert.False(string.IsNullOrWhiteSpace(reason));
        TestContext.Current.SendDiagnosticMessage($"{type}: {reason}");
    }

    [Fact]
    public void The_context_has_the_devices_that_are_not_refused() =>
        Assert.Equal(
            AcceleratorList.Devices.Where(d => d.Refusal is null).Select(d => d.Device),
            AcceleratorList.Context.Devices);
}
