using System.Diagnostics;
using System.Globalization;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>How busy others keep the machine, as far as Linux tells; elsewhere nothing is known.</summary>
internal sealed class LoadMeter
{
    private const string AverageFile = "/proc/loadavg";
    private const string TimesFile = "/proc/stat";

    // A tick of /proc/stat is a hundredth of a second for every program, whatever the kernel counts in.
    private const double TicksPerSecond = 100;

    private double _others;
    private double _all;
    private (double Busy, double All, double Own)? _start;

    /// <summary>The load average of the last minute; null where nothing tells.</summary>
    public static double? Average() =>
        File.Exists(AverageFile) ? double.Parse(File.ReadAllText(AverageFile).Split(' ')[0], CultureInfo.InvariantCulture) : null;

    /// <summary>What others took of all cores between the starts and stops so far; null where nothing tells.</summary>
    public double? OthersShare => _all > 0 ? Math.Clamp(_others / _all, 0, 1) : null;

    public void Start() => _start = Read();

    public void Stop()
    {
        if (_start is { } start && Read() is { } end)
        {
            _others += end.Busy - start.Busy - (end.Own - start.Own);
            _all += end.All - start.All;
        }
    }

    private static (double Busy, double All, double Own)? Read()
    {
        if (!File.Exists(TimesFile))
        {
            return null;
        }

        // user nice system idle iowait irq softirq steal: what a hypervisor took is taken by others, too.
        double[] ticks = [.. File.ReadLines(TimesFile).First().Split(' ', StringSplitOptions.RemoveEmptyEntries).Skip(1).Take(8)
            .Select(text => double.Parse(text, CultureInfo.InvariantCulture))];
        double all = ticks.Sum() / TicksPerSecond;
        using var self = Process.GetCurrentProcess();
        return (all - ((ticks[3] + ticks[4]) / TicksPerSecond), all, self.TotalProcessorTime.TotalSeconds);
    }
}
