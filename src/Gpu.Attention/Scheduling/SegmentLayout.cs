namespace Gpu.Attention;

/// <summary>The largest piece of a problem that runs at once.</summary>
/// <param name="Sequences">Sequences.</param>
/// <param name="KeyHeads">Key heads, with the heads that read them.</param>
/// <param name="Queries">Query tokens of a sequence; with a layout, of the piece's sequences together.</param>
/// <param name="Keys">Key tokens of a sequence; with a layout, of the piece's sequences together.</param>
internal readonly record struct SegmentSize(int Sequences, int KeyHeads, long Queries, long Keys)
{
    /// <summary>The piece as a problem; not for problems with a layout.</summary>
    /// <param name="problem">The problem that it is a piece of.</param>
    public AttentionProblem Of(AttentionProblem problem)
    {
        AttentionShape s = problem.Shape;
        return problem with { Shape = new AttentionShape(Sequences, (int)Queries, (int)Keys, KeyHeads * s.HeadGroup, KeyHeads, s.KeyDimension, s.ValueDimension) };
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
    /// <param name="gradients">The gradients of a backward pass; null for a forward one.</param>
    public SegmentLayout(AttentionProblem problem, SegmentSize size, int slots, long workspaceBytes, GradientParts? gradients = null)
    {
        AttentionShape shape = problem.Shape;
        Int128 rows = (Int128)size.Sequences * size.KeyHeads;
        Int128 tokenRows = problem.Layout is null ? rows : size.KeyHeads;
        Int128 queries = tokenRows * shape.HeadGroup * size.Queries;
        Int128 keys = tokenRows * size.Keys;
        int stored = problem.Storage.Size();
        Query = Take(slots, queries * shape.KeyDimension * stored);
        Key = Take(slots, keys * shape.KeyDimension * stored);
        Value = Take(slots, keys * shape.ValueDimension * stored);
        Output = Take(slots, queries * shape.ValueDimension * stored);

        if (gradients is not null)
        {
            // Nothing is handed on, so that a place for each slot is enough.
            OutputGradient = Take(slots, gradients.Output ? queries * shape.ValueDimension * stored : 0);
            QueryGradient = Take(slots, gradients.Query ? queries * shape.KeyDimension * stored : 0);
            KeyGradient = Take(slots, gradients.Key ? keys * shape.KeyDimension * stored : 0);
            ValueGradient = Take(slots, gradients.Value ? keys * shape.ValueDimension * stored : 0);
            States = TakeStates(problem, problem.HasInitialState ? slots : 0, rows);
            FinalStateGradients = TakeStates(problem, gradients.FinalState ? slots : 0, rows);
            InitialStateGradients = TakeStates(problem, gradients.InitialState ? slots : 0, rows);
        }
        else if (problem.Features is not null && (problem.HasInitialState || problem.WantsFinalState || IsCut(problem, size)))
        {
            // A group's last state still comes down while the next group computes and the one after it goes up.
            States = TakeStates(problem, slots == 1 ? 1 : 3, rows);
        }

        Workspace = Take(1, workspaceBytes)[0];
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

    /// <summary>States that segments begin with and leave, taken in turn by groups; of a backward pass those that they began with.</summary>
    public StatePlaces[] States { get; } = [];

    /// <summary>Gradients of outputs, a place for each slot of a backward pass.</summary>
    public long[] OutputGradient { get; } = [];

    /// <summary>Gradients of queries, likewise.</summary>
    public long[] QueryGradient { get; } = [];

    /// <summary>Gradients of keys, likewise.</summary>
    public long[] KeyGradient { get; } = [];

    /// <summary>Gradients of values, likewise.</summary>
    public long[] ValueGradient { get; } = [];

    /// <summary>Gradients of the states that segments left, taken in turn by groups of a backward pass.</summary>
    public StatePlaces[] FinalStateGradients { get; } = [];

    /// <summary>Gradients of the states that segments began with, likewise.</summary>
    public StatePlaces[] InitialStateGradients { get; } = [];

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
        problem.Layout is null && (size.Queries < problem.Shape.QueryLength || size.Keys < problem.Shape.KeyLength);

    private StatePlaces[] TakeStates(AttentionProblem problem, int count, Int128 rows)
    {
        if (problem.Features is not { } features)
        {
            return [];
        }

        Int128 states = rows * features.FeatureDimension * sizeof(float);
        Int128 scales = features.Family == FeatureFamily.Exponential ? states : 0;
        long[] logScale = Take(count, scales);
        long[] maximum = Take(count, scales);
        long[] sums = Take(count, states * problem.Shape.ValueDimension);
        long[] normalizers = Take(count, states);
        return [.. Enumerable.Range(0, count).Select(i => new StatePlaces(logScale[i], maximum[i], sums[i], normalizers[i]))];
    }

    private long[] Take(int count, Int128 bytes)
    {
        long[] places = new long[count];
        for (int i = 0; i < count; i++)
        {
            places[i] = (long)Int128.Min(_next, long.MaxValue);
            _next += (bytes + Alignment - 1) / Alignment * Alignment;
        }

        return places;
    }
}
