using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>A <see cref="SequencePlan"/> in device memory.</summary>
internal sealed class UploadedPlan : IUpload
{
    private readonly MemoryBuffer1D<int, Stride1D.Dense> _buffer;

    /// <summary>Copies a plan to a device.</summary>
    /// <param name="accelerator">The device.</param>
    /// <param name="stream">The stream to copy on.</param>
    /// <param name="plan">The plan.</param>
    public UploadedPlan(Accelerator accelerator, AcceleratorStream stream, SequencePlan plan)
    {
        int[] tables = SequenceTables.Of(plan);
        _buffer = accelerator.Allocate1D<int>(tables.Length);
        try
        {
            // Returns when all is copied: whoever is launched later finds it, on any stream.
            _buffer.View.BaseView.CopyFromCPU(stream, tables);
        }
        catch
        {
            _buffer.Dispose();
            throw;
        }
    }

    /// <summary>The tables of <see cref="SequenceTables"/>.</summary>
    public ArrayView<int> Tables => _buffer.View.BaseView;

    /// <inheritdoc/>
    public long Bytes => _buffer.LengthInBytes;

    /// <inheritdoc/>
    public void Dispose() => _buffer.Dispose();
}
