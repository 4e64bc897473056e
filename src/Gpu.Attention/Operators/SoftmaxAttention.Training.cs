using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Gpu.Attention;

// Gradients. Nothing is kept from the forward pass but its output: the weights are computed again.
public sealed unsafe partial class SoftmaxAttention
{
    /// <summary>Computes the gradients of <c>Forward</c> over float32 tensors.</summary>
    /// <inheritdoc cref="Backward{T}(in ReadOnlyTensorSpan{T}, in ReadOnlyTensorSpan{T}, in ReadOnlyTensorSpan{T}, in ReadOnlyTensorSpan{T}, in ReadOnlyTensorSpan{T}, in TensorSpan{T}, in TensorSpan{T}, in TensorSpan{T}, SequenceLayout?)"/>
    public void Backward(
        in ReadOnlyTensorSpan<float> query, in ReadOnlyTensorSpan<float> key, in ReadOnlyTensorSpan<float> value, in ReadOnlyTensorSpan<float> output,
        in ReadOnlyTensorSpan<float> outputGradient, in TensorSpan<float> queryGradient, in TensorSpan<float> keyGradient, in TensorSpan<float> valueGradient,
        SequenceLayout? layout = null) =>
        Backward<float>(query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient, layout);

    /// <summary>Computes the gradients of <c>Forward</c>.</summary>
    /// <remarks>Of masked keys and values the gradient is 0, and so it is of a row that sees nothing.</remarks>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>: how tensors are stored; sums are float32 throughout.</typeparam>
    /// <param name="query">The queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">The keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">The values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="output">What <c>Forward</c> made of them, <c>[B, T, H, Dv]</c>.</param>
    /// <param name="outputGradient">The loss's gradient with respect to the output, <c>[B, T, H, Dv]</c>.</param>
    /// <param name="queryGradient">Receives the gradient of the queries <c>[B, T, H, D]</c>; may not overlap an input.</param>
    /// <param name="keyGradient">Receives the gradient of the keys <c>[B, S, Hk, D]</c>, summed over the query heads that read a key head.</param>
    /// <param name="valueGradient">Receives the gradient of the values <c>[B, S, Hk, Dv]</c>, summed likewise.</param>
    /// <param name="layout">The layout of the forward pass.</param>
    /// <exception cref="ArgumentException">A rank, size or stride is wrong, the layout does not fit, or a gradient overlaps an input.</exception>
    /// <exception cref="NotSupportedException">No device that may run the problem has its backward pass; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Backward<T>(
        in ReadOnlyTensorSpan<T> query, in ReadOnlyTensorSpan<T> key, in ReadOnlyTensorSpan<T> value, in ReadOnlyTensorSpan<T> output,
        in ReadOnlyTensorSpan<T> outputGradient, in TensorSpan<T> queryGradient, in TensorSpan<T> keyGradient, in TensorSpan<T> valueGradient,
        SequenceLayout? layout = null)
        where T : unmanaged
    {
        AttentionShape shape = TensorArguments.Shape(query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient);
        fixed (T* q = &TensorMarshal.GetReference(query))
        fixed (T* k = &TensorMarshal.GetReference(key))
        fixed (T* v = &TensorMarshal.GetReference(value))
        fixed (T* o = &TensorMarshal.GetReference(output))
        fixed (T* dO = &TensorMarshal.GetReference(outputGradient))
        fixed (T* dQ = &TensorMarshal.GetReference(queryGradient))
        fixed (T* dK = &TensorMarshal.GetReference(keyGradient))
        fixed (T* dV = &TensorMarshal.GetReference(valueGradient))
        {
            ElementType storage = TensorArguments.StorageOf<T>();
            Backward(shape, DenseBuffers.Of(shape, storage, q, k, v, o), DenseBuffers.GradientsOf(shape, storage, dO, dQ, dK, dV), layout);
        }
    }

    /// <summary>Computes the gradients of <c>Forward</c> on tensors of the device, which nothing leaves. Returns when the gradients are there.</summary>
    /// <remarks>Of masked keys and values the gradient is 0, and so it is of a row that sees nothing.</remarks>
    /// <param name="query">The queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">The keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">The values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="output">What <c>Forward</c> made of them, <c>[B, T, H, Dv]</c>.</param>
    /// <param name="outputGradient">The loss's gradient with respect to the output, <c>[B, T, H, Dv]</c>.</param>
    /// <param name="queryGradient">Receives the gradient of the queries <c>[B, T, H, D]</c>; may not be an input. Null when not wanted.</param>
    /// <param name="keyGradient">Receives the gradient of the keys <c>[B, S, Hk, D]</c>, summed over the query heads that read a key head; null when not wanted.</param>
    /// <param name="valueGradient">Receives the gradient of the values <c>[B, S, Hk, Dv]</c>, summed likewise; null when not wanted.</param>
    /// <param name="layout">The layout of the forward pass.</param>
    /// <exception cref="ArgumentException">
    /// A tensor lies on another device, a rank or size is wrong, they are stored differently, the layout does not fit, or a gradient is an input.
    /// </exception>
    /// <exception cref="NotSupportedException">The device has no backward pass of the problem; the message says why. No other takes over.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    /// <exception cref="ObjectDisposedException">A tensor, the operator or its device is disposed.</exception>
    public void Backward(
        DeviceTensor query, DeviceTensor key, DeviceTensor value, DeviceTensor output, DeviceTensor outputGradient, DeviceTensor? queryGradient,
        DeviceTensor? keyGradient, DeviceTensor? valueGradient, SequenceLayout? layout = null)
    {
        AttentionShape shape = TensorArguments.Shape(
            Device, query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient);
        AttentionBuffers buffers = DenseBuffers.Of(shape, query.Region, key.Region, value.Region, output.Region);
        GradientBuffers gradients = DenseBuffers.GradientsOf(
            shape, outputGradient.Region, queryGradient?.Region ?? default, keyGradient?.Region ?? default, valueGradient?.Region ?? default);
        TensorArguments.RequireDisjoint(shape, buffers, gradients);
        _executor.BackwardInPlace(Problem(shape, query.ElementType, layout), buffers, gradients, wait: true);
        DeviceTensor.KeepAlive(query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient);
    }

    /// <summary>Computes the gradients of <c>Forward</c> on flat memory of a given shape.</summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>: how tensors are stored; sums are float32 throughout.</typeparam>
    /// <param name="shape">The sizes.</param>
    /// <param name="query">The queries, <c>B·T·H·D</c> elements.</param>
    /// <param name="key">The keys, <c>B·S·Hk·D</c> elements.</param>
    /// <param name="value">The values, <c>B·S·Hk·Dv</c> elements.</param>
    /// <param name="output">What <c>Forward</c> made of them, <c>B·T·H·Dv</c> elements.</param>
    /// <param name="outputGradient">The loss's gradient with respect to the output, <c>B·T·H·Dv</c> elements.</param>
    /// <param name="queryGradient">Receives the gradient of the queries, <c>B·T·H·D</c> elements; empty when not wanted.</param>
    /// <param name="keyGradient">Receives the gradient of the keys, <c>B·S·Hk·D</c> elements; empty when not wanted.</param>
    /// <param name="valueGradient">Receives the gradient of the values, <c>B·S·Hk·Dv</c> elements; empty when not wanted.</param>
    /// <param name="layout">The layout of the forward pass.</param>
    /// <exception cref="ArgumentException">A length is wrong, the layout does not fit, or a gradient overlaps an input.</exception>
    /// <exception cref="NotSupportedException">No device that may run the problem has its backward pass; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Backward<T>(
        AttentionShape shape, ReadOnlySpan<T> query, ReadOnlySpan<T> key, ReadOnlySpan<T> value, ReadOnlySpan<T> output, ReadOnlySpan<T> outputGradient,
        Span<T> queryGradient, Span<T> keyGradient, Span<T> valueGradient, SequenceLayout? layout = null)
        where T : unmanaged
    {
        TensorArguments.RequireLengths(shape, query.Length, key.Length, value.Length, output.Length);
        TensorArguments.RequireGradientLengths(shape, outputGradient.Length, queryGradient.Length, keyGradient.Length, valueGradient.Length);
        fixed (T* q = query)
        fixed (T* k = key)
        fixed (T* v = value)
        fixed (T* o = output)
        fixed (T* dO = outputGradient)
        fixed (T* dQ = queryGradient)
        fixed (T* dK = keyGradient)
        fixed (T* dV = valueGradient)
        {
            ElementType storage = TensorArguments.StorageOf<T>();
            Backward(shape, DenseBuffers.Of(shape, storage, q, k, v, o), DenseBuffers.GradientsOf(shape, storage, dO, dQ, dK, dV), layout);
        }
    }

    /// <summary>
    /// Scratch memory, beside tensors and gradients, that a backward pass of this shape holds. On a device, the copies of tensors and gradients that a call
    /// on host memory makes there count too.
    /// </summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="layout">The layout of the call's tensors.</param>
    /// <exception cref="ArgumentException">The layout does not fit.</exception>
    /// <exception cref="NotSupportedException">No device that may run the problem has its backward pass; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public long BackwardWorkspaceBytes(AttentionShape shape, SequenceLayout? layout = null) =>
        _executor.WorkspaceBytes(Problem(shape, ElementType.Single, layout), isBackward: true);

    private void Backward(AttentionShape shape, in AttentionBuffers buffers, in GradientBuffers gradients, SequenceLayout? layout)
    {
        TensorArguments.RequireDisjoint(shape, buffers, gradients);
        _executor.Backward(Problem(shape, buffers.Query.Memory.Type, layout), buffers, gradients);
    }
}
