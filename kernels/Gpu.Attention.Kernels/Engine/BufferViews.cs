using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>A caller's buffers as views, checked to be the accelerator's and to lie within their allocations.</summary>
internal static class BufferViews
{
    // The parameter of IAttentionEngine's methods that all buffers come in.
    private static readonly string BuffersParameter = "buffers";

    /// <summary>The allocation that a workspace lies in.</summary>
    /// <param name="accelerator">The accelerator.</param>
    /// <param name="problem">The problem.</param>
    /// <param name="buffers">Its buffers.</param>
    /// <param name="bytes">The bytes that are needed, what rounding up its start may take included.</param>
    /// <param name="start">The element that arrays may begin at: a multiple of <see cref="WorkspacePlan.Alignment"/> bytes.</param>
    /// <exception cref="ArgumentException">It is no memory of the accelerator, or too short, or the states are not those that the problem speaks of.</exception>
    public static ArrayView<float> Workspace(Accelerator accelerator, AttentionProblem problem, in AttentionBuffers buffers, long bytes, out long start)
    {
        if (problem.HasInitialState == buffers.InitialState.IsEmpty || problem.WantsFinalState == buffers.FinalState.IsEmpty)
        {
            throw new ArgumentException("The problem and its buffers disagree on whether there is an initial or a final state.", nameof(buffers));
        }

        long given = buffers.Workspace.Length * sizeof(float);
        if (given < bytes)
        {
            throw new ArgumentException($"The workspace has {given} bytes where {problem.Shape} takes {bytes}.", nameof(buffers));
        }

        ArrayView<float> view = View(accelerator, buffers.Workspace, "workspace", out start);
        start = WorkspacePlan.Align(start);
        return view;
    }

    /// <summary>A tensor as kernels see it.</summary>
    /// <param name="accelerator">The accelerator.</param>
    /// <param name="buffer">The tensor.</param>
    /// <param name="name">Its name in messages.</param>
    /// <param name="elements">Its elements; with none the buffer may be empty.</param>
    /// <param name="empty">What an empty tensor is a view of: a kernel's view must be one, used or not.</param>
    /// <exception cref="ArgumentException">It is no memory of the accelerator.</exception>
    public static KernelTensor Tensor(Accelerator accelerator, TensorBuffer buffer, string name, long elements, ArrayView<float> empty)
    {
        if (elements == 0)
        {
            return new KernelTensor { Elements = empty };
        }

        ArrayView<float> view = View(accelerator, buffer.Memory, name, out long start);
        return new KernelTensor
        {
            Elements = view,
            Start = start,
            BatchStride = buffer.BatchStride,
            TokenStride = buffer.TokenStride,
            HeadStride = buffer.HeadStride,
        };
    }

    /// <summary>The allocation that a region lies in, whole: kernels take views to be aligned as allocations are.</summary>
    /// <param name="accelerator">The accelerator.</param>
    /// <param name="region">The region.</param>
    /// <param name="name">Its name in messages.</param>
    /// <param name="start">The element that the region begins at.</param>
    /// <exception cref="ArgumentException">It is no memory of the accelerator.</exception>
    public static ArrayView<float> View(Accelerator accelerator, MemoryRegion region, string name, out long start)
    {
        if (region.Owner is not MemoryBuffer buffer || buffer.Accelerator != accelerator)
        {
            throw new ArgumentException($"The {name} is not in memory of {accelerator.Name}.", BuffersParameter);
        }

        long floats = buffer.LengthInBytes / sizeof(float);
        (start, long rest) = Math.DivRem(region.Address, sizeof(float));
        if (region.Type != ElementType.Single || rest != 0 || start < 0 || region.Length > floats - start)
        {
            throw new ArgumentException($"The {name} is not {region.Length} float32 elements within its buffer of {buffer.LengthInBytes} bytes.", BuffersParameter);
        }

        // Not by AsArrayView, which wants the type that the buffer was allocated as: a caller's view may be cast from another.
        return new ArrayView<float>(buffer, 0, floats);
    }
}
