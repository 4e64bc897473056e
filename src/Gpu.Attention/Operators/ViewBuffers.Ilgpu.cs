using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>Describes views of a caller's accelerator to an engine, and checks them first.</summary>
internal static class ViewBuffers
{
    public static AttentionBuffers Of(
        ComputeDevice device, AttentionShape shape, ArrayView<float> query, ArrayView<float> key, ArrayView<float> value, ArrayView<float> output)
    {
        TensorArguments.RequireLengths(shape, query.Length, key.Length, value.Length, output.Length);
        Accelerator? accelerator = (device.OpenRuntime() as IlgpuRuntime)?.Accelerator;
        AttentionBuffers buffers = DenseBuffers.Of(
            shape, Region(device, accelerator, query, nameof(query)), Region(device, accelerator, key, nameof(key)),
            Region(device, accelerator, value, nameof(value)), Region(device, accelerator, output, nameof(output)));
        RequireDisjoint("query", buffers.Query.Memory, buffers.Output.Memory, shape);
        RequireDisjoint("key", buffers.Key.Memory, buffers.Output.Memory, shape);
        RequireDisjoint("value", buffers.Value.Memory, buffers.Output.Memory, shape);
        return buffers;
    }

    private static MemoryRegion Region(ComputeDevice device, Accelerator? accelerator, ArrayView<float> view, string name)
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
            ? new MemoryRegion(buffer, checked((nint)((IContiguousArrayView)view).IndexInBytes), view.Length)
            : throw new ArgumentException($"The view {name} is memory of {buffer.Accelerator?.Name ?? "the host"}, not of the operator's device, {device}.", name);
    }

    private static void RequireDisjoint(string name, MemoryRegion input, MemoryRegion output, AttentionShape shape)
    {
        if (input.Owner is not null && input.Owner == output.Owner
            && input.Address < output.Address + (output.Length * sizeof(float)) && output.Address < input.Address + (input.Length * sizeof(float)))
        {
            throw new ArgumentException($"The output overlaps the {name} in memory ({shape}).", nameof(output));
        }
    }
}
