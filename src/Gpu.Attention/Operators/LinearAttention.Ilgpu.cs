using ILGPU;

namespace Gpu.Attention;

public sealed unsafe partial class LinearAttention
{
    /// <summary>
    /// Computes attention on float32 views of the caller's own accelerator, without a copy: enqueues on the stream that
    /// <see cref="ComputeDevice.FromAccelerator"/> was given and returns.
    /// </summary>
    /// <inheritdoc cref="Forward{T}(AttentionShape, ArrayView{T}, ArrayView{T}, ArrayView{T}, ArrayView{T}, SequenceLayout?)"/>
    public void Forward(
        AttentionShape shape, ArrayView<float> query, ArrayView<float> key, ArrayView<float> value, ArrayView<float> output, SequenceLayout? layout = null) =>
        Forward<float>(shape, query, key, value, output, layout);

    /// <summary>
    /// Computes attention on views of the caller's own accelerator, without a copy: enqueues on the stream that
    /// <see cref="ComputeDevice.FromAccelerator"/> was given and returns.
    /// </summary>
    /// <remarks>The operator's scratch memory is used until the stream has come past the call; disposing of the operator waits for that.</remarks>
    /// <typeparam name="T"><see cref="float"/>, <see cref="System.Half"/> or ILGPU's, or <see cref="BFloat16"/>.</typeparam>
    /// <param name="shape">The sizes.</param>
    /// <param name="query">Queries, <c>B·T·H·D</c> elements.</param>
    /// <param name="key">Keys, <c>B·S·Hk·D</c> elements.</param>
    /// <param name="value">Values, <c>B·S·Hk·Dv</c> elements.</param>
    /// <param name="output">Receives the outputs, <c>B·T·H·Dv</c> elements; may not overlap an input.</param>
    /// <param name="layout">Which tokens belong to which sequence and which keys take part; null when sequences fill their rows of the batch.</param>
    /// <exception cref="ArgumentException">A length is wrong, a view lies elsewhere, the layout does not fit, or the output overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why. No other takes over.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    /// <exception cref="ObjectDisposedException">A view's memory, the operator or its device is disposed.</exception>
    public void Forward<T>(
        AttentionShape shape, ArrayView<T> query, ArrayView<T> key, ArrayView<T> value, ArrayView<T> output, SequenceLayout? layout = null)
        where T : unmanaged =>
        _executor.ForwardInPlace(
            Problem(shape, ViewBuffers.StorageOf<T>(), false, false, layout), ViewBuffers.Of(Device, shape, query, key, value, output), wait: false);

    /// <summary>
    /// Computes the gradients of <c>Forward</c> on float32 views of the caller's own accelerator, without a copy: enqueues on the stream that
    /// <see cref="ComputeDevice.FromAccelerator"/> was given and returns.
    /// </summary>
    /// <inheritdoc cref="Backward{T}(AttentionShape, ArrayView{T}, ArrayView{T}, ArrayView{T}, ArrayView{T}, ArrayView{T}, ArrayView{T}, ArrayView{T}, ArrayView{T}, SequenceLayout?)"/>
    public void Backward(
        AttentionShape shape, ArrayView<float> query, ArrayView<float> key, ArrayView<float> value, ArrayView<float> output, ArrayView<float> outputGradient,
        ArrayView<float> queryGradient, ArrayView<float> keyGradient, ArrayView<float> valueGradient, SequenceLayout? layout = null) =>
        Backward<float>(shape, query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient, layout);

    /// <summary>
    /// Computes the gradients of <c>Forward</c> on views of the caller's own accelerator, without a copy: enqueues on the stream that
    /// <see cref="ComputeDevice.FromAccelerator"/> was given and returns.
    /// </summary>
    /// <remarks>The operator's scratch memory is used until the stream has come past the call; disposing of the operator waits for that.</remarks>
    /// <typeparam name="T"><see cref="float"/>, <see cref="System.Half"/> or ILGPU's, or <see cref="BFloat16"/>.</typeparam>
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
    /// <exception cref="ArgumentException">A length is wrong, a view lies elsewhere, the layout does not fit, or a gradient overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device has no backward pass of the problem; the message says why. No other takes over.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    /// <exception cref="ObjectDisposedException">A view's memory, the operator or its device is disposed.</exception>
    public void Backward<T>(
        AttentionShape shape, ArrayView<T> query, ArrayView<T> key, ArrayView<T> value, ArrayView<T> output, ArrayView<T> outputGradient,
        ArrayView<T> queryGradient, ArrayView<T> keyGradient, ArrayView<T> valueGradient, SequenceLayout? layout = null)
        where T : unmanaged
    {
        AttentionBuffers buffers = ViewBuffers.Of(Device, shape, query, key, value, output);
        GradientBuffers gradients = ViewBuffers.GradientsOf(Device, shape, buffers, outputGradient, queryGradient, keyGradient, valueGradient);
        _executor.BackwardInPlace(Problem(shape, ViewBuffers.StorageOf<T>(), false, false, layout), buffers, gradients, wait: false);
    }
}
