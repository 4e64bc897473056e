namespace Gpu.Attention.Cli;

/// <summary>The feature maps by the names that the command line has for them.</summary>
internal static class FeatureKind
{
    public const string FavorPlus = "favor+";
    public const string FavorPlusHyperbolic = "favor+hyperbolic";
    public const string Elu = "elu";
    public const string Relu = "relu";
    public const string Identity = "identity";

    /// <summary>Exact attention: no feature map at all.</summary>
    public const string Softmax = "softmax";

    public static string[] All { get; } = [FavorPlus, FavorPlusHyperbolic, Elu, Relu, Identity, Softmax];

    public static bool NeedsProjection(string name) => name is FavorPlus or FavorPlusHyperbolic;

    public static bool TakesProjection(string name) => NeedsProjection(name) || name == Relu;

    public static FeatureMap Create(string name, RandomProjection? projection) => name switch
    {
        FavorPlus => FeatureMap.FavorPlus(projection!),
        FavorPlusHyperbolic => FeatureMap.FavorPlusHyperbolic(projection!),
        Elu => FeatureMap.EluPlusOne,
        Relu => FeatureMap.Relu(projection),
        Identity => FeatureMap.Identity,
        _ => throw new ArgumentException($"'{name}' is no feature map.", nameof(name)),
    };
}
