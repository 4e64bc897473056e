namespace Gpu.Attention.Cli.Benchmarking;

/// <summary>Where a backward pass leaves its gradients.</summary>
internal sealed record BenchGradients(float[] Query, float[] Key, float[] Value)
{
    public BenchGradients(AttentionShape shape)
        : this(new float[shape.QueryElements], new float[shape.KeyElements], new float[shape.ValueElements])
    {
    }
}
