namespace Gpu.Attention.Benchmarks;

/// <summary>The sizes of one matrix product, <c>C[m, n] = A[m, k] B[k, n]</c>.</summary>
/// <param name="Name">Where the engine computes it.</param>
/// <param name="M">Rows of A and C.</param>
/// <param name="N">Columns of B and C.</param>
/// <param name="K">The inner dimension.</param>
public sealed record MatrixProduct(string Name, int M, int N, int K) : IWork
{
    public double Flops => 2.0 * M * N * K;

    public override string ToString() => $"{Name} {M}x{N}x{K}";
}
