namespace Gpu.Attention;

/// <summary>How the work of a group is cut: tokens in a chunk, and the sums that a thread keeps.</summary>
internal enum Tiling
{
    /// <summary>Chunks of 64, 64 threads with 8 × 8 sums.</summary>
    Chunk64Block8,

    /// <summary>Chunks of 64, 256 threads with 4 × 4 sums.</summary>
    Chunk64Block4,

    /// <summary>Chunks of 16, 4 threads with 8 × 8 sums: for a simulator.</summary>
    Chunk16Block8,

    /// <summary>Chunks of 16, 16 threads with 4 × 4 sums: for a simulator.</summary>
    Chunk16Block4,
}
