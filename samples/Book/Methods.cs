namespace Gpu.Attention.Samples.Book;

/// <summary>A way to weigh the past.</summary>
/// <param name="Name">Its name in tables.</param>
/// <param name="Features">Its feature map; null for exact softmax attention.</param>
internal sealed record Method(string Name, FeatureMap? Features)
{
    /// <summary>The seed of the first draw of random features; later draws count up from it.</summary>
    private const ulong FirstSeed = 1851;

    public static Method Uniform { get; } = new("uniform weights", FeatureMap.FromFunction("uniform", _ => 1));

    public static Method EluPlusOne { get; } = new("elu+1", FeatureMap.EluPlusOne);

    public static Method Exact { get; } = new("exact softmax", null);

    /// <summary>FAVOR+ with random features of a numbered draw.</summary>
    public static Method FavorPlus(int features, int draw = 0) => new(
        $"FAVOR+, m = {features}",
        FeatureMap.FavorPlus(RandomProjection.Orthogonal(features, HashEmbedding.Dimension, FirstSeed + (ulong)draw)));
}
