using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>A caller's buffers as views, checked to be the accelerator's and to lie within their allocations.</summary>
internal static class BufferViews
{
    // The parameters of IAttentionEngine's methods that buffers come in.
    private static readonly string BuffersParameter = "buffers";
    private static readonly string GradientsParameter = "gradients";

    /// <summary>Throws when a forward pass's states are not those that the problem speaks of.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="buffers">Its buffers.</param>
    /// <exception cref="ArgumentException">There are states that the problem does not have, or the other way round.</exception>
    public static void RequireStates(AttentionProblem problem, in AttentionBuffers buffers)
    {
        if (problem.HasInitialState == buffers.InitialState.IsEmpty || problem.WantsFinalState == buffers.FinalState.IsEmpty)
        {
            throw new ArgumentException("The problem and its buffers disagree on whether there is an initial or a final state.", BuffersParameter);
        }
    }

    /// <summary>Throws when a backward pass's states are not those that the problem speaks of.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="buffers">Its buffers.</param>
    /// <param name="gradients">Its gradients.</param>
    /// <exception cref="ArgumentException">There are states that the problem does not have, or whose scale is not what a backward pass takes.</exception>
    public static void RequireStates(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients)
    {
        if (problem.HasInitialState == buffers.InitialState.IsEmpty)
        {
            throw new ArgumentException("The problem and its buffers disagree on whether there is an initial state.", BuffersParameter);
        }

        if (!problem.HasInitialState && !gradients.InitialStateGradient.IsEmpty)
        {
            throw new ArgumentException("A gradient is wanted of an initial state that the problem does not have.", GradientsParameter);
        }

        if (!buffers.InitialState.Maximum.IsEmpty || !gradients.FinalStateGradient.Maximum.IsEmpty)
        {
            throw new ArgumentException(
                "Backward takes states at the scale of their largest log feature only.",
                buffers.InitialState.Maximum.IsEmpty ? GradientsParameter : BuffersParameter);
        }

        if (problem.Features is null && !gradients.FinalStateGradient.IsEmpty)
        {
            throw new ArgumentException("Exact attention has no state whose gradient there could be.", GradientsParameter);
        }

        if (problem.Features is { Family: FeatureFamily.Exponential } && !gradients.FinalStateGradient.IsEmpty && gradients.FinalStateGradient.LogScale.IsEmpty)
        {
            throw new ArgumentException("The final state's gradient comes without the scale that it is meant at.", GradientsParameter);
        }
    }

    /// <summary>The allocation that a workspace lies in.</summary>
    /// <param name="accelerator">The accelerator.</param>
    /// <param name="problem">The problem.</param>
    /// <param name="buffers">Its buffers.</param>
    /// <param name="bytes">The bytes that are needed, what rounding up its start may take included.</param>
    /// <param name="start">The element that arrays may begin at: a multiple of <see cref="WorkspacePlan.Alignment"/> bytes.</param>
    /// <exception cref="ArgumentException">It is no memory of the accelerator, or too short.</exception>
    public static ArrayView<float> Workspace(Accelerator accelerator, AttentionProblem problem, in AttentionBuffers buffers, long bytes, out long start)
    {
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
    /// <param name="storage">How they are stored.</param>
    /// <param name="empty">What an empty tensor is a view of: a kernel's view must be one, used or not.</param>
    /// <exception cref="ArgumentException">It is no memory of the accelerator, or stored otherwise.</exception>
    public static KernelTensor Tensor(
        Accelerator accelerator, TensorBuffer buffer, string name, long elements, ElementType storage, ArrayView<float> empty) =>
        Tensor(accelerator, buffer, name, BuffersParameter, elements == 0, storage, empty);

    /// <summary>A gradient as kernels see it.</summary>
    /// <param name="accelerator">The accelerator.</param>
    /// <param name="buffer">The gradient; empty when it is unwanted, or zero.</param>
    /// <param name="name">Its name in messages.</param>
    /// <param name="storage">How its elements are stored.</param>
    /// <param name="empty">What an empty tensor is a view of: a kernel's view must be one, used or not.</param>
    /// <exception cref="ArgumentException">It is no memory of the accelerator, or stored otherwise.</exception>
    public static KernelTensor Gradient(Accelerator accelerator, TensorBuffer buffer, string name, ElementType storage, ArrayView<float> empty) =>
        Tensor(accelerator, buffer, name, GradientsParameter, buffer.Memory.IsEmpty, storage, empty);

    /// <summary>The allocation that a region of float32 lies in, whole: kernels take views to be aligned as allocations are.</summary>
    /// <param name="accelerator">The accelerator.</param>
    /// <param name="region">The region.</param>
    /// <param name="name">Its name in messages.</param>
    /// <param name="start">The element that the region begins at.</param>
    /// <exception cref="ArgumentException">It is no memory of the accelerator, or no float32.</exception>
    public static ArrayView<float> View(Accelerator accelerator, MemoryRegion region, string name, out long start)
    {
        return View<float>(Owner(accelerator, region, name, BuffersParameter, ElementType.Single, out start));
    }

    private static KernelTensor Tensor(
        Accelerator accelerator, TensorBuffer buffer, string name, string parameter, bool isEmpty, ElementType storage, ArrayView<float> empty)
    {
        if (isEmpty)
        {
            return new KernelTensor { Elements = empty, Halves = empty.Cast<ushort>() };
        }

        MemoryBuffer owner = Owner(accelerator, buffer.Memory, name, parameter, storage, out long start);
        return new KernelTensor
        {
            Elements = View<float>(owner),
            Halves = View<ushort>(owner),
            Type = (int)storage,
            Start = start,
            BatchStride = buffer.BatchStride,
            TokenStride = buffer.TokenStride,
            HeadStride = buffer.HeadStride,
        };
    }

    // Not by AsArrayView, which wants the type that the buffer was allocated as: a caller's view may be cast from another.
    private static ArrayView<T> View<T>(MemoryBuffer buffer)
        where T : unmanaged => new(buffer, 0, buffer.LengthInBytes / Interop.SizeOf<T>());

    private static MemoryBuffer Owner(Accelerator accelerator, MemoryRegion region, string name, string parameter, ElementType type, out long start)
    {
        if (region.Owner is not MemoryBuffer buffer || buffer.Accelerator != accelerator)
        {
            throw new ArgumentException($"The {name} is not in memory of {accelerator.Name}.", parameter);
        }

        long elements = buffer.LengthInBytes / type.Size();
        (start, long rest) = Math.DivRem(region.Address, type.Size());
        if (region.Type != type || rest != 0 || start < 0 || region.Length > elements - start)
        {
            throw new ArgumentException(
                $"The {name}, {region.Length} elements of {region.Type}, is not {type} within its buffer of {buffer.LengthInBytes} bytes.", parameter);
        }

        return buffer;
    }
}
