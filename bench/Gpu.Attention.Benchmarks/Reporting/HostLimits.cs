namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>The host's limits, measured several times in a run: other work on the machine only ever lowers them.</summary>
internal sealed class HostLimits
{
    /// <summary>The best so far.</summary>
    public LimitsLine Best { get; private set; } = new();

    /// <summary>The peaks alone, in a fraction of a second: one more chance to find the cores free.</summary>
    public void MeasurePeakOnce() =>
        Raise(HostPeak.MeasureGflops(1, rounds: 1), HostPeak.MeasureGflops(Environment.ProcessorCount, rounds: 1));

    public void Measure()
    {
        int cores = Environment.ProcessorCount;
        (double readOne, double copyOne) = HostBandwidth.Measure(1);
        (double readAll, double copyAll) = HostBandwidth.Measure(cores);
        Best = Best with
        {
            ReadGBpsOneCore = Math.Max(Best.ReadGBpsOneCore, readOne),
            ReadGBpsAllCores = Math.Max(Best.ReadGBpsAllCores, readAll),
            CopyGBpsOneCore = Math.Max(Best.CopyGBpsOneCore, copyOne),
            CopyGBpsAllCores = Math.Max(Best.CopyGBpsAllCores, copyAll),
        };
        Raise(HostPeak.MeasureGflops(1), HostPeak.MeasureGflops(cores));
    }

    private void Raise(double one, double all)
    {
        // Where others take cores away, all may look slower than one; they are not.
        one = Math.Max(Best.PeakGflopsOneCore, one);
        all = Math.Max(Best.PeakGflopsAllCores, all);
        Best = Best with { PeakGflopsOneCore = one, PeakGflopsAllCores = Math.Max(one, all) };
    }
}
