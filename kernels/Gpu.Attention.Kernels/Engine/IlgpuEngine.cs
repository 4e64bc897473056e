using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>How an <see cref="IlgpuEngine"/> cuts its work.</summary>
internal sealed record IlgpuEngineOptions
{
    /// <summary>The tiling; null for one that suits the accelerator.</summary>
    public Tiling? Tiling { get; init; }

    /// <summary>Chunks, over all heads, that are worked on at once, and that the workspace is made for; 0 for as many as keep the accelerator busy.</summary>
    public int BlockItems { get; init; }

    /// <summary>The stream to work on; null for the accelerator's default.</summary>
    public AcceleratorStream? Stream { get; init; }

    /// <summary>Called after every launch with its stage, while what was launched may still run. For measuring; null for nobody.</summary>
    public Action<LinearStage>? Launched { get; init; }
}

/// <summary>Linear attention, and the exact attention that it stands in for, on an ILGPU accelerator: CUDA, OpenCL, or the simulator.</summary>
/// <remarks>
/// <para>Regions are device memory: <see cref="MemoryRegion.Owner"/> is a <see cref="MemoryBuffer"/> of the accelerator and
/// <see cref="MemoryRegion.Address"/> a byte offset in it, the workspace's too.</para>
/// <para>Calls enqueue on the stream and return: results are there when it is synchronised. Concurrent calls take turns, those of
/// other engines on the accelerator included.</para>
/// </remarks>
internal sealed class IlgpuEngine : IAttentionEngine, IDisposable
{
    private const int MaxInputs = 256;

    /// <summary>The widest row of values: kernels count the elements of a chunk, and the groups of a launch, in 32 bits.</summary>
    private const int MaxValues = 1 << 24;

    /// <summary>The most elements of a key head's state, and of one token's values in all heads that read it.</summary>
    private const int MaxElements = 1 << 30;

    /// <summary>Forms that are kept on the device; a program has a few, each with an operator of its own.</summary>
    private const int MaxForms = 64;

    /// <summary>Plans of sequence layouts that are kept on the device: those of the batches that are worked on.</summary>
    private const int MaxPlans = 16;

    /// <summary>Groups a multiprocessor that hide latency: a chunk is a group or several in each of its kernels.</summary>
    private const int ItemsPerMultiprocessor = 8;

    private const int ScanGroupsPerMultiprocessor = 16;

    private readonly SharedKernels _kernels;
    private readonly Lock _lock;
    private readonly Accelerator _accelerator;
    private readonly AcceleratorStream _stream;
    private readonly Tiling _tiling;
    private readonly int _chunk;
    private readonly int _blockItems;
    private readonly Action<LinearStage>? _launched;
    private readonly UploadCache<FeatureForm, UploadedForm> _forms;
    private readonly UploadCache<SequencePlan, UploadedPlan> _plans;
    private bool _disposed;

    /// <summary>Creates an engine. Kernels are compiled when first needed.</summary>
    /// <param name="accelerator">Where it runs; must outlive the engine.</param>
    /// <param name="options">How it cuts its work.</param>
    /// <exception cref="ArgumentOutOfRangeException">The accelerator has no groups of the tiling's size.</exception>
    public IlgpuEngine(Accelerator accelerator, IlgpuEngineOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(accelerator);
        options ??= new IlgpuEngineOptions();
        _accelerator = accelerator;
        _kernels = SharedKernels.Of(accelerator);
        _lock = _kernels.Lock;
        _stream = options.Stream ?? accelerator.DefaultStream;
        _tiling = options.Tiling
            ?? (accelerator.AcceleratorType == AcceleratorType.CPU ? Tiling.Chunk16Block8 : Tiling.Chunk64Block8);
        LinearEntryPoints code = LinearEntryPoints.For(_tiling, FeatureActivation.Exp, causal: true)!;
        if (code.GroupSize > accelerator.MaxNumThreadsPerGroup)
        {
            throw new ArgumentOutOfRangeException(
                nameof(options), options.Tiling, $"Groups of {code.GroupSize} are needed, and {accelerator.Name} has at most {accelerator.MaxNumThreadsPerGroup}.");
        }

        _chunk = code.Chunk;
        ArgumentOutOfRangeException.ThrowIfNegative(options.BlockItems, nameof(options));
        _blockItems = options.BlockItems > 0 ? options.BlockItems : ItemsPerMultiprocessor * accelerator.NumMultiprocessors;
        _launched = options.Launched;
        _forms = new UploadCache<FeatureForm, UploadedForm>(_stream, MaxForms, form => new UploadedForm(_accelerator, _stream, form, _chunk));
        _plans = new UploadCache<SequencePlan, UploadedPlan>(_stream, MaxPlans, plan => new UploadedPlan(_accelerator, _stream, plan));
    }

    /// <inheritdoc/>
    public string Name => $"{_accelerator.AcceleratorType}, {_accelerator.Name}";

    /// <summary>Device memory that the engine itself holds: forms, and plans of sequence layouts.</summary>
    public long LiveBytes
    {
        get
        {
            lock (_lock)
            {
                return _forms.Bytes + _plans.Bytes;
            }
        }
    }

    /// <inheritdoc/>
    public EngineSupport Supports(AttentionProblem problem)
    {
        ArgumentNullException.ThrowIfNull(problem);
        return problem switch
        {
            _ when problem.WhyIllPosed() is { } reason => EngineSupport.No(reason),
            { Shape.KeyDimension: > MaxInputs } =>
                EngineSupport.No($"rows of {problem.Shape.KeyDimension} are larger than the {MaxInputs} that the kernels take"),
            { Shape.ValueDimension: > MaxValues } =>
                EngineSupport.No($"values of {problem.Shape.ValueDimension} elements are larger than the {MaxValues} that the kernels take"),
            { Shape: var s } when (long)problem.Sequences * s.Heads > int.MaxValue || (long)s.HeadGroup * s.ValueDimension > MaxElements =>
                EngineSupport.No($"there are more heads than the kernels count: {problem.Sequences} sequences of {s}"),
            _ when SequenceTables.WhyTooLarge(problem) is { } reason => EngineSupport.No(reason),
            { Features: null, Normalize: false } => EngineSupport.No("exact softmax attention without its normaliser is not implemented"),
            { Features: null } => EngineSupport.Yes,
            { Convention: not ReferenceConvention.None, Features.Family: FeatureFamily.Exponential } =>
                EngineSupport.No($"the {problem.Convention} convention of exponential features is not implemented on devices; the host engine has it"),
            { Convention: ReferenceConvention.Lucidrains, Causal: true } =>
                EngineSupport.No("the Lucidrains convention of causal normalisers is not implemented on devices; the host engine has it"),
            { FeatureEpsilon: not 0, Features.Family: FeatureFamily.Exponential } =>
                EngineSupport.No("an epsilon in exponential features is not implemented on devices; the host engine has it"),
            { Features.FeatureDimension: > SteepReadKernel.MaxFeatures } =>
                EngineSupport.No($"{problem.Features.FeatureDimension} features are more than the {SteepReadKernel.MaxFeatures} that the kernels take"),
            _ when LinearPlan.WhyTooLarge(problem, _chunk) is { } reason => EngineSupport.No(reason),
            _ when LinearEntryPoints.For(_tiling, problem.Features.Query.Activation, problem.Causal) is null
                || LinearEntryPoints.For(_tiling, problem.Features.Key.Activation, problem.Causal) is null =>
                EngineSupport.No($"the function \"{problem.Features.Key.Activation}\" is the caller's own and runs on the host only"),
            _ => EngineSupport.Yes,
        };
    }

    /// <inheritdoc/>
    public int SegmentMultiple => _chunk;

    /// <inheritdoc/>
    public long MinimumWorkspaceBytes(AttentionProblem problem)
    {
        ThrowUnlessSupported(problem);
        return PlanOf(problem, 1).Bytes;
    }

    /// <inheritdoc/>
    public long WorkspaceBytes(AttentionProblem problem)
    {
        ThrowUnlessSupported(problem);
        return PlanOf(problem, _blockItems).Bytes;
    }

    /// <inheritdoc/>
    /// <exception cref="ArgumentException">A buffer is no device memory of the accelerator, or too short.</exception>
    /// <exception cref="ObjectDisposedException">The engine was disposed.</exception>
    public void Forward(AttentionProblem problem, in AttentionBuffers buffers)
    {
        ThrowUnlessSupported(problem);
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if (problem.Sequences == 0)
            {
                return;
            }

            BufferViews.RequireStates(problem, buffers);
            long workspaceBytes = buffers.Workspace.Length * sizeof(float);
            if (problem.Features is not { } features)
            {
                SoftmaxPlan plan = Largest(items => new SoftmaxPlan(problem, _chunk, items), workspaceBytes);
                SoftmaxLaunchers launchers = _kernels.Softmax(_tiling, problem.Causal, plan.Sequences is not null);
                new SoftmaxPass(_accelerator, _stream, problem, plan, buffers, UploadOf(plan), launchers).Run();
            }
            else
            {
                // The two forms may end in different functions; the key's decide for what both have in common.
                LinearPlan plan = Largest(items => new LinearPlan(problem, _chunk, items), workspaceBytes);
                bool isPlanned = problem.Causal && plan.Sequences is not null;
                new LinearPass(
                    _accelerator, _stream, problem, plan, buffers, UploadOf(plan), _kernels.Linear(_tiling, features.Key.Activation, problem.Causal, isPlanned),
                    _kernels.Linear(_tiling, features.Query.Activation, problem.Causal, isPlanned), _forms.Of(features.Query), _forms.Of(features.Key),
                    _launched).Run();
            }
        }
    }

    /// <inheritdoc/>
    public EngineSupport SupportsBackward(AttentionProblem problem)
    {
        EngineSupport forward = Supports(problem);
        return !forward.IsSupported ? forward
            : problem.Features is null ? SoftmaxBackwardPlan.WhyTooLarge(problem, _chunk) is { } reason ? EngineSupport.No(reason) : EngineSupport.Yes
            : problem.Convention != ReferenceConvention.None
                ? EngineSupport.No($"the {problem.Convention} convention is there to compare outputs with, and has no backward pass")
            : EngineSupport.Yes;
    }

    /// <inheritdoc/>
    public long MinimumBackwardWorkspaceBytes(AttentionProblem problem)
    {
        ThrowUnlessBackwardSupported(problem);
        return BackwardPlanOf(problem, 1).Bytes;
    }

    /// <inheritdoc/>
    public long BackwardWorkspaceBytes(AttentionProblem problem)
    {
        ThrowUnlessBackwardSupported(problem);
        return BackwardPlanOf(problem, _blockItems).Bytes;
    }

    /// <inheritdoc/>
    /// <exception cref="ArgumentException">A buffer is no device memory of the accelerator, or too short.</exception>
    /// <exception cref="ObjectDisposedException">The engine was disposed.</exception>
    public void Backward(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients)
    {
        ThrowUnlessBackwardSupported(problem);
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if (problem.Sequences == 0)
            {
                return;
            }

            BufferViews.RequireStates(problem, buffers, gradients);
            long workspaceBytes = buffers.Workspace.Length * sizeof(float);
            if (problem.Features is null)
            {
                SoftmaxBackwardPlan plan = Largest(items => new SoftmaxBackwardPlan(problem, _chunk, items), workspaceBytes);
                SoftmaxBackwardLaunchers launchers = _kernels.SoftmaxBackward(_tiling, problem.Causal, plan.Sequences is not null);
                new SoftmaxBackwardPass(_accelerator, _stream, problem, plan, buffers, gradients, UploadOf(plan), launchers).Run();
            }
            else
            {
                FeaturePair features = problem.Features;
                LinearBackwardPlan plan = Largest(items => new LinearBackwardPlan(problem, _chunk, items), workspaceBytes);
                new LinearBackwardPass(
                    _accelerator, _stream, problem, plan, buffers, gradients, UploadOf(plan),
                    _kernels.LinearBackward(_tiling, features.Key.Activation, problem.Causal),
                    _kernels.LinearBackward(_tiling, features.Query.Activation, problem.Causal), _forms.Of(features.Query), _forms.Of(features.Key)).Run();
            }
        }
    }

    /// <summary>Waits for the stream and frees the engine's device memory.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            if (!_disposed)
            {
                _disposed = true;
                _forms.Clear();
                _plans.Clear();
            }
        }
    }

    /// <summary>Groups of a kernel whose threads stride over any number of elements.</summary>
    internal static int ScanGroups(Accelerator accelerator, long elements, int groupSize) =>
        (int)Math.Min(((elements - 1) / groupSize) + 1, (long)accelerator.NumMultiprocessors * ScanGroupsPerMultiprocessor);

    private void ThrowUnlessSupported(AttentionProblem problem)
    {
        EngineSupport support = Supports(problem);
        if (!support.IsSupported)
        {
            throw new NotSupportedException($"The device engine cannot run this: {support.Reason}.");
        }
    }

    private void ThrowUnlessBackwardSupported(AttentionProblem problem)
    {
        EngineSupport support = SupportsBackward(problem);
        if (!support.IsSupported)
        {
            throw new NotSupportedException($"The device engine cannot differentiate this: {support.Reason}.");
        }
    }

    private WorkspacePlan PlanOf(AttentionProblem problem, int items) =>
        problem.Features is null ? new SoftmaxPlan(problem, _chunk, items) : new LinearPlan(problem, _chunk, items);

    private WorkspacePlan BackwardPlanOf(AttentionProblem problem, int items) =>
        problem.Features is null ? new SoftmaxBackwardPlan(problem, _chunk, items) : new LinearBackwardPlan(problem, _chunk, items);

    /// <summary>The plan of the largest blocks, up to what keeps the accelerator busy, whose workspace fits.</summary>
    private TPlan Largest<TPlan>(Func<int, TPlan> planOf, long workspaceBytes)
        where TPlan : WorkspacePlan
    {
        int items = _blockItems;
        TPlan plan = planOf(items);
        while (plan.Bytes > workspaceBytes && items > 1)
        {
            items /= 2;
            plan = planOf(items);
        }

        return plan;
    }

    private UploadedPlan? UploadOf(WorkspacePlan plan) => plan.Sequences is { } sequences ? _plans.Of(sequences) : null;
}
