using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>Enqueues the kernels of one pass over a caller's buffers.</summary>
internal abstract class KernelPass
{
    private readonly long _start;
    private readonly int _groupSize;
    private readonly ArrayView<int> _tables;

    /// <summary>Checks the buffers.</summary>
    /// <param name="accelerator">Where they lie.</param>
    /// <param name="stream">Where kernels go.</param>
    /// <param name="problem">The problem.</param>
    /// <param name="plan">What it keeps in the workspace.</param>
    /// <param name="buffers">Its buffers.</param>
    /// <param name="tables">The plan's sequences on the accelerator; null when they fill their rows of the batch.</param>
    /// <param name="groupSize">Threads in a group.</param>
    /// <exception cref="ArgumentException">A buffer is no memory of the accelerator, or too short.</exception>
    protected KernelPass(
        Accelerator accelerator, AcceleratorStream stream, AttentionProblem problem, WorkspacePlan plan, in AttentionBuffers buffers, UploadedPlan? tables,
        int groupSize)
    {
        Accelerator = accelerator;
        Stream = stream;
        Problem = problem;
        Sequences = plan.Sequences;
        AttentionShape shape = problem.Shape;
        Workspace = BufferViews.Workspace(accelerator, problem, buffers, plan.Bytes, out _start);

        // A kernel's view must be one, used or not.
        _tables = tables?.Tables ?? Workspace.Cast<int>();
        Query = BufferViews.Tensor(accelerator, buffers.Query, "query", shape.QueryElements, problem.Storage, Workspace);
        Key = BufferViews.Tensor(accelerator, buffers.Key, "key", shape.KeyElements, problem.Storage, Workspace);
        Value = BufferViews.Tensor(accelerator, buffers.Value, "value", shape.ValueElements, problem.Storage, Workspace);
        Output = BufferViews.Tensor(accelerator, buffers.Output, "output", shape.OutputElements, problem.Storage, Workspace);
        _groupSize = groupSize;
    }

    protected Accelerator Accelerator { get; }

    protected AcceleratorStream Stream { get; }

    protected AttentionProblem Problem { get; }

    protected AttentionShape Shape => Problem.Shape;

    /// <summary>Null when sequences fill their rows of the batch.</summary>
    protected SequencePlan? Sequences { get; }

    protected ArrayView<float> Workspace { get; }

    protected KernelTensor Query { get; }

    protected KernelTensor Key { get; }

    protected KernelTensor Value { get; }

    protected KernelTensor Output { get; }

    /// <summary>No state: a kernel's view must be one, used or not.</summary>
    protected DeviceState NoState => new() { LogScale = Workspace, Maximum = Workspace, Sums = Workspace, Normalizers = Workspace };

    /// <summary>Where an array of the plan begins in the workspace.</summary>
    /// <param name="place">Its place in the plan.</param>
    protected long At(long place) => _start + place;

    /// <summary>Chunks of a block of key heads' keys.</summary>
    /// <param name="firstChain">The first key head, counted over all sequences.</param>
    /// <param name="firstChunk">The first chunk.</param>
    /// <param name="chunks">Chunks.</param>
    protected ItemMap KeyItems(int firstChain, int firstChunk, int chunks) =>
        Items(firstChain, firstChunk, chunks, 1, Shape.KeyLength, ItemMap.Keys) with { Count = SequenceTables.Keys };

    /// <summary>Chunks of a block of key heads' queries.</summary>
    /// <param name="firstChain">The first key head, counted over all sequences.</param>
    /// <param name="firstChunk">The first chunk.</param>
    /// <param name="chunks">Chunks.</param>
    protected ItemMap QueryItems(int firstChain, int firstChunk, int chunks) =>
        Items(firstChain, firstChunk, chunks, Shape.HeadGroup, Shape.QueryLength, ItemMap.Queries) with { Count = SequenceTables.Queries };

    /// <summary>The largest of what the sequences of a block of key heads have.</summary>
    /// <param name="firstChain">The first key head, counted over all sequences.</param>
    /// <param name="chains">Key heads.</param>
    /// <param name="of">What a place has.</param>
    protected int Largest(int firstChain, int chains, Func<int, int> of)
    {
        int largest = 0;
        for (int place = firstChain / Shape.KeyHeads; place <= (firstChain + chains - 1) / Shape.KeyHeads; place++)
        {
            largest = Math.Max(largest, of(place));
        }

        return largest;
    }

    /// <summary>A grid of a group for each tile of each item.</summary>
    /// <param name="items">Items.</param>
    /// <param name="tiles">Tiles of an item.</param>
    protected KernelConfig Groups(int items, int tiles) => new(checked(items * tiles), _groupSize);

    /// <summary>A state, or the gradient of one, as kernels see it.</summary>
    /// <param name="state">The state; may be empty.</param>
    /// <param name="name">Its name in messages.</param>
    /// <param name="hasScale">False for one that comes without its scale.</param>
    /// <exception cref="ArgumentException">It is no memory of the accelerator, or no float32.</exception>
    protected DeviceState State(StateBuffers state, string name, bool hasScale = true)
    {
        if (state.IsEmpty)
        {
            return NoState;
        }

        DeviceState device = NoState;
        device.Sums = BufferViews.View(Accelerator, state.Sums, name, out device.SumsStart);
        device.Normalizers = BufferViews.View(Accelerator, state.Normalizers, name, out device.NormalizersStart);
        if (hasScale && Problem.Features is { Family: FeatureFamily.Exponential })
        {
            device.LogScale = BufferViews.View(Accelerator, state.LogScale, name, out device.LogScaleStart);
            if (!state.Maximum.IsEmpty)
            {
                device.Maximum = BufferViews.View(Accelerator, state.Maximum, name, out device.MaximumStart);
                device.HasMaximum = 1;
            }
        }

        return device;
    }

    private ItemMap Items(int firstChain, int firstChunk, int chunks, int headGroup, int length, int kind) => new()
    {
        FirstChain = firstChain,
        FirstChunk = firstChunk,
        Chunks = chunks,
        KeyHeads = Shape.KeyHeads,
        HeadGroup = headGroup,
        Length = length,
        Kind = Sequences is null ? ItemMap.Whole : kind,
        Tables = _tables,
    };
}
