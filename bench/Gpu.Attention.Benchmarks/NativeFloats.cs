using System.Runtime.InteropServices;

namespace Gpu.Attention.Benchmarks;

/// <summary>Numbers in [-1, 1) that start on a cache line, as the engine's own memory does.</summary>
internal sealed unsafe class NativeFloats : IDisposable
{
    private const nuint Alignment = 64;

    public NativeFloats(int length, int seed)
    {
        Pointer = (float*)NativeMemory.AlignedAlloc((nuint)length * sizeof(float), Alignment);
        var random = new Random(seed);
        for (int i = 0; i < length; i++)
        {
            Pointer[i] = (random.NextSingle() * 2) - 1;
        }
    }

    public float* Pointer { get; private set; }

    public void Dispose()
    {
        NativeMemory.AlignedFree(Pointer);
        Pointer = null;
    }
}
