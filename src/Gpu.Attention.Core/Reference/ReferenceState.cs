namespace Gpu.Attention;

/// <summary>
/// The state of the recurrent oracle, in float64: <c>Σ φ(k)ᵀ v = e^c ∘ S</c>, <c>Σ φ(k) = e^c ∘ z</c>. For tests and verification.
/// </summary>
/// <remarks>Layout as in <see cref="AttentionState"/>: <c>c</c> and <c>z</c> are <c>[B, Hk, r]</c>, <c>S</c> is <c>[B, Hk, r, Dv]</c>.</remarks>
public sealed class ReferenceState
{
    internal ReferenceState(int rows, int valueDimension, bool isLogarithmic)
    {
        LogScale = new double[rows];
        Normalizers = new double[rows];
        Sums = new double[rows * valueDimension];
        Array.Fill(LogScale, isLogarithmic ? double.NegativeInfinity : 0);
    }

    private ReferenceState(ReferenceState other) =>
        (LogScale, Sums, Normalizers) = ([.. other.LogScale], [.. other.Sums], [.. other.Normalizers]);

    /// <summary>c, the largest log feature seen so far; 0 for features that are no logarithms.</summary>
    public double[] LogScale { get; }

    /// <summary>S.</summary>
    public double[] Sums { get; }

    /// <summary>z.</summary>
    public double[] Normalizers { get; }

    internal ReferenceState Copy() => new(this);
}

/// <summary>What the recurrent oracle computes.</summary>
/// <param name="Output">The output, <c>[B, T, H, Dv]</c>.</param>
/// <param name="State">The state after the last key.</param>
public sealed record ReferenceResult(double[] Output, ReferenceState State);

/// <summary>How an oracle is asked to attend.</summary>
public sealed record ReferenceOptions
{
    /// <summary>True when query i sees keys <c>0..i</c> only; where <c>T ≠ S</c>, their ends being aligned, keys <c>0..i + S − T</c>.</summary>
    public bool Causal { get; init; }

    /// <summary>Causal: how many tokens make a block; a query sees its whole block and all earlier ones.</summary>
    public int CausalBlock { get; init; } = 1;

    /// <summary>True to divide by the sum of the weights.</summary>
    public bool Normalize { get; init; } = true;

    /// <summary>The factor on an output that isn't normalised.</summary>
    public double Factor { get; init; } = 1;

    /// <summary>Which keys take part, bytes <c>[B, S]</c>, non-zero for those that do; null for all.</summary>
    public byte[]? KeyMask { get; init; }
}
