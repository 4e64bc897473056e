namespace Gpu.Attention.Benchmarks;

/// <summary>An operator's call on flat memory.</summary>
internal delegate void AttentionForward(
    AttentionShape shape, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output);

/// <summary>An operator that is ready to be called.</summary>
internal sealed class AttentionRun(IDisposable attention, AttentionForward forward) : IDisposable
{
    /// <summary>Computes attention of as many tokens as the shape says, from the start of the tensors.</summary>
    public void Forward(AttentionShape shape, AttentionData data) =>
        forward(
            shape, data.Query.AsSpan(0, (int)shape.QueryElements), data.Key.AsSpan(0, (int)shape.KeyElements),
            data.Value.AsSpan(0, (int)shape.ValueElements), data.Output.AsSpan(0, (int)shape.OutputElements));

    public void Dispose() => attention.Dispose();
}
