using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>What is known of a device that ILGPU found, without opening it.</summary>
internal sealed record AcceleratorDescription
{
    /// <summary>The device: opens an accelerator in <see cref="AcceleratorList.Context"/> unless there is a <see cref="Refusal"/>.</summary>
    public required Device Device { get; init; }

    /// <summary>Its name as its maker gives it.</summary>
    public required string Name { get; init; }

    /// <summary>Its memory in bytes.</summary>
    public required long MemoryBytes { get; init; }

    /// <summary>Shared memory in a group, in bytes.</summary>
    public required long SharedMemoryBytes { get; init; }

    /// <summary>Threads that execute as one; 1 where only an open device can tell.</summary>
    public required int WarpSize { get; init; }

    /// <summary>Architecture, instruction set, versions.</summary>
    public required string Capabilities { get; init; }

    /// <summary>False for processors and other accelerators that speak OpenCL, and for the simulator.</summary>
    public required bool IsGpu { get; init; }

    /// <summary>Why ILGPU's kernels cannot run on it; null when they can.</summary>
    public string? Refusal { get; init; }

    /// <summary>CUDA, OpenCL or, for the simulator, CPU.</summary>
    public AcceleratorType Type => Device.AcceleratorType;

    /// <summary>Multiprocessors or compute units.</summary>
    public int ComputeUnits => Device.NumMultiprocessors;

    /// <summary>The most threads in a group.</summary>
    public int MaxGroupSize => Device.MaxNumThreadsPerGroup;
}
