using ILGPU;

namespace Gpu.Attention;

public sealed unsafe partial class LinearAttention
{
    /// <summary>
    /// Computes attention on views of the caller's own accelerator, without a copy: enqueues on the stream that
    /// <see cref="ComputeDevice.FromAccelerator"/> was given and returns.
    /// </summary>
    /// <remarks>The operator's scratch memory is used until the stream has come past the call; disposing of the operator waits for that.</remarks>
    /// <param name="shape">The sizes.</param>
    /// <param name="query">Queries, <c>B·T·H·D</c> elements.</param>
    /// <param name="key">Keys, <c>B·S·Hk·D</c> elements.</param>
    /// <param name="value">Values, <c>B·S·Hk·Dv</c> elements.</param>
    /// <param name="output">Receives the outputs, <c>B·T·H·Dv</c> elements; may not overlap an input.</param>
    /// <exception cref="ArgumentException">A length is wrong, a view lies elsewhere, or the output overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why. No other takes over.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    /// <exception cref="ObjectDisposedException">A view's memory, the operator or its device is disposed.</exception>
    public void Forward(AttentionShape shape, ArrayView<float> query, ArrayView<float> key, ArrayView<float> value, ArrayView<float> output) =>
        _executor.ForwardInPlace(Problem(shape, false, false), ViewBuffers.Of(Device, shape, query, key, value, output), wait: false);
}
