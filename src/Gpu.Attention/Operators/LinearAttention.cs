using System.Globalization;
using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Gpu.Attention;

/// <summary>What a linear attention layer computes, beside its feature map.</summary>
public sealed record LinearAttentionOptions
{
    /// <summary>True when query <c>i</c> sees keys <c>0..i</c> only.</summary>
    public bool Causal { get; init; }

    /// <summary>
    /// Causal: how many tokens make a block; a query sees its whole block and all earlier ones. Blocks are counted from each sequence's first token of a
    /// call.
    /// </summary>
    public int CausalBlock { get; init; } = 1;

    /// <summary>
    /// The factor on <c>q·k</c>; null for <c>1/√D</c>. Exponential feature maps estimate <c>exp(scale · q·k)</c>. For other maps it multiplies
    /// the weights, and so shows only when <see cref="Normalize"/> is false.
    /// </summary>
    public float? Scale { get; init; }

    /// <summary>True to divide every output row by the sum of its weights; false to return the bare sum of weighted values.</summary>
    public bool Normalize { get; init; } = true;

    /// <summary>A published convention to reproduce; <see cref="ReferenceConvention.None"/> is exact.</summary>
    public ReferenceConvention Compatibility { get; init; }

    /// <summary>
    /// A constant added to every feature before the factor <c>m^-½</c>; null for the convention's own, which is 0 for <see cref="ReferenceConvention.None"/>.
    /// </summary>
    public float? FeatureEpsilon { get; init; }
}

/// <summary>
/// Attention in linear time through a feature map: <c>φ(Q)(φ(K)ᵀV)</c>, bidirectional, causal or across two sequences.
/// </summary>
/// <remarks>
/// <para>Tensors are dense and row-major, of float32, or of 16 bits with float32 sums: query <c>[B, T, H, D]</c>, key <c>[B, S, Hk, D]</c>, value
/// <c>[B, S, Hk, Dv]</c>, output <c>[B, T, H, Dv]</c>. Query head <c>i</c> reads key head <c>i / (H / Hk)</c>. Sizes may change from call to call. On the host
/// a second call with the same sizes, and the same layout, allocates nothing.</para>
/// <para>Sequences of different lengths come padded or packed, with a <see cref="SequenceLayout"/>.</para>
/// <para>A sequence that comes in pieces keeps what it has seen in an <see cref="AttentionState"/>: <see cref="CreateState"/>, then <c>Append</c>, <c>Read</c>, <c>Step</c>.</para>
/// <para>An output row that sees no key, or whose weights sum to zero, is 0. NaN and infinity spread to the rows that see them, and no further.</para>
/// <para>Bits. On one device, the same sequence gives the same bits: on every run, with any number of threads and any memory budget, alone or in any batch,
/// padded on either side, with holes or packed with others, and whatever its causal future holds. 16-bit tensors give the float32 result of the stored
/// numbers, rounded once. Gradients hold to it too, those of keys and values where the sequence's queries begin at the same place of their row: padding on
/// the left changes which queries are summed together. Not promised: the same bits on another device, with another width of vectors, from another version
/// of the library, or when a sequence is cut into other calls; <c>Step</c> says what holds there.</para>
/// </remarks>
public sealed unsafe partial class LinearAttention : IDisposable
{
    private readonly Executor _executor;

    // The last problem of each kind of call, so that calls of one shape, taking turns, allocate nothing.
    private readonly Posed?[] _problems = new Posed?[Enum.GetValues<Call>().Length];
    private Lowering? _lowering;

    /// <summary>Creates an operator.</summary>
    /// <param name="device">Where it runs. The operator does not own it.</param>
    /// <param name="features">The feature map.</param>
    /// <param name="options">What to compute; null for the defaults.</param>
    /// <exception cref="ArgumentException">An option is not finite, or the epsilon is negative.</exception>
    public LinearAttention(ComputeDevice device, FeatureMap features, LinearAttentionOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(device);
        ArgumentNullException.ThrowIfNull(features);
        device.ThrowIfDisposed();
        Options = options ?? new LinearAttentionOptions();
        TensorArguments.RequireFinite(Options.Scale, nameof(Options.Scale), nameof(options));
        TensorArguments.RequireFinite(Options.FeatureEpsilon, nameof(Options.FeatureEpsilon), nameof(options));
        if (Options.FeatureEpsilon < 0)
        {
            throw new ArgumentException($"FeatureEpsilon is {Options.FeatureEpsilon}; it must not be negative.", nameof(options));
        }

        TensorArguments.RequirePositive(Options.CausalBlock, nameof(Options.CausalBlock), nameof(options));
        if (!Enum.IsDefined(Options.Compatibility))
        {
            throw new ArgumentException($"Compatibility {Options.Compatibility} is not a known convention.", nameof(options));
        }

        Features = features;
        _executor = new Executor(device);
    }

    private enum Call
    {
        Forward,
        Append,
        Read,
        Step,
        Weights,
    }

    /// <summary>The device asked for, and on <see cref="ComputeDevice.Reason"/> why.</summary>
    public ComputeDevice Device => _executor.Device;

    /// <summary>The device that ran the last call: <see cref="Device"/>, unless <see cref="Fallbacks"/> says why not.</summary>
    public DeviceInfo LastDevice => _executor.LastDevice;

    /// <summary>Why calls ran on another device than <see cref="Device"/>, or there in smaller segments than planned; each reason once.</summary>
    public IReadOnlyList<FallbackStep> Fallbacks => _executor.Steps;

    /// <summary>The feature map; <see cref="ReplaceFeatures"/> puts another in its place.</summary>
    public FeatureMap Features { get; private set; }

    /// <summary>What is computed.</summary>
    public LinearAttentionOptions Options { get; }

    /// <summary>
    /// Puts another feature map of the same sizes in the place of <see cref="Features"/>, such as one of a projection drawn anew by a
    /// <see cref="ProjectionSchedule"/>. Nothing else does: a pass and a step never change what the operator computes.
    /// </summary>
    /// <param name="features">The new feature map.</param>
    /// <remarks>
    /// Scratch memory stays. States that older calls made are of the old features, and the operator refuses them from now on; a backward pass belongs
    /// before the change, with the forward pass that it differentiates.
    /// </remarks>
    /// <exception cref="ArgumentException">It takes rows of another dimension, makes another number of features, or features of another family.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void ReplaceFeatures(FeatureMap features)
    {
        ArgumentNullException.ThrowIfNull(features);
        _executor.ThrowIfDisposed();
        if (features.InputDimension != Features.InputDimension)
        {
            throw new ArgumentException(
                $"{features} takes rows of dimension {features.InputDimension?.ToString(CultureInfo.InvariantCulture) ?? "any"}, where {Features} takes " +
                $"{Features.InputDimension?.ToString(CultureInfo.InvariantCulture) ?? "any"}.", nameof(features));
        }

        Lowering? lowering = null;

        // A map that takes any dimension is compared at the last one seen; before the first call there is nothing that it could disagree with.
        if ((Features.InputDimension ?? _lowering?.Pair.Key.InputDimension) is { } dimension)
        {
            FeaturePair old = Lowered(dimension).Pair;
            lowering = Lower(features, dimension);
            if ((lowering.Pair.FeatureDimension, lowering.Pair.Family) != (old.FeatureDimension, old.Family))
            {
                throw new ArgumentException(
                    $"{features} makes {lowering.Pair.FeatureDimension} features ({lowering.Pair.Family}), where {Features} makes " +
                    $"{old.FeatureDimension} ({old.Family}).", nameof(features));
            }
        }

        (Features, _lowering) = (features, lowering);
    }

    /// <summary>Computes attention of float32 tensors.</summary>
    /// <inheritdoc cref="Forward{T}(in ReadOnlyTensorSpan{T}, in ReadOnlyTensorSpan{T}, in ReadOnlyTensorSpan{T}, in TensorSpan{T}, SequenceLayout?)"/>
    public void Forward(
        in ReadOnlyTensorSpan<float> query, in ReadOnlyTensorSpan<float> key, in ReadOnlyTensorSpan<float> value, in TensorSpan<float> output,
        SequenceLayout? layout = null) =>
        Forward<float>(query, key, value, output, layout);

    /// <summary>Computes attention.</summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>: how tensors are stored; sums are float32 throughout.</typeparam>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">Values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="output">Receives the outputs <c>[B, T, H, Dv]</c>; may not overlap an input.</param>
    /// <param name="layout">Which tokens belong to which sequence and which keys take part; null when sequences fill their rows of the batch.</param>
    /// <exception cref="ArgumentException">A rank, size or stride is wrong, the layout does not fit, or the output overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Forward<T>(
        in ReadOnlyTensorSpan<T> query, in ReadOnlyTensorSpan<T> key, in ReadOnlyTensorSpan<T> value, in TensorSpan<T> output, SequenceLayout? layout = null)
        where T : unmanaged
    {
        AttentionShape shape = TensorArguments.Shape(query, key, value, output);
        fixed (T* q = &TensorMarshal.GetReference(query))
        fixed (T* k = &TensorMarshal.GetReference(key))
        fixed (T* v = &TensorMarshal.GetReference(value))
        fixed (T* o = &TensorMarshal.GetReference(output))
        {
            Forward(shape, TensorArguments.StorageOf<T>(), q, k, v, o, null, null, layout);
        }
    }

    /// <summary>Computes attention on tensors of the device, which nothing leaves. Returns when the output is there.</summary>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">Values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="output">Receives the outputs <c>[B, T, H, Dv]</c>; may not be an input.</param>
    /// <param name="layout">Which tokens belong to which sequence and which keys take part; null when sequences fill their rows of the batch.</param>
    /// <exception cref="ArgumentException">
    /// A tensor lies on another device, a rank or size is wrong, they are stored differently, the layout does not fit, or the output is an input.
    /// </exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why. No other takes over.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    /// <exception cref="ObjectDisposedException">A tensor, the operator or its device is disposed.</exception>
    public void Forward(DeviceTensor query, DeviceTensor key, DeviceTensor value, DeviceTensor output, SequenceLayout? layout = null)
    {
        AttentionShape shape = TensorArguments.Shape(Device, query, key, value, output);
        AttentionProblem problem = Problem(shape, query.ElementType, false, false, layout);
        _executor.ForwardInPlace(problem, DenseBuffers.Of(shape, query.Region, key.Region, value.Region, output.Region), wait: true);
        DeviceTensor.KeepAlive(query, key, value, output);
    }

    /// <summary>Computes attention on flat memory of a given shape.</summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>: how tensors are stored; sums are float32 throughout.</typeparam>
    /// <param name="shape">The sizes.</param>
    /// <param name="query">Queries, <c>B·T·H·D</c> elements.</param>
    /// <param name="key">Keys, <c>B·S·Hk·D</c> elements.</param>
    /// <param name="value">Values, <c>B·S·Hk·Dv</c> elements.</param>
    /// <param name="output">Receives the outputs, <c>B·T·H·Dv</c> elements; may not overlap an input.</param>
    /// <param name="layout">Which tokens belong to which sequence and which keys take part; null when sequences fill their rows of the batch.</param>
    /// <exception cref="ArgumentException">A length is wrong, the layout does not fit, or the output overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Forward<T>(
        AttentionShape shape, ReadOnlySpan<T> query, ReadOnlySpan<T> key, ReadOnlySpan<T> value, Span<T> output, SequenceLayout? layout = null)
        where T : unmanaged =>
        Forward(shape, query, key, value, output, null, null, layout);

    /// <summary>Computes attention that goes on from an earlier state and hands its own on: a long sequence in pieces.</summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>: how tensors are stored; sums and states are float32 throughout.</typeparam>
    /// <param name="shape">The sizes.</param>
    /// <param name="query">Queries, <c>B·T·H·D</c> elements.</param>
    /// <param name="key">Keys, <c>B·S·Hk·D</c> elements.</param>
    /// <param name="value">Values, <c>B·S·Hk·Dv</c> elements.</param>
    /// <param name="output">Receives the outputs, <c>B·T·H·Dv</c> elements; may not overlap an input.</param>
    /// <param name="initialState">What the sequences had seen before; null for nothing.</param>
    /// <param name="finalState">Receives what they have seen after; null when not wanted. May be <paramref name="initialState"/>.</param>
    /// <param name="layout">Which tokens belong to which sequence and which keys take part; null when sequences fill their rows of the batch.</param>
    /// <exception cref="ArgumentException">A length is wrong, the layout or a state does not fit, or the output overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Forward<T>(
        AttentionShape shape, ReadOnlySpan<T> query, ReadOnlySpan<T> key, ReadOnlySpan<T> value, Span<T> output, AttentionState? initialState,
        AttentionState? finalState, SequenceLayout? layout = null)
        where T : unmanaged
    {
        TensorArguments.RequireLengths(shape, query.Length, key.Length, value.Length, output.Length);
        fixed (T* q = query)
        fixed (T* k = key)
        fixed (T* v = value)
        fixed (T* o = output)
        {
            Forward(shape, TensorArguments.StorageOf<T>(), q, k, v, o, initialState, finalState, layout);
        }
    }

    /// <summary>Creates the state of having seen nothing. It knows the feature map, and no operator with another takes it.</summary>
    /// <param name="batch">N, the number of sequences.</param>
    /// <param name="heads">Hk, the key heads.</param>
    /// <param name="valueDimension">Dv.</param>
    /// <param name="keyDimension">D; may be left out where the feature map takes rows of one dimension only.</param>
    /// <exception cref="ArgumentException">A size is wrong, or missing, or the feature map does not take rows of <paramref name="keyDimension"/>.</exception>
    public AttentionState CreateState(int batch, int heads, int valueDimension, int? keyDimension = null)
    {
        Lowering lowering = Lowered(keyDimension);
        return new AttentionState(
            batch, heads, lowering.Pair.FeatureDimension, valueDimension, lowering.Pair.Family, lowering.Identity);
    }

    /// <summary>Reads a state that <see cref="AttentionState.Save"/> wrote, from a stream's position to its end; one of another feature map is refused.</summary>
    /// <param name="stream">The stream, taken for untrusted.</param>
    /// <param name="keyDimension">D; may be left out where the feature map takes rows of one dimension only.</param>
    /// <exception cref="ArgumentException">D is missing, or the feature map does not take rows of <paramref name="keyDimension"/>.</exception>
    /// <exception cref="InvalidDataException">
    /// The stream holds no state, or not all of it, or one of another feature map, or it was altered, or an element is NaN or infinite; the message says which.
    /// </exception>
    public AttentionState LoadState(Stream stream, int? keyDimension = null) => AttentionState.Load(stream, Lowered(keyDimension).Identity);

    /// <summary>Scratch memory, beside inputs and outputs, that a call of this shape holds.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="layout">The layout of the call's tensors.</param>
    /// <exception cref="ArgumentException">The layout does not fit.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public long WorkspaceBytes(AttentionShape shape, SequenceLayout? layout = null) =>
        _executor.WorkspaceBytes(Problem(shape, ElementType.Single, false, false, layout));

    /// <summary>Releases the operator's scratch memory.</summary>
    public void Dispose() => _executor.Dispose();

    private void RequireFit(AttentionState? state, AttentionProblem problem, string parameter)
    {
        AttentionShape shape = problem.Shape;
        FeaturePair features = problem.Features!;
        if (state is not null && (state.Sequences, state.Heads, state.FeatureDimension, state.ValueDimension, state.Family) !=
            (problem.Sequences, shape.KeyHeads, features.FeatureDimension, shape.ValueDimension, features.Family))
        {
            throw new ArgumentException(
                $"{state} does not fit a state [{problem.Sequences}, {shape.KeyHeads}, {features.FeatureDimension}, {shape.ValueDimension}] " +
                $"({features.Family}) of {shape}.", parameter);
        }

        if (state is not null && state.Features.IsKnown && state.Features != Lowered(shape.KeyDimension).Identity)
        {
            throw new ArgumentException(
                $"{state} is made of other key features than those of {Features}: another projection or draw of it, scale or epsilon.", parameter);
        }
    }

    private void Forward(
        AttentionShape shape, ElementType storage, void* query, void* key, void* value, void* output, AttentionState? initialState,
        AttentionState? finalState, SequenceLayout? layout)
    {
        AttentionProblem problem = Problem(shape, storage, initialState is not null, finalState is not null, layout);
        RequireFit(initialState, problem, nameof(initialState));
        RequireFit(finalState, problem, nameof(finalState));
        Run(problem, DenseBuffers.Of(shape, storage, query, key, value, output), initialState, finalState);
    }

    private void Run(AttentionProblem problem, in AttentionBuffers buffers, AttentionState? initialState, AttentionState? finalState)
    {
        TensorArguments.RequireDisjoint(problem.Shape, buffers);
        if (initialState is null && finalState is null)
        {
            _executor.Forward(problem, buffers);
            return;
        }

        fixed (float* initialScale = initialState is null ? default : initialState.LogScale)
        fixed (float* initialSums = initialState is null ? default : initialState.Sums)
        fixed (float* initialNormalizers = initialState is null ? default : initialState.Normalizers)
        fixed (float* finalScale = finalState is null ? default : finalState.LogScale)
        fixed (float* finalSums = finalState is null ? default : finalState.Sums)
        fixed (float* finalNormalizers = finalState is null ? default : finalState.Normalizers)
        {
            _executor.Forward(problem, buffers with
            {
                InitialState = DenseBuffers.Of(initialState, initialScale, initialSums, initialNormalizers),
                FinalState = DenseBuffers.Of(finalState, finalScale, finalSums, finalNormalizers),
            });
        }
    }

    private Lowering Lowered(int? keyDimension) => Lowered(
        keyDimension ?? Features.InputDimension
        ?? throw new ArgumentException($"The feature map {Features} takes rows of any dimension; say which.", nameof(keyDimension)));

    private Lowering Lowered(int dimension) => Lowered(Features, dimension);

    private Lowering Lowered(FeatureMap features, int dimension)
    {
        Lowering? known = _lowering;
        return known is not null && known.Map == features && known.Pair.Key.InputDimension == dimension ? known : _lowering = Lower(features, dimension);
    }

    private Lowering Lower(FeatureMap features, int dimension)
    {
        FeaturePair pair = features.Lower(dimension, Options.Scale ?? features.DefaultScale(dimension));
        if (pair.Key.InputDimension != dimension)
        {
            throw new InvalidOperationException(
                $"The feature map {features} was asked for a form of rows of dimension {dimension} and made one of {pair.Key.InputDimension}.");
        }

        bool exponential = pair.Family == FeatureFamily.Exponential;
        if (Options.Compatibility == ReferenceConvention.Lucidrains && !exponential)
        {
            // lucidrains scales queries and keys by d^-¼ before its generalised features too, where the epsilon makes it show.
            float factor = (float)Math.Pow(dimension, -0.25);
            pair = new FeaturePair(pair.Query.ScaleInput(factor), pair.Key.ScaleInput(factor));
        }

        float epsilon = Options.FeatureEpsilon ?? Options.Compatibility switch
        {
            ReferenceConvention.None => 0,
            ReferenceConvention.Jax when exponential => 1e-6f,
            ReferenceConvention.Lucidrains when exponential => 1e-4f,
            _ => 1e-3f,
        };
        return new Lowering(features, pair, epsilon, FeatureIdentity.Of(pair.Key, epsilon));
    }

    private AttentionProblem Problem(AttentionShape shape, ElementType storage, bool hasInitialState, bool wantsFinalState, SequenceLayout? layout) =>
        Problem(Call.Forward, shape, storage, Options.Causal, hasInitialState, wantsFinalState, layout);

    private AttentionProblem Problem(
        Call call, AttentionShape shape, ElementType storage, bool causal, bool hasInitialState, bool wantsFinalState, SequenceLayout? layout)
    {
        // What is kept counts for the map that it was made of: another thread may replace features at any time.
        FeatureMap features = Features;
        Posed? posed = _problems[(int)call];
        AttentionProblem? known = posed?.Map == features ? posed.Problem : null;
        if (known is not null && known.Shape == shape && known.Storage == storage && known.HasInitialState == hasInitialState
            && known.WantsFinalState == wantsFinalState && (known.Layout == layout || (layout is null && known.Layout!.IsWhole)))
        {
            return known;
        }

        TensorArguments.RequireFit(layout, shape, needsBoth: call is not (Call.Append or Call.Read));
        int block = causal ? Options.CausalBlock : 1;
        if (layout is null && block > 1)
        {
            // What engines say in a layout's terms holds of whole sequences too.
            TensorArguments.RequireBlocks(shape);
            layout = SequenceLayout.Whole(shape.Batch, shape.KeyLength);
        }

        TensorArguments.RequireRows(call == Call.Append ? "key" : "query", features, shape);
        Lowering lowering = Lowered(features, shape.KeyDimension);
        bool exponential = lowering.Pair.Family == FeatureFamily.Exponential;
        var problem = new AttentionProblem
        {
            Shape = shape,
            Features = lowering.Pair,
            Causal = causal,
            CausalBlock = block,
            Layout = layout,
            Storage = storage,
            Scale = exponential || Options.Normalize ? 1 : Options.Scale ?? features.DefaultScale(shape.KeyDimension),
            Normalize = Options.Normalize,
            Convention = Options.Compatibility,
            FeatureEpsilon = lowering.Epsilon,
            HasInitialState = hasInitialState,
            WantsFinalState = wantsFinalState,
        };

        // By way of a local: another thread may replace the element at any time.
        _problems[(int)call] = new Posed(features, problem);
        return problem;
    }

    /// <summary>The feature map for rows of one dimension.</summary>
    private sealed record Lowering(FeatureMap Map, FeaturePair Pair, float Epsilon, FeatureIdentity Identity);

    /// <summary>A call's last problem, with the feature map that it was made of.</summary>
    private sealed record Posed(FeatureMap Map, AttentionProblem Problem);
}
