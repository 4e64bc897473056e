namespace Gpu.Attention;

/// <summary>A queue of a device; what is in one waits for nothing in another.</summary>
internal enum DeviceQueue
{
    /// <summary>From the host to the device.</summary>
    Upload,

    /// <summary>Kernels.</summary>
    Compute,

    /// <summary>From the device to the host.</summary>
    Download,
}

/// <summary>An opened device as the scheduler sees it: memory, and sessions to work in.</summary>
internal abstract class DeviceRuntime
{
    private readonly Lock _lock = new();
    private readonly List<DeviceSession> _sessions = [];
    private volatile string? _failure;
    private int _users;

    protected DeviceRuntime(DeviceInfo info)
    {
        Info = info;
        Pool = new DevicePool(this);
    }

    /// <summary>What is known of the device.</summary>
    public DeviceInfo Info { get; }

    /// <summary>The device's memory.</summary>
    public DevicePool Pool { get; }

    /// <summary>What a plan may take of the device's memory when the caller names no budget.</summary>
    public abstract long DefaultBudgetBytes { get; }

    /// <summary>Why the device is not to be used any more; null while it works.</summary>
    public string? Failure => _failure;

    /// <summary>Bytes in use, engines' own constants included.</summary>
    public long LiveBytes
    {
        get
        {
            lock (_lock)
            {
                return Pool.LiveBytes + _sessions.Sum(session => session.LiveBytes);
            }
        }
    }

    /// <summary>Remembers that the device failed: a context is of no use after most failures.</summary>
    /// <param name="reason">What happened.</param>
    public void Fail(string reason) => _failure = reason;

    /// <summary>True while somebody uses the device, and may want again what comes back to the pool.</summary>
    public bool IsInUse => Volatile.Read(ref _users) > 0;

    /// <summary>Counts a user in.</summary>
    public void Retain() => Interlocked.Increment(ref _users);

    /// <summary>Counts a user out. After the last one the device holds no memory.</summary>
    public void Release()
    {
        if (Interlocked.Decrement(ref _users) == 0)
        {
            Pool.Trim();
        }
    }

    /// <summary>Opens an operator's session.</summary>
    public DeviceSession OpenSession()
    {
        DeviceSession session = CreateSession();
        lock (_lock)
        {
            _sessions.Add(session);
        }

        return session;
    }

    /// <summary>Allocates memory.</summary>
    /// <param name="bytes">A positive number of bytes.</param>
    /// <exception cref="DeviceOutOfMemoryException">There is not so much.</exception>
    public abstract object Allocate(long bytes);

    /// <summary>Frees what <see cref="Allocate"/> returned.</summary>
    /// <param name="allocation">It.</param>
    public abstract void Free(object allocation);

    /// <summary>True for an exception by which the device says that its memory does not suffice.</summary>
    /// <param name="exception">What the engine, a copy or an allocation threw.</param>
    public virtual bool IsOutOfMemory(Exception exception) => exception is DeviceOutOfMemoryException;

    /// <summary>
    /// Gives something back to a device. One that failed fails again at whatever it is asked: that is known by then, and must neither hide the first
    /// cause nor end a finaliser.
    /// </summary>
    /// <param name="action">What to do.</param>
    public static void Ignore(Action action)
    {
        try
        {
            action();
        }
        catch (Exception e) when (e is not OutOfMemoryException)
        {
            System.Diagnostics.Trace.TraceWarning($"A device that is given up: {e.Message}");
        }
    }

    /// <summary>What a driver's or a compiler's exception says.</summary>
    /// <param name="exception">What the engine, a copy or an allocation threw.</param>
    public virtual string Describe(Exception exception) => exception.Message;

    protected abstract DeviceSession CreateSession();

    internal void Remove(DeviceSession session)
    {
        lock (_lock)
        {
            _sessions.Remove(session);
        }
    }
}

/// <summary>An operator's engine and queues on a device. One thread at a time.</summary>
internal abstract class DeviceSession(DeviceRuntime runtime) : IDisposable
{
    /// <summary>The engine, which enqueues on <see cref="DeviceQueue.Compute"/>.</summary>
    public abstract IAttentionEngine Engine { get; }

    /// <summary>Device memory that the engine itself holds.</summary>
    public abstract long LiveBytes { get; }

    /// <summary>Host memory that the device copies from and to without waiting.</summary>
    /// <param name="bytes">Its length.</param>
    public abstract StagingMemory AllocateStaging(int bytes);

    /// <summary>Enqueues a copy to the device.</summary>
    /// <param name="source">Its source.</param>
    /// <param name="first">The first byte of it.</param>
    /// <param name="target">Device memory.</param>
    /// <param name="offset">The first byte of it.</param>
    /// <param name="bytes">Bytes.</param>
    public abstract void Upload(StagingMemory source, int first, object target, long offset, int bytes);

    /// <summary>Enqueues a copy from the device.</summary>
    /// <param name="source">Device memory.</param>
    /// <param name="offset">The first byte of it.</param>
    /// <param name="target">The target.</param>
    /// <param name="first">The first byte of it.</param>
    /// <param name="bytes">Bytes.</param>
    public abstract void Download(object source, long offset, StagingMemory target, int first, int bytes);

    /// <summary>Waits until a queue is empty.</summary>
    /// <param name="queue">The queue.</param>
    public abstract void Wait(DeviceQueue queue);

    /// <summary>Waits until every queue is empty, or its device has failed.</summary>
    public void Quiesce()
    {
        foreach (DeviceQueue queue in Enum.GetValues<DeviceQueue>())
        {
            DeviceRuntime.Ignore(() => Wait(queue));
        }
    }

    /// <summary>Frees the engine's memory.</summary>
    public void Dispose()
    {
        runtime.Remove(this);
        DisposeCore();
    }

    protected abstract void DisposeCore();
}

/// <summary>Page-locked host memory, or what comes nearest on a device that has none.</summary>
internal abstract unsafe class StagingMemory : IDisposable
{
    /// <summary>The first byte.</summary>
    public abstract byte* Pointer { get; }

    public abstract void Dispose();
}

/// <summary>A device has not as much memory as was asked for.</summary>
internal sealed class DeviceOutOfMemoryException(string message, Exception? inner = null) : Exception(message, inner);
