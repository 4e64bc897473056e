using ILGPU;
using ILGPU.Backends.OpenCL;
using ILGPU.Backends.PTX;
using ILGPU.Runtime;
using ILGPU.Runtime.CPU;
using ILGPU.Runtime.Cuda;
using ILGPU.Runtime.OpenCL;

namespace Gpu.Attention;

/// <summary>The process's one ILGPU context, and the devices found when it was made, on first use.</summary>
/// <remarks>
/// One context a process, and never disposed: disposing contexts under threads that still finalise kernels has crashed drivers.
/// Reading <see cref="Devices"/> and <see cref="WhyNone"/> never throws; what goes wrong becomes a reason.
/// </remarks>
internal static class AcceleratorList
{
    /// <summary>The shared memory that kernels are written for; the simulator itself has no limit.</summary>
    private const int SimulatedSharedMemoryBytes = 48 * 1024;

    private static readonly Lazy<Discovery> Found = new(Discover);

    /// <summary>The context that accelerators are created in.</summary>
    /// <exception cref="NotSupportedException">ILGPU cannot run in this process; the message says why.</exception>
    public static Context Context => Found.Value.Context ?? throw new NotSupportedException(Found.Value.Failure);

    /// <summary>CUDA devices, then OpenCL devices, then the simulator; refused devices among them.</summary>
    public static IReadOnlyList<AcceleratorDescription> Devices => Found.Value.Devices;

    /// <summary>Why no device of a type was found.</summary>
    /// <param name="type">A type that <see cref="Devices"/> does not have.</param>
    public static string WhyNone(AcceleratorType type) => Found.Value.Failure ?? type switch
    {
        AcceleratorType.Cuda => DriverLibraries.WhyNoCudaDevice(),
        AcceleratorType.OpenCL => DriverLibraries.WhyNoOpenCLDevice(),
        _ => $"ILGPU {Context.Version} has no {type} devices",
    };

    /// <summary>What an OpenCL device lacks for ILGPU's kernels; null when it lacks nothing.</summary>
    /// <param name="device">The device.</param>
    public static string? Refuse(CLDevice device) =>
        device.CLStdVersion < CLBackend.MinimumVersion ? $"it speaks OpenCL {device.DeviceVersion}, and ILGPU needs 2.0"
        : !device.Capabilities.GenericAddressSpace ? "it has no generic address space, which ILGPU needs"
        : null;

    private static Discovery Discover()
    {
        var devices = new List<AcceleratorDescription>();
        try
        {
            DriverLibraries.FindVersionedNames();
            Context context = Context.Create(builder =>
            {
                // O2 infers address spaces: without it CUDA loads are generic, and OpenCL code needs __generic pointers.
                builder.EnableAlgorithms().Optimize(OptimizationLevel.O2);

                // ILGPU drops a device silently when a predicate throws, so each is described within one that does not.
                Try(() => builder.Cuda((CudaDevice device) => Add(devices, device, Describe)));
                Try(() => builder.OpenCL(device => Add(devices, device, Describe)));
                builder.CPU(CPUDeviceKind.Default);
            });
            devices.Add(Describe(context.GetDevice<CPUDevice>(0)));
            return new Discovery(context, devices, null);
        }
        catch (Exception e)
        {
            return new Discovery(null, [], $"ILGPU cannot run in this process: {e.Message}");
        }
    }

    /// <summary>Records a device and returns whether the context is to have it.</summary>
    private static bool Add<T>(List<AcceleratorDescription> devices, T device, Func<T, AcceleratorDescription> describe)
        where T : Device
    {
        AcceleratorDescription description;
        try
        {
            description = describe(device);
        }
        catch (Exception e)
        {
            description = new AcceleratorDescription
            {
                Device = device,
                Name = NameOf(device),
                MemoryBytes = device.MemorySize,
                SharedMemoryBytes = device.MaxSharedMemoryPerGroup,
                WarpSize = Math.Max(1, device.WarpSize),
                Capabilities = "",
                IsGpu = false,
                Refusal = $"its driver failed to describe it: {e.Message}",
            };
        }

        devices.Add(description);
        return description.Refusal is null;
    }

    private static AcceleratorDescription Describe(CudaDevice device) => new()
    {
        Device = device,
        Name = NameOf(device),
        MemoryBytes = device.MemorySize,
        SharedMemoryBytes = device.MaxSharedMemoryPerGroup,
        WarpSize = device.WarpSize,
        Capabilities = $"compute capability {device.Architecture?.Major}.{device.Architecture?.Minor}, " +
            $"PTX {device.InstructionSet?.ToString() ?? "unknown"}, driver for CUDA {device.DriverVersion}",
        IsGpu = true,
        Refusal = device.InstructionSet is { } set && PTXCodeGenerator.SupportedInstructionSets.Contains(set)
            ? null
            : $"ILGPU {Context.Version} has no PTX version that driver {device.DriverVersion} accepts for it",
    };

    private static AcceleratorDescription Describe(CLDevice device) => new()
    {
        Device = device,
        Name = NameOf(device),
        MemoryBytes = device.MemorySize,
        SharedMemoryBytes = device.MaxSharedMemoryPerGroup,
        WarpSize = Math.Max(1, device.WarpSize),
        Capabilities = $"OpenCL {device.DeviceVersion} {KindOf(device)} on {device.PlatformName.Trim()}",
        IsGpu = device.DeviceType.HasFlag(CLDeviceType.CL_DEVICE_TYPE_GPU),
        Refusal = Refuse(device),
    };

    private static AcceleratorDescription Describe(CPUDevice device) => new()
    {
        Device = device,
        Name = "ILGPU simulator",
        MemoryBytes = GC.GetGCMemoryInfo().TotalAvailableMemoryBytes,
        SharedMemoryBytes = SimulatedSharedMemoryBytes,
        WarpSize = device.WarpSize,
        Capabilities = "one thread of the host a lane",
        IsGpu = false,
    };

    private static string KindOf(CLDevice device) =>
        device.DeviceType.HasFlag(CLDeviceType.CL_DEVICE_TYPE_GPU) ? "GPU"
        : device.DeviceType.HasFlag(CLDeviceType.CL_DEVICE_TYPE_CPU) ? "processor"
        : "accelerator";

    private static string NameOf(Device device) => string.IsNullOrWhiteSpace(device.Name) ? "unnamed" : device.Name.Trim();

    // A back end that cannot even be asked has no devices; WhyNone looks for the cause.
    private static void Try(Action probe)
    {
        try
        {
            probe();
        }
        catch (Exception e) when (e is not OutOfMemoryException)
        {
            System.Diagnostics.Trace.TraceWarning($"ILGPU: {e.Message}");
        }
    }

    private sealed record Discovery(Context? Context, IReadOnlyList<AcceleratorDescription> Devices, string? Failure);
}
