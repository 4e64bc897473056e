using ILGPU;

namespace Gpu.Attention;

public sealed unsafe partial class SoftmaxAttention
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
            Problem(shape, ViewBuffers.StorageOf<T>(), layout), ViewBuffers.Of(Device, shape, query, key, value, output), wait: false);
}
