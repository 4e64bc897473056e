namespace Gpu.Attention.Samples.Weights;

/// <summary>What every word of a text attends to: causal weights, a row for each word.</summary>
/// <param name="Name">What made them.</param>
/// <param name="Length">The number of words.</param>
/// <param name="Weights">The weights <c>[n, n]</c>: row i has those of words 0 to i, and 0 beyond.</param>
internal sealed record AttentionMap(string Name, int Length, float[] Weights)
{
    public float this[int query, int key] => Weights[(query * Length) + key];

    /// <summary>Every word before it alike: what a mean of the values comes from.</summary>
    public static AttentionMap Uniform(int length) => Of(length, "uniform weights", (query, _) => 1f / (query + 1));

    /// <summary>A map of given weights, for keys that a query sees.</summary>
    public static AttentionMap Of(int length, string name, Func<int, int, float> weight)
    {
        float[] weights = new float[length * length];
        for (int query = 0; query < length; query++)
        {
            for (int key = 0; key <= query; key++)
            {
                weights[(query * length) + key] = weight(query, key);
            }
        }

        return new AttentionMap(name, length, weights);
    }

    /// <summary>Exact attention's: what it makes of values that are 1 at one word and 0 elsewhere. A square of numbers, and so for short texts.</summary>
    public static AttentionMap Exact(ComputeDevice device, float[] rows, int length)
    {
        var shape = new AttentionShape(1, length, length, 1, 1, rows.Length / length, length);
        float[] identity = new float[length * length];
        for (int i = 0; i < length; i++)
        {
            identity[(i * length) + i] = 1;
        }

        using var attention = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = true, Scale = 1 });
        float[] weights = new float[length * length];
        attention.Forward(shape, rows, rows, identity, weights);
        return new AttentionMap("exact softmax", length, weights);
    }

    /// <summary>How far a row lies from that of another map, which is taken for the truth.</summary>
    /// <returns>The mean absolute error of a weight, and the Kullback–Leibler divergence from the truth in nats.</returns>
    public (double MeanError, double Divergence) RowError(AttentionMap truth, int query)
    {
        double error = 0;
        double divergence = 0;
        for (int key = 0; key <= query; key++)
        {
            double p = truth[query, key];
            double q = this[query, key];
            error += Math.Abs(p - q);
            divergence += p == 0 ? 0 : p * Math.Log(p / q);
        }

        return (error / (query + 1), divergence);
    }
}
