namespace Gpu.Attention;

/// <summary>Places in a workspace for a pass that works in blocks.</summary>
internal interface IWorkspacePlan
{
    /// <summary>The workspace's bytes, what rounding up its start may take included.</summary>
    long Bytes { get; }
}

/// <summary>
/// Sizes and places of everything that a forward pass keeps in its workspace, in floats. Chains are taken in blocks, and the chunks of a block of
/// chains too, so that the workspace depends on neither the length nor the batch once they fill a block.
/// </summary>
internal sealed class LinearPlan : IWorkspacePlan
{
    /// <summary>Where the workspace's arrays begin is rounded up to this many bytes, and their starts in it with it.</summary>
    public const int Alignment = 256;

    /// <summary>The most elements of a padded state of one head, and the most key heads: indices up to here and a block beyond stay within 32 bits.</summary>
    private const int MaxElements = 1 << 30;

    private long _floats;

    /// <summary>Plans a problem.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="chunk">C.</param>
    /// <param name="blockItems">Chunks, over all heads, that are worked on at once.</param>
    public LinearPlan(AttentionProblem problem, int chunk, int blockItems)
    {
        AttentionShape shape = problem.Shape;
        int features = problem.Features!.FeatureDimension;
        Sizes = new PaddedSizes
        {
            Inputs = shape.KeyDimension,
            PaddedInputs = RoundUp(shape.KeyDimension, TileProduct.Depth),
            Features = features,
            PaddedFeatures = RoundUp(features, chunk),
            Values = shape.ValueDimension,
            PaddedValues = RoundUp(shape.ValueDimension, chunk),
        };
        Chains = checked(shape.Batch * shape.KeyHeads);
        KeyChunks = Chunks(shape.KeyLength, chunk);
        QueryChunks = Chunks(shape.QueryLength, chunk);
        int items = Math.Max(1, blockItems / shape.HeadGroup);
        BlockChains = Math.Min(Chains, items);
        BlockChunks = Math.Clamp(items / Math.Max(1, BlockChains), 1, Math.Max(1, Math.Max(KeyChunks, QueryChunks)));

        long states = BlockChains;
        long keyItems = KeyChunks == 0 ? 0 : states * Math.Min(BlockChunks, KeyChunks);
        long members = QueryChunks == 0 ? 0 : states * Math.Min(BlockChunks, QueryChunks) * shape.HeadGroup;
        long rows = Sizes.PaddedFeatures;
        long tiles = rows / chunk;
        StateScale = Take(states * rows);
        StateTop = Take(states * rows);
        StateNormalizers = Take(states * rows);
        StateSums = Take(states * rows * Sizes.PaddedValues);

        long afterStates = _floats;
        KeyInputs = Take(keyItems * Sizes.PaddedInputs * chunk);
        KeyTerms = Take(keyItems * chunk);
        Values = Take(keyItems * chunk * Sizes.PaddedValues);
        Sums = Take(keyItems * rows * Sizes.PaddedValues);
        Normalizers = Take(keyItems * rows);
        First = Take(keyItems * rows);
        Reference = Take(keyItems * rows);
        Top = Take(keyItems * rows);
        ReadScale = Take(keyItems * rows);
        Before = Take(keyItems * rows);
        After = Take(keyItems * rows);
        Factor = Take(keyItems * rows);
        ReadNormalizers = Take(keyItems * rows);
        ReadSums = Take(problem.Causal ? keyItems * rows * Sizes.PaddedValues : 0);
        KeyFeatures = Take(problem.Causal ? keyItems * rows * chunk : 0);
        Steep = Take(problem.Causal ? keyItems * tiles : 0);
        long afterKeys = _floats;

        // A bidirectional pass has done with its keys when it comes to its queries.
        _floats = problem.Causal ? afterKeys : afterStates;
        QueryInputs = Take(members * Sizes.PaddedInputs * chunk);
        QueryTerms = Take(members * chunk);
        QueryFeatures = Take(members * rows * chunk);
        Maxima = Take(members * tiles * chunk);
        Bytes = (Math.Max(afterKeys, _floats) * sizeof(float)) + Alignment;
    }

    public PaddedSizes Sizes { get; }

    /// <summary>Key heads of all sequences.</summary>
    public int Chains { get; }

    /// <summary>Chains that are worked on at once.</summary>
    public int BlockChains { get; }

    /// <summary>Chunks of each of them that are worked on at once.</summary>
    public int BlockChunks { get; }

    public int KeyChunks { get; }

    public int QueryChunks { get; }

    /// <inheritdoc/>
    public long Bytes { get; }

    public long StateScale { get; }

    public long StateTop { get; }

    public long StateNormalizers { get; }

    public long StateSums { get; }

    public long KeyInputs { get; }

    public long KeyTerms { get; }

    public long Values { get; }

    public long Sums { get; }

    public long Normalizers { get; }

    public long First { get; }

    public long Reference { get; }

    public long Top { get; }

    public long ReadScale { get; }

    public long Before { get; }

    public long After { get; }

    public long Factor { get; }

    public long ReadNormalizers { get; }

    public long ReadSums { get; }

    public long KeyFeatures { get; }

    public long Steep { get; }

    public long QueryInputs { get; }

    public long QueryTerms { get; }

    public long QueryFeatures { get; }

    public long Maxima { get; }

    /// <summary>Why a problem's sizes are beyond the kernels' indices; null when they are not.</summary>
    /// <param name="problem">A problem of linear attention.</param>
    /// <param name="chunk">C.</param>
    public static string? WhyTooLarge(AttentionProblem problem, int chunk)
    {
        AttentionShape shape = problem.Shape;
        int features = problem.Features!.FeatureDimension;
        long featureTiles = ((long)features + chunk - 1) / chunk;
        long valueTiles = ((long)shape.ValueDimension + chunk - 1) / chunk;
        return featureTiles * valueTiles > MaxElements / chunk / chunk
                ? $"a state of {features} features by {shape.ValueDimension} values has more than {MaxElements} elements"
            : (long)shape.Batch * shape.KeyHeads > MaxElements
                ? $"{shape.Batch} sequences of {shape.KeyHeads} key heads are more than {MaxElements} states"
            : shape.HeadGroup * Math.Max(featureTiles, valueTiles) > MaxElements
                ? $"{shape.HeadGroup} heads to a key head, of {features} features and {shape.ValueDimension} values, are more than {MaxElements} tiles"
            : null;
    }

    /// <summary>Rounds floats up to whole multiples of <see cref="Alignment"/>.</summary>
    public static long Align(long floats) => (floats + (Alignment / sizeof(float)) - 1) / (Alignment / sizeof(float)) * (Alignment / sizeof(float));

    public static int RoundUp(int length, int multiple) => checked((length + multiple - 1) / multiple * multiple);

    /// <summary>Chunks that a sequence has, the last of them perhaps not whole.</summary>
    public static int Chunks(int length, int chunk) => (length / chunk) + (length % chunk == 0 ? 0 : 1);

    private long Take(long floats)
    {
        long start = _floats;
        _floats += Align(floats);
        return start;
    }
}
