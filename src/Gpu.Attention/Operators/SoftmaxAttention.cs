using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Gpu.Attention;

/// <summary>What an exact attention layer computes.</summary>
public sealed record SoftmaxAttentionOptions
{
    /// <summary>True when query <c>i</c> sees keys <c>0..i</c> only.</summary>
    public bool Causal { get; init; }

    /// <summary>
    /// Causal: how many tokens make a block; a query sees its whole block and all earlier ones. Blocks are counted from each sequence's first token.
    /// </summary>
    public int CausalBlock { get; init; } = 1;

    /// <summary>The factor on <c>q·k</c>; null for <c>1/√D</c>.</summary>
    public float? Scale { get; init; }
}

/// <summary>
/// Exact attention, <c>softmax(scale · QKᵀ) V</c>: quadratic in time, linear in memory. The neighbour that linear attention is compared with, and the
/// better choice at short lengths.
/// </summary>
/// <remarks>Shapes, aliasing and determinism are those of <see cref="LinearAttention"/>.</remarks>
public sealed unsafe partial class SoftmaxAttention : IDisposable
{
    private readonly Executor _executor;
    private AttentionProblem? _problem;

    /// <summary>Creates an operator.</summary>
    /// <param name="device">Where it runs. The operator does not own it.</param>
    /// <param name="options">What to compute; null for the defaults.</param>
    /// <exception cref="ArgumentException">The scale is not finite.</exception>
    public SoftmaxAttention(ComputeDevice device, SoftmaxAttentionOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(device);
        device.ThrowIfDisposed();
        Options = options ?? new SoftmaxAttentionOptions();
        TensorArguments.RequireFinite(Options.Scale, nameof(Options.Scale), nameof(options));
        TensorArguments.RequirePositive(Options.CausalBlock, nameof(Options.CausalBlock), nameof(options));
        _executor = new Executor(device);
    }

    /// <summary>The device asked for, and on <see cref="ComputeDevice.Reason"/> why.</summary>
    public ComputeDevice Device => _executor.Device;

    /// <summary>The device that ran the last call: <see cref="Device"/>, unless <see cref="Fallbacks"/> says why not.</summary>
    public DeviceInfo LastDevice => _executor.LastDevice;

    /// <summary>Why calls ran on another device than <see cref="Device"/>, or there in smaller segments than planned; each reason once.</summary>
    public IReadOnlyList<FallbackStep> Fallbacks => _executor.Steps;

    /// <summary>What is computed.</summary>
    public SoftmaxAttentionOptions Options { get; }

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
            Forward(shape, TensorArguments.StorageOf<T>(), q, k, v, o, layout);
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
        AttentionProblem problem = Problem(shape, query.ElementType, layout);
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
        where T : unmanaged
    {
        TensorArguments.RequireLengths(shape, query.Length, key.Length, value.Length, output.Length);
        fixed (T* q = query)
        fixed (T* k = key)
        fixed (T* v = value)
        fixed (T* o = output)
        {
            Forward(shape, TensorArguments.StorageOf<T>(), q, k, v, o, layout);
        }
    }

    /// <summary>Scratch memory, beside inputs and outputs, that a call of this shape holds.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="layout">The layout of the call's tensors.</param>
    /// <exception cref="ArgumentException">The layout does not fit.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public long WorkspaceBytes(AttentionShape shape, SequenceLayout? layout = null) => _executor.WorkspaceBytes(Problem(shape, ElementType.Single, layout));

    /// <summary>Releases the operator's scratch memory.</summary>
    public void Dispose() => _executor.Dispose();

    private void Forward(AttentionShape shape, ElementType storage, void* query, void* key, void* value, void* output, SequenceLayout? layout)
    {
        AttentionBuffers buffers = DenseBuffers.Of(shape, storage, query, key, value, output);
        TensorArguments.RequireDisjoint(shape, buffers);
        _executor.Forward(Problem(shape, storage, layout), buffers);
    }

    private AttentionProblem Problem(AttentionShape shape, ElementType storage, SequenceLayout? layout)
    {
        // By way of a local: another thread may replace the field at any time.
        AttentionProblem? problem = _problem;
        if (problem is not null && problem.Shape == shape && problem.Storage == storage
            && (problem.Layout == layout || (layout is null && problem.Layout!.IsWhole)))
        {
            return problem;
        }

        TensorArguments.RequireFit(layout, shape, needsBoth: true);
        int block = Options.Causal ? Options.CausalBlock : 1;
        if (layout is null && block > 1)
        {
            TensorArguments.RequireBlocks(shape);
            layout = SequenceLayout.Whole(shape.Batch, shape.KeyLength);
        }

        return _problem = new AttentionProblem
        {
            Shape = shape,
            Causal = Options.Causal,
            CausalBlock = block,
            Layout = layout,
            Storage = storage,
            Scale = Options.Scale ?? (1 / MathF.Sqrt(shape.KeyDimension)),
        };
    }
}
