using System.Runtime.CompilerServices;
using ILGPU;
using ILGPU.Runtime;
using ILGPU.Runtime.Cuda;
using ILGPU.Runtime.OpenCL;

namespace Gpu.Attention;

/// <summary>An ILGPU accelerator as the scheduler sees it.</summary>
internal sealed class IlgpuRuntime(DeviceInfo info, Accelerator accelerator, AcceleratorStream? computeStream) : DeviceRuntime(info)
{
    // OpenCL promises allocations of a quarter of the memory only, and a call takes one.
    public override long DefaultBudgetBytes => accelerator.AcceleratorType == AcceleratorType.OpenCL ? accelerator.MemorySize / 4 : accelerator.MemorySize / 5 * 4;

    /// <summary>The accelerator.</summary>
    public Accelerator Accelerator => accelerator;

    /// <summary>The caller's stream that kernels go on; null when every session has its own.</summary>
    public AcceleratorStream? ComputeStream => computeStream;

    public override object Allocate(long bytes)
    {
        try
        {
            accelerator.Bind();
            // Of the type that kernels and copies see it as: ILGPU makes no other views of a buffer.
            return accelerator.Allocate1D<float>(bytes / sizeof(float));
        }
        catch (Exception e) when (IsOutOfMemory(e) || e is OutOfMemoryException)
        {
            throw new DeviceOutOfMemoryException($"{Info.Name} has not {bytes} bytes left ({e.Message})", e);
        }
    }

    public override void Free(object allocation) => ((MemoryBuffer)allocation).Dispose();

    public override bool IsOutOfMemory(Exception exception) => exception switch
    {
        CudaException cuda => cuda.Error == nameof(CudaError.CUDA_ERROR_OUT_OF_MEMORY),
        CLException cl => cl.Error is CLError.CL_MEM_OBJECT_ALLOCATION_FAILURE or CLError.CL_OUT_OF_RESOURCES or CLError.CL_OUT_OF_HOST_MEMORY
            or CLError.CL_INVALID_BUFFER_SIZE,
        _ => base.IsOutOfMemory(exception),
    };

    protected override DeviceSession CreateSession() => new Session(this);

    private sealed class Session : DeviceSession
    {
        private readonly Accelerator _accelerator;
        private readonly AcceleratorStream _upload;
        private readonly AcceleratorStream _compute;
        private readonly AcceleratorStream _download;
        private readonly bool _ownsCompute;
        private readonly IlgpuEngine _engine;

        public Session(IlgpuRuntime runtime)
            : base(runtime)
        {
            _accelerator = runtime.Accelerator;
            _accelerator.Bind();
            var streams = new List<AcceleratorStream>();
            try
            {
                _upload = Create();
                _download = Create();
                _ownsCompute = runtime.ComputeStream is null;
                _compute = runtime.ComputeStream ?? Create();
                _engine = new IlgpuEngine(_accelerator, new IlgpuEngineOptions { Stream = _compute });
            }
            catch
            {
                streams.ForEach(stream => Ignore(stream.Dispose));
                throw;
            }

            AcceleratorStream Create()
            {
                AcceleratorStream stream = _accelerator.CreateStream();
                streams.Add(stream);
                return stream;
            }
        }

        public override IAttentionEngine Engine => _engine;

        public override long LiveBytes => _engine.LiveBytes;

        public override StagingMemory AllocateStaging(int floats)
        {
            // ILGPU locks pages in whatever context the thread has.
            _accelerator.Bind();
            return new Staging(_accelerator.AllocatePageLocked1D<float>(floats));
        }

        public override unsafe void Upload(StagingMemory source, int first, object target, long offset, int floats)
        {
            _accelerator.Bind();
            View(target, offset, floats).CopyFromCPUUnsafeAsync(_upload, ref source.Pointer[first], floats);
        }

        public override unsafe void Download(object source, long offset, StagingMemory target, int first, int floats)
        {
            _accelerator.Bind();
            View(source, offset, floats).CopyToCPUUnsafeAsync(_download, ref target.Pointer[first], floats);
        }

        public override void Wait(DeviceQueue queue)
        {
            _accelerator.Bind();
            (queue switch { DeviceQueue.Upload => _upload, DeviceQueue.Compute => _compute, _ => _download }).Synchronize();

            // ILGPU 1.5.3 puts copies on the default stream, whichever was asked for, in this mode.
            if (queue != DeviceQueue.Compute && _accelerator.Context.Properties.PageLockingMode == PageLockingMode.Aggressive)
            {
                _accelerator.DefaultStream.Synchronize();
            }
        }

        protected override void DisposeCore()
        {
            _accelerator.Bind();
            Ignore(_engine.Dispose);
            Ignore(_upload.Dispose);
            Ignore(_download.Dispose);
            if (_ownsCompute)
            {
                Ignore(_compute.Dispose);
            }
        }

        private static ArrayView<float> View(object allocation, long offset, int floats) =>
            ((MemoryBuffer)allocation).AsArrayView<float>(offset / sizeof(float), floats);
    }

    private sealed unsafe class Staging(PageLockedArray1D<float> array) : StagingMemory
    {
        // ILGPU pins the array.
        public override float* Pointer => (float*)Unsafe.AsPointer(ref array.Span[0]);

        public override void Dispose() => array.Dispose();
    }
}
