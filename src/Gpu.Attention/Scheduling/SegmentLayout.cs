namespace Gpu.Attention;

/// <summary>The largest piece of a problem that runs at once.</summary>
/// <param name="Sequences">Sequences of the batch.</param>
/// <param name="KeyHeads">Key heads, with the heads that read them.</param>
/// <param name="Queries">Query tokens.</param>
/// <param name="Keys">Key tokens.</param>
internal readonly record struct SegmentSize(int Sequences, int KeyHeads, int Queries, int Keys)
{
    /// <summary>The piece as a problem.</summary>
    /// <param name="problem">The problem that it is a piece of.</param>
    public AttentionProblem Of(AttentionProblem problem)
    {
        AttentionShape s = problem.Shape;
        return problem with { Shape = new AttentionShape(Sequences, Queries, Keys, KeyHeads * s.HeadGroup, KeyHeads, s.KeyDimension, s.ValueDimension) };
    }

    /// <summary>At most so many tokens.</summary>
    /// <param name="tokens">Tokens.</param>
    public SegmentSize WithTokens(int tokens) => this with { Queries = Math.Min(Queries, tokens), Keys = Math.Min(Keys, tokens) };
}

/// <summary>Where the parts of a state lie on a device.</summary>
/// <param name="LogScale">c.</param>
/// <param name="Maximum">The largest log features, where c is not that.</param>
/// <param name="Sums">S.</param>
/// <param name="Normalizers">z.</param>
internal readonly record struct StatePlaces(long LogScale, long Maximum, long Sums, long Normalizers);

/// <summary>Byte offsets, in one allocation, of all that the segments of a problem need on a device.</summary>
internal sealed class SegmentLayout
{
    /// <summary>What every offset is a multiple of: a device's own alignment of allocations.</summary>
    public const int Alignment = 256;

    private Int128 _next;

    /// <summary>Lays out segments.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="size">Its largest segment.</param>
    /// <param name="slots">Segments whose tensors are there at once: 2 for neighbours to overlap.</param>
    /// <param name="workspaceBytes">The engine's scratch memory.</param>
    public SegmentLayout(AttentionProblem problem, SegmentSize size, int slots, long workspaceBytes)
    {
        AttentionShape shape = problem.Shape;
        Int128 rows = (Int128)size.Sequences * size.KeyHeads;
        Int128 queries = rows * shape.HeadGroup * size.Queries;
        Int128 keys = rows * size.Keys;
        Query = Take(slots, queries * shape.KeyDimension);
        Key = Take(slots, keys * shape.KeyDimension);
        Value = Take(slots, keys * shape.ValueDimension);
        Output = Take(slots, queries * shape.ValueDimension);

        // A group's last state still comes down while the next group computes and the one after it goes up.
        if (problem.Features is { } features && (problem.HasInitialState || problem.WantsFinalState || IsCut(problem, size)))
        {
            int groups = slots == 1 ? 1 : 3;
            Int128 states = rows * features.FeatureDimension;
            Int128 scales = features.Family == FeatureFamily.Exponential ? states : 0;
            long[] logScale = Take(groups, scales);
            long[] maximum = Take(groups, scales);
            long[] sums = Take(groups, states * shape.ValueDimension);
            long[] normalizers = Take(groups, states);
            States = [.. Enumerable.Range(0, groups).Select(i => new StatePlaces(logScale[i], maximum[i], sums[i], normalizers[i]))];
        }

        Workspace = Take(1, (workspaceBytes + sizeof(float) - 1) / sizeof(float))[0];
        WorkspaceBytes = workspaceBytes;
        TotalBytes = _next > long.MaxValue ? long.MaxValue : (long)_next;
    }

    /// <summary>Queries, a place for each slot.</summary>
    public long[] Query { get; }

    /// <summary>Keys, a place for each slot.</summary>
    public long[] Key { get; }

    /// <summary>Values, a place for each slot.</summary>
    public long[] Value { get; }

    /// <summary>Outputs, a place for each slot.</summary>
    public long[] Output { get; }

    /// <summary>States that segments begin with and leave, taken in turn by groups.</summary>
    public StatePlaces[] States { get; } = [];

    /// <summary>Scratch memory.</summary>
    public long Workspace { get; }

    /// <summary>Bytes of scratch memory.</summary>
    public long WorkspaceBytes { get; }

    /// <summary>Bytes in all; <see cref="long.MaxValue"/> where they are more than that.</summary>
    public long TotalBytes { get; }

    /// <summary>True when sequences are cut.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="size">Its largest segment.</param>
    public static bool IsCut(AttentionProblem problem, SegmentSize size) =>
        size.Queries < problem.Shape.QueryLength || size.Keys < problem.Shape.KeyLength;

    private long[] Take(int count, Int128 floats)
    {
        long[] places = new long[count];
        for (int i = 0; i < count; i++)
        {
            places[i] = (long)Int128.Min(_next, long.MaxValue);
            _next += ((floats * sizeof(float)) + Alignment - 1) / Alignment * Alignment;
        }

        return places;
    }
}
