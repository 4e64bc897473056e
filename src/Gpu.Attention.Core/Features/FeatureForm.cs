namespace Gpu.Attention;

/// <summary>How an engine keeps features, and with them the state.</summary>
public enum FeatureFamily
{
    /// <summary>Non-negative features, kept as they are.</summary>
    Direct,

    /// <summary>Features <c>exp(l)</c>, of which engines keep the logarithm <c>l</c> until a running maximum is subtracted.</summary>
    Exponential,
}

/// <summary>
/// The normal form of a feature map, the only thing that an engine knows of it:
/// <c>φ(x) = activation(W x' + b − β|x'|² + u·x)</c> with <c>x' = P x + p</c>.
/// </summary>
/// <remarks>A new map is a new form, not a new kernel. Arrays are not copied and must not change afterwards.</remarks>
public sealed record FeatureForm
{
    /// <summary>d, the size of a row that the map takes.</summary>
    public required int InputDimension { get; init; }

    /// <summary>r, the number of features it makes; <c>d</c> when there is no projection.</summary>
    public required int FeatureDimension { get; init; }

    /// <summary>The function applied to every element.</summary>
    public required FeatureActivation Activation { get; init; }

    /// <summary>P, <c>d × d</c> row-major; null for the identity.</summary>
    public float[]? PreMatrix { get; init; }

    /// <summary>p, of length <c>d</c>; null for zero.</summary>
    public float[]? PreOffset { get; init; }

    /// <summary>W, <c>r × d</c> row-major; null for the identity (then <c>r = d</c>).</summary>
    public float[]? Projection { get; init; }

    /// <summary>b, of length <c>r</c>; null for zero.</summary>
    public float[]? Offset { get; init; }

    /// <summary>β, the coefficient of <c>−|x'|²</c>.</summary>
    public float NormCoefficient { get; init; }

    /// <summary>u, of length <c>d</c>; null for zero.</summary>
    public float[]? Linear { get; init; }

    /// <summary>Checks that the parts fit one another.</summary>
    /// <exception cref="ArgumentException">A part has another length than the dimensions ask for.</exception>
    public void Validate()
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(InputDimension);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(FeatureDimension);
        Require(PreMatrix, (long)InputDimension * InputDimension, nameof(PreMatrix));
        Require(PreOffset, InputDimension, nameof(PreOffset));
        Require(Projection, (long)FeatureDimension * InputDimension, nameof(Projection));
        Require(Offset, FeatureDimension, nameof(Offset));
        Require(Linear, InputDimension, nameof(Linear));
        if (Projection is null && FeatureDimension != InputDimension)
        {
            throw new ArgumentException(
                $"A form without a projection has as many features as inputs, but {FeatureDimension} ≠ {InputDimension}.", nameof(FeatureDimension));
        }
    }

    /// <summary>The form that makes of x what this one makes of <c>factor · x</c>.</summary>
    /// <param name="factor">The factor on every input.</param>
    internal FeatureForm ScaleInput(float factor)
    {
        if (Projection is not null && PreMatrix is null && PreOffset is null)
        {
            return this with
            {
                Projection = Scaled(Projection, factor),
                NormCoefficient = NormCoefficient * factor * factor,
                Linear = Linear is null ? null : Scaled(Linear, factor),
            };
        }

        float[] matrix = new float[(long)InputDimension * InputDimension];
        for (int i = 0; i < InputDimension; i++)
        {
            matrix[((long)i * InputDimension) + i] = 1;
        }

        return this with
        {
            PreMatrix = Scaled(PreMatrix ?? matrix, factor),
            Linear = Linear is null ? null : Scaled(Linear, factor),
        };
    }

    private static float[] Scaled(float[] values, float factor) => Array.ConvertAll(values, x => x * factor);

    private static void Require(float[]? part, long length, string name)
    {
        if (part is not null && part.LongLength != length)
        {
            throw new ArgumentException($"{name} has {part.LongLength} elements where the dimensions ask for {length}.", name);
        }
    }
}

/// <summary>The forms of one feature map for queries and for keys.</summary>
public sealed record FeaturePair
{
    /// <summary>Pairs two forms.</summary>
    /// <param name="query">The form applied to queries.</param>
    /// <param name="key">The form applied to keys.</param>
    /// <exception cref="ArgumentException">
    /// The forms do not take rows of one size, or do not make features of one size and family, or a form does not fit itself.
    /// </exception>
    public FeaturePair(FeatureForm query, FeatureForm key)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        query.Validate();
        key.Validate();
        if (query.FeatureDimension != key.FeatureDimension || query.Activation.Family != key.Activation.Family)
        {
            throw new ArgumentException(
                $"Query features ({query.FeatureDimension}, {query.Activation.Family}) and key features ({key.FeatureDimension}, " +
                $"{key.Activation.Family}) do not multiply.", nameof(key));
        }

        if (query.InputDimension != key.InputDimension)
        {
            throw new ArgumentException(
                $"Queries and keys are rows of one size, but the forms take rows of {query.InputDimension} and {key.InputDimension}.", nameof(key));
        }

        (Query, Key) = (query, key);
    }

    /// <summary>The form applied to queries.</summary>
    public FeatureForm Query { get; }

    /// <summary>The form applied to keys.</summary>
    public FeatureForm Key { get; }

    /// <summary>r, the number of features.</summary>
    public int FeatureDimension => Key.FeatureDimension;

    /// <summary>How engines keep the features.</summary>
    public FeatureFamily Family => Key.Activation.Family;
}
