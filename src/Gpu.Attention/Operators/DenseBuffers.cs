namespace Gpu.Attention;

/// <summary>Describes a caller's dense tensors to an engine: pinned host memory, or memory of its device.</summary>
internal static unsafe class DenseBuffers
{
    public static AttentionBuffers Of(AttentionShape shape, ElementType storage, void* query, void* key, void* value, void* output) => Of(
        shape, new MemoryRegion(null, (nint)query, shape.QueryElements, storage), new MemoryRegion(null, (nint)key, shape.KeyElements, storage),
        new MemoryRegion(null, (nint)value, shape.ValueElements, storage), new MemoryRegion(null, (nint)output, shape.OutputElements, storage));

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
