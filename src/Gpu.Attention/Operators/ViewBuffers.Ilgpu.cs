using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>Describes views of a caller's accelerator to an engine, and checks them first.</summary>
internal static class ViewBuffers
{
    public static AttentionBuffers Of<T>(
        ComputeDevice device, AttentionShape shape, ArrayView<T> query, ArrayView<T> key, ArrayView<T> value, ArrayView<T> output)
        where T : unmanaged
    {
        TensorArguments.RequireLengths(shape, query.Length, key.Length, value.Length, output.Length);
        Accelerator? accelerator = (device.OpenRuntime() as IlgpuRuntime)?.Accelerator;
        AttentionBuffers buffers = DenseBuffers.Of(
            shape, Region(device, accelerator, query, nameof(query)), Region(device, accelerator, key, nameof(key)),
            Region(device, accelerator, value, nameof(value)), Region(device, accelerator, output, nameof(output)));
        TensorArguments.RequireDisjoint(shape, buffers);
        return buffers;
    }

    public static GradientBuffers GradientsOf<T>(
        ComputeDevice device, AttentionShape shape, in AttentionBuffers buffers, ArrayView<T> outputGradient, ArrayView<T> queryGradient,
        ArrayView<T> keyGradient, ArrayView<T> valueGradient)
        where T : unmanaged
    {
        TensorArguments.RequireGradientLengths(shape, outputGradient.Length, queryGradient.Length, keyGradient.Length, valueGradient.Length);
        Accelerator? accelerator = (device.OpenRuntime() as IlgpuRuntime)?.Accelerator;
        GradientBuffers gradients = DenseBuffers.GradientsOf(
            shape, Region(device, accelerator, outputGradient, nameof(outputGradient)), Region(device, accelerator, queryGradient, nameof(queryGradient)),
            Region(device, accelerator, keyGradient, nameof(keyGradient)), Region(device, accelerator, valueGradient, nameof(valueGradient)));
        TensorArguments.RequireDisjoint(shape, buffers, gradients);
        return gradients;
    }

    /// <summary>How elements of a view's type are stored.</summary>
    /// <exception cref="NotSupportedException">Views of the type are not attended to.</exception>
    public static ElementType StorageOf<T>() => typeof(T) == typeof(ILGPU.Half) ? ElementType.Half : TensorArguments.StorageOf<T>();

    private static MemoryRegion Region<T>(ComputeDevice device, Accelerator? accelerator, ArrayView<T> view, string name)
        where T : unmanaged
    {
        if (view.Length == 0)
        {
            return default;
        }

        MemoryBuffer buffer = ((IArrayView)view).Buffer;
        if (buffer.IsDisposed)
        {
            throw new ObjectDisposedException(name, $"The memory of the view {name} was freed.");
        }

        return accelerator is not null && buffer.Accelerator == accelerator
            ? new MemoryRegion(buffer, checked((nint)((IContiguousArrayView)view).IndexInBytes), view.Length, StorageOf<T>())
            : throw new ArgumentException($"The view {name} is memory of {buffer.Accelerator?.Name ?? "the host"}, not of the operator's device, {device}.", name);
    }
}
