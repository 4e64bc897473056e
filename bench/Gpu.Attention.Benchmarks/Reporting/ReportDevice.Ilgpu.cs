using ILGPU.Runtime.OpenCL;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <content>PoCL, by the work-around that the tests use.</content>
internal static partial class ReportDevice
{
    static partial void OpenPocl(ref ComputeDevice? device)
    {
        // Drivers under names that ILGPU does not try are found by this.
        ComputeDevice.Enumerate();
        ILGPU.Context context = Kernels.Tests.Pocl.Context.Value;
        foreach (CLDevice found in context.GetCLDevices())
        {
            // The accelerator lives as long as the process.
            device = ComputeDevice.FromAccelerator(found.CreateAccelerator(context), options: Options);
            return;
        }
    }
}
