namespace Gpu.Attention.Benchmarks;

/// <summary>One problem: B = 1, H = 8, d = dv = 64, float32; FAVOR+ with m = 256.</summary>
/// <param name="Features"><c>favor</c>, <c>favor-hyperbolic</c> (128 rows and their negatives), <c>elu</c>, <c>relu</c> or <c>softmax</c>.</param>
/// <param name="Causal">True when query i sees keys 0..i only.</param>
/// <param name="Length">Tokens.</param>
public sealed record AttentionCase(string Features, bool Causal, int Length) : IWork
{
    public const int Heads = 8;
    public const int Dimension = 64;
    public const int NumFeatures = 256;
    internal const ulong Seed = 42;

    public AttentionShape Shape => new(batch: 1, Length, Heads, Dimension);

    public double Flops => FlopsOf(Shape);

    /// <summary>The operations of a backward pass.</summary>
    public double BackwardFlops => BackwardFlopsOf(Shape);

    internal FeatureMap Map => Features switch
    {
        "favor" => FeatureMap.FavorPlus(RandomProjection.Orthogonal(NumFeatures, Dimension, Seed)),
        "favor-hyperbolic" => FeatureMap.FavorPlusHyperbolic(RandomProjection.Orthogonal(NumFeatures / 2, Dimension, Seed)),
        "elu" => FeatureMap.EluPlusOne,
        "relu" => FeatureMap.Relu(),
        _ => throw new InvalidOperationException($"{Features} has no feature map."),
    };

    private bool IsExact => Features == "softmax";

    private int ProjectionRows => Features switch { "favor" => NumFeatures, "favor-hyperbolic" => NumFeatures / 2, _ => 0 };

    private int FeatureDimension => Features is "favor" or "favor-hyperbolic" ? NumFeatures : Dimension;

    public override string ToString() => $"{Features}-{(Causal ? "causal" : "bidirectional")} L={Length}";

    /// <summary>The operations of a forward pass of another shape.</summary>
    internal double FlopsOf(AttentionShape shape) =>
        IsExact ? OperationCount.Softmax(shape, Causal) : OperationCount.Linear(shape, ProjectionRows, FeatureDimension, Causal);

    /// <summary>The operations of a backward pass of another shape.</summary>
    internal double BackwardFlopsOf(AttentionShape shape) =>
        IsExact ? OperationCount.SoftmaxBackward(shape, Causal) : OperationCount.LinearBackward(shape, ProjectionRows, FeatureDimension, Causal);

    internal AttentionRun Open(ComputeDevice device)
    {
        if (IsExact)
        {
            var softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = Causal });
            return new AttentionRun(softmax, (shape, q, k, v, o) => softmax.Forward(shape, q, k, v, o));
        }

        var linear = new LinearAttention(device, Map, new LinearAttentionOptions { Causal = Causal });
        return new AttentionRun(linear, (shape, q, k, v, o) => linear.Forward(shape, q, k, v, o));
    }
}
