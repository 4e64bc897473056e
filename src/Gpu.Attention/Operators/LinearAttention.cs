using System.Numerics.Tensors;

namespace Gpu.Attention;

/// <summary>What a linear attention layer computes, beside its feature map.</summary>
public sealed record LinearAttentionOptions
{
    /// <summary>True when query <c>i</c> sees keys <c>0..i</c> only.</summary>
    public bool Causal { get; init; }

    /// <summary>
    /// The factor on <c>q·k</c>; null for <c>1/√D</c>. Exponential feature maps estimate <c>exp(scale · q·k)</c>. For other maps it multiplies
    /// the weights, and so shows only when <see cref="Normalize"/> is false.
    /// </summary>
    public float? Scale { get; init; }

    /// <summary>True to divide every output row by the sum of its weights; false to return the bare sum of weighted values.</summary>
    public bool Normalize { get; init; } = true;

    /// <summary>A published convention to reproduce; <see cref="ReferenceConvention.None"/> is exact.</summary>
    public ReferenceConvention Compatibility { get; init; }

    /// <summary>
    /// A constant added to every feature; null for the convention's own, which is 0 for <see cref="ReferenceConvention.None"/>.
    /// </summary>
    public float? FeatureEpsilon { get; init; }
}

/// <summary>
/// Attention in linear time through a feature map: <c>φ(Q)(φ(K)ᵀV)</c>, bidirectional, causal or across two sequences.
/// </summary>
/// <remarks>
/// <para>Tensors are dense, row-major float32: query <c>[B, T, H, D]</c>, key <c>[B, S, Hk, D]</c>, value <c>[B, S, Hk, Dv]</c>, output
/// <c>[B, T, H, Dv]</c>. Sizes may change from call to call. A second call with the same sizes allocates nothing.</para>
/// <para>An output row that sees no key, or whose weights sum to zero, is 0. NaN and infinity spread to the rows that see them, and no further.
/// The same input gives the same bits, whatever the number of threads and whatever else is in the batch.</para>
/// </remarks>
public sealed class LinearAttention : IDisposable
{
    /// <summary>Creates an operator.</summary>
    /// <param name="device">Where it runs. The operator does not own it.</param>
    /// <param name="features">The feature map.</param>
    /// <param name="options">What to compute; null for the defaults.</param>
    /// <exception cref="ArgumentException">An option is not finite, or the epsilon is negative.</exception>
    public LinearAttention(ComputeDevice device, FeatureMap features, LinearAttentionOptions? options = null) =>
        throw new NotImplementedException();

    /// <summary>Where the operator runs, and on <see cref="ComputeDevice.Reason"/> why.</summary>
    public ComputeDevice Device => throw new NotImplementedException();

    /// <summary>The feature map.</summary>
    public FeatureMap Features => throw new NotImplementedException();

    /// <summary>What is computed.</summary>
    public LinearAttentionOptions Options => throw new NotImplementedException();

    /// <summary>Computes attention.</summary>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">Values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="output">Receives the outputs <c>[B, T, H, Dv]</c>; may not overlap an input.</param>
    /// <exception cref="ArgumentException">A rank, size or stride is wrong, or the output overlaps an input.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Forward(
        in ReadOnlyTensorSpan<float> query, in ReadOnlyTensorSpan<float> key, in ReadOnlyTensorSpan<float> value, in TensorSpan<float> output) =>
        throw new NotImplementedException();

    /// <summary>Computes attention on flat memory of a given shape.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="query">Queries, <c>B·T·H·D</c> elements.</param>
    /// <param name="key">Keys, <c>B·S·Hk·D</c> elements.</param>
    /// <param name="value">Values, <c>B·S·Hk·Dv</c> elements.</param>
    /// <param name="output">Receives the outputs, <c>B·T·H·Dv</c> elements; may not overlap an input.</param>
    /// <exception cref="ArgumentException">A length is wrong, or the output overlaps an input.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Forward(
        AttentionShape shape, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output) =>
        throw new NotImplementedException();

    /// <summary>Computes attention that goes on from an earlier state and hands its own on: a long sequence in pieces.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="query">Queries, <c>B·T·H·D</c> elements.</param>
    /// <param name="key">Keys, <c>B·S·Hk·D</c> elements.</param>
    /// <param name="value">Values, <c>B·S·Hk·Dv</c> elements.</param>
    /// <param name="output">Receives the outputs, <c>B·T·H·Dv</c> elements; may not overlap an input.</param>
    /// <param name="initialState">What the sequences had seen before; null for nothing.</param>
    /// <param name="finalState">Receives what they have seen after; null when not wanted. May be <paramref name="initialState"/>.</param>
    /// <exception cref="ArgumentException">A length is wrong, or the output overlaps an input, or a state does not fit.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Forward(
        AttentionShape shape, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output,
        AttentionState? initialState, AttentionState? finalState) =>
        throw new NotImplementedException();

    /// <summary>Creates the state of having seen nothing.</summary>
    /// <param name="batch">N, the number of sequences.</param>
    /// <param name="heads">Hk, the key heads.</param>
    /// <param name="keyDimension">D.</param>
    /// <param name="valueDimension">Dv.</param>
    public AttentionState CreateState(int batch, int heads, int keyDimension, int valueDimension) => throw new NotImplementedException();

    /// <summary>Scratch memory, beside inputs and outputs, that a call of this shape holds.</summary>
    /// <param name="shape">The sizes.</param>
    public long WorkspaceBytes(AttentionShape shape) => throw new NotImplementedException();

    /// <summary>Releases the operator's scratch memory.</summary>
    public void Dispose() => throw new NotImplementedException();
}
