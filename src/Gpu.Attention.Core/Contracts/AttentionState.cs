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
/// <para>A batch of sequences that start and end at different times keeps a row for each: <see cref="Reset"/> starts a row anew, <see cref="Select"/> drops,
/// repeats and reorders rows, <see cref="Concat"/> adds some, <see cref="CopyTo(int, AttentionState, int)"/> moves one.</para>
/// <para>Layout: <c>c</c> and <c>z</c> are <c>[N, Hk, r]</c>, <c>S</c> is <c>[N, Hk, r, Dv]</c>, row-major, float32.</para>
/// </remarks>
public sealed partial class AttentionState
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
    /// <param name="features">The features that it is made of; the default for not saying. <see cref="Save"/> needs it, and states of other features are refused.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is negative or, but for <paramref name="sequences"/>, zero.</exception>
    /// <exception cref="ArgumentException">The state would have more than 2³¹ elements.</exception>
    public AttentionState(
        int sequences, int heads, int featureDimension, int valueDimension, FeatureFamily family, FeatureIdentity features = default)
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

        (Sequences, Heads, FeatureDimension, ValueDimension) = (sequences, heads, featureDimension, valueDimension);
        (Family, Features) = (family, features);
        int rows = sequences * heads * featureDimension;
        _sums = new float[rows * valueDimension];
        _normalizers = new float[rows];
        _logScale = family == FeatureFamily.Exponential ? new float[rows] : [];
        Array.Fill(_logScale, float.NegativeInfinity);
    }

    private AttentionState(
        int sequences, int heads, int featureDimension, int valueDimension, FeatureFamily family, FeatureIdentity features, float[] logScale, float[] sums,
        float[] normalizers)
    {
        (Sequences, Heads, FeatureDimension, ValueDimension) = (sequences, heads, featureDimension, valueDimension);
        (Family, Features) = (family, features);
        (_logScale, _sums, _normalizers) = (logScale, sums, normalizers);
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

    /// <summary>The key features that this state is made of; the default where whoever made it did not say.</summary>
    public FeatureIdentity Features { get; }

    /// <summary>c, <c>[N, Hk, r]</c>; empty for the direct family.</summary>
    public Span<float> LogScale => _logScale;

    /// <summary>S, <c>[N, Hk, r, Dv]</c>.</summary>
    public Span<float> Sums => _sums;

    /// <summary>z, <c>[N, Hk, r]</c>.</summary>
    public Span<float> Normalizers => _normalizers;

    /// <summary>A copy that shares nothing with this one.</summary>
    public AttentionState Fork()
    {
        AttentionState copy = OfSequences(Sequences);
        CopyTo(copy);
        return copy;
    }

    /// <summary>Copies this state over another of the same sizes.</summary>
    /// <param name="destination">Receives the copy.</param>
    /// <exception cref="ArgumentException">The sizes, families or features differ.</exception>
    public void CopyTo(AttentionState destination)
    {
        RequireSameSizes(destination, nameof(destination));
        _sums.CopyTo(destination._sums, 0);
        _normalizers.CopyTo(destination._normalizers, 0);
        _logScale.CopyTo(destination._logScale, 0);
    }

    /// <summary>Adds what another state has seen; the two must have seen different keys under the same feature map.</summary>
    /// <param name="other">The state to add.</param>
    /// <exception cref="ArgumentException">The sizes, families or features differ.</exception>
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

    /// <summary>Makes one sequence's state that of having seen nothing.</summary>
    /// <param name="sequence">Which, from 0 to N − 1.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such sequence.</exception>
    public void Reset(int sequence)
    {
        RequireSequence(sequence, nameof(sequence));
        RowsOf(_sums, sequence).Clear();
        RowsOf(_normalizers, sequence).Clear();
        RowsOf(_logScale, sequence).Fill(float.NegativeInfinity);
    }

    /// <summary>A state of some of the sequences, in the order asked for: drops, reorders, or repeats (as beams that split do).</summary>
    /// <param name="sequences">Which sequences, each from 0 to N − 1; a sequence may come several times, or none.</param>
    /// <returns>A state of as many sequences as were asked for, which shares nothing with this one.</returns>
    /// <exception cref="ArgumentOutOfRangeException">There is no such sequence.</exception>
    /// <exception cref="ArgumentException">The state would have more than 2³¹ elements.</exception>
    public AttentionState Select(params ReadOnlySpan<int> sequences)
    {
        foreach (int sequence in sequences)
        {
            RequireSequence(sequence, nameof(sequences));
        }

        AttentionState selected = OfSequences(sequences.Length);
        for (int i = 0; i < sequences.Length; i++)
        {
            CopyRows(sequences[i], selected, i);
        }

        return selected;
    }

    /// <summary>Copies one sequence's state over that of a sequence of another state, or of this one.</summary>
    /// <param name="sequence">Which, from 0 to N − 1.</param>
    /// <param name="destination">Receives the copy; it may have another number of sequences.</param>
    /// <param name="destinationSequence">Which of its sequences.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such sequence.</exception>
    /// <exception cref="ArgumentException">The sizes but for the number of sequences, or the families or features, differ.</exception>
    public void CopyTo(int sequence, AttentionState destination, int destinationSequence)
    {
        RequireSameRows(destination, nameof(destination));
        RequireSequence(sequence, nameof(sequence));
        destination.RequireSequence(destinationSequence, nameof(destinationSequence));
        CopyRows(sequence, destination, destinationSequence);
    }

    /// <summary>A state of all the sequences of several, one state's after the other's.</summary>
    /// <param name="states">The states, at least one. They share nothing with the result.</param>
    /// <exception cref="ArgumentException">
    /// There is none, or their sizes but for the number of sequences, or their families or features, differ, or the state would have more than 2³¹ elements.
    /// </exception>
    public static AttentionState Concat(params ReadOnlySpan<AttentionState> states)
    {
        if (states.IsEmpty)
        {
            throw new ArgumentException("There is no state to say what the sizes are.", nameof(states));
        }

        long count = 0;
        foreach (AttentionState state in states)
        {
            ArgumentNullException.ThrowIfNull(state, nameof(states));
            states[0].RequireSameRows(state, nameof(states));
            count += state.Sequences;
        }

        AttentionState whole = states[0].OfSequences(checked((int)Math.Min(count, int.MaxValue)));
        int next = 0;
        foreach (AttentionState state in states)
        {
            for (int sequence = 0; sequence < state.Sequences; sequence++)
            {
                state.CopyRows(sequence, whole, next++);
            }
        }

        return whole;
    }

    /// <inheritdoc/>
    public override string ToString() =>
        $"state [{Sequences}, {Heads}, {FeatureDimension}, {ValueDimension}] ({Family})";

    private AttentionState OfSequences(int sequences) => new(sequences, Heads, FeatureDimension, ValueDimension, Family, Features);

    private Span<float> RowsOf(float[] part, int sequence)
    {
        // An empty part (c of the direct family) has rows of no elements.
        int length = Sequences == 0 ? 0 : part.Length / Sequences;
        return part.AsSpan(sequence * length, length);
    }

    private void CopyRows(int sequence, AttentionState destination, int destinationSequence)
    {
        RowsOf(_sums, sequence).CopyTo(destination.RowsOf(destination._sums, destinationSequence));
        RowsOf(_normalizers, sequence).CopyTo(destination.RowsOf(destination._normalizers, destinationSequence));
        RowsOf(_logScale, sequence).CopyTo(destination.RowsOf(destination._logScale, destinationSequence));
    }

    private void RequireSequence(int sequence, string parameter)
    {
        if ((uint)sequence >= (uint)Sequences)
        {
            throw new ArgumentOutOfRangeException(parameter, sequence, $"{this} has no sequence {sequence}.");
        }
    }

    private void RequireSameSizes(AttentionState other, string parameter)
    {
        ArgumentNullException.ThrowIfNull(other, parameter);
        if (other.Sequences != Sequences)
        {
            throw new ArgumentException($"{other} does not fit {this}.", parameter);
        }

        RequireSameRows(other, parameter);
    }

    private void RequireSameRows(AttentionState other, string parameter)
    {
        ArgumentNullException.ThrowIfNull(other, parameter);
        if ((other.Heads, other.FeatureDimension, other.ValueDimension, other.Family) != (Heads, FeatureDimension, ValueDimension, Family))
        {
            throw new ArgumentException($"{other} does not fit {this}.", parameter);
        }

        if (other.Features.IsKnown && Features.IsKnown && other.Features != Features)
        {
            throw new ArgumentException($"{other} is made of other key features ({other.Features}) than {this} ({Features}).", parameter);
        }
    }
}
