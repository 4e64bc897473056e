namespace Gpu.Attention.TestKit;

/// <summary>Makes sizes for laws to hold at.</summary>
public static class Shapes
{
    /// <summary>A shape with few enough elements for the oracles, often at the edges: lengths of zero, one head, grouped heads, Dv ≠ D.</summary>
    public static AttentionShape Next(SeededRandom random, bool causal, int maxLength = 130, int maxDimension = 40)
    {
        int keyHeads = random.Next(1, 3);
        int queryLength = random.NextLength(maxLength);
        return new AttentionShape(
            batch: random.Next(1, 2),
            queryLength,
            keyLength: causal ? queryLength : random.NextLength(maxLength),
            heads: keyHeads * random.Next(1, 3),
            keyHeads,
            keyDimension: Math.Max(1, random.NextLength(maxDimension)),
            valueDimension: Math.Max(1, random.NextLength(maxDimension)));
    }
}
