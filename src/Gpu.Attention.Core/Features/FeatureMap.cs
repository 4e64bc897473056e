namespace Gpu.Attention;

/// <summary>
/// A feature map φ whose products stand in for an attention kernel, <c>sim(q, k) = φ(q)·φ(k)</c>.
/// </summary>
/// <remarks>
/// A map says only how it is lowered to its normal form; engines know nothing else of it. A new map is one file: a class derived
/// from this one and, in the same file, the factory that makes it.
/// </remarks>
public abstract partial class FeatureMap
{
    /// <summary>Creates a feature map.</summary>
    /// <param name="name">The name in messages, reports and files.</param>
    protected FeatureMap(string name)
    {
        ArgumentException.ThrowIfNullOrEmpty(name);
        Name = name;
    }

    /// <summary>The name in messages, reports and files.</summary>
    public string Name { get; }

    /// <summary>The dimension of the rows that the map takes; null when any will do.</summary>
    public virtual int? InputDimension => null;

    /// <summary>The factor on <c>q·k</c> (exponential family) when the caller gives none.</summary>
    /// <param name="dimension">D.</param>
    public virtual float DefaultScale(int dimension) => 1 / MathF.Sqrt(dimension);

    /// <summary>Lowers the map to its normal forms for rows of one dimension.</summary>
    /// <param name="dimension">D, the size of a query or key row.</param>
    /// <param name="scale">The factor on <c>q·k</c>; maps outside the exponential family leave it to the output.</param>
    /// <exception cref="ArgumentException">The map does not take rows of this dimension.</exception>
    public abstract FeaturePair Lower(int dimension, float scale);

    /// <inheritdoc/>
    public override string ToString() => Name;
}
