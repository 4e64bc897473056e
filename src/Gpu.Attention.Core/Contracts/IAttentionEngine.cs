namespace Gpu.Attention;

/// <summary>Whether an engine can run a problem and, when it cannot, why.</summary>
/// <param name="IsSupported">True when the engine can run it.</param>
/// <param name="Reason">What stands in the way; empty when supported.</param>
public readonly record struct EngineSupport(bool IsSupported, string Reason)
{
    /// <summary>The engine can run it.</summary>
    public static EngineSupport Yes => new(true, "");

    /// <summary>The engine cannot run it.</summary>
    /// <param name="reason">A plain sentence that a user can act on.</param>
    public static EngineSupport No(string reason) => new(false, reason);
}

/// <summary>What one call of an engine reads and writes. Parts that a problem does not have are left empty.</summary>
public readonly struct AttentionBuffers
{
    /// <summary>Queries <c>[B, T, H, D]</c>.</summary>
    public TensorBuffer Query { get; init; }

    /// <summary>Keys <c>[B, S, Hk, D]</c>.</summary>
    public TensorBuffer Key { get; init; }

    /// <summary>Values <c>[B, S, Hk, Dv]</c>.</summary>
    public TensorBuffer Value { get; init; }

    /// <summary>Outputs <c>[B, T, H, Dv]</c>.</summary>
    public TensorBuffer Output { get; init; }

    /// <summary>What the sequences had seen before their first key.</summary>
    public StateBuffers InitialState { get; init; }

    /// <summary>Receives what the sequences have seen after their last key.</summary>
    public StateBuffers FinalState { get; init; }

    /// <summary>
    /// Scratch memory of at least <see cref="IAttentionEngine.MinimumWorkspaceBytes"/>, 64-byte aligned;
    /// <see cref="IAttentionEngine.WorkspaceBytes"/> is enough for any engine to run at its best.
    /// </summary>
    public MemoryRegion Workspace { get; init; }
}

/// <summary>
/// What a backward pass reads and writes beside the forward pass's buffers. Unwanted gradients, and those that are zero, are left empty. All are stored as
/// the problem's tensors are; gradients of states are float32.
/// </summary>
public readonly struct GradientBuffers
{
    /// <summary>The loss's gradient with respect to the output, <c>[B, T, H, Dv]</c>.</summary>
    public TensorBuffer OutputGradient { get; init; }

    /// <summary>
    /// The loss's gradient with respect to the final state's sums and normalisers, at the scale that the forward pass left in its
    /// <see cref="StateBuffers.LogScale"/>: that scale is read, and taken for a constant.
    /// </summary>
    public StateBuffers FinalStateGradient { get; init; }

    /// <summary>Receives the query gradient <c>[B, T, H, D]</c>.</summary>
    public TensorBuffer QueryGradient { get; init; }

    /// <summary>Receives the key gradient <c>[B, S, Hk, D]</c>.</summary>
    public TensorBuffer KeyGradient { get; init; }

    /// <summary>Receives the value gradient <c>[B, S, Hk, Dv]</c>.</summary>
    public TensorBuffer ValueGradient { get; init; }

    /// <summary>Receives the gradient of the initial state's sums and normalisers, at that state's own scale. Its <see cref="StateBuffers.LogScale"/> is not written.</summary>
    public StateBuffers InitialStateGradient { get; init; }
}

/// <summary>
/// Runs attention over segments with explicit state. An engine computes; how a sequence is cut, where memory lives and what
/// happens on a failure is the scheduler's.
/// </summary>
/// <remarks>
/// A segment is a problem of its own: the tokens, heads and batch items that its buffers' strides select, with the state before
/// them in and the state after them out. Engines keep no memory between calls other than constants derived from feature maps.
/// </remarks>
public interface IAttentionEngine
{
    /// <summary>The engine's name, as shown to a user.</summary>
    string Name { get; }

    /// <summary>Whether <paramref name="problem"/> can run here. Cheap; called before anything is allocated.</summary>
    /// <param name="problem">The problem in question.</param>
    EngineSupport Supports(AttentionProblem problem);

    /// <summary>
    /// Tokens, at multiples of which a sequence may be cut into segments without changing a bit, if the state between them has its
    /// <see cref="StateBuffers.Maximum"/>.
    /// </summary>
    int SegmentMultiple { get; }

    /// <summary>The scratch memory that a call for <paramref name="problem"/> makes the best of.</summary>
    /// <param name="problem">A supported problem.</param>
    long WorkspaceBytes(AttentionProblem problem);

    /// <summary>The least scratch memory that a call for <paramref name="problem"/> can do with. How much it gets changes no bit.</summary>
    /// <param name="problem">A supported problem.</param>
    long MinimumWorkspaceBytes(AttentionProblem problem);

    /// <summary>Computes the output, and the final state where one is wanted.</summary>
    /// <remarks>
    /// Without queries it appends keys and values to the state; without keys it reads the state. The final state may lie where the initial one does.
    /// </remarks>
    /// <param name="problem">A supported problem.</param>
    /// <param name="buffers">Its buffers.</param>
    /// <exception cref="NotSupportedException">The problem is not supported; the message says why.</exception>
    void Forward(AttentionProblem problem, in AttentionBuffers buffers);

    /// <summary>Whether <see cref="Backward"/> can run <paramref name="problem"/> here.</summary>
    /// <param name="problem">The problem in question.</param>
    EngineSupport SupportsBackward(AttentionProblem problem);

    /// <summary>The scratch memory that a <see cref="Backward"/> for <paramref name="problem"/> makes the best of.</summary>
    /// <param name="problem">A problem whose backward pass is supported.</param>
    long BackwardWorkspaceBytes(AttentionProblem problem);

    /// <summary>The least scratch memory that a <see cref="Backward"/> for <paramref name="problem"/> can do with. How much it gets changes no bit.</summary>
    /// <param name="problem">A problem whose backward pass is supported.</param>
    long MinimumBackwardWorkspaceBytes(AttentionProblem problem);

    /// <summary>Computes the gradients of a forward pass. Features and states are computed again, not kept.</summary>
    /// <param name="problem">The forward pass's problem.</param>
    /// <param name="buffers">The forward pass's buffers, inputs and output; a workspace of at least <see cref="MinimumBackwardWorkspaceBytes"/>; no final state.</param>
    /// <param name="gradients">Gradients in and out.</param>
    /// <exception cref="NotSupportedException">The problem is not supported; the message says why.</exception>
    void Backward(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients);
}
