namespace Gpu.Attention.Benchmarks;

/// <summary>What a causal forward pass does with a chunk, in this order.</summary>
internal enum ForwardStage
{
    /// <summary>Values are copied; keys are turned and projected, with their features, also at the scale that queries read at, and their sums.</summary>
    Keys,

    /// <summary>The state is brought to the chunk's scale.</summary>
    State,

    /// <summary>Queries are projected.</summary>
    ProjectQueries,

    /// <summary>Query features, and their normalisers.</summary>
    QueryFeatures,

    /// <summary>Q̂K̂ᵀ as far as rows see.</summary>
    Scores,

    /// <summary>Q̂S and scores times values; the quotient, written.</summary>
    Read,

    /// <summary>K̂ᵀV, added to the state.</summary>
    Reduce,

    Count,
}
