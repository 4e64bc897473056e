namespace Gpu.Attention.Cli;

/// <summary>Linear or exact attention on one problem: commands treat both alike.</summary>
internal sealed class Operation : IDisposable
{
    private readonly IDisposable _attention;
    private readonly Func<long> _workspaceBytes;
    private readonly Func<long> _backwardWorkspaceBytes;
    private readonly Func<DeviceInfo> _lastDevice;
    private readonly Func<IReadOnlyList<FallbackStep>> _fallbacks;

    public Operation(LinearAttention attention, AttentionShape shape, Action forward, Action? backward = null, SequenceLayout? layout = null)
        : this(
            attention, forward, backward, () => attention.WorkspaceBytes(shape, layout), () => attention.BackwardWorkspaceBytes(shape, layout),
            () => attention.LastDevice, () => attention.Fallbacks)
    {
    }

    public Operation(SoftmaxAttention attention, AttentionShape shape, Action forward, Action? backward = null, SequenceLayout? layout = null)
        : this(
            attention, forward, backward, () => attention.WorkspaceBytes(shape, layout), () => attention.BackwardWorkspaceBytes(shape, layout),
            () => attention.LastDevice, () => attention.Fallbacks)
    {
    }

    private Operation(
        IDisposable attention, Action forward, Action? backward, Func<long> workspaceBytes, Func<long> backwardWorkspaceBytes, Func<DeviceInfo> lastDevice,
        Func<IReadOnlyList<FallbackStep>> fallbacks)
    {
        (_attention, Forward, Backward) = (attention, forward, backward);
        (_workspaceBytes, _backwardWorkspaceBytes, _lastDevice, _fallbacks) = (workspaceBytes, backwardWorkspaceBytes, lastDevice, fallbacks);
    }

    /// <summary>Computes the output.</summary>
    public Action Forward { get; }

    /// <summary>Computes the gradients, after <see cref="Forward"/>; null when none are wanted.</summary>
    public Action? Backward { get; }

    /// <summary>Scratch memory of a call.</summary>
    public long WorkspaceBytes => _workspaceBytes();

    /// <summary>Scratch memory of a backward pass.</summary>
    public long BackwardWorkspaceBytes => _backwardWorkspaceBytes();

    /// <summary>The device that ran the last call.</summary>
    public DeviceInfo LastDevice => _lastDevice();

    /// <summary>Why it was not the device asked for, or that one in smaller segments than planned.</summary>
    public IReadOnlyList<string> Fallbacks => [.. _fallbacks().Select(step => step.ToString().ReplaceLineEndings(" ").Trim())];

    public void Dispose() => _attention.Dispose();
}
