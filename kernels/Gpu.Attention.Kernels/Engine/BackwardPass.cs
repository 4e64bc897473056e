using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>Enqueues the kernels of one backward pass over a caller's buffers.</summary>
internal abstract class BackwardPass : KernelPass
{
    /// <summary>Checks the buffers and the gradients of tensors; those of states are linear attention's.</summary>
    /// <param name="accelerator">Where they lie.</param>
    /// <param name="stream">Where kernels go.</param>
    /// <param name="problem">The problem.</param>
    /// <param name="plan">What it keeps in the workspace.</param>
    /// <param name="buffers">Its buffers.</param>
    /// <param name="gradients">Its gradients.</param>
    /// <param name="tables">The plan's sequences on the accelerator; null when they fill their rows of the batch.</param>
    /// <param name="groupSize">Threads in a group.</param>
    /// <exception cref="ArgumentException">A buffer is no memory of the accelerator, or too short.</exception>
    protected BackwardPass(
        Accelerator accelerator, AcceleratorStream stream, AttentionProblem problem, WorkspacePlan plan, in AttentionBuffers buffers,
        in GradientBuffers gradients, UploadedPlan? tables, int groupSize)
        : base(accelerator, stream, problem, plan, buffers, tables, groupSize)
    {
        OutputGradient = BufferViews.Gradient(accelerator, gradients.OutputGradient, "output's gradient", problem.Storage, Workspace);
        QueryGradient = BufferViews.Gradient(accelerator, gradients.QueryGradient, "query gradient", problem.Storage, Workspace);
        KeyGradient = BufferViews.Gradient(accelerator, gradients.KeyGradient, "key gradient", problem.Storage, Workspace);
        ValueGradient = BufferViews.Gradient(accelerator, gradients.ValueGradient, "value gradient", problem.Storage, Workspace);
        HasOutputGradient = !gradients.OutputGradient.Memory.IsEmpty;
        WantsQueries = !gradients.QueryGradient.Memory.IsEmpty;
        WantsKeys = !gradients.KeyGradient.Memory.IsEmpty;
        WantsValues = !gradients.ValueGradient.Memory.IsEmpty;
    }

    protected KernelTensor OutputGradient { get; }

    protected KernelTensor QueryGradient { get; }

    protected KernelTensor KeyGradient { get; }

    protected KernelTensor ValueGradient { get; }

    /// <summary>False when the output's gradient is zero.</summary>
    protected bool HasOutputGradient { get; }

    protected bool WantsQueries { get; }

    protected bool WantsKeys { get; }

    protected bool WantsValues { get; }
}
