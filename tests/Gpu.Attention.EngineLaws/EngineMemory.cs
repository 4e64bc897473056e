using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>Memory that an engine works on. Buffers are made and judged on the host.</summary>
internal abstract class EngineMemory
{
    /// <summary>The host's own.</summary>
    public static EngineMemory Host { get; } = new HostMemory();

    /// <summary>Puts a buffer where the engine reaches it, poison around it included.</summary>
    public abstract PlacedBuffer Place(PoisonedBuffer buffer);

    private sealed class HostMemory : EngineMemory
    {
        public override PlacedBuffer Place(PoisonedBuffer buffer) => new HostBuffer(buffer);
    }

    private sealed class HostBuffer(PoisonedBuffer buffer) : PlacedBuffer(buffer)
    {
        public override MemoryRegion Region => Image.Region;

        public override void Refresh()
        {
        }
    }
}

/// <summary>A buffer in an engine's memory with its image on the host.</summary>
internal abstract class PlacedBuffer(PoisonedBuffer image) : IDisposable
{
    /// <summary>The image.</summary>
    public PoisonedBuffer Image { get; } = image;

    /// <summary>Where the engine finds the buffer.</summary>
    public abstract MemoryRegion Region { get; }

    /// <summary>Brings the image up to date once the engine has finished.</summary>
    public abstract void Refresh();

    public virtual void Dispose() => Image.Dispose();
}
