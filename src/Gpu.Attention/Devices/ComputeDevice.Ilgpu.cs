using ILGPU.Runtime;

namespace Gpu.Attention;

public sealed partial class ComputeDevice
{
    /// <summary>Attention on an accelerator of the caller's own, on a stream of the caller's own: for work that is on a device already.</summary>
    /// <param name="accelerator">
    /// The accelerator; it must outlive the device. Its context must have been built with <c>EnableAlgorithms()</c>; <c>OptimizationLevel.O2</c> makes
    /// the kernels several times as fast, and OpenCL devices without a generic address space need it.
    /// </param>
    /// <param name="stream">Where kernels go; null for the accelerator's default stream.</param>
    /// <param name="options">How the device is used.</param>
    public static ComputeDevice FromAccelerator(Accelerator accelerator, AcceleratorStream? stream = null, ComputeDeviceOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(accelerator);
        if (stream is not null && stream.Accelerator != accelerator)
        {
            throw new ArgumentException($"The stream belongs to {stream.Accelerator?.Name}, not to {accelerator.Name}.", nameof(stream));
        }

        DeviceInfo info = DeviceList.Describe(accelerator);
        return new ComputeDevice(
            "the caller's own accelerator",
            [
                new DeviceCandidate(info, () => new IlgpuRuntime(info, accelerator, stream ?? accelerator.DefaultStream)),
                DeviceList.Candidate(Enumerate().First(d => d.Kind == DeviceKind.Cpu), options),
            ],
            options);
    }
}
