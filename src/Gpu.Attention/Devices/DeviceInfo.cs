namespace Gpu.Attention;

/// <summary>A kind of device, in the order in which they are preferred.</summary>
public enum DeviceKind
{
    /// <summary>An NVIDIA GPU through CUDA.</summary>
    Cuda,

    /// <summary>A GPU through OpenCL.</summary>
    OpenCL,

    /// <summary>The host's processor through its vector instructions.</summary>
    Cpu,

    /// <summary>A simulated GPU on the host: for tests, never for work.</summary>
    Simulator,
}

/// <summary>What is known of a device without opening it.</summary>
public sealed record DeviceInfo
{
    /// <summary>The kind of device.</summary>
    public required DeviceKind Kind { get; init; }

    /// <summary>Its place among the devices of its kind.</summary>
    public int Index { get; init; }

    /// <summary>What <see cref="ComputeDevice.Open(string, ComputeDeviceOptions?)"/> takes for it: <c>cuda:0</c>, <c>cpu:0</c>, …</summary>
    public string Id => $"{Kind.ToString().ToLowerInvariant()}:{Index}";

    /// <summary>Its name as its maker gives it.</summary>
    public required string Name { get; init; }

    /// <summary>Its memory in bytes; 0 when unknown.</summary>
    public long MemoryBytes { get; init; }

    /// <summary>Cores, multiprocessors or compute units.</summary>
    public int ComputeUnits { get; init; }

    /// <summary>The most threads in a group; 1 for the host.</summary>
    public int MaxGroupSize { get; init; } = 1;

    /// <summary>Shared memory in a group, in bytes; 0 for the host.</summary>
    public long SharedMemoryBytes { get; init; }

    /// <summary>Threads, or float32 lanes, that execute as one.</summary>
    public int WarpSize { get; init; } = 1;

    /// <summary>Instruction sets, architecture and versions worth knowing.</summary>
    public string Capabilities { get; init; } = "";

    /// <summary>True for a device that is never chosen by default: it only simulates one, or is slower than the host's own engine.</summary>
    public bool OnlyWhenAskedFor { get; init; }

    /// <summary>Why attention cannot run on it; null when it can.</summary>
    public string? Refusal { get; init; }

    /// <summary>True when attention can run on it.</summary>
    public bool IsUsable => Refusal is null;

    /// <inheritdoc/>
    public override string ToString() => $"{Kind} {Index}: {Name}";
}
