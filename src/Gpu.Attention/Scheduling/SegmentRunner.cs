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
    /// <param name="gradients">The gradients of a backward pass.</param>
    /// <param name="device">Device memory of the plan's size.</param>
    public void Run(AttentionProblem problem, SegmentPlan plan, in AttentionBuffers host, in GradientBuffers gradients, DeviceBlock device)
    {
        // With one slot nothing overlaps: a segment is three steps, and the next begins after them.
        int stride = plan.Slots == 1 ? 3 : 1;
        for (int step = 0; step < ((plan.Segments.Length - 1) * stride) + 3; step++)
        {
            Segment? computed = At(plan, step - 1, stride);
            if (computed is not null)
            {
                AttentionBuffers buffers = DeviceBuffers(plan, step - 1, stride, computed, device);
                if (plan.Gradients is null)
                {
                    session.Engine.Forward(computed.Problem, buffers);
                }
                else
                {
                    session.Engine.Backward(computed.Problem, buffers, DeviceGradients(plan, plan.Gradients, (step - 1) / stride, computed, device));
                }
            }

            _uploads.Begin(device.Allocation);
            _downloads.Begin(device.Allocation);
            if (At(plan, step, stride) is { } up)
            {
                Upload(problem, plan, step / stride, up, host);
                if (plan.Gradients is not null)
                {
                    UploadGradients(problem, plan, step / stride, up, host, gradients);
                }
            }

            if (At(plan, step - 2, stride) is { } down)
            {
                if (plan.Gradients is null)
                {
                    Download(problem, plan, (step - 2) / stride, down, host);
                }
                else
                {
                    DownloadGradients(problem, plan, (step - 2) / stride, down, gradients);
                }
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

    private static TensorBuffer Dense(DeviceBlock device, Segment segment, long offset, long elements, int tokens, int heads, int dimension) =>
        TensorBuffer.Dense(Region(device, offset, elements) with { Type = segment.Problem.Storage }, tokens, heads, dimension);

    private static StateBuffers State(DeviceBlock device, Segment segment, StatePlaces[] places, StateEdge edge)
    {
        if (edge == StateEdge.None)
        {
            return default;
        }

        AttentionShape shape = segment.Problem.Shape;
        FeaturePair features = segment.Problem.Features!;
        StatePlaces place = places[segment.Group % places.Length];
        long rows = (long)segment.Problem.Sequences * shape.KeyHeads * features.FeatureDimension;
        long scales = features.Family == FeatureFamily.Exponential ? rows : 0;
        return new StateBuffers(
            Region(device, place.LogScale, scales), Region(device, place.Sums, rows * shape.ValueDimension), Region(device, place.Normalizers, rows))
        {
            Maximum = Region(device, place.Maximum, edge == StateEdge.Neighbor ? scales : 0),
        };
    }

    private static AttentionBuffers DeviceBuffers(SegmentPlan plan, int step, int stride, Segment segment, DeviceBlock device)
    {
        SegmentLayout layout = plan.Layout;
        int slot = step / stride % plan.Slots;
        AttentionShape shape = segment.Problem.Shape;
        return new AttentionBuffers
        {
            Query = Dense(device, segment, layout.Query[slot], shape.QueryElements, shape.QueryLength, shape.Heads, shape.KeyDimension),
            Key = Dense(device, segment, layout.Key[slot], shape.KeyElements, shape.KeyLength, shape.KeyHeads, shape.KeyDimension),
            Value = Dense(device, segment, layout.Value[slot], shape.ValueElements, shape.KeyLength, shape.KeyHeads, shape.ValueDimension),
            Output = Dense(device, segment, layout.Output[slot], shape.OutputElements, shape.QueryLength, shape.Heads, shape.ValueDimension),
            InitialState = State(device, segment, layout.States, segment.Before),
            FinalState = State(device, segment, layout.States, plan.Gradients is null ? segment.After : StateEdge.None),
            Workspace = Region(device, layout.Workspace, layout.WorkspaceBytes / sizeof(float)),
        };
    }

    private static GradientBuffers DeviceGradients(SegmentPlan plan, GradientParts parts, int index, Segment segment, DeviceBlock device)
    {
        SegmentLayout layout = plan.Layout;
        int slot = index % plan.Slots;
        AttentionShape shape = segment.Problem.Shape;
        return new GradientBuffers
        {
            OutputGradient = Queries(parts.Output, layout.OutputGradient, shape.OutputElements, shape.ValueDimension),
            QueryGradient = Queries(parts.Query, layout.QueryGradient, shape.QueryElements, shape.KeyDimension),
            KeyGradient = Keys(parts.Key, layout.KeyGradient, shape.KeyElements, shape.KeyDimension),
            ValueGradient = Keys(parts.Value, layout.ValueGradient, shape.ValueElements, shape.ValueDimension),
            FinalStateGradient = State(device, segment, layout.FinalStateGradients, parts.FinalState ? StateEdge.Caller : StateEdge.None),
            InitialStateGradient =
                State(device, segment, layout.InitialStateGradients, parts.InitialState ? StateEdge.Caller : StateEdge.None) with { LogScale = default },
        };

        TensorBuffer Queries(bool isThere, long[] places, long elements, int dimension) =>
            isThere ? Dense(device, segment, places[slot], elements, shape.QueryLength, shape.Heads, dimension) : default;

        TensorBuffer Keys(bool isThere, long[] places, long elements, int dimension) =>
            isThere ? Dense(device, segment, places[slot], elements, shape.KeyLength, shape.KeyHeads, dimension) : default;
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
            Transfer(_uploads, problem, layout.States, segment, host.InitialState);
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
            Transfer(_downloads, problem, plan.Layout.States, segment, host.FinalState);
        }
    }

    private void UploadGradients(
        AttentionProblem problem, SegmentPlan plan, int index, Segment segment, in AttentionBuffers host, in GradientBuffers gradients)
    {
        int slot = index % plan.Slots;
        AttentionShape shape = segment.Problem.Shape;
        int firstHead = segment.FirstKeyHead * shape.HeadGroup;
        if (shape.QueryLength > 0)
        {
            _uploads.Add(View(host.Output, segment, segment.FirstQuery, shape.QueryLength, firstHead, shape.Heads, shape.ValueDimension), plan.Layout.Output[slot]);
            if (plan.Gradients!.Output)
            {
                _uploads.Add(
                    View(gradients.OutputGradient, segment, segment.FirstQuery, shape.QueryLength, firstHead, shape.Heads, shape.ValueDimension),
                    plan.Layout.OutputGradient[slot]);
            }
        }

        if (plan.Gradients!.FinalState)
        {
            Transfer(_uploads, problem, plan.Layout.FinalStateGradients, segment, gradients.FinalStateGradient);
        }
    }

    private void DownloadGradients(AttentionProblem problem, SegmentPlan plan, int index, Segment segment, in GradientBuffers gradients)
    {
        int slot = index % plan.Slots;
        SegmentLayout layout = plan.Layout;
        GradientParts parts = plan.Gradients!;
        AttentionShape shape = segment.Problem.Shape;
        if (parts.Query && shape.QueryLength > 0)
        {
            _downloads.Add(
                View(
                    gradients.QueryGradient, segment, segment.FirstQuery, shape.QueryLength, segment.FirstKeyHead * shape.HeadGroup, shape.Heads,
                    shape.KeyDimension),
                layout.QueryGradient[slot]);
        }

        if (parts.Key && shape.KeyLength > 0)
        {
            _downloads.Add(
                View(gradients.KeyGradient, segment, segment.FirstKey, shape.KeyLength, segment.FirstKeyHead, shape.KeyHeads, shape.KeyDimension),
                layout.KeyGradient[slot]);
        }

        if (parts.Value && shape.KeyLength > 0)
        {
            _downloads.Add(
                View(gradients.ValueGradient, segment, segment.FirstKey, shape.KeyLength, segment.FirstKeyHead, shape.KeyHeads, shape.ValueDimension),
                layout.ValueGradient[slot]);
        }

        if (parts.InitialState)
        {
            Transfer(_downloads, problem, layout.InitialStateGradients, segment, gradients.InitialStateGradient with { LogScale = default });
        }
    }

    private static void Transfer(TransferQueue queue, AttentionProblem problem, StatePlaces[] all, Segment segment, StateBuffers state)
    {
        StatePlaces places = all[segment.Group % all.Length];
        int features = problem.Features!.FeatureDimension;
        if (!state.LogScale.IsEmpty)
        {
            queue.Add(View(state.LogScale, problem, segment, features), places.LogScale);
        }

        queue.Add(View(state.Normalizers, problem, segment, features), places.Normalizers);
        queue.Add(View(state.Sums, problem, segment, (long)features * problem.Shape.ValueDimension), places.Sums);
    }
}
