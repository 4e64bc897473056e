using System.Runtime.Intrinsics;

namespace Gpu.Attention;

/// <summary>Attention on the host's processor, in the widest vectors that it has.</summary>
/// <remarks>Thread-safe: concurrent calls run side by side and share the thread pool.</remarks>
internal sealed class SimdEngine : IAttentionEngine
{
    /// <summary>The widest row, and the largest state of one head: sizes up to here round up to whole vectors within 32 bits.</summary>
    private const int MaxElements = 1 << 30;

    private readonly int _degree;
    private readonly Backend _backend;

    /// <summary>Creates an engine.</summary>
    /// <param name="maxDegreeOfParallelism">The most threads that work on one call; 0 for one a core.</param>
    /// <param name="sweepsTokens">False to run a single token as a chunk of one, for comparison: the bits are the same.</param>
    /// <param name="lanes">Floats in a vector: 1, 4, 8 or 16, whether or not the processor has such; 0 for the widest that it has.</param>
    public SimdEngine(int maxDegreeOfParallelism = 0, bool sweepsTokens = true, int lanes = 0)
    {
        lanes = lanes > 0 ? lanes
            : Vector512.IsHardwareAccelerated ? V512.Count
            : Vector256.IsHardwareAccelerated ? V256.Count
            : Vector128.IsHardwareAccelerated ? V128.Count
            : V32.Count;
        _degree = maxDegreeOfParallelism > 0 ? maxDegreeOfParallelism : Environment.ProcessorCount;
        _backend = lanes switch
        {
            16 => new Backend<V512>(_degree, sweepsTokens),
            8 => new Backend<V256>(_degree, sweepsTokens),
            4 => new Backend<V128>(_degree, sweepsTokens),
            _ => new Backend<V32>(_degree, sweepsTokens),
        };
    }

    /// <inheritdoc/>
    public string Name => $"host, {_backend.Width}, {_degree} threads";

    /// <inheritdoc/>
    public EngineSupport Supports(AttentionProblem problem)
    {
        ArgumentNullException.ThrowIfNull(problem);
        return problem switch
        {
            _ when problem.WhyIllPosed() is { } reason => EngineSupport.No(reason),
            { Shape: var s } when Math.Max(s.KeyDimension, s.ValueDimension) > MaxElements =>
                EngineSupport.No($"rows of more than {MaxElements} elements are too wide: {s}"),
            { Features: { } f, Shape: var s } when (long)f.FeatureDimension * LinearLayout.RoundUp(s.ValueDimension, 16) > MaxElements =>
                EngineSupport.No($"a state of {f.FeatureDimension} features by {s.ValueDimension} values has more than {MaxElements} elements"),
            _ => EngineSupport.Yes,
        };
    }

    /// <inheritdoc/>
    public int SegmentMultiple => LinearLayout.Chunk;

    /// <inheritdoc/>
    public long MinimumWorkspaceBytes(AttentionProblem problem) => WorkspaceBytes(problem);

    /// <inheritdoc/>
    public long WorkspaceBytes(AttentionProblem problem)
    {
        ArgumentNullException.ThrowIfNull(problem);
        return _backend.WorkspaceBytes(problem);
    }

    /// <inheritdoc/>
    public void Forward(AttentionProblem problem, in AttentionBuffers buffers)
    {
        EngineSupport support = Supports(problem);
        if (!support.IsSupported)
        {
            throw new NotSupportedException($"The host engine cannot run this: {support.Reason}.");
        }

        if (problem.Sequences > 0)
        {
            RequireFit(problem, buffers);
            _backend.Forward(problem, buffers);
        }
    }

    /// <inheritdoc/>
    public EngineSupport SupportsBackward(AttentionProblem problem)
    {
        EngineSupport forward = Supports(problem);
        return !forward.IsSupported ? forward : problem switch
        {
            { Convention: not ReferenceConvention.None } =>
                EngineSupport.No($"the {problem.Convention} convention is there to compare outputs with, and has no backward pass"),
            { Features.Family: FeatureFamily.Exponential, FeatureEpsilon: not 0 } =>
                EngineSupport.No("a constant added to exponential features has no backward pass"),
            { Features: { } f } when WithoutDerivative(f) is { } activation =>
                EngineSupport.No($"the function {activation} was made without a derivative"),
            _ => EngineSupport.Yes,
        };

        static FeatureActivation? WithoutDerivative(FeaturePair features) =>
            !features.Query.Activation.HasDerivative ? features.Query.Activation : !features.Key.Activation.HasDerivative ? features.Key.Activation : null;
    }

    /// <inheritdoc/>
    public long MinimumBackwardWorkspaceBytes(AttentionProblem problem) => BackwardWorkspaceBytes(problem);

    /// <inheritdoc/>
    public long BackwardWorkspaceBytes(AttentionProblem problem)
    {
        ArgumentNullException.ThrowIfNull(problem);
        return _backend.BackwardWorkspaceBytes(problem);
    }

    /// <inheritdoc/>
    public void Backward(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients)
    {
        EngineSupport support = SupportsBackward(problem);
        if (!support.IsSupported)
        {
            throw new NotSupportedException($"The host engine cannot differentiate this: {support.Reason}.");
        }

        if (problem.Sequences > 0)
        {
            RequireFit(problem, buffers, gradients);
            _backend.Backward(problem, buffers, gradients);
        }
    }

    // Query, key, value and output are the caller's to get right but for how they are stored: an engine sees where they lie, not how far they reach.
    private void RequireFit(AttentionProblem problem, in AttentionBuffers buffers)
    {
        if (problem.HasInitialState == buffers.InitialState.IsEmpty || problem.WantsFinalState == buffers.FinalState.IsEmpty)
        {
            throw new ArgumentException("The problem and its buffers disagree on whether there is an initial or a final state.", nameof(buffers));
        }

        RequireStored(problem, buffers);
        RequireWorkspace(problem, buffers, WorkspaceBytes(problem));
    }

    private void RequireFit(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients)
    {
        if (problem.HasInitialState == buffers.InitialState.IsEmpty || !(problem.HasInitialState || gradients.InitialStateGradient.IsEmpty))
        {
            throw new ArgumentException("The problem and its buffers disagree on whether there is an initial state.", nameof(buffers));
        }

        if (!buffers.InitialState.Maximum.IsEmpty || !gradients.FinalStateGradient.Maximum.IsEmpty)
        {
            throw new ArgumentException("Backward takes states at the scale of their largest log feature only.", nameof(buffers));
        }

        if (problem.Features is { Family: FeatureFamily.Exponential } && !gradients.FinalStateGradient.IsEmpty && gradients.FinalStateGradient.LogScale.IsEmpty)
        {
            throw new ArgumentException("The final state's gradient comes without the scale that it is meant at.", nameof(gradients));
        }

        RequireStored(problem, buffers);
        if (!IsStored(problem, gradients.OutputGradient) || !IsStored(problem, gradients.QueryGradient)
            || !IsStored(problem, gradients.KeyGradient) || !IsStored(problem, gradients.ValueGradient))
        {
            throw new ArgumentException($"The gradients are not all stored as {problem.Storage}, as the problem says.", nameof(gradients));
        }

        RequireWorkspace(problem, buffers, BackwardWorkspaceBytes(problem));
    }

    private static void RequireStored(AttentionProblem problem, in AttentionBuffers buffers)
    {
        AttentionShape s = problem.Shape;
        if (!((s.QueryElements == 0 || IsStored(problem, buffers.Query)) && (s.KeyElements == 0 || IsStored(problem, buffers.Key))
            && (s.ValueElements == 0 || IsStored(problem, buffers.Value)) && (s.OutputElements == 0 || IsStored(problem, buffers.Output))))
        {
            throw new ArgumentException($"Query, key, value and output are not all stored as {problem.Storage}, as the problem says.", nameof(buffers));
        }
    }

    private static void RequireWorkspace(AttentionProblem problem, in AttentionBuffers buffers, long needed)
    {
        if (buffers.Workspace.Length * sizeof(float) < needed)
        {
            throw new ArgumentException(
                $"The workspace has {buffers.Workspace.Length * sizeof(float)} bytes where {problem.Shape} takes {needed}.", nameof(buffers));
        }
    }

    private static bool IsStored(AttentionProblem problem, TensorBuffer tensor) => tensor.Memory.IsEmpty || tensor.Memory.Type == problem.Storage;

    /// <summary>The engine at one vector width.</summary>
    private abstract class Backend
    {
        public abstract string Width { get; }

        public abstract long WorkspaceBytes(AttentionProblem problem);

        public abstract void Forward(AttentionProblem problem, in AttentionBuffers buffers);

        public abstract long BackwardWorkspaceBytes(AttentionProblem problem);

        public abstract void Backward(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients);
    }

    private sealed class Backend<TV>(int degree, bool sweepsTokens) : Backend
        where TV : struct, ISimdVector<TV>
    {
        private readonly Stack<IForwardPass> _linear = new();
        private readonly Stack<IForwardPass> _softmax = new();
        private readonly Stack<IBackwardPass> _linearBackward = new();
        private readonly Stack<IBackwardPass> _softmaxBackward = new();

        public override string Width => TV.Count == 1 ? "scalar" : $"{32 * TV.Count}-bit vectors";

        // The start of the workspace is aligned to a cache line by the pass itself.
        public override long WorkspaceBytes(AttentionProblem problem) =>
            64 + (problem.Features is null ? SoftmaxForward<TV>.WorkspaceBytes(problem, degree) : LinearForward<TV>.WorkspaceBytes(problem, degree, sweepsTokens));

        public override void Forward(AttentionProblem problem, in AttentionBuffers buffers)
        {
            Stack<IForwardPass> idle = problem.Features is null ? _softmax : _linear;
            IForwardPass? pass;
            lock (idle)
            {
                idle.TryPop(out pass);
            }

            pass ??= problem.Features is null
                ? new SoftmaxForward<TV>(new ParallelLoop(degree))
                : new LinearForward<TV>(new ParallelLoop(degree), sweepsTokens);
            try
            {
                pass.Run(problem, buffers);
            }
            finally
            {
                lock (idle)
                {
                    idle.Push(pass);
                }
            }
        }

        public override long BackwardWorkspaceBytes(AttentionProblem problem) =>
            64 + (problem.Features is null ? SoftmaxBackward<TV>.WorkspaceBytes(problem, degree) : LinearBackward<TV>.WorkspaceBytes(problem, degree));

        public override void Backward(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients)
        {
            Stack<IBackwardPass> idle = problem.Features is null ? _softmaxBackward : _linearBackward;
            IBackwardPass? pass;
            lock (idle)
            {
                idle.TryPop(out pass);
            }

            pass ??= problem.Features is null ? new SoftmaxBackward<TV>(new ParallelLoop(degree)) : new LinearBackward<TV>(new ParallelLoop(degree));
            try
            {
                pass.Run(problem, buffers, gradients);
            }
            finally
            {
                lock (idle)
                {
                    idle.Push(pass);
                }
            }
        }
    }
}
