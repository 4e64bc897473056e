namespace Gpu.Attention.Benchmarks;

/// <summary>What a causal forward pass does with a chunk, in this order.</summary>
internal enum ForwardStage
{
    /// <summary>Values are copied.</summary>
    Values,

    /// <summary>Keys are turned and projected.</summary>
    ProjectKeys,

    /// <summary>Key features, and their sums.</summary>
    KeyFeatures,

    /// <summary>The state is brought to the chunk's scale, and a copy of the key features.</summary>
    State,

    /// <summary>Queries are projected.</summary>
    ProjectQueries,

    /// <summary>Query features, and their normalisers.</summary>
    QueryFeatures,

    /// <summary>Q̂K̂ᵀ as far as rows see.</summary>
    Scores,

    /// <summary>Q̂S.</summary>
    Read,

    /// <summary>Scores times values.</summary>
    ReadChunk,

    /// <summary>The quotient, written.</summary>
    Write,

    /// <summary>K̂ᵀV, added to the state.</summary>
    Reduce,

    Count,
}
