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
    private const ulong FirstSeed = 1851;

    public static AttentionMethod Softmax { get; } = new("softmax", AttentionKind.Softmax);

    public static AttentionMethod EluPlusOne { get; } = new("elu+1", AttentionKind.EluPlusOne);

    public static AttentionMethod FavorPlus(int features, int redrawEvery = 0) => new(
        redrawEvery == 0 ? $"FAVOR+ {features}" : $"FAVOR+ {features}, redrawn", AttentionKind.FavorPlus, features, redrawEvery);

    /// <summary>Which draw of random features a step uses.</summary>
    public int DrawAt(int step) => RedrawEvery == 0 ? 0 : step / RedrawEvery;

    /// <summary>Makes the operator of one draw.</summary>
    public AttentionOperator Create(ComputeDevice device, int headDimension, int draw) => Kind switch
    {
        AttentionKind.Softmax => new AttentionOperator(new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = true })),
        AttentionKind.EluPlusOne => new AttentionOperator(Linear(device, FeatureMap.EluPlusOne)),
        _ => new AttentionOperator(Linear(device, FeatureMap.FavorPlus(RandomProjection.Orthogonal(Features, headDimension, FirstSeed + (ulong)draw)))),
    };

    private static LinearAttention Linear(ComputeDevice device, FeatureMap features) =>
        new(device, features, new LinearAttentionOptions { Causal = true });
}

/// <summary>Exact or linear attention behind one face.</summary>
internal sealed class AttentionOperator : IDisposable
{
    private readonly SoftmaxAttention? _exact;
    private readonly LinearAttention? _linear;

    public AttentionOperator(SoftmaxAttention exact) => _exact = exact;

    public AttentionOperator(LinearAttention linear) => _linear = linear;

    public void Forward(AttentionShape shape, float[] query, float[] key, float[] value, float[] output)
    {
        _exact?.Forward<float>(shape, query, key, value, output);
        _linear?.Forward<float>(shape, query, key, value, output);
    }

    public void Backward(
        AttentionShape shape, float[] query, float[] key, float[] value, float[] output, float[] outputGradient,
        float[] queryGradient, float[] keyGradient, float[] valueGradient)
    {
        _exact?.Backward<float>(shape, query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient);
        _linear?.Backward<float>(shape, query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient);
    }

    public void Dispose()
    {
        _exact?.Dispose();
        _linear?.Dispose();
    }
}
