using System.Numerics.Tensors;
using System.Runtime.Intrinsics;
using BenchmarkDotNet.Attributes;

namespace Gpu.Attention.Benchmarks;

/// <summary>The engine's exp against the framework's, over as many numbers as a chunk has features; a time is that of one number.</summary>
[MemoryDiagnoser]
public unsafe class ExpBenchmarks
{
    private const int Length = 64 * 256;

    private NativeFloats _x = null!;
    private NativeFloats _y = null!;

    [GlobalSetup]
    public void Setup()
    {
        _x = new NativeFloats(Length, 1);
        _y = new NativeFloats(Length, 2);
    }

    [GlobalCleanup]
    public void Cleanup()
    {
        _x.Dispose();
        _y.Dispose();
    }

    [Benchmark(Baseline = true, OperationsPerInvoke = Length)]
    public void Engine()
    {
        if (Vector512.IsHardwareAccelerated)
        {
            Engine<V512>();
        }
        else if (Vector256.IsHardwareAccelerated)
        {
            Engine<V256>();
        }
        else
        {
            Engine<V128>();
        }
    }

    [Benchmark(OperationsPerInvoke = Length)]
    public void FrameworkVector()
    {
        if (Vector512.IsHardwareAccelerated)
        {
            for (int i = 0; i < Length; i += Vector512<float>.Count)
            {
                Vector512.Exp(Vector512.Load(_x.Pointer + i)).Store(_y.Pointer + i);
            }
        }
        else
        {
            for (int i = 0; i < Length; i += Vector256<float>.Count)
            {
                Vector256.Exp(Vector256.Load(_x.Pointer + i)).Store(_y.Pointer + i);
            }
        }
    }

    [Benchmark(OperationsPerInvoke = Length)]
    public void FrameworkTensor() =>
        TensorPrimitives.Exp(new ReadOnlySpan<float>(_x.Pointer, Length), new Span<float>(_y.Pointer, Length));

    private void Engine<TV>()
        where TV : struct, ISimdVector<TV>
    {
        for (int i = 0; i < Length; i += TV.Count)
        {
            TV.Store(SimdExp.Exp(TV.Load(_x.Pointer + i)), _y.Pointer + i);
        }
    }
}
