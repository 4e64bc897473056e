using System.Runtime.InteropServices;

namespace Gpu.Attention;

/// <summary>Host scratch memory that grows to the largest call and stays, so that later calls allocate nothing.</summary>
internal sealed unsafe class Workspace : IDisposable
{
    private const nuint Alignment = 64;

    private void* _memory;

    /// <summary>Frees memory that nobody disposed of.</summary>
    ~Workspace() => Dispose();

    /// <summary>Bytes held now.</summary>
    public long Bytes { get; private set; }

    /// <summary>Memory of at least so many bytes; what an earlier call returned is no longer valid.</summary>
    /// <exception cref="OutOfMemoryException">There is not so much.</exception>
    public MemoryRegion Rent(long bytes)
    {
        if (bytes > Bytes)
        {
            Dispose();
            _memory = NativeMemory.AlignedAlloc(checked((nuint)bytes), Alignment);
            Bytes = bytes;
            GC.AddMemoryPressure(bytes);
            GC.ReRegisterForFinalize(this);
        }

        return MemoryRegion.Host((float*)_memory, Bytes / sizeof(float));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        GC.SuppressFinalize(this);
        if (_memory is not null)
        {
            NativeMemory.AlignedFree(_memory);
            GC.RemoveMemoryPressure(Bytes);
            _memory = null;
            Bytes = 0;
        }
    }
}
