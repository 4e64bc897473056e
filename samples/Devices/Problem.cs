namespace Gpu.Attention.Samples.Devices;

/// <summary>One self-attention problem: queries, keys and values of the same sizes.</summary>
internal sealed class Problem
{
    // Rows of moderate length, as trained models have them: the random features of FAVOR+ are of use there.
    private const double RowDeviation = 0.5;

    private Problem(int tokens, int heads, int dimension, int numFeatures)
    {
        Shape = new AttentionShape(batch: 1, tokens, heads, dimension);
        FavorPlus = FeatureMap.FavorPlus(RandomProjection.Orthogonal(numFeatures, dimension, seed: 42));
        var random = new Random(1);
        Query = Normal(random, Shape.QueryElements, RowDeviation);
        Key = Normal(random, Shape.KeyElements, RowDeviation);
        Value = Normal(random, Shape.ValueElements, 1);
    }

    /// <summary>For processors and GPUs.</summary>
    public static Problem Usual { get; } = new(tokens: 2048, heads: 8, dimension: 64, numFeatures: 256);

    /// <summary>For the simulator, on which a thread of a GPU is a thread of the host.</summary>
    public static Problem Small { get; } = new(tokens: 48, heads: 2, dimension: 16, numFeatures: 32);

    public AttentionShape Shape { get; }

    /// <summary>The sizes of every tensor of the problem.</summary>
    public nint[] Lengths => [Shape.Batch, Shape.QueryLength, Shape.Heads, Shape.KeyDimension];

    public FeatureMap FavorPlus { get; }

    public float[] Query { get; }

    public float[] Key { get; }

    public float[] Value { get; }

    private static float[] Normal(Random random, long count, double deviation)
    {
        float[] numbers = new float[count];
        for (int i = 0; i < numbers.Length; i++)
        {
            double radius = Math.Sqrt(-2 * Math.Log(1 - random.NextDouble()));
            numbers[i] = (float)(deviation * radius * Math.Cos(2 * Math.PI * random.NextDouble()));
        }

        return numbers;
    }
}
