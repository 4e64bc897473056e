namespace Gpu.Attention;

/// <summary>Describes pinned host memory to an engine.</summary>
internal static unsafe class HostBuffers
{
    public static AttentionBuffers Of(AttentionShape shape, float* query, float* key, float* value, float* output) => new()
    {
        Query = TensorBuffer.Dense(MemoryRegion.Host(query, shape.QueryElements), shape.QueryLength, shape.Heads, shape.KeyDimension),
        Key = TensorBuffer.Dense(MemoryRegion.Host(key, shape.KeyElements), shape.KeyLength, shape.KeyHeads, shape.KeyDimension),
        Value = TensorBuffer.Dense(MemoryRegion.Host(value, shape.ValueElements), shape.KeyLength, shape.KeyHeads, shape.ValueDimension),
        Output = TensorBuffer.Dense(MemoryRegion.Host(output, shape.OutputElements), shape.QueryLength, shape.Heads, shape.ValueDimension),
    };

    public static StateBuffers Of(AttentionState? state, float* logScale, float* sums, float* normalizers) => state is null
        ? default
        : new StateBuffers(
            MemoryRegion.Host(logScale, state.LogScale.Length), MemoryRegion.Host(sums, state.Sums.Length),
            MemoryRegion.Host(normalizers, state.Normalizers.Length));
}
