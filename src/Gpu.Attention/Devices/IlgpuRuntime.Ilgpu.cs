using System.Runtime.InteropServices;
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
            Bind();

            // Of the type that kernels and copies see it as: ILGPU makes no other views of a buffer.
            return accelerator.Allocate1D<float>(bytes / sizeof(float));
        }
        catch (Exception e) when (IsOutOfMemory(e) || e is OutOfMemoryException)
        {
            throw new DeviceOutOfMemoryException($"{Info.Name} has not {bytes} bytes left ({Describe(e)})", e);
        }
    }

    public override void Free(object allocation)
    {
        // Of a disposed accelerator the memory is gone already.
        if (!accelerator.IsDisposed)
        {
            accelerator.Bind();
        }

        ((MemoryBuffer)allocation).Dispose();
    }

    public override bool IsOutOfMemory(Exception exception) => exception switch
    {
        CudaException cuda => cuda.Error == nameof(CudaError.CUDA_ERROR_OUT_OF_MEMORY),
        CLException cl => cl.Error is CLError.CL_MEM_OBJECT_ALLOCATION_FAILURE or CLError.CL_OUT_OF_RESOURCES or CLError.CL_OUT_OF_HOST_MEMORY
            or CLError.CL_INVALID_BUFFER_SIZE,
        _ => base.IsOutOfMemory(exception),
    };

    public override string Describe(Exception exception) => Describe(exception, null);

    protected override DeviceSession CreateSession() => new Session(this);

    // ILGPU's exceptions for OpenCL have a code and no message, and its compiler's say little but in what they wrap.
    private static string Describe(Exception exception, string? outer) => exception switch
    {
        CLException cl => $"{outer}{cl.Error}",
        { InnerException: { } inner } => Describe(inner, $"{outer}{exception.Message}: "),
        _ => outer + exception.Message,
    };

    // Of a disposed accelerator ILGPU would only say that it found a null.
    private void Bind()
    {
        ObjectDisposedException.ThrowIf(accelerator.IsDisposed, accelerator);
        accelerator.Bind();
    }

    private sealed class Session : DeviceSession
    {
        private readonly IlgpuRuntime _runtime;
        private readonly Accelerator _accelerator;
        private readonly AcceleratorStream _upload;
        private readonly AcceleratorStream _compute;
        private readonly AcceleratorStream _download;
        private readonly bool _ownsCompute;
        private readonly IlgpuEngine _engine;

        public Session(IlgpuRuntime runtime)
            : base(runtime)
        {
            _runtime = runtime;
            _accelerator = runtime.Accelerator;
            _runtime.Bind();
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

        public override StagingMemory AllocateStaging(int bytes)
        {
            // ILGPU locks pages in whatever context the thread has.
            _runtime.Bind();
            return new Staging(_accelerator, bytes);
        }

        public override unsafe void Upload(StagingMemory source, int first, object target, long offset, int bytes)
        {
            _runtime.Bind();
            View(target, offset, bytes).CopyFromCPUUnsafeAsync(_upload, ref source.Pointer[first], bytes);
        }

        public override unsafe void Download(object source, long offset, StagingMemory target, int first, int bytes)
        {
            _runtime.Bind();
            View(source, offset, bytes).CopyToCPUUnsafeAsync(_download, ref target.Pointer[first], bytes);
        }

        public override void Wait(DeviceQueue queue)
        {
            _runtime.Bind();
            (queue switch { DeviceQueue.Upload => _upload, DeviceQueue.Compute => _compute, _ => _download }).Synchronize();

            // ILGPU 1.5.3 puts copies on the default stream, whichever was asked for, in this mode.
            if (queue != DeviceQueue.Compute && _accelerator.Context.Properties.PageLockingMode == PageLockingMode.Aggressive)
            {
                _accelerator.DefaultStream.Synchronize();
            }
        }

        protected override void DisposeCore()
        {
            _runtime.Bind();
            Ignore(_engine.Dispose);
            Ignore(_upload.Dispose);
            Ignore(_download.Dispose);
            if (_ownsCompute)
            {
                Ignore(_compute.Dispose);
            }
        }

        private static ArrayView<byte> View(object allocation, long offset, int bytes) => new((MemoryBuffer)allocation, offset, bytes);
    }

    /// <summary>Whole pages of its own: a driver locks pages, and refuses to lock one twice.</summary>
    private sealed unsafe class Staging : StagingMemory
    {
        private readonly PageLockScope<byte>? _lock;
        private byte* _pointer;

        public Staging(Accelerator accelerator, int bytes)
        {
            int page = Environment.SystemPageSize;
            long whole = ((long)bytes + page - 1) / page * page;
            _pointer = (byte*)NativeMemory.AlignedAlloc((nuint)whole, (nuint)page);
            try
            {
                _lock = accelerator.CreatePageLockFromPinned<byte>((nint)_pointer, whole);
            }
            catch (Exception e) when (e is AcceleratorException or NotSupportedException)
            {
                // Copies work all the same, if more slowly.
                System.Diagnostics.Trace.TraceWarning($"{accelerator.Name} cannot lock pages: {e.Message}");
            }
        }

        public override byte* Pointer => _pointer;

        public override void Dispose()
        {
            if (_pointer is not null)
            {
                _lock?.Dispose();
                NativeMemory.AlignedFree(_pointer);
                _pointer = null;
            }
        }
    }
}
