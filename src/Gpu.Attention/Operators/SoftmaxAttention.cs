using System.Numerics.Tensors;

namespace Gpu.Attention;

/// <summary>What an exact attention layer computes.</summary>
public sealed record SoftmaxAttentionOptions
{
    /// <summary>True when query <c>i</c> sees keys <c>0..i</c> only.</summary>
    public bool Causal { get; init; }

    /// <summary>The factor on <c>q·k</c>; null for <c>1/√D</c>.</summary>
    public float? Scale { get; init; }
}

/// <summary>
/// Exact attention, <c>softmax(scale · QKᵀ) V</c>: quadratic in time, linear in memory. The neighbour that linear attention is compared with, and the
/// better choice at short lengths.
/// </summary>
/// <remarks>Shapes, aliasing and determinism are those of <see cref="LinearAttention"/>.</remarks>
public sealed class SoftmaxAttention : IDisposable
{
    /// <summary>Creates an operator.</summary>
    /// <param name="device">Where it runs. The operator does not own it.</param>
    /// <param name="options">What to compute; null for the defaults.</param>
    /// <exception cref="ArgumentException">The scale is not finite.</exception>
    public SoftmaxAttention(ComputeDevice device, SoftmaxAttentionOptions? options = null) => throw new NotImplementedException();

    /// <summary>Where the operator runs.</summary>
    public ComputeDevice Device => throw new NotImplementedException();

    /// <summary>What is computed.</summary>
    public SoftmaxAttentionOptions Options => throw new NotImplementedException();

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

    /// <summary>Scratch memory, beside inputs and outputs, that a call of this shape holds.</summary>
    /// <param name="shape">The sizes.</param>
    public long WorkspaceBytes(AttentionShape shape) => throw new NotImplementedException();

    /// <summary>Releases the operator's scratch memory.</summary>
    public void Dispose() => throw new NotImplementedException();
}
