using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace Gpu.Attention.Benchmarks;

/// <summary>The line that says where numbers were measured.</summary>
internal static class Machine
{
    private const string CpuInfo = "/proc/cpuinfo";

    public static string Describe() =>
        $"{Processor()}, {Environment.ProcessorCount} cores, {VectorBits()}-bit vectors, {RuntimeInformation.FrameworkDescription}, " +
        $"{RuntimeInformation.OSDescription}";

    private static int VectorBits() =>
        Vector512.IsHardwareAccelerated ? 512 : Vector256.IsHardwareAccelerated ? 256 : Vector128.IsHardwareAccelerated ? 128 : 32;

    private static string Processor()
    {
        string? line = File.Exists(CpuInfo)
            ? File.ReadLines(CpuInfo).FirstOrDefault(l => l.StartsWith("model name", StringComparison.Ordinal))
            : null;
        return line is null
            ? Environment.GetEnvironmentVariable("PROCESSOR_IDENTIFIER") ?? RuntimeInformation.ProcessArchitecture.ToString()
            : line[(line.IndexOf(':', StringComparison.Ordinal) + 1)..].Trim();
    }
}
