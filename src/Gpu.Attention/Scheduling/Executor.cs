namespace Gpu.Attention;

/// <summary>Runs an operator's problems on its device: asks the engine first, gives it memory, and lets one call in at a time.</summary>
/// <remarks>A problem runs as one segment, since the host engine reaches all of its memory at once.</remarks>
internal sealed class Executor(ComputeDevice device) : IDisposable
{
    private readonly Workspace _workspace = new();
    private volatile bool _disposed;
    private int _busy;

    public ComputeDevice Device { get; } = device;

    /// <summary>Scratch memory held now.</summary>
    public long HeldBytes => _workspace.Bytes;

    /// <summary>Scratch memory that a problem takes.</summary>
    public long WorkspaceBytes(AttentionProblem problem)
    {
        Check(problem);
        return Device.Engine.WorkspaceBytes(problem);
    }

    /// <summary>Throws what a call of the problem would throw before it did any work.</summary>
    /// <exception cref="NotSupportedException">The device cannot run the problem.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Check(AttentionProblem problem)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        Device.ThrowIfDisposed();
        EngineSupport support = Device.Engine.Supports(problem);
        if (!support.IsSupported)
        {
            throw new NotSupportedException($"{Device.Info.Name} ({Device.Engine.Name}): {support.Reason}.");
        }
    }

    public void Forward(AttentionProblem problem, in AttentionBuffers buffers)
    {
        Check(problem);
        if (Interlocked.Exchange(ref _busy, 1) != 0)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            throw new InvalidOperationException("This operator is already running a call on another thread; use one operator a thread.");
        }

        try
        {
            AttentionBuffers withWorkspace = buffers with { Workspace = _workspace.Rent(Device.Engine.WorkspaceBytes(problem)) };
            Device.Engine.Forward(problem, withWorkspace);
        }
        finally
        {
            Interlocked.Exchange(ref _busy, 0);
            if (_disposed)
            {
                Release();
            }
        }
    }

    /// <summary>Frees the scratch memory: now, or when the call that uses it ends.</summary>
    public void Dispose()
    {
        _disposed = true;
        Release();
    }

    // Whoever takes the operator frees its memory, and leaves it taken: no later call gets in.
    private void Release()
    {
        if (Interlocked.Exchange(ref _busy, 1) == 0)
        {
            _workspace.Dispose();
        }
    }
}
