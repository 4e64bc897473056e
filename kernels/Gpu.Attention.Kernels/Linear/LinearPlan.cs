namespace Gpu.Attention;

/// <summary>What linear attention keeps in its workspace.</summary>
internal sealed class LinearPlan : WorkspacePlan
{
    /// <summary>The most elements of a padded state of one head, and the most key heads: indices up to here and a block beyond stay within 32 bits.</summary>
    private const int MaxElements = 1 << 30;

    /// <summary>Plans a problem.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="chunk">C.</param>
    /// <param name="blockItems">Chunks, over all heads, that are worked on at once.</param>
    public LinearPlan(AttentionProblem problem, int chunk, int blockItems)
        : base(problem, chunk)
    {
        AttentionShape shape = problem.Shape;
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

        long afterStates = Floats;
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
        long afterKeys = Floats;

        // A bidirectional pass has done with its keys when it comes to its queries.
        Floats = problem.Causal ? afterKeys : afterStates;
        QueryInputs = Take(members * Sizes.PaddedInputs * chunk);
        QueryTerms = Take(members * chunk);
        QueryFeatures = Take(members * rows * chunk);
        Maxima = Take(members * tiles * chunk);
        Bytes = (Math.Max(afterKeys, Floats) * sizeof(float)) + Alignment;
    }

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
            : (long)problem.Sequences * shape.KeyHeads > MaxElements
                ? $"{problem.Sequences} sequences of {shape.KeyHeads} key heads are more than {MaxElements} states"
            : shape.HeadGroup * Math.Max(featureTiles, valueTiles) > MaxElements
                ? $"{shape.HeadGroup} heads to a key head, of {features} features and {shape.ValueDimension} values, are more than {MaxElements} tiles"
            : null;
    }
}
