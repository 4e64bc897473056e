using System.Numerics.Tensors;

namespace Gpu.Attention;

/// <summary>
/// What linear attention remembers of the keys and values it has seen: <c>Σ φ(k)ᵀ v = e^c ∘ S</c> and <c>Σ φ(k) = e^c ∘ z</c>, of a size
/// that does not depend on how many there were.
/// </summary>
/// <remarks>
/// <para><c>c</c> (exponential family only) is the largest log feature seen so far, per feature, so that <c>S</c> and <c>z</c> neither
/// overflow nor vanish; −∞ where nothing was seen. The direct family has <c>c = 0</c> throughout and stores none.</para>
/// <para>States of disjoint sets of keys merge: <c>c = max(c₁, c₂)</c>, <c>S = e^{c₁−c} S₁ + e^{c₂−c} S₂</c>. Merging is
/// commutative, and associative up to rounding.</para>
/// <para>Layout: <c>c</c> and <c>z</c> are <c>[N, Hk, r]</c>, <c>S</c> is <c>[N, Hk, r, Dv]</c>, row-major, float32.</para>
/// </remarks>
public sealed class AttentionState
{
    private readonly float[] _logScale;
    private readonly float[] _sums;
    private readonly float[] _normalizers;

    /// <summary>Creates the state of having seen nothing.</summary>
    /// <param name="sequences">N.</param>
    /// <param name="heads">Hk, the key heads.</param>
    /// <param name="featureDimension">r, features of a key.</param>
    /// <param name="valueDimension">Dv.</param>
    /// <param name="family">The family of the feature map.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is negative or, but for <paramref name="sequences"/>, zero.</exception>
    /// <exception cref="ArgumentException">The state would have more than 2³¹ elements.</exception>
    public AttentionState(int sequences, int heads, int featureDimension, int valueDimension, FeatureFamily family)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(sequences);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(heads);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(featureDimension);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(valueDimension);
        Int128 elements = (Int128)sequences * heads * featureDimension * valueDimension;
        if (elements > Array.MaxLength)
        {
            throw new ArgumentException(
                $"A state [{sequences}, {heads}, {featureDimension}, {valueDimension}] has more elements than an array can hold.", nameof(sequences));
        }

        (Sequences, Heads, FeatureDimension, ValueDimension, Family) = (sequences, heads, featureDimension, valueDimension, family);
        int rows = sequences * heads * featureDimension;
        _sums = new float[rows * valueDimension];
        _normalizers = new float[rows];
        _logScale = family == FeatureFamily.Exponential ? new float[rows] : [];
        Array.Fill(_logScale, float.NegativeInfinity);
    }

    /// <summary>N, the number of sequences.</summary>
    public int Sequences { get; }

    /// <summary>Hk, the number of key heads.</summary>
    public int Heads { get; }

    /// <summary>r, the number of features of a key.</summary>
    public int FeatureDimension { get; }

    /// <summary>Dv, the size of a value row.</summary>
    public int ValueDimension { get; }

    /// <summary>The family of the feature map that this state belongs to.</summary>
    public FeatureFamily Family { get; }

    /// <summary>c, <c>[N, Hk, r]</c>; empty for the direct family.</summary>
    public Span<float> LogScale => _logScale;

    /// <summary>S, <c>[N, Hk, r, Dv]</c>.</summary>
    public Span<float> Sums => _sums;

    /// <summary>z, <c>[N, Hk, r]</c>.</summary>
    public Span<float> Normalizers => _normalizers;

    /// <summary>A copy that shares nothing with this one.</summary>
    public AttentionState Fork()
    {
        var copy = new AttentionState(Sequences, Heads, FeatureDimension, ValueDimension, Family);
        CopyTo(copy);
        return copy;
    }

    /// <summary>Copies this state over another of the same sizes.</summary>
    /// <param name="destination">Receives the copy.</param>
    /// <exception cref="ArgumentException">The sizes or families differ.</exception>
    public void CopyTo(AttentionState destination)
    {
        RequireSameSizes(destination, nameof(destination));
        _sums.CopyTo(destination._sums, 0);
        _normalizers.CopyTo(destination._normalizers, 0);
        _logScale.CopyTo(destination._logScale, 0);
    }

    /// <summary>Adds what another state has seen; the two must have seen different keys under the same feature map.</summary>
    /// <param name="other">The state to add.</param>
    /// <exception cref="ArgumentException">The sizes or families differ.</exception>
    public void Merge(AttentionState other)
    {
        RequireSameSizes(other, nameof(other));
        if (Family == FeatureFamily.Direct)
        {
            TensorPrimitives.Add(_sums, other._sums, _sums);
            TensorPrimitives.Add(_normalizers, other._normalizers, _normalizers);
            return;
        }

        for (int row = 0; row < _normalizers.Length; row++)
        {
            float scale = MathF.Max(_logScale[row], other._logScale[row]);
            if (float.IsNegativeInfinity(scale))
            {
                continue;
            }

            float mine = MathF.Exp(_logScale[row] - scale);
            float theirs = MathF.Exp(other._logScale[row] - scale);
            Span<float> sums = _sums.AsSpan(row * ValueDimension, ValueDimension);
            TensorPrimitives.Multiply(sums, mine, sums);
            TensorPrimitives.MultiplyAdd(other._sums.AsSpan(row * ValueDimension, ValueDimension), theirs, sums, sums);
            _normalizers[row] = (_normalizers[row] * mine) + (other._normalizers[row] * theirs);
            _logScale[row] = scale;
        }
    }

    /// <inheritdoc/>
    public override string ToString() =>
        $"state [{Sequences}, {Heads}, {FeatureDimension}, {ValueDimension}] ({Family})";

    private void RequireSameSizes(AttentionState other, string parameter)
    {
        ArgumentNullException.ThrowIfNull(other, parameter);
        if ((other.Sequences, other.Heads, other.FeatureDimension, other.ValueDimension, other.Family) !=
            (Sequences, Heads, FeatureDimension, ValueDimension, Family))
        {
            throw new ArgumentException($"{other} does not fit {this}.", parameter);
        }
    }
}
