using System.Globalization;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>The process's resident memory at its peak during a piece of work, where Linux tells it.</summary>
internal static class ResidentMemory
{
    private const string StatusFile = "/proc/self/status";
    private const string ResetFile = "/proc/self/clear_refs";

    // What makes the kernel forget the peak so far.
    private const string ForgetPeak = "5";

    /// <summary>How much the peak rose above what was resident before; null where it cannot be known.</summary>
    public static long? RiseDuring(Action work)
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
        long? before = null;
        try
        {
            File.WriteAllText(ResetFile, ForgetPeak);
            before = Read("VmRSS:");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // Not Linux, or a container that forbids it.
        }

        work();
        return before is { } start && Read("VmHWM:") is { } peak ? Math.Max(0, peak - start) : null;
    }

    private static long? Read(string field)
    {
        string? line = File.ReadLines(StatusFile).FirstOrDefault(l => l.StartsWith(field, StringComparison.Ordinal));
        return line is null ? null : 1024 * long.Parse(line[field.Length..].Replace("kB", "", StringComparison.Ordinal).Trim(), CultureInfo.InvariantCulture);
    }
}
