namespace Gpu.Attention.Samples.Training;

/// <summary>The ways to attend.</summary>
internal enum AttentionKind
{
    Softmax,
    EluPlusOne,
    FavorPlus,
}

/// <summary>A way to attend, as a model is told to.</summary>
/// <param name="Name">Its name in tables and pictures.</param>
/// <param name="Kind">Which way.</param>
/// <param name="Features">Random features of a head; FAVOR+ only.</param>
/// <param name="RedrawEvery">Steps after which random features are drawn anew; 0 for never.</param>
internal sealed record AttentionMethod(string Name, AttentionKind Kind, int Features = 0, int RedrawEvery = 0)
{
    private const ulong ProjectionSeed = 1851;

    public static AttentionMethod Softmax { get; } = new("softmax", AttentionKind.Softmax);

    public static AttentionMethod EluPlusOne { get; } = new("elu+1", AttentionKind.EluPlusOne);

    public static AttentionMethod FavorPlus(int features, int redrawEvery = 0) => new(
        redrawEvery == 0 ? $"FAVOR+ {features}" : $"FAVOR+ {features}, redrawn", AttentionKind.FavorPlus, features, redrawEvery);

    /// <summary>Makes the operator.</summary>
    public AttentionOperator Create(ComputeDevice device, int headDimension) => Kind switch
    {
        AttentionKind.Softmax => new AttentionOperator(new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = true })),
        AttentionKind.EluPlusOne => new AttentionOperator(device, FeatureMap.EluPlusOne),
        _ => new AttentionOperator(device, Draws(RandomProjection.Orthogonal(Features, headDimension, ProjectionSeed))),
    };

    private ProjectionSchedule Draws(RandomProjection first) =>
        RedrawEvery == 0 ? ProjectionSchedule.Never(first) : ProjectionSchedule.Every(RedrawEvery, first);
}
