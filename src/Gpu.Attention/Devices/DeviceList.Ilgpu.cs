using ILGPU.Runtime;

namespace Gpu.Attention;

internal static partial class DeviceList
{
    private static readonly Lock OpenedLock = new();
    private static readonly Dictionary<Device, IlgpuRuntime> Opened = [];

    /// <summary>What is known of a caller's own accelerator.</summary>
    public static DeviceInfo Describe(Accelerator accelerator) => new()
    {
        Kind = KindOf(accelerator.AcceleratorType),
        Name = accelerator.Name,
        MemoryBytes = accelerator.MemorySize,
        ComputeUnits = accelerator.NumMultiprocessors,
        MaxGroupSize = accelerator.MaxNumThreadsPerGroup,
        SharedMemoryBytes = accelerator.MaxSharedMemoryPerGroup,
        WarpSize = Math.Max(1, accelerator.WarpSize),
        Capabilities = "the caller's own",
    };

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

    // Opened once a process: kernels are compiled for an accelerator, and drivers do not like contexts that come and go.
    static partial void OpenAccelerator(DeviceInfo info, ref DeviceRuntime? runtime)
    {
        Device device = AcceleratorList.Devices.Where(d => KindOf(d.Type) == info.Kind).ElementAt(info.Index).Device;
        lock (OpenedLock)
        {
            if (!Opened.TryGetValue(device, out IlgpuRuntime? opened))
            {
                opened = new IlgpuRuntime(info, device.CreateAccelerator(AcceleratorList.Context), computeStream: null);
                Opened.Add(device, opened);
            }

            runtime = opened;
        }
    }

    private static DeviceKind KindOf(AcceleratorType type) => type switch
    {
        AcceleratorType.Cuda => DeviceKind.Cuda,
        AcceleratorType.OpenCL => DeviceKind.OpenCL,
        _ => DeviceKind.Simulator,
    };

    private static DeviceInfo Describe(AcceleratorDescription accelerator, int index) => new()
    {
        Kind = KindOf(accelerator.Type),
        Index = index,
        Name = accelerator.Name,
        MemoryBytes = accelerator.MemoryBytes,
        ComputeUnits = accelerator.ComputeUnits,
        MaxGroupSize = accelerator.MaxGroupSize,
        SharedMemoryBytes = accelerator.SharedMemoryBytes,
        WarpSize = accelerator.WarpSize,
        Capabilities = accelerator.Capabilities,
        Refusal = accelerator.Refusal,

        // The host's engine is the one for processors.
        OnlyWhenAskedFor = !accelerator.IsGpu,
    };
}
