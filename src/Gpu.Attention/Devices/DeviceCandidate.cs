namespace Gpu.Attention;

/// <summary>A device that a <see cref="ComputeDevice"/> may come to use, opened when it is first needed.</summary>
/// <param name="info">What is known of it.</param>
/// <param name="open">Opens it.</param>
internal sealed class DeviceCandidate(DeviceInfo info, Func<DeviceRuntime> open) : IDisposable
{
    private readonly Lock _lock = new();
    private volatile DeviceRuntime? _runtime;
    private bool _disposed;

    /// <summary>What is known of the device.</summary>
    public DeviceInfo Info => info;

    /// <summary>The device, if it was opened.</summary>
    public DeviceRuntime? Runtime => _runtime;

    /// <summary>The device; throws what keeps it from being opened.</summary>
    /// <exception cref="ObjectDisposedException">It was let go.</exception>
    public DeviceRuntime Open()
    {
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if (_runtime is null)
            {
                DeviceRuntime runtime = open();
                runtime.Retain();
                _runtime = runtime;
            }

            return _runtime;
        }
    }

    /// <summary>Lets go of the device.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            if (!_disposed)
            {
                _disposed = true;
                _runtime?.Release();
            }
        }
    }
}
