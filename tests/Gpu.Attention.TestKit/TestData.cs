namespace Gpu.Attention.TestKit;

/// <summary>Seeded data that is the same on every machine.</summary>
public static class TestData
{
    private const uint Stream = 0x54455354;

    /// <summary>Independent normal numbers of mean zero.</summary>
    public static float[] Normal(ulong seed, long count, double std = 1)
    {
        double[] values = new double[count];
        Philox.Normal(seed, Stream, row: 0, values);
        return Array.ConvertAll(values, x => (float)(x * std));
    }

    /// <summary>Queries, keys and values for a shape, independent of one another.</summary>
    public static (float[] Query, float[] Key, float[] Value) Inputs(AttentionShape shape, ulong seed, double std = 1) =>
        (Normal((seed * 3) + 1, shape.QueryElements, std),
         Normal((seed * 3) + 2, shape.KeyElements, std),
         Normal((seed * 3) + 3, shape.ValueElements));

    /// <summary>A mask in which about a share of the entries is 1 and the others are 0.</summary>
    public static byte[] Mask(ulong seed, int count, double share)
    {
        var random = new SeededRandom(seed);
        byte[] mask = new byte[count];
        for (int i = 0; i < count; i++)
        {
            mask[i] = random.NextDouble() < share ? (byte)1 : (byte)0;
        }

        return mask;
    }
}
