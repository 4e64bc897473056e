namespace Gpu.Attention;

/// <summary>A part of a <see cref="DevicePool"/>.</summary>
/// <param name="allocation">The device's allocation, whole.</param>
/// <param name="bytes">Its size.</param>
internal sealed class DeviceBlock(object allocation, long bytes)
{
    /// <summary>The device's allocation, whole.</summary>
    public object Allocation => allocation;

    /// <summary>Its size.</summary>
    public long Bytes => bytes;
}

/// <summary>Device memory that is kept after use, since devices are slow to allocate. Safe for any number of threads.</summary>
internal sealed class DevicePool(DeviceRuntime runtime)
{
    private readonly Lock _lock = new();
    private readonly List<DeviceBlock> _free = [];

    // Keeps what is rented out alive: a tensor's finaliser gives its block back, whose allocation must not have been finalised before it.
    private readonly HashSet<DeviceBlock> _live = [];

    /// <summary>Bytes rented out now.</summary>
    public long LiveBytes { get; private set; }

    /// <summary>The most bytes that were ever rented out at once.</summary>
    public long PeakBytes { get; private set; }

    /// <summary>Bytes taken from the device, rented out or kept.</summary>
    public long HeldBytes { get; private set; }

    /// <summary>Memory of at least so many bytes: the smallest kept block of up to twice the size, or a new one.</summary>
    /// <param name="bytes">Bytes.</param>
    /// <exception cref="DeviceOutOfMemoryException">The device has not so much, with nothing kept.</exception>
    public DeviceBlock Rent(long bytes)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(bytes);
        lock (_lock)
        {
            DeviceBlock? block = _free.Where(b => b.Bytes >= bytes && b.Bytes / 2 <= bytes).MinBy(b => b.Bytes);
            if (block is not null)
            {
                _free.Remove(block);
            }
            else
            {
                block = Allocate(bytes);
                HeldBytes += block.Bytes;
            }

            _live.Add(block);
            LiveBytes += block.Bytes;
            PeakBytes = Math.Max(PeakBytes, LiveBytes);
            return block;
        }
    }

    /// <summary>Takes a block back, and keeps it while the device is in use.</summary>
    /// <param name="block">A rented block that no queue works on any more.</param>
    public void Return(DeviceBlock block)
    {
        lock (_lock)
        {
            if (_live.Remove(block))
            {
                LiveBytes -= block.Bytes;
                _free.Add(block);
            }

            if (!runtime.IsInUse)
            {
                Trim();
            }
        }
    }

    /// <summary>Gives what is kept back to the device.</summary>
    public void Trim()
    {
        lock (_lock)
        {
            while (_free.Count > 0)
            {
                DeviceBlock block = _free[^1];
                _free.RemoveAt(_free.Count - 1);
                HeldBytes -= block.Bytes;
                DeviceRuntime.Ignore(() => runtime.Free(block.Allocation));
            }
        }
    }

    private DeviceBlock Allocate(long bytes)
    {
        if (bytes > long.MaxValue - SegmentLayout.Alignment)
        {
            throw new DeviceOutOfMemoryException($"{bytes} bytes are more than any device has");
        }

        long rounded = Math.Max(1, (bytes + SegmentLayout.Alignment - 1) / SegmentLayout.Alignment) * SegmentLayout.Alignment;
        try
        {
            return new DeviceBlock(runtime.Allocate(rounded), rounded);
        }
        catch (DeviceOutOfMemoryException) when (_free.Count > 0)
        {
            Trim();
            return new DeviceBlock(runtime.Allocate(rounded), rounded);
        }
    }
}
