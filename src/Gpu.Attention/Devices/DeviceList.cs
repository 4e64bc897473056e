using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Gpu.Attention;

/// <summary>Finds devices, best first, and says of each unusable one why.</summary>
internal static partial class DeviceList
{
    public static IReadOnlyList<DeviceInfo> Enumerate()
    {
        var devices = new List<DeviceInfo> { DescribeHost() };
        AddAccelerators(devices);
        return [.. devices.OrderBy(d => d.Kind).ThenBy(d => d.Index)];
    }

    /// <summary>Why a kind has no device at all in this build and on this machine.</summary>
    public static string WhyNone(DeviceKind kind)
    {
        string? reason = null;
        ExplainMissing(kind, ref reason);
        return reason ?? $"this build has no {kind} support: it was made without the ILGPU package";
    }

    /// <summary>A device to open when it is needed.</summary>
    /// <param name="info">One of <see cref="Enumerate"/>.</param>
    /// <param name="options">How it will be used.</param>
    public static DeviceCandidate Candidate(DeviceInfo info, ComputeDeviceOptions? options) => new(info, () =>
    {
        DeviceRuntime? runtime = null;
        if (info.Kind == DeviceKind.Cpu)
        {
            runtime = new HostRuntime(info, options?.MaxDegreeOfParallelism ?? 0);
        }
        else
        {
            OpenAccelerator(info, ref runtime);
        }

        return runtime ?? throw new NotSupportedException(WhyNone(info.Kind));
    });

    // Filled in by the build that has ILGPU.
    static partial void AddAccelerators(List<DeviceInfo> devices);

    static partial void OpenAccelerator(DeviceInfo info, ref DeviceRuntime? runtime);

    static partial void ExplainMissing(DeviceKind kind, ref string? reason);

    private static DeviceInfo DescribeHost()
    {
        int lanes = Vector512.IsHardwareAccelerated ? 16 : Vector256.IsHardwareAccelerated ? 8 : Vector128.IsHardwareAccelerated ? 4 : 1;
        string fma = Fma.IsSupported || System.Runtime.Intrinsics.Arm.AdvSimd.IsSupported ? ", fused multiply-add" : "";
        return new DeviceInfo
        {
            Kind = DeviceKind.Cpu,
            Name = ProcessorName(),
            MemoryBytes = GC.GetGCMemoryInfo().TotalAvailableMemoryBytes,
            ComputeUnits = Environment.ProcessorCount,
            WarpSize = lanes,
            Capabilities = lanes == 1 ? "scalar" : $"{lanes * 32}-bit vectors{fma}",
        };
    }

    private static string ProcessorName()
    {
        const string CpuInfo = "/proc/cpuinfo";
        if (File.Exists(CpuInfo))
        {
            string? line = File.ReadLines(CpuInfo).FirstOrDefault(l => l.StartsWith("model name", StringComparison.Ordinal));
            if (line is not null)
            {
                return line[(line.IndexOf(':', StringComparison.Ordinal) + 1)..].Trim();
            }
        }

        return Environment.GetEnvironmentVariable("PROCESSOR_IDENTIFIER")
            ?? System.Runtime.InteropServices.RuntimeInformation.ProcessArchitecture.ToString();
    }
}
