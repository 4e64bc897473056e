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
    private const int Chunk = LinearLayout.Chunk;
    internal const ulong Seed = 42;

    public AttentionShape Shape => new(batch: 1, Length, Heads, Dimension);

    /// <summary>m as the projection is drawn: rows that an input row is multiplied with.</summary>
    private double ProjectionRows => Features switch { "favor" => NumFeatures, "favor-hyperbolic" => NumFeatures / 2, _ => 0 };

    /// <summary>r.</summary>
    private double FeatureDimension => Features is "favor" or "favor-hyperbolic" ? NumFeatures : Dimension;

    /// <summary>Keys that a query sees, on average.</summary>
    private double Seen => Causal ? (Length + 1) / 2.0 : Length;

    public double Flops
    {
        get
        {
            if (Features == "softmax")
            {
                return (double)Heads * Length * Seen * 2 * (Dimension + Dimension);
            }

            double r = FeatureDimension;
            double queriesOrKeys = (2 * Dimension * ProjectionRows) + (2 * r * Dimension);
            double insideChunk = Causal ? (Chunk + 1) * (r + Dimension) : 0;
            return (double)Heads * Length * ((2 * queriesOrKeys) + insideChunk);
        }
    }

    /// <summary>The operations of a backward pass: of linear attention as the host engine's notes count them, of exact attention its five products.</summary>
    public double BackwardFlops
    {
        get
        {
            if (Features == "softmax")
            {
                return (double)Heads * Length * Seen * 2 * ((3 * Dimension) + (2 * Dimension));
            }

            double m = ProjectionRows;
            double r = FeatureDimension;
            double insideChunk = Causal ? (Chunk + 1) * ((3 * r) + (2 * Dimension)) : 0;
            double again = Causal ? 0 : 2 * Dimension * m;
            return (double)Heads * Length * ((4 * 2 * Dimension * m) + again + (5 * 2 * r * Dimension) + insideChunk);
        }
    }

    internal FeatureMap Map => Features switch
    {
        "favor" => FeatureMap.FavorPlus(RandomProjection.Orthogonal(NumFeatures, Dimension, Seed)),
        "favor-hyperbolic" => FeatureMap.FavorPlusHyperbolic(RandomProjection.Orthogonal(NumFeatures / 2, Dimension, Seed)),
        "elu" => FeatureMap.EluPlusOne,
        "relu" => FeatureMap.Relu(),
        _ => throw new InvalidOperationException($"{Features} has no feature map."),
    };

    public override string ToString() => $"{Features}-{(Causal ? "causal" : "bidirectional")} L={Length}";

    internal AttentionRun Open(ComputeDevice device)
    {
        if (Features == "softmax")
        {
            var softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = Causal });
            return new AttentionRun(softmax, (shape, q, k, v, o) => softmax.Forward(shape, q, k, v, o));
        }

        var linear = new LinearAttention(device, Map, new LinearAttentionOptions { Causal = Causal });
        return new AttentionRun(linear, (shape, q, k, v, o) => linear.Forward(shape, q, k, v, o));
    }
}
