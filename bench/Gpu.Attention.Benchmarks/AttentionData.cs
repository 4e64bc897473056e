namespace Gpu.Attention.Benchmarks;

/// <summary>The tensors of a problem: normal numbers, queries and keys with deviation 0.3, values with 1, as in the peer's script.</summary>
internal sealed class AttentionData(AttentionShape shape)
{
    private const float RowDeviation = 0.3f;

    public float[] Query { get; } = Normal(shape.QueryElements, RowDeviation, 1);

    public float[] Key { get; } = Normal(shape.KeyElements, RowDeviation, 2);

    public float[] Value { get; } = Normal(shape.ValueElements, 1, 3);

    public float[] Output { get; } = new float[shape.OutputElements];

    private static float[] Normal(long length, float deviation, int seed)
    {
        float[] values = new float[length];
        var random = new Random(seed);
        for (int i = 0; i < values.Length; i++)
        {
            float radius = MathF.Sqrt(-2 * MathF.Log(1 - random.NextSingle()));
            values[i] = deviation * radius * MathF.Cos(2 * MathF.PI * random.NextSingle());
        }

        return values;
    }
}
