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

    public static GradientBuffers GradientsOf(AttentionShape shape, ElementType storage, void* output, void* query, void* key, void* value) => new()
    {
        OutputGradient = Dense(output, shape.OutputElements, shape.QueryLength, shape.Heads, shape.ValueDimension, storage),
        QueryGradient = Dense(query, shape.QueryElements, shape.QueryLength, shape.Heads, shape.KeyDimension, storage),
        KeyGradient = Dense(key, shape.KeyElements, shape.KeyLength, shape.KeyHeads, shape.KeyDimension, storage),
        ValueGradient = Dense(value, shape.ValueElements, shape.KeyLength, shape.KeyHeads, shape.ValueDimension, storage),
    };

    public static GradientBuffers GradientsOf(AttentionShape shape, MemoryRegion output, MemoryRegion query, MemoryRegion key, MemoryRegion value) => new()
    {
        OutputGradient = TensorBuffer.Dense(output, shape.QueryLength, shape.Heads, shape.ValueDimension),
        QueryGradient = TensorBuffer.Dense(query, shape.QueryLength, shape.Heads, shape.KeyDimension),
        KeyGradient = TensorBuffer.Dense(key, shape.KeyLength, shape.KeyHeads, shape.KeyDimension),
        ValueGradient = TensorBuffer.Dense(value, shape.KeyLength, shape.KeyHeads, shape.ValueDimension),
    };

    public static StateBuffers Of(AttentionState? state, AttentionStateGradient? gradient, float* logScale, float* sums, float* normalizers) =>
        gradient is null
            ? default
            : new StateBuffers(
                MemoryRegion.Host(logScale, state!.LogScale.Length), MemoryRegion.Host(sums, gradient.Sums.Length),
                MemoryRegion.Host(normalizers, gradient.Normalizers.Length));

    public static StateBuffers Of(AttentionState? state, float* logScale, float* sums, float* normalizers) => state is null
        ? default
        : new StateBuffers(
            MemoryRegion.Host(logScale, state.LogScale.Length), MemoryRegion.Host(sums, state.Sums.Length),
            MemoryRegion.Host(normalizers, state.Normalizers.Length));

    private static TensorBuffer Dense(void* pointer, long elements, int tokens, int heads, int width, ElementType storage) => pointer is null
        ? default
        : TensorBuffer.Dense(new MemoryRegion(null, (nint)pointer, elements, storage), tokens, heads, width);
}
