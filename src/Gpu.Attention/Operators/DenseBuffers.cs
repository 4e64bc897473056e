namespace Gpu.Attention;

/// <summary>Describes a caller's dense tensors to an engine: pinned host memory, or memory of its device.</summary>
internal static unsafe class DenseBuffers
{
    public static AttentionBuffers Of(AttentionShape shape, float* query, float* key, float* value, float* output) => Of(
        shape, MemoryRegion.Host(query, shape.QueryElements), MemoryRegion.Host(key, shape.KeyElements), MemoryRegion.Host(value, shape.ValueElements),
        MemoryRegion.Host(output, shape.OutputElements));

    public static AttentionBuffers Of(AttentionShape shape, MemoryRegion query, MemoryRegion key, MemoryRegion value, MemoryRegion output) => new()
    {
        Query = TensorBuffer.Dense(query, shape.QueryLength, shape.Heads, shape.KeyDimension),
        Key = TensorBuffer.Dense(key, shape.KeyLength, shape.KeyHeads, shape.KeyDimension),
        Value = TensorBuffer.Dense(value, shape.KeyLength, shape.KeyHeads, shape.ValueDimension),
        Output = TensorBuffer.Dense(output, shape.QueryLength, shape.Heads, shape.ValueDimension),
    };

    public static StateBuffers Of(AttentionState? state, float* logScale, float* sums, float* normalizers) => state is null
        ? default
        : new StateBuffers(
            MemoryRegion.Host(logScale, state.LogScale.Length), MemoryRegion.Host(sums, state.Sums.Length),
            MemoryRegion.Host(normalizers, state.Normalizers.Length));
}
