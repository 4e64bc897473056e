namespace Gpu.Attention;

/// <summary>Published implementations whose feature conventions can be reproduced, epsilon and all.</summary>
/// <remarks>
/// The conventions add a constant to every feature and subtract a maximum taken over the whole sequence. The constant bends the
/// result towards the mean of the values and, in causal attention, lets later keys change earlier outputs. They exist to
/// compare with models trained under them.
/// </remarks>
public enum ReferenceConvention
{
    /// <summary>Exact: no epsilon anywhere, a running maximum per feature.</summary>
    None,

    /// <summary>
    /// google-research <c>fast_attention.py</c>: <c>m^-½ (exp(a − |x|²/2 − max a) + ε)</c>, ε = 1e-6, and a normaliser within ε of
    /// zero moved by 2ε; for the direct family <c>f(a) + 1e-3</c>.
    /// </summary>
    Jax,

    /// <summary>
    /// lucidrains <c>performer-pytorch</c>: the same features with ε = 1e-4, and in causal attention 1e-6 added to every summed key
    /// feature of the normaliser; for the direct family <c>f(d^-¼ a) + 1e-3</c>.
    /// </summary>
    Lucidrains,
}

/// <summary>One attention problem, complete but for its data: what an engine is asked whether it supports, and then runs.</summary>
public sealed record AttentionProblem
{
    /// <summary>The sizes.</summary>
    public required AttentionShape Shape { get; init; }

    /// <summary>The lowered feature maps; null for exact softmax attention.</summary>
    public FeaturePair? Features { get; init; }

    /// <summary>True when query <c>i</c> sees keys <c>0..i</c> only; then <c>T = S</c>, unless sequences are packed.</summary>
    public bool Causal { get; init; }

    /// <summary>
    /// For exact softmax attention the factor on <c>q·k</c>. For linear attention the factor on an unnormalised output of a direct feature
    /// map; the exponential family has its scale folded into <see cref="Features"/>.
    /// </summary>
    public float Scale { get; init; } = 1;

    /// <summary>True to divide by the sum of the weights.</summary>
    public bool Normalize { get; init; } = true;

    /// <summary>The published convention to reproduce.</summary>
    public ReferenceConvention Convention { get; init; }

    /// <summary>The constant added to every feature, before its factor e^b where features are exponentials; 0 for none.</summary>
    public float FeatureEpsilon { get; init; }

    /// <summary>
    /// Causal: how many tokens make a block; a query sees its whole block and all earlier ones. 1 for the keys up to its own; more than that needs a
    /// <see cref="Layout"/>.
    /// </summary>
    public int CausalBlock { get; init; } = 1;

    /// <summary>Which tokens belong to which sequence and which keys take part; null when sequences fill their rows of the batch.</summary>
    public SequenceLayout? Layout { get; init; }

    /// <summary>True when the initial state is given.</summary>
    public bool HasInitialState { get; init; }

    /// <summary>True when the final state is wanted.</summary>
    public bool WantsFinalState { get; init; }

    /// <summary>How queries, keys, values and outputs are stored.</summary>
    public ElementType Storage { get; init; }

    /// <summary>Sequences, each with a state of its own: those of the layout, or the batch.</summary>
    public int Sequences => Layout?.Sequences ?? Shape.Batch;

    /// <summary>What is wrong with the problem whatever engine is to run it; null when nothing is.</summary>
    internal string? WhyIllPosed() => this switch
    {
        { CausalBlock: < 1 } => $"a causal block has a token at least, not {CausalBlock}",
        { CausalBlock: > 1, Layout: null } => "causal blocks of more than a token need a layout",
        { Layout: not null } when (long)Shape.Batch * Shape.QueryLength > Array.MaxLength =>
            $"a layout tells {Array.MaxLength} queries apart, not {(long)Shape.Batch * Shape.QueryLength}",
        { Storage: not (ElementType.Single or ElementType.Half or ElementType.BFloat16) } => $"tensors of {Storage} are not attended to",
        { Layout: { } layout } when layout.WhyUnfit(Shape) is { } reason => reason,
        { Causal: true, Layout: not { IsPacked: true } } when Shape.QueryLength != Shape.KeyLength =>
            $"causal attention needs as many queries as keys, not {Shape}",
        { Features: null } when HasInitialState || WantsFinalState => "exact softmax attention has no state of constant size",
        { Convention: not ReferenceConvention.None, Features.Family: FeatureFamily.Exponential } when HasInitialState || WantsFinalState =>
            $"the {Convention} convention subtracts a maximum over the whole sequence, which a state cannot carry",
        { Convention: ReferenceConvention.Lucidrains, Causal: true } when HasInitialState || WantsFinalState =>
            "the Lucidrains convention adds to the normaliser what a state cannot carry",
        _ => null,
    };
}
