namespace Gpu.Attention.Benchmarks;

/// <summary>A benchmark's parameter that knows how many operations one call is.</summary>
public interface IWork
{
    /// <summary>The operations of one call, a multiplication and an addition each counting one.</summary>
    double Flops { get; }
}
