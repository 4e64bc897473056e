using Microsoft.Extensions.Logging;

namespace Gpu.Attention;

/// <summary>
/// Runs an operator's problems, one call at a time, on the first of its devices that can, and remembers why those before it could not.
/// </summary>
internal sealed partial class Executor : IDisposable
{
    /// <summary>Steps that are remembered; a device that fails does so in few ways, but each size may be too large in its own words.</summary>
    private const int MaxSteps = 32;

    private readonly DeviceLane[] _lanes;
    private readonly Action<DeviceLane, string> _onSmaller;
    private volatile FallbackStep[] _steps = [];
    private volatile bool _disposed;
    private int _busy;

    public Executor(ComputeDevice device)
    {
        Device = device;
        LastDevice = device.Info;
        _lanes = [.. device.Candidates.Select(candidate => new DeviceLane(candidate, device.Options))];
        _onSmaller = (lane, reason) =>
        {
            if (Remember(lane, reason))
            {
                LogSmaller(Device.Logger, lane.Info, reason);
            }
        };
    }

    /// <summary>The device asked for.</summary>
    public ComputeDevice Device { get; }

    /// <summary>The device that ran the last call.</summary>
    public DeviceInfo LastDevice { get; private set; }

    /// <summary>Why other devices ran calls, or ran them in smaller segments; each reason once.</summary>
    public IReadOnlyList<FallbackStep> Steps => _steps;

    /// <summary>Scratch memory held now.</summary>
    public long HeldBytes => _lanes.Sum(lane => lane.HeldBytes);

    /// <summary>Scratch memory that a problem takes on the device that will run it; on other devices than the host, what is copied there too.</summary>
    /// <exception cref="NotSupportedException">No device that may run the problem can.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public long WorkspaceBytes(AttentionProblem problem, bool isBackward = false)
    {
        ThrowIfDisposed();
        for (int i = 0; ; i++)
        {
            try
            {
                RequireSupport(_lanes[i], problem, isBackward);
                return isBackward ? _lanes[i].BackwardBytes(problem) : _lanes[i].PlannedBytes(problem);
            }
            catch (Exception e) when (IsOfDevice(_lanes[i], e))
            {
                if (!HasNext(i))
                {
                    throw Final(_lanes[i], e);
                }
            }
        }
    }

    /// <summary>Runs a problem on host memory.</summary>
    public void Forward(AttentionProblem problem, in AttentionBuffers buffers) => Run(problem, buffers, default, isBackward: false);

    /// <summary>Computes a problem's gradients on host memory.</summary>
    public void Backward(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients) =>
        Run(problem, buffers, gradients, isBackward: true);

    /// <summary>Runs a problem on the memory of the device asked for: no other can take over.</summary>
    /// <exception cref="DeviceException">It failed, or has no memory for its workspace.</exception>
    public void ForwardInPlace(AttentionProblem problem, in AttentionBuffers buffers, bool wait) =>
        RunInPlace(problem, buffers, default, wait, isBackward: false);

    /// <summary>Computes a problem's gradients on the memory of the device asked for: no other can take over.</summary>
    /// <exception cref="DeviceException">It failed, or has no memory for its workspace.</exception>
    public void BackwardInPlace(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients, bool wait) =>
        RunInPlace(problem, buffers, gradients, wait, isBackward: true);

    /// <summary>Checks that there is somebody to do work.</summary>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void ThrowIfDisposed()
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        Device.ThrowIfDisposed();
    }

    /// <summary>Frees the scratch memory: now, or when the call that uses it ends.</summary>
    public void Dispose()
    {
        _disposed = true;
        Release();
    }

    private void RunInPlace(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients, bool wait, bool isBackward)
    {
        Enter();
        try
        {
            DeviceLane lane = _lanes[0];
            try
            {
                RequireSupport(lane, problem, isBackward);
                if (isBackward)
                {
                    lane.BackwardInPlace(problem, buffers, gradients, wait);
                }
                else
                {
                    lane.ForwardInPlace(problem, buffers, wait);
                }

                LastDevice = lane.Info;
            }
            catch (Exception e) when (IsOfDevice(lane, e))
            {
                GiveUpIfBroken(lane, e);
                throw Final(lane, e);
            }
        }
        finally
        {
            Leave();
        }
    }

    private void Run(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients, bool isBackward)
    {
        Enter();
        try
        {
            // Spelled out, and not by way of a delegate, so that a call on the host allocates nothing.
            for (int i = 0; ; i++)
            {
                DeviceLane lane = _lanes[i];
                try
                {
                    RequireSupport(lane, problem, isBackward);
                    if (isBackward)
                    {
                        lane.Backward(problem, buffers, gradients, _onSmaller);
                    }
                    else
                    {
                        lane.Forward(problem, buffers, _onSmaller);
                    }

                    LastDevice = lane.Info;
                    return;
                }
                catch (Exception e) when (IsOfDevice(lane, e))
                {
                    GoOn(i, e);
                }
            }
        }
        finally
        {
            Leave();
        }
    }

    // Failures of the host's own engine are the caller's, or bugs: there is nothing to fall back to.
    private bool IsOfDevice(DeviceLane lane, Exception e) => lane.IsHost
        ? e is UnsupportedProblemException
        : e is not OutOfMemoryException && !(e is ObjectDisposedException && (_disposed || Device.IsDisposed));

    private static void RequireSupport(DeviceLane lane, AttentionProblem problem, bool isBackward)
    {
        EngineSupport support = isBackward ? lane.Engine.SupportsBackward(problem) : lane.Engine.Supports(problem);
        if (!support.IsSupported)
        {
            throw new UnsupportedProblemException($"{lane.Info.Name} ({lane.Engine.Name}): {support.Reason}.");
        }
    }

    /// <summary>What a caller is told when no device is left.</summary>
    private static Exception Final(DeviceLane lane, Exception e)
    {
        if (e is UnsupportedProblemException)
        {
            return new NotSupportedException(e.Message);
        }

        return new DeviceException(lane.Info, $"{lane.Info} failed: {lane.Describe(e)}", e);
    }

    private bool HasNext(int index) => index + 1 < _lanes.Length && Device.Options.AllowFallback;

    /// <summary>Records why a device did not run a call, and throws when there is no next one that may.</summary>
    private void GoOn(int index, Exception e)
    {
        DeviceLane lane = _lanes[index];
        GiveUpIfBroken(lane, e);
        if (!HasNext(index))
        {
            throw Final(lane, e);
        }

        string reason = lane.Describe(e);
        if (Remember(lane, reason))
        {
            LogFallback(Device.Logger, lane.Info, reason, _lanes[index + 1].Info, e is UnsupportedProblemException ? null : e);
        }
    }

    private static void GiveUpIfBroken(DeviceLane lane, Exception e)
    {
        if (e is not UnsupportedProblemException && !lane.IsOutOfMemory(e))
        {
            lane.Fail(lane.Describe(e));
        }
    }

    /// <summary>Keeps a reason, in place of the oldest if there are many; false when it is known already, and need not be logged again.</summary>
    private bool Remember(DeviceLane lane, string reason)
    {
        var step = new FallbackStep(lane.Info, reason);
        if (_steps.Contains(step))
        {
            return false;
        }

        _steps = [.. _steps.TakeLast(MaxSteps - 1), step];
        return true;
    }

    private void Enter()
    {
        ThrowIfDisposed();
        if (Interlocked.Exchange(ref _busy, 1) != 0)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            throw new InvalidOperationException("This operator is already running a call on another thread; use one operator a thread.");
        }
    }

    private void Leave()
    {
        Interlocked.Exchange(ref _busy, 0);
        if (_disposed)
        {
            Release();
        }
    }

    // Whoever takes the operator frees its memory, and leaves it taken: no later call gets in.
    private void Release()
    {
        if (Interlocked.Exchange(ref _busy, 1) == 0)
        {
            Array.ForEach(_lanes, lane => lane.Dispose());
        }
    }

    [LoggerMessage(EventId = 2, Level = LogLevel.Warning, Message = "{Device} did not run a call: {Reason}. Going on with {Next}")]
    private static partial void LogFallback(ILogger logger, DeviceInfo device, string reason, DeviceInfo next, Exception? exception);

    [LoggerMessage(EventId = 3, Level = LogLevel.Warning, Message = "{Device} runs smaller segments: {Reason}")]
    private static partial void LogSmaller(ILogger logger, DeviceInfo device, string reason);

    /// <summary>An engine does not run a problem.</summary>
    private sealed class UnsupportedProblemException(string message) : Exception(message);
}
