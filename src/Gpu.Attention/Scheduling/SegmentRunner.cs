namespace Gpu.Attention;

/// <summary>
/// Runs the segments of a plan on a device: while one is computed, the next goes up and the one before comes down, each on a queue of its own, and
/// all three meet after each segment.
/// </summary>
internal sealed class SegmentRunner(DeviceSession session) : IDisposable
{
    private readonly TransferQueue _uploads = new(session, DeviceQueue.Upload);
    private readonly TransferQueue _downloads = new(session, DeviceQueue.Download);

    /// <summary>Runs a problem whose tensors lie in host memory.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="plan">Its plan.</param>
    /// <param name="host">Its buffers.</param>
    /// <param name="device">Device memory of the plan's size.</param>
    public void Run(AttentionProblem problem, SegmentPlan plan, in AttentionBuffers host, DeviceBlock device)
    {
        // With one slot nothing overlaps: a segment is three steps, and the next begins after them.
        int stride = plan.Slots == 1 ? 3 : 1;
        for (int step = 0; step < ((plan.Segments.Length - 1) * stride) + 3; step++)
        {
            Segment? computed = At(plan, step - 1, stride);
            if (computed is not null)
            {
                session.Engine.Forward(computed.Problem, DeviceBuffers(plan, step - 1, stride, computed, device));
            }

            _uploads.Begin(device.Allocation);
            _downloads.Begin(device.Allocation);
            if (At(plan, step, stride) is { } up)
            {
                Upload(problem, plan, step / stride, up, host);
            }

            if (At(plan, step - 2, stride) is { } down)
            {
                Download(problem, plan, (step - 2) / stride, down, host);
            }

            while (_uploads.Step() | _downloads.Step())
            {
            }

            if (computed is not null)
            {
                session.Wait(DeviceQueue.Compute);
            }
        }
    }

    public void Dispose()
    {
        _uploads.Dispose();
        _downloads.Dispose();
    }

    private static Segment? At(SegmentPlan plan, int step, int stride) =>
        step >= 0 && step % stride == 0 && step / stride < plan.Segments.Length ? plan.Segments[step / stride] : null;

    private static HostView View(TensorBuffer tensor, Segment segment, int firstToken, int tokens, int firstHead, int heads, int width)
    {
        long size = tensor.Memory.Type.Size();
        long start = (segment.FirstRow * tensor.BatchStride) + (firstToken * tensor.TokenStride) + (firstHead * tensor.HeadStride);
        return new HostView(
            tensor.Memory.Address + (nint)(start * size), segment.Problem.Shape.Batch, tensor.BatchStride * size, tokens, tensor.TokenStride * size,
            heads * width * size);
    }

    /// <summary>A part of a state; a row of it is <paramref name="width"/> floats for each key head.</summary>
    private static HostView View(MemoryRegion part, AttentionProblem problem, Segment segment, long width)
    {
        long bytes = width * sizeof(float);
        long stride = problem.Shape.KeyHeads * bytes;
        return new HostView(
            part.Address + (nint)((segment.FirstSequence * stride) + (segment.FirstKeyHead * bytes)), segment.Problem.Sequences, stride, 1, 0,
            segment.Problem.Shape.KeyHeads * bytes);
    }

    private static MemoryRegion Region(DeviceBlock device, long offset, long elements) => new(device.Allocation, checked((nint)offset), elements);

    private static AttentionBuffers DeviceBuffers(SegmentPlan plan, int step, int stride, Segment segment, DeviceBlock device)
    {
        SegmentLayout layout = plan.Layout;
        int slot = step / stride % plan.Slots;
        AttentionShape shape = segment.Problem.Shape;
        return new AttentionBuffers
        {
            Query = Dense(layout.Query[slot], shape.QueryElements, shape.QueryLength, shape.Heads, shape.KeyDimension),
            Key = Dense(layout.Key[slot], shape.KeyElements, shape.KeyLength, shape.KeyHeads, shape.KeyDimension),
            Value = Dense(layout.Value[slot], shape.ValueElements, shape.KeyLength, shape.KeyHeads, shape.ValueDimension),
            Output = Dense(layout.Output[slot], shape.OutputElements, shape.QueryLength, shape.Heads, shape.ValueDimension),
            InitialState = State(segment.Before),
            FinalState = State(segment.After),
            Workspace = Region(device, layout.Workspace, layout.WorkspaceBytes / sizeof(float)),
        };

        TensorBuffer Dense(long offset, long elements, int tokens, int heads, int dimension) =>
            TensorBuffer.Dense(Region(device, offset, elements) with { Type = segment.Problem.Storage }, tokens, heads, dimension);

        StateBuffers State(StateEdge edge)
        {
            if (edge == StateEdge.None)
            {
                return default;
            }

            FeaturePair features = segment.Problem.Features!;
            StatePlaces places = layout.States[segment.Group % layout.States.Length];
            long rows = (long)segment.Problem.Sequences * shape.KeyHeads * features.FeatureDimension;
            long scales = features.Family == FeatureFamily.Exponential ? rows : 0;
            return new StateBuffers(
                Region(device, places.LogScale, scales), Region(device, places.Sums, rows * shape.ValueDimension), Region(device, places.Normalizers, rows))
            {
                Maximum = Region(device, places.Maximum, edge == StateEdge.Neighbor ? scales : 0),
            };
        }
    }

    private void Upload(AttentionProblem problem, SegmentPlan plan, int index, Segment segment, in AttentionBuffers host)
    {
        int slot = index % plan.Slots;
        SegmentLayout layout = plan.Layout;
        AttentionShape shape = segment.Problem.Shape;
        int firstHead = segment.FirstKeyHead * shape.HeadGroup;
        if (shape.QueryLength > 0)
        {
            _uploads.Add(View(host.Query, segment, segment.FirstQuery, shape.QueryLength, firstHead, shape.Heads, shape.KeyDimension), layout.Query[slot]);
        }

        if (shape.KeyLength > 0)
        {
            _uploads.Add(View(host.Key, segment, segment.FirstKey, shape.KeyLength, segment.FirstKeyHead, shape.KeyHeads, shape.KeyDimension), layout.Key[slot]);
            _uploads.Add(View(host.Value, segment, segment.FirstKey, shape.KeyLength, segment.FirstKeyHead, shape.KeyHeads, shape.ValueDimension), layout.Value[slot]);
        }

        if (segment.Before == StateEdge.Caller)
        {
            Transfer(_uploads, problem, plan, segment, host.InitialState);
        }
    }

    private void Download(AttentionProblem problem, SegmentPlan plan, int index, Segment segment, in AttentionBuffers host)
    {
        AttentionShape shape = segment.Problem.Shape;
        if (shape.QueryLength > 0)
        {
            _downloads.Add(
                View(host.Output, segment, segment.FirstQuery, shape.QueryLength, segment.FirstKeyHead * shape.HeadGroup, shape.Heads, shape.ValueDimension),
                plan.Layout.Output[index % plan.Slots]);
        }

        if (segment.After == StateEdge.Caller)
        {
            Transfer(_downloads, problem, plan, segment, host.FinalState);
        }
    }

    private static void Transfer(TransferQueue queue, AttentionProblem problem, SegmentPlan plan, Segment segment, StateBuffers state)
    {
        StatePlaces places = plan.Layout.States[segment.Group % plan.Layout.States.Length];
        int features = problem.Features!.FeatureDimension;
        if (!state.LogScale.IsEmpty)
        {
            queue.Add(View(state.LogScale, problem, segment, features), places.LogScale);
        }

        queue.Add(View(state.Normalizers, problem, segment, features), places.Normalizers);
        queue.Add(View(state.Sums, problem, segment, (long)features * problem.Shape.ValueDimension), places.Sums);
    }
}
