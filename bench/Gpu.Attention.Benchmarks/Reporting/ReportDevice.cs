namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>Opens what a report is about. Nothing takes over from it.</summary>
internal static partial class ReportDevice
{
    /// <summary>A processor's OpenCL driver, which the library refuses before version 4, but kernels can be measured on.</summary>
    public const string Pocl = "pocl";

    private static readonly ComputeDeviceOptions Options = new() { AllowFallback = false };

    /// <summary>Opens a device.</summary>
    /// <param name="id">What <see cref="ComputeDevice.Open(string, ComputeDeviceOptions?)"/> takes, or <see cref="Pocl"/>.</param>
    /// <exception cref="NotSupportedException">There is none.</exception>
    public static ComputeDevice Open(string id)
    {
        if (id != Pocl)
        {
            return ComputeDevice.Open(id, Options);
        }

        ComputeDevice? device = null;
        OpenPocl(ref device);
        return device ?? throw new NotSupportedException("There is no PoCL here, or this build has no device engine, since it was made without the ILGPU package.");
    }

    /// <summary>Opens the host's own engine.</summary>
    /// <param name="threads">The most threads that work at once; 0 for as many as there are cores.</param>
    public static ComputeDevice OpenHost(int threads = 0) => ComputeDevice.Open(DeviceKind.Cpu, Options with { MaxDegreeOfParallelism = threads });

    // Filled in by the build that has ILGPU.
    static partial void OpenPocl(ref ComputeDevice? device);
}
