using System.Numerics.Tensors;

namespace Gpu.Attention.Cli.Benchmarking;

/// <summary>One problem to time: its sizes, features and data.</summary>
internal sealed class BenchCase
{
    private const ulong ProjectionSeed = 42;
    private const int DataSeed = 1;
    private const int OutputGradientSeed = 2;

    // Norms at which random features are sane (d^-½·|q + k|² is a few units), so that the gate judges arithmetic and not the estimator.
    private const double RowDeviation = 0.5;

    private float[]? _outputGradient;

    public BenchCase(string features, AttentionShape shape, int numFeatures, bool causal)
    {
        (Features, Shape, Causal) = (features, shape, causal);
        if (FeatureKind.TakesProjection(features))
        {
            Projection = RandomProjection.Orthogonal(numFeatures, shape.KeyDimension, ProjectionSeed);
        }

        var random = new Random(DataSeed);
        Query = Normal(random, shape.QueryElements, RowDeviation);
        Key = Normal(random, shape.KeyElements, RowDeviation);
        Value = Normal(random, shape.ValueElements, 1);
        if (features == FeatureKind.Identity)
        {
            // Products of the rows themselves are weights only where they are not negative.
            TensorPrimitives.Abs(Query, Query);
            TensorPrimitives.Abs(Key, Key);
        }
    }

    public string Features { get; }

    public AttentionShape Shape { get; }

    public bool Causal { get; }

    /// <summary>W as it was drawn, m rows; null without one. The hyperbolic map makes 2m features of it.</summary>
    public RandomProjection? Projection { get; }

    public float[] Query { get; }

    public float[] Key { get; }

    public float[] Value { get; }

    public string Direction => Causal ? "causal" : "bidirectional";

    public string Name => $"{Features}/{Direction}/B{Shape.Batch}-T{Shape.QueryLength}-H{Shape.Heads}-D{Shape.KeyDimension}";

    /// <summary>r, the features of a row; 0 for exact attention.</summary>
    public int FeatureDimension => Features switch
    {
        FeatureKind.Softmax => 0,
        FeatureKind.FavorPlusHyperbolic => 2 * Projection!.NumFeatures,
        _ => Projection?.NumFeatures ?? Shape.KeyDimension,
    };

    /// <summary>The loss's gradient at the output, for a backward pass.</summary>
    public float[] OutputGradient => _outputGradient ??= Normal(new Random(OutputGradientSeed), Shape.OutputElements, 1);

    /// <summary>The operations of one forward pass, a multiplication and an addition each counting one; the formulas stand in the tool's README.</summary>
    public double Flops() => Features == FeatureKind.Softmax
        ? OperationCount.Softmax(Shape, Causal)
        : OperationCount.Linear(Shape, Projection?.NumFeatures ?? 0, FeatureDimension, Causal);

    /// <summary>Those of one backward pass.</summary>
    public double BackwardFlops() => Features == FeatureKind.Softmax
        ? OperationCount.SoftmaxBackward(Shape, Causal)
        : OperationCount.LinearBackward(Shape, Projection?.NumFeatures ?? 0, FeatureDimension, Causal);

    private static float[] Normal(Random random, long elements, double deviation)
    {
        if (elements > Array.MaxLength)
        {
            throw new ArgumentException($"A tensor of {elements} elements does not fit in memory at once.");
        }

        float[] values = new float[elements];
        for (int i = 0; i < values.Length; i++)
        {
            double radius = Math.Sqrt(-2 * Math.Log(1 - random.NextDouble()));
            values[i] = (float)(deviation * radius * Math.Cos(2 * Math.PI * random.NextDouble()));
        }

        return values;
    }
}
