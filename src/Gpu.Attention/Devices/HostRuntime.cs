using System.Runtime.InteropServices;

namespace Gpu.Attention;

/// <summary>The host as a device: its engine reaches the caller's memory, so that nothing is copied.</summary>
internal sealed unsafe class HostRuntime(DeviceInfo info, int maxDegreeOfParallelism) : DeviceRuntime(info)
{
    public override long DefaultBudgetBytes => long.MaxValue;

    public override object Allocate(long bytes) => new Memory(bytes);

    public override void Free(object allocation) => ((Memory)allocation).Dispose();

    /// <summary>The address of a byte of an allocation.</summary>
    public static nint AddressOf(object allocation, nint offset) => (nint)((Memory)allocation).Pointer + offset;

    protected override DeviceSession CreateSession() => new Session(this, new SimdEngine(maxDegreeOfParallelism));

    private sealed class Session(DeviceRuntime runtime, SimdEngine engine) : DeviceSession(runtime)
    {
        public override IAttentionEngine Engine => engine;

        public override long LiveBytes => 0;

        public override StagingMemory AllocateStaging(int bytes) => throw NoCopies();

        public override void Upload(StagingMemory source, int first, object target, long offset, int bytes) => throw NoCopies();

        public override void Download(object source, long offset, StagingMemory target, int first, int bytes) => throw NoCopies();

        public override void Wait(DeviceQueue queue)
        {
        }

        protected override void DisposeCore()
        {
        }

        private static NotSupportedException NoCopies() => new("The host's engine works where the data lies.");
    }

    private sealed class Memory : IDisposable
    {
        private readonly long _bytes;

        public Memory(long bytes)
        {
            try
            {
                Pointer = (float*)NativeMemory.AlignedAlloc(checked((nuint)bytes), SegmentLayout.Alignment);
            }
            catch (OutOfMemoryException e)
            {
                throw new DeviceOutOfMemoryException($"the host has not {bytes} bytes", e);
            }

            _bytes = bytes;
            GC.AddMemoryPressure(bytes);
        }

        ~Memory() => Free();

        public float* Pointer { get; private set; }

        public void Dispose()
        {
            Free();
            GC.SuppressFinalize(this);
        }

        private void Free()
        {
            if (Pointer is not null)
            {
                NativeMemory.AlignedFree(Pointer);
                GC.RemoveMemoryPressure(_bytes);
                Pointer = null;
            }
        }
    }
}
