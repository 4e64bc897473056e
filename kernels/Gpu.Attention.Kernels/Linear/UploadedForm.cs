using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>A <see cref="FeatureForm"/> in device memory.</summary>
internal sealed class UploadedForm : IUpload
{
    private readonly MemoryBuffer1D<float, Stride1D.Dense> _buffer;

    /// <summary>Copies a form to a device.</summary>
    /// <param name="accelerator">The device.</param>
    /// <param name="stream">The stream to copy on.</param>
    /// <param name="form">The form.</param>
    /// <param name="chunk">C.</param>
    public UploadedForm(Accelerator accelerator, AcceleratorStream stream, FeatureForm form, int chunk)
    {
        int d = form.InputDimension;
        int r = form.FeatureDimension;
        int features = WorkspacePlan.RoundUp(r, chunk);
        int inputs = WorkspacePlan.RoundUp(d, TileProduct.Depth);
        float[] parts = new float[((long)inputs * features) + features + (form.PreMatrix?.Length ?? 0) + (form.PreOffset?.Length ?? 0) + (form.Linear?.Length ?? 0)];
        for (int feature = 0; feature < r; feature++)
        {
            for (int i = 0; i < d; i++)
            {
                parts[(i * features) + feature] = form.Projection is { } w ? w[(feature * d) + i] : i == feature ? 1 : 0;
            }
        }

        int next = inputs * features;
        int offset = next;
        form.Offset?.CopyTo(parts, offset);
        next += features;
        int preMatrix = Append(form.PreMatrix, parts, ref next);
        int preOffset = Append(form.PreOffset, parts, ref next);
        int linear = Append(form.Linear, parts, ref next);
        _buffer = accelerator.Allocate1D<float>(parts.Length);
        try
        {
            _buffer.View.BaseView.CopyFromCPU(stream, parts);
        }
        catch
        {
            _buffer.Dispose();
            throw;
        }

        View = new DeviceForm
        {
            Elements = _buffer.View.BaseView,
            Projection = 0,
            Offset = offset,
            PreMatrix = preMatrix,
            PreOffset = preOffset,
            Linear = linear,
            NormCoefficient = form.NormCoefficient,
        };
    }

    /// <summary>The form as kernels see it.</summary>
    public DeviceForm View { get; }

    /// <inheritdoc/>
    public long Bytes => _buffer.LengthInBytes;

    /// <inheritdoc/>
    public void Dispose() => _buffer.Dispose();

    private static int Append(float[]? part, float[] parts, ref int next)
    {
        if (part is null)
        {
            return -1;
        }

        int at = next;
        part.CopyTo(parts, at);
        next += part.Length;
        return at;
    }
}
