namespace Gpu.Attention.Samples.Book;

/// <summary>Samples the process's working set from its creation until it is asked or disposed.</summary>
/// <remarks>
/// What earlier passes left behind is collected first, so that passes can be compared. The figure holds the runtime and the text as
/// well, and can miss a peak shorter than the sampling interval.
/// </remarks>
internal sealed class PeakMemory : IDisposable
{
    private static readonly TimeSpan Interval = TimeSpan.FromMilliseconds(20);

    private readonly Timer _timer;
    private long _bytes;

    public PeakMemory()
    {
        GC.Collect(GC.MaxGeneration, GCCollectionMode.Aggressive, blocking: true, compacting: true);
        _timer = new Timer(_ => Sample(), null, TimeSpan.Zero, Interval);
    }

    /// <summary>The largest working set so far.</summary>
    public long Bytes
    {
        get
        {
            Sample();
            return Interlocked.Read(ref _bytes);
        }
    }

    public void Dispose() => _timer.Dispose();

    private void Sample()
    {
        long now = Environment.WorkingSet;
        long known = Interlocked.Read(ref _bytes);
        while (now > known)
        {
            long before = Interlocked.CompareExchange(ref _bytes, now, known);
            if (before == known)
            {
                return;
            }

            known = before;
        }
    }
}
