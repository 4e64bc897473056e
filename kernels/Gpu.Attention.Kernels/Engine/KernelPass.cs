using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>Enqueues the kernels of one forward pass over a caller's buffers.</summary>
internal abstract class KernelPass
{
    private readonly long _start;
    private readonly int _groupSize;

    /// <summary>Checks the buffers.</summary>
    /// <param name="accelerator">Where they lie.</param>
    /// <param name="stream">Where kernels go.</param>
    /// <param name="problem">The problem.</param>
    /// <param name="plan">What it keeps in the workspace.</param>
    /// <param name="buffers">Its buffers.</param>
    /// <param name="groupSize">Threads in a group.</param>
    /// <exception cref="ArgumentException">A buffer is no memory of the accelerator, or too short.</exception>
    protected KernelPass(
        Accelerator accelerator, AcceleratorStream stream, AttentionProblem problem, WorkspacePlan plan, in AttentionBuffers buffers, int groupSize)
    {
        Accelerator = accelerator;
        Stream = stream;
        Problem = problem;
        AttentionShape shape = problem.Shape;
        Workspace = BufferViews.Workspace(accelerator, problem, buffers, plan.Bytes, out _start);
        Query = BufferViews.Tensor(accelerator, buffers.Query, "query", shape.QueryElements, Workspace);
        Key = BufferViews.Tensor(accelerator, buffers.Key, "key", shape.KeyElements, Workspace);
        Value = BufferViews.Tensor(accelerator, buffers.Value, "value", shape.ValueElements, Workspace);
        Output = BufferViews.Tensor(accelerator, buffers.Output, "output", shape.OutputElements, Workspace);
        _groupSize = groupSize;
    }

    protected Accelerator Accelerator { get; }

    protected AcceleratorStream Stream { get; }

    protected AttentionProblem Problem { get; }

    protected AttentionShape Shape => Problem.Shape;

    protected ArrayView<float> Workspace { get; }

    protected KernelTensor Query { get; }

    protected KernelTensor Key { get; }

    protected KernelTensor Value { get; }

    protected KernelTensor Output { get; }

    /// <summary>Where an array of the plan begins in the workspace.</summary>
    /// <param name="place">Its place in the plan.</param>
    protected long At(long place) => _start + place;

    /// <summary>Chunks of a block of key heads.</summary>
    /// <param name="firstChain">The first key head, counted over all sequences.</param>
    /// <param name="firstChunk">The first chunk.</param>
    /// <param name="chunks">Chunks.</param>
    /// <param name="headGroup">Heads of the tensor for each key head.</param>
    /// <param name="length">Tokens in a sequence.</param>
    protected ItemMap Items(int firstChain, int firstChunk, int chunks, int headGroup, int length) => new()
    {
        FirstChain = firstChain,
        FirstChunk = firstChunk,
        Chunks = chunks,
        KeyHeads = Shape.KeyHeads,
        HeadGroup = headGroup,
        Length = length,
    };

    /// <summary>A grid of a group for each tile of each item.</summary>
    /// <param name="items">Items.</param>
    /// <param name="tiles">Tiles of an item.</param>
    protected KernelConfig Groups(int items, int tiles) => new(checked(items * tiles), _groupSize);
}
