namespace Gpu.Attention;

/// <summary>An operator's means on one of the devices that may come to run it.</summary>
/// <param name="candidate">The device.</param>
/// <param name="options">How it is used.</param>
internal sealed class DeviceLane(DeviceCandidate candidate, ComputeDeviceOptions options) : IDisposable
{
    // Sizes may be asked for while a call runs.
    private readonly Lock _lock = new();
    private readonly Workspace _hostWorkspace = new();
    private readonly Workspace _finalState = new();
    private DeviceRuntime? _runtime;
    private DeviceSession? _session;
    private SegmentRunner? _runner;
    private DeviceBlock? _kept;

    // The last call's of either pass.
    private Planned? _forward;
    private Planned? _backward;

    // What a call may take; less after the device turned out to have less.
    private long _budget;

    // A device that could not be opened, or failed, is not asked again.
    private string? _failure;
    private bool _disposed;

    /// <summary>What is known of the device.</summary>
    public DeviceInfo Info => candidate.Info;

    /// <summary>Scratch memory held between calls.</summary>
    public long HeldBytes => _hostWorkspace.Bytes + _finalState.Bytes + (_kept?.Bytes ?? 0);

    /// <summary>The engine. Opens the device; throws what keeps it from being opened, or made it fail.</summary>
    public IAttentionEngine Engine
    {
        get
        {
            lock (_lock)
            {
                ObjectDisposedException.ThrowIf(_disposed, this);
                return (_session ??= Open()).Engine;
            }
        }
    }

    private long FullBudget => options.MemoryBudgetBytes == 0 ? _runtime!.DefaultBudgetBytes : options.MemoryBudgetBytes;

    /// <summary>True when the engine works where host memory lies.</summary>
    public bool IsHost => Info.Kind == DeviceKind.Cpu;

    /// <summary>Bytes that a call on host memory takes of the device.</summary>
    /// <param name="problem">A supported problem.</param>
    /// <exception cref="DeviceOutOfMemoryException">No plan fits the budget.</exception>
    public long PlannedBytes(AttentionProblem problem) =>
        IsHost ? Engine.WorkspaceBytes(problem) : Plan(problem, null).Layout.TotalBytes;

    /// <summary>Runs a problem on host memory.</summary>
    /// <param name="problem">A supported problem.</param>
    /// <param name="host">Its buffers.</param>
    /// <param name="onSmaller">Told why, each time that the device has less memory than planned for.</param>
    /// <exception cref="DeviceOutOfMemoryException">The device has not even memory for the smallest segments.</exception>
    public void Forward(AttentionProblem problem, in AttentionBuffers host, Action<DeviceLane, string> onSmaller)
    {
        IAttentionEngine engine = Engine;
        if (IsHost)
        {
            engine.Forward(problem, host with { Workspace = _hostWorkspace.Rent(engine.WorkspaceBytes(problem)) });
            return;
        }

        for (SegmentPlan plan = Plan(problem, null); ; plan = Plan(problem, null))
        {
            try
            {
                Run(problem, plan, host);
                return;
            }
            catch (Exception e) when (IsOutOfMemory(e))
            {
                TrySmaller(plan, e, onSmaller);
            }
        }
    }

    /// <summary>Bytes that a backward pass on host memory takes of the device, all its gradients being wanted.</summary>
    /// <param name="problem">A problem whose backward pass the engine supports.</param>
    /// <exception cref="DeviceOutOfMemoryException">No plan fits the budget.</exception>
    public long BackwardBytes(AttentionProblem problem) =>
        IsHost ? Engine.BackwardWorkspaceBytes(problem) : Plan(problem, GradientParts.All(problem)).Layout.TotalBytes;

    /// <summary>Computes the gradients of a problem on host memory.</summary>
    /// <param name="problem">A problem whose backward pass the engine supports.</param>
    /// <param name="host">Its buffers.</param>
    /// <param name="gradients">Gradients in and out.</param>
    /// <param name="onSmaller">Told why, each time that the device has less memory than planned for.</param>
    /// <exception cref="DeviceOutOfMemoryException">The device has not even memory for one head of one sequence.</exception>
    public void Backward(AttentionProblem problem, in AttentionBuffers host, in GradientBuffers gradients, Action<DeviceLane, string> onSmaller)
    {
        if (IsHost)
        {
            HostBackward(problem, host, gradients);
            return;
        }

        var parts = GradientParts.Of(gradients);
        for (SegmentPlan plan = Plan(problem, parts); ; plan = Plan(problem, parts))
        {
            try
            {
                RunBackward(problem, plan, host, gradients);
                return;
            }
            catch (Exception e) when (IsOutOfMemory(e))
            {
                TrySmaller(plan, e, onSmaller);
            }
        }
    }

    /// <summary>Runs a problem on the device's own memory, and waits unless the device's queue is the caller's.</summary>
    /// <param name="problem">A supported problem.</param>
    /// <param name="buffers">Its buffers.</param>
    /// <param name="wait">True to wait for the result.</param>
    /// <exception cref="DeviceOutOfMemoryException">The device has no memory for the engine's least workspace.</exception>
    public void ForwardInPlace(AttentionProblem problem, in AttentionBuffers buffers, bool wait)
    {
        IAttentionEngine engine = Engine;
        if (IsHost)
        {
            engine.Forward(problem, buffers with { Workspace = _hostWorkspace.Rent(engine.WorkspaceBytes(problem)) });
            return;
        }

        DeviceBlock workspace = Keep(engine.WorkspaceBytes(problem), engine.MinimumWorkspaceBytes(problem));
        engine.Forward(problem, buffers with { Workspace = new MemoryRegion(workspace.Allocation, 0, workspace.Bytes / sizeof(float)) });
        if (wait)
        {
            _session!.Wait(DeviceQueue.Compute);
        }
    }

    /// <summary>Computes the gradients of a problem on the device's own memory, and waits unless the device's queue is the caller's.</summary>
    /// <param name="problem">A problem whose backward pass the engine supports.</param>
    /// <param name="buffers">Its buffers.</param>
    /// <param name="gradients">Gradients in and out.</param>
    /// <param name="wait">True to wait for the result.</param>
    /// <exception cref="DeviceOutOfMemoryException">The device has no memory for the engine's least workspace.</exception>
    public void BackwardInPlace(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients, bool wait)
    {
        if (IsHost)
        {
            HostBackward(problem, buffers, gradients);
            return;
        }

        IAttentionEngine engine = Engine;
        DeviceBlock workspace = Keep(engine.BackwardWorkspaceBytes(problem), engine.MinimumBackwardWorkspaceBytes(problem));
        engine.Backward(problem, buffers with { Workspace = new MemoryRegion(workspace.Allocation, 0, workspace.Bytes / sizeof(float)) }, gradients);
        if (wait)
        {
            _session!.Wait(DeviceQueue.Compute);
        }
    }

    /// <summary>Gives up a device that failed: it runs nothing any more, and whatever it still does is over.</summary>
    /// <param name="reason">What happened.</param>
    public void Fail(string reason)
    {
        lock (_lock)
        {
            _failure = reason;
        }

        _runtime?.Fail(reason);
        Release();
    }

    /// <summary>True for an exception by which the device, or its pool, says that its memory does not suffice.</summary>
    /// <param name="exception">What a call threw.</param>
    public bool IsOutOfMemory(Exception exception) => exception is DeviceOutOfMemoryException || _runtime?.IsOutOfMemory(exception) == true;

    /// <summary>What an exception of the device says.</summary>
    /// <param name="exception">What a call threw.</param>
    public string Describe(Exception exception) => _runtime?.Describe(exception) ?? exception.Message;

    /// <summary>Frees everything.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            _disposed = true;
        }

        Release();
    }

    private void Release()
    {
        lock (_lock)
        {
            (_forward, _backward) = (null, null);
        }

        _hostWorkspace.Dispose();
        _finalState.Dispose();
        if (_session is { } session)
        {
            session.Quiesce();
            Return(ref _kept);
            DeviceRuntime.Ignore(() => _runner?.Dispose());
            _runner = null;
            lock (_lock)
            {
                _session = null;
            }

            DeviceRuntime.Ignore(session.Dispose);
        }
    }

    private DeviceSession Open()
    {
        try
        {
            if (_failure is null)
            {
                _runtime = candidate.Open();
                _failure = _runtime.Failure;
            }
        }
        catch (Exception e) when (e is not OutOfMemoryException)
        {
            _failure = e.Message;
            throw;
        }

        if (_failure is not null)
        {
            throw new InvalidOperationException(_failure);
        }

        DeviceSession session = _runtime!.OpenSession();
        _budget = FullBudget;
        return session;
    }

    private SegmentPlan Plan(AttentionProblem problem, GradientParts? gradients)
    {
        lock (_lock)
        {
            return PlanLocked(problem, gradients);
        }
    }

    private SegmentPlan PlanLocked(AttentionProblem problem, GradientParts? gradients)
    {
        IAttentionEngine engine = Engine;
        Planned? last = gradients is null ? _forward : _backward;
        if (last is not null && last.Problem == problem && last.Plan.Gradients == gradients)
        {
            return last.Plan;
        }

        SegmentPlan? plan = SegmentPlan.Find(problem, engine, _budget, out long smallest, gradients);
        if (plan is null)
        {
            long budget = _budget;
            _budget = FullBudget;
            throw new DeviceOutOfMemoryException(gradients is null
                ? $"{problem.Shape} takes at least {smallest} bytes, where {budget} may be used"
                : $"the gradients of {problem.Shape} take at least {smallest} bytes, where {budget} may be used");
        }

        var planned = new Planned(problem, plan);
        (_forward, _backward) = gradients is null ? (planned, _backward) : (_forward, planned);
        return plan;
    }

    private void TrySmaller(SegmentPlan plan, Exception e, Action<DeviceLane, string> onSmaller)
    {
        long budget = plan.Layout.TotalBytes / 2;
        lock (_lock)
        {
            (_forward, _backward) = (null, null);
            _budget = budget;
        }

        onSmaller(this, $"{Describe(e)}; trying with {budget} bytes");
    }

    private void HostBackward(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients) =>
        Engine.Backward(problem, buffers with { Workspace = _hostWorkspace.Rent(Engine.BackwardWorkspaceBytes(problem)) }, gradients);

    private unsafe void Run(AttentionProblem problem, SegmentPlan plan, in AttentionBuffers host)
    {
        StateBuffers final = host.FinalState;
        long scales = final.LogScale.Length;
        long normalizers = final.Normalizers.Length;
        StateBuffers temporary = final;
        if (!final.IsEmpty)
        {
            // The caller's may be the initial state too, which another device begins with if this one fails half-way.
            float* memory = _finalState.Rent((scales + normalizers + final.Sums.Length) * sizeof(float)).HostPointer;
            temporary = new StateBuffers(
                MemoryRegion.Host(memory, scales), MemoryRegion.Host(memory + scales + normalizers, final.Sums.Length), MemoryRegion.Host(memory + scales, normalizers));
        }

        Run(problem, plan, host with { FinalState = temporary }, default(GradientBuffers));
        if (!final.IsEmpty)
        {
            Copy(temporary.LogScale, final.LogScale);
            Copy(temporary.Sums, final.Sums);
            Copy(temporary.Normalizers, final.Normalizers);
        }
    }

    private unsafe void RunBackward(AttentionProblem problem, SegmentPlan plan, in AttentionBuffers host, in GradientBuffers gradients)
    {
        StateBuffers initial = gradients.InitialStateGradient with { LogScale = default };
        StateBuffers temporary = initial;
        if (!initial.IsEmpty)
        {
            // The caller's may be the final state's too, which another device begins with if this one fails half-way.
            float* memory = _finalState.Rent((initial.Normalizers.Length + initial.Sums.Length) * sizeof(float)).HostPointer;
            temporary = new StateBuffers(
                default, MemoryRegion.Host(memory + initial.Normalizers.Length, initial.Sums.Length), MemoryRegion.Host(memory, initial.Normalizers.Length));
        }

        Run(problem, plan, host, gradients with { InitialStateGradient = temporary });
        if (!initial.IsEmpty)
        {
            Copy(temporary.Sums, initial.Sums);
            Copy(temporary.Normalizers, initial.Normalizers);
        }
    }

    private void Run(AttentionProblem problem, SegmentPlan plan, in AttentionBuffers host, in GradientBuffers gradients)
    {
        _runner ??= new SegmentRunner(_session!);
        DeviceBlock block = _runtime!.Pool.Rent(plan.Layout.TotalBytes);
        try
        {
            _runner.Run(problem, plan, host, gradients, block);
        }
        catch
        {
            _session!.Quiesce();
            throw;
        }
        finally
        {
            _runtime.Pool.Return(block);
        }
    }

    private static unsafe void Copy(MemoryRegion from, MemoryRegion to) =>
        Buffer.MemoryCopy(from.HostPointer, to.HostPointer, to.Length * sizeof(float), from.Length * sizeof(float));

    // Kept between calls, since on a caller's stream the last one may still be running.
    private DeviceBlock Keep(long wanted, long least)
    {
        if (_kept is not null && _kept.Bytes >= wanted)
        {
            return _kept;
        }

        _session!.Wait(DeviceQueue.Compute);
        Return(ref _kept);
        for (long bytes = wanted; ; bytes = Math.Max(least, bytes / 2))
        {
            try
            {
                return _kept = _runtime!.Pool.Rent(bytes);
            }
            catch (DeviceOutOfMemoryException) when (bytes > least)
            {
                // The engine then works in smaller blocks.
            }
        }
    }

    private void Return(ref DeviceBlock? block)
    {
        if (block is not null)
        {
            _runtime!.Pool.Return(block);
            block = null;
        }
    }

    /// <summary>A problem and its plan.</summary>
    private sealed record Planned(AttentionProblem Problem, SegmentPlan Plan);
}
