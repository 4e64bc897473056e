using ILGPU.Runtime;

namespace Gpu.Attention;

internal static partial class DeviceList
{
    private const string NoAttentionKernels = "attention kernels are not part of this version; the host engine runs instead";

    static partial void AddAccelerators(List<DeviceInfo> devices)
    {
        foreach (IGrouping<AcceleratorType, AcceleratorDescription> kind in AcceleratorList.Devices.GroupBy(d => d.Type))
        {
            devices.AddRange(kind.Select(Describe));
        }
    }

    static partial void ExplainMissing(DeviceKind kind, ref string? reason) => reason = kind switch
    {
        DeviceKind.Cuda => AcceleratorList.WhyNone(AcceleratorType.Cuda),
        DeviceKind.OpenCL => AcceleratorList.WhyNone(AcceleratorType.OpenCL),
        DeviceKind.Simulator => AcceleratorList.WhyNone(AcceleratorType.CPU),
        _ => reason,
    };

    private static DeviceInfo Describe(AcceleratorDescription accelerator, int index) => new()
    {
        Kind = accelerator.Type switch
        {
            AcceleratorType.Cuda => DeviceKind.Cuda,
            AcceleratorType.OpenCL => DeviceKind.OpenCL,
            _ => DeviceKind.Simulator,
        },
        Index = index,
        Name = accelerator.Name,
        MemoryBytes = accelerator.MemoryBytes,
        ComputeUnits = accelerator.ComputeUnits,
        MaxGroupSize = accelerator.MaxGroupSize,
        SharedMemoryBytes = accelerator.SharedMemoryBytes,
        WarpSize = accelerator.WarpSize,
        Capabilities = accelerator.Capabilities,
        Refusal = accelerator.Refusal ?? RefuseAsProcessor(accelerator) ?? NoAttentionKernels,
    };

    private static string? RefuseAsProcessor(AcceleratorDescription accelerator) =>
        accelerator is { Type: AcceleratorType.OpenCL, IsGpu: false } ? "it is not a GPU; the host engine is the one for processors" : null;
}
