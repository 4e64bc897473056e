using Gpu.Attention.TestKit;
using Gpu.Attention.Tests;
using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention.Kernels.Tests;

/// <summary>Device memory, with a count of the bytes that are alive.</summary>
internal sealed class DeviceMemory(Accelerator accelerator) : EngineMemory
{
    /// <summary>Bytes that tests have placed and not disposed.</summary>
    public long LiveBytes { get; private set; }

    public override PlacedBuffer Place(PoisonedBuffer buffer) => new DeviceBuffer(this, accelerator, buffer);

    private sealed class DeviceBuffer : PlacedBuffer
    {
        private readonly DeviceMemory _memory;
        private readonly MemoryBuffer1D<float, Stride1D.Dense> _buffer;

        public DeviceBuffer(DeviceMemory memory, Accelerator accelerator, PoisonedBuffer image)
            : base(image)
        {
            _memory = memory;
            _buffer = accelerator.Allocate1D(image.Whole.ToArray());
            _memory.LiveBytes += _buffer.LengthInBytes;
        }

        public override MemoryRegion Region => new(_buffer, Image.Start * sizeof(float), Image.Length);

        public override void Refresh() => _buffer.GetAsArray1D().CopyTo(Image.Whole);

        public override void Dispose()
        {
            if (!_buffer.IsDisposed)
            {
                _memory.LiveBytes -= _buffer.LengthInBytes;
                _buffer.Dispose();
            }

            base.Dispose();
        }
    }
}
