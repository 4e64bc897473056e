using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Gpu.Attention;

/// <summary>What an exact attention layer computes.</summary>
public sealed record SoftmaxAttentionOptions
{
    /// <summary>True when query <c>i</c> sees keys <c>0..i</c> only.</summary>
    public bool Causal { get; init; }

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

    /// <summary>Computes attention.</summary>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">Values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="output">Receives the outputs <c>[B, T, H, Dv]</c>; may not overlap an input.</param>
    /// <exception cref="ArgumentException">A rank, size or stride is wrong, or the output overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Forward(
        in ReadOnlyTensorSpan<float> query, in ReadOnlyTensorSpan<float> key, in ReadOnlyTensorSpan<float> value, in TensorSpan<float> output)
    {
        AttentionShape shape = TensorArguments.Shape(query, key, value, output);
        fixed (float* q = &TensorMarshal.GetReference(query))
        fixed (float* k = &TensorMarshal.GetReference(key))
        fixed (float* v = &TensorMarshal.GetReference(value))
        fixed (float* o = &TensorMarshal.GetReference(output))
        {
            Forward(shape, q, k, v, o);
        }
    }

    /// <summary>Computes attention on tensors of the device, which nothing leaves. Returns when the output is there.</summary>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">Values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="output">Receives the outputs <c>[B, T, H, Dv]</c>; may not be an input.</param>
    /// <exception cref="ArgumentException">A tensor lies on another device, a rank or size is wrong, or the output is an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why. No other takes over.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    /// <exception cref="ObjectDisposedException">A tensor, the operator or its device is disposed.</exception>
    public void Forward(DeviceTensor query, DeviceTensor key, DeviceTensor value, DeviceTensor output)
    {
        AttentionShape shape = TensorArguments.Shape(Device, query, key, value, output);
        _executor.ForwardInPlace(Problem(shape), DenseBuffers.Of(shape, query.Region, key.Region, value.Region, output.Region), wait: true);
        DeviceTensor.KeepAlive(query, key, value, output);
    }

    /// <summary>Computes attention on flat memory of a given shape.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="query">Queries, <c>B·T·H·D</c> elements.</param>
    /// <param name="key">Keys, <c>B·S·Hk·D</c> elements.</param>
    /// <param name="value">Values, <c>B·S·Hk·Dv</c> elements.</param>
    /// <param name="output">Receives the outputs, <c>B·T·H·Dv</c> elements; may not overlap an input.</param>
    /// <exception cref="ArgumentException">A length is wrong, or the output overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Forward(
        AttentionShape shape, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<float> value, Span<float> output)
    {
        TensorArguments.RequireLengths(shape, query.Length, key.Length, value.Length, output.Length);
        fixed (float* q = query)
        fixed (float* k = key)
        fixed (float* v = value)
        fixed (float* o = output)
        {
            Forward(shape, q, k, v, o);
        }
    }

    /// <summary>Scratch memory, beside inputs and outputs, that a call of this shape holds.</summary>
    /// <param name="shape">The sizes.</param>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public long WorkspaceBytes(AttentionShape shape) => _executor.WorkspaceBytes(Problem(shape));

    /// <summary>Releases the operator's scratch memory.</summary>
    public void Dispose() => _executor.Dispose();

    private void Forward(AttentionShape shape, float* query, float* key, float* value, float* output)
    {
        TensorArguments.RequireDisjoint(shape, query, key, value, output);
        _executor.Forward(Problem(shape), DenseBuffers.Of(shape, query, key, value, output));
    }

    private AttentionProblem Problem(AttentionShape shape)
    {
        // By way of a local: another thread may replace the field at any time.
        AttentionProblem? problem = _problem;
        if (problem?.Shape != shape)
        {
            _problem = problem = new AttentionProblem
            {
                Shape = shape,
                Causal = Options.Causal,
                Scale = Options.Scale ?? (1 / MathF.Sqrt(shape.KeyDimension)),
            };
        }

        return problem;
    }
}
