using System.Runtime.Intrinsics;
using BenchmarkDotNet.Attributes;

namespace Gpu.Attention.Benchmarks;

/// <summary>The engine's one matrix product, at the sizes of one chunk of 64 tokens (m = 256, d = dv = 64), on one core.</summary>
[MemoryDiagnoser]
public unsafe class MicroKernelBenchmarks
{
    private NativeFloats _a = null!;
    private NativeFloats _b = null!;
    private NativeFloats _c = null!;

    /// <summary>What is multiplied.</summary>
    [ParamsSource(nameof(Products))]
    public MatrixProduct Product { get; set; } = null!;

    /// <summary>Bits of a vector.</summary>
    [ParamsSource(nameof(Widths))]
    public int Width { get; set; }

    public static IEnumerable<MatrixProduct> Products =>
    [
        new("project", 256, 64, 64),
        new("read", 64, 64, 256),
        new("reduce", 256, 64, 64),
        new("elu", 64, 64, 64),
    ];

    public static IEnumerable<int> Widths
    {
        get
        {
            if (Vector512.IsHardwareAccelerated)
            {
                yield return 512;
            }

            if (Vector256.IsHardwareAccelerated)
            {
                yield return 256;
            }

            yield return 128;
        }
    }

    [GlobalSetup]
    public void Setup()
    {
        _a = new NativeFloats(Product.M * Product.K, 1);
        _b = new NativeFloats(Product.K * Product.N, 2);
        _c = new NativeFloats(Product.M * Product.N, 3);
    }

    [GlobalCleanup]
    public void Cleanup()
    {
        _a.Dispose();
        _b.Dispose();
        _c.Dispose();
    }

    [Benchmark]
    public void Multiply()
    {
        switch (Width)
        {
            case 512: Multiply<V512>(); break;
            case 256: Multiply<V256>(); break;
            default: Multiply<V128>(); break;
        }
    }

    private void Multiply<TV>()
        where TV : struct, ISimdVector<TV> =>
        MicroKernel<TV>.Multiply(
            Product.M, Product.N, Product.K, _a.Pointer, Product.K, _b.Pointer, Product.N, _c.Pointer, Product.N, accumulate: false);
}
