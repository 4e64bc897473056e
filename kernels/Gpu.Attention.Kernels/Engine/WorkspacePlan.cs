namespace Gpu.Attention;

/// <summary>
/// Sizes and places, in floats, of everything that a pass keeps in its workspace. Key heads are taken in blocks, and the chunks of a block of them too,
/// so that the workspace depends on neither the length nor the batch once they fill a block.
/// </summary>
internal abstract class WorkspacePlan
{
    /// <summary>Where the workspace's arrays begin is rounded up to this many bytes, and their starts in it with it.</summary>
    public const int Alignment = 256;

    /// <summary>Counts what a problem has to be cut into.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="chunk">C.</param>
    protected WorkspacePlan(AttentionProblem problem, int chunk)
    {
        AttentionShape shape = problem.Shape;
        int features = problem.Features?.FeatureDimension ?? 0;
        Sizes = new PaddedSizes
        {
            Inputs = shape.KeyDimension,
            PaddedInputs = RoundUp(shape.KeyDimension, TileProduct.Depth),
            Features = features,
            PaddedFeatures = RoundUp(features, chunk),
            Values = shape.ValueDimension,
            PaddedValues = RoundUp(shape.ValueDimension, chunk),
        };
        Sequences = SequencePlan.Of(problem, chunk);
        Chains = checked(problem.Sequences * shape.KeyHeads);
        KeyChunks = Sequences?.MaxKeyChunks ?? Chunks(shape.KeyLength, chunk);

        QueryChunks = Sequences is null ? Chunks(shape.QueryLength, chunk)
            : problem.Features is null ? Chunks(Sequences.MaxQueries, chunk)
            : Sequences.MaxBlocks;
    }

    /// <summary>Whose the tokens are, and which keys take part; null when sequences fill their rows of the batch.</summary>
    public SequencePlan? Sequences { get; }

    /// <summary>The sizes.</summary>
    public PaddedSizes Sizes { get; }

    /// <summary>Key heads of all sequences.</summary>
    public int Chains { get; }

    /// <summary>Chains that are worked on at once.</summary>
    public int BlockChains { get; protected init; }

    /// <summary>Chunks of each of them that are worked on at once, of keys and of queries.</summary>
    public int BlockChunks { get; protected init; }

    /// <summary>Chunks of keys, of the sequence that has most.</summary>
    public int KeyChunks { get; }

    /// <summary>Chunks of queries, or in linear attention with a plan its blocks of them, of the sequence that has most.</summary>
    public int QueryChunks { get; }

    /// <summary>The workspace's bytes, what rounding up its start may take included.</summary>
    public long Bytes { get; protected init; }

    /// <summary>The floats that are taken.</summary>
    protected long Floats { get; set; }

    /// <summary>Rounds floats up to whole multiples of <see cref="Alignment"/>.</summary>
    /// <param name="floats">Floats.</param>
    public static long Align(long floats) => (floats + (Alignment / sizeof(float)) - 1) / (Alignment / sizeof(float)) * (Alignment / sizeof(float));

    /// <summary>The next multiple.</summary>
    /// <param name="length">A length.</param>
    /// <param name="multiple">What to round it up to a multiple of.</param>
    public static int RoundUp(int length, int multiple) => checked((length + multiple - 1) / multiple * multiple);

    /// <summary>Takes the next floats.</summary>
    /// <param name="floats">How many.</param>
    protected long Take(long floats)
    {
        long start = Floats;
        Floats += Align(floats);
        return start;
    }

    /// <summary>Chunks that a sequence has, the last of them perhaps not whole.</summary>
    private static int Chunks(int length, int chunk) => (length / chunk) + (length % chunk == 0 ? 0 : 1);
}
