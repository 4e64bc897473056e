using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Text.RegularExpressions;

namespace Gpu.Attention.Benchmarks;

/// <summary>The line that says where numbers were measured.</summary>
internal static partial class Machine
{
    private const string CpuInfo = "/proc/cpuinfo";

    private const string StatusFile = "/proc/self/status";
    private const string AllowedCores = "Cpus_allowed_list:";

    /// <summary>The cores that this process and its children may use, as <c>0-3,8</c>; null where nothing tells.</summary>
    public static string? PinnedTo() => File.Exists(StatusFile)
        ? File.ReadLines(StatusFile).FirstOrDefault(l => l.StartsWith(AllowedCores, StringComparison.Ordinal))?[AllowedCores.Length..].Trim()
        : null;

    public static string Describe() =>
        $"{Processor()}, {Environment.ProcessorCount} {(Environment.ProcessorCount == 1 ? "core" : "cores")}, {VectorBits()}-bit vectors, {RuntimeInformation.FrameworkDescription}, " +
        $"{RuntimeInformation.OSDescription}";

    /// <summary>The name of this machine's folder of results: a word for the processor, its cores and vectors; no name of a host, no date.</summary>
    public static string Slug() => Slug(Processor(), Environment.ProcessorCount, VectorBits(), RuntimeInformation.ProcessArchitecture);

    /// <summary>The name of a folder of results for a processor.</summary>
    public static string Slug(string processor, int cores, int vectorBits, Architecture architecture)
    {
        string vectors = (architecture, vectorBits) switch
        {
            (Architecture.X64 or Architecture.X86, 512) => "avx512",
            (Architecture.X64 or Architecture.X86, 256) => "avx2",
            (Architecture.X64 or Architecture.X86, 128) => "sse",
            (Architecture.Arm64, 128) => "neon",
            (_, 32) => "scalar",
            _ => $"{vectorBits}-bit",
        };
        return $"{Words(processor)}-{cores}-{(cores == 1 ? "core" : "cores")}-{vectors}";
    }

    /// <summary>Letters and digits in small, with dashes between: trade marks, clock rates and what every processor is called are left out.</summary>
    public static string Words(string name)
    {
        string bare = Noise().Replace(name, " ").ToLowerInvariant();
        return string.Join('-', NotWord().Split(bare).Where(word => word.Length > 0));
    }

    [GeneratedRegex(@"\((R|TM|C)\)|@.*|\b(CPU|Processor|with Radeon.*)\b|\b\d+-Core\b", RegexOptions.IgnoreCase | RegexOptions.CultureInvariant)]
    private static partial Regex Noise();

    [GeneratedRegex("[^a-z0-9]+", RegexOptions.CultureInvariant)]
    private static partial Regex NotWord();

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
