using System.Diagnostics;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>2²⁰ tokens in one causal call, beside as many in calls of 2¹⁴.</summary>
internal static class MillionTokens
{
    public const int Length = 1 << 20;
    public const int ShortLength = 1 << 14;

    // After this, no second round is begun.
    private const double BudgetSeconds = 60;

    private const double Spare = 1.25;

    /// <summary>Why it cannot be done here; null when it can.</summary>
    public static string? WhyNot()
    {
        long needed = (long)(Spare * ReportTensors.Bytes(Length, tensors: 4));
        long free = GC.GetGCMemoryInfo().TotalAvailableMemoryBytes;
        string? line = File.Exists("/proc/meminfo") ? File.ReadLines("/proc/meminfo").FirstOrDefault(l => l.StartsWith("MemAvailable:", StringComparison.Ordinal)) : null;
        if (line is not null && long.TryParse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1], out long kilobytes))
        {
            free = Math.Min(free, kilobytes * 1024);
        }

        return free >= needed ? null : FormattableString.Invariant($"a million tokens take {needed >> 20:N0} MiB, and {free >> 20:N0} MiB are free");
    }

    public static IEnumerable<MillionLine> Run(ComputeDevice device, ReportScale scale)
    {
        long begin = Stopwatch.GetTimestamp();
        string[] maps = [MapNames.Favor, MapNames.Elu];
        long?[] measured = [.. maps.Select(map => MemoryProbe.InProcessOfItsOwn(map, Passes.Forward, Length))];
        using var tensors = new ReportTensors(Length, hasGradients: false);
        foreach ((string map, long? bytes) in maps.Zip(measured))
        {
            using var attention = new ReportOperator(device, map, causal: true);
            AttentionShape shape = ReportTensors.Shape(Length);
            AttentionShape part = ReportTensors.Shape(ShortLength);
            Action whole = attention.ForwardCall(shape, tensors);
            whole();
            var million = new Sample(whole, callSeconds: 1);
            Action piece = attention.ForwardCall(part, tensors);
            var pieces = new Sample(
                () =>
                {
                    for (int tokens = 0; tokens < Length; tokens += ShortLength)
                    {
                        piece();
                    }
                },
                callSeconds: 1);
            for (int round = 0; round == 0 || (round < scale.MillionRounds && Stopwatch.GetElapsedTime(begin).TotalSeconds < BudgetSeconds); round++)
            {
                pieces.Take(sampleSeconds: 0);
                million.Take(sampleSeconds: 0);
            }

            yield return new MillionLine
            {
                Map = map, Length = Length, NsPerToken = million.Median * 1e9 / Length, FastestNsPerToken = million.Fastest * 1e9 / Length,
                ShortLength = ShortLength, ShortNsPerToken = pieces.Median * 1e9 / Length, ShortFastestNsPerToken = pieces.Fastest * 1e9 / Length,
                TensorBytes = ReportTensors.Bytes(Length, tensors: 4), WorkspaceBytes = attention.WorkspaceBytes(shape), MeasuredBytes = bytes,
            };
        }
    }
}
