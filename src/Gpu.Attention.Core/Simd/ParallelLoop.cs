using System.Runtime.ExceptionServices;

namespace Gpu.Attention;

/// <summary>The body of a parallel loop.</summary>
internal interface IParallelBody
{
    /// <summary>Does one item. Items that run at the same time have different slots, all below the numbers of items and of the loop's threads.</summary>
    void Run(long item, int slot);
}

/// <summary>
/// A parallel loop on the thread pool that allocates nothing when it is run again. The calling thread takes part, so that a busy
/// pool slows a loop down but cannot stop it.
/// </summary>
#pragma warning disable CA1001 // The event makes no wait handle unless one is asked for, so there is nothing to dispose of.
internal sealed class ParallelLoop(int degree) : IThreadPoolWorkItem
{
    private const int Closed = int.MinValue;

    private readonly ManualResetEventSlim _left = new();
    private IParallelBody? _body;
    private Exception? _failure;
    private long _count;
    private long _next;
    private int _slots;
    private int _helpers = Closed;

    /// <summary>The most threads that work on a loop, and the number of slots.</summary>
    public int Degree { get; } = degree;

    /// <summary>Runs the items 0 to <paramref name="count"/> − 1 in any order and waits for them.</summary>
    public void Run(IParallelBody body, long count)
    {
        if (Degree == 1 || count <= 1)
        {
            for (long item = 0; item < count; item++)
            {
                body.Run(item, 0);
            }

            return;
        }

        (_body, _count, _next, _slots, _failure) = (body, count, 0, 0, null);
        _left.Reset();
        Volatile.Write(ref _helpers, 0);
        for (int helper = 1; helper < Math.Min(Degree, count); helper++)
        {
            ThreadPool.UnsafeQueueUserWorkItem(this, preferLocal: false);
        }

        Work(0);
        if (Interlocked.Add(ref _helpers, Closed) != Closed)
        {
            _left.Wait();
        }

        _body = null;
        if (_failure is not null)
        {
            ExceptionDispatchInfo.Throw(_failure);
        }
    }

    // A helper that the pool starts late finds the loop closed, or helps with the next one; either is fine.
    void IThreadPoolWorkItem.Execute()
    {
        int helpers;
        do
        {
            helpers = Volatile.Read(ref _helpers);
            if (helpers < 0)
            {
                return;
            }
        }
        while (Interlocked.CompareExchange(ref _helpers, helpers + 1, helpers) != helpers);

        int slot = Interlocked.Increment(ref _slots);
        if (slot < Math.Min(Degree, _count))
        {
            Work(slot);
        }

        if (Interlocked.Decrement(ref _helpers) == Closed)
        {
            _left.Set();
        }
    }

    private void Work(int slot)
    {
        IParallelBody body = _body!;
        try
        {
            for (long item = Interlocked.Increment(ref _next) - 1; item < _count; item = Interlocked.Increment(ref _next) - 1)
            {
                body.Run(item, slot);
            }
        }
        catch (Exception failure)
        {
            Interlocked.CompareExchange(ref _failure, failure, null);
            Volatile.Write(ref _next, _count);
        }
    }
}
