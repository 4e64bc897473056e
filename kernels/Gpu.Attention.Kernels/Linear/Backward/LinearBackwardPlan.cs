namespace Gpu.Attention;

/// <summary>What the backward pass of linear attention keeps in its workspace.</summary>
/// <remarks>
/// Causal, the states before all blocks of chunks wait there too. A block has at least √n of a sequence's n chunks, so that there are no more states
/// before blocks than chunks in one.
/// </remarks>
internal sealed class LinearBackwardPlan : WorkspacePlan
{
    /// <summary>Plans a problem.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="chunk">C.</param>
    /// <param name="blockItems">Chunks, over all heads, that are worked on at once.</param>
    public LinearBackwardPlan(AttentionProblem problem, int chunk, int blockItems)
        : base(problem, chunk)
    {
        AttentionShape shape = problem.Shape;
        bool isLogarithmic = problem.Features!.Family == FeatureFamily.Exponential;
        int items = Math.Max(1, blockItems / shape.HeadGroup);
        int least = problem.Causal ? (int)Math.Ceiling(Math.Sqrt(KeyChunks)) : 1;
        BlockChunks = Math.Clamp(Math.Max(least, items / Math.Max(1, Chains)), 1, Math.Max(1, Math.Max(KeyChunks, QueryChunks)));
        BlockChains = Math.Clamp(items / BlockChunks, 1, Math.Max(1, Chains));

        long states = BlockChains;
        long keyItems = KeyChunks == 0 ? 0 : states * Math.Min(BlockChunks, KeyChunks);
        long queryItems = QueryChunks == 0 ? 0 : states * Math.Min(BlockChunks, QueryChunks);
        long members = queryItems * shape.HeadGroup;
        long rows = Sizes.PaddedFeatures;
        long values = Sizes.PaddedValues;
        long tiles = rows / chunk;
        InputStride = RoundUp(shape.KeyDimension, chunk);
        StateScale = Take(states * rows);
        StateTop = Take(states * rows);
        StateNormalizers = Take(states * rows);
        StateSums = Take(states * rows * values);
        StateFloats = Floats - StateScale;
        Boundaries = Take(problem.Causal ? StateFloats * Math.Max(1, ((KeyChunks - 1) / BlockChunks) + 1) : 0);
        ReverseSums = Take(states * rows * values);
        ReverseNormalizers = Take(states * rows);

        KeyInputs = Take(keyItems * Sizes.PaddedInputs * chunk);
        KeyTerms = Take(keyItems * chunk);
        Values = Take(keyItems * chunk * values);
        Sums = Take(Math.Max(keyItems, queryItems) * rows * values);
        Normalizers = Take(Math.Max(keyItems, queryItems) * rows);
        First = Take(keyItems * rows);
        Reference = Take(keyItems * rows);
        Top = Take(keyItems * rows);
        ReadScale = Take(keyItems * rows);
        Before = Take(keyItems * rows);
        After = Take(keyItems * rows);
        Factor = Take(keyItems * rows);
        ReadNormalizers = Take(keyItems * rows);
        KeyFeatures = Take(keyItems * rows * chunk);
        KeysRead = Take(problem.Causal || !isLogarithmic ? keyItems * rows * chunk : 0);
        KeysBehind = Take(keyItems * rows * chunk);
        ReadSums = Take(problem.Causal ? keyItems * rows * values : 0);
        Steep = Take(problem.Causal ? keyItems * tiles : 0);
        KeyParts = Take(problem.Causal ? keyItems * chunk * rows : 0);
        SteepParts = Take(problem.Causal && isLogarithmic ? keyItems * chunk * rows : 0);
        ValueParts = Take(problem.Causal ? keyItems * chunk * values : 0);

        QueryInputs = Take(members * Sizes.PaddedInputs * chunk);
        QueryTerms = Take(members * chunk);
        QueryFeatures = Take(members * rows * chunk);
        Maxima = Take(members * tiles * chunk);
        RowMaxima = Take(members * chunk);
        Queries = Take(members * rows * chunk);
        QueryDerivatives = isLogarithmic ? Queries : Take(members * rows * chunk);
        Denominators = Take(members * chunk);
        Gradients = Take(members * chunk * values);
        RowGradients = Take(members * chunk);
        Scores = Take(problem.Causal ? members * chunk * chunk : 0);
        Products = Take(problem.Causal ? members * chunk * chunk : 0);

        long most = Math.Max(members, keyItems);
        LogGradients = Take(most * chunk * rows);
        LogSums = Take(most * chunk);
        InputGradients = Take(most * chunk * InputStride);
        Bytes = (Floats * sizeof(float)) + Alignment;
    }

    /// <summary>d rounded up to a multiple of C.</summary>
    public int InputStride { get; }

    /// <summary>Floats of the states of a block of chains, which follow one another from <see cref="StateScale"/> on.</summary>
    public long StateFloats { get; }

    public long StateScale { get; }

    public long StateTop { get; }

    public long StateNormalizers { get; }

    public long StateSums { get; }

    /// <summary>The states before each block of chunks, one after the other.</summary>
    public long Boundaries { get; }

    public long ReverseSums { get; }

    public long ReverseNormalizers { get; }

    public long KeyInputs { get; }

    public long KeyTerms { get; }

    public long Values { get; }

    /// <summary>Δ, then what queries ask.</summary>
    public long Sums { get; }

    /// <summary>The normalisers of <see cref="Sums"/>.</summary>
    public long Normalizers { get; }

    public long First { get; }

    public long Reference { get; }

    public long Top { get; }

    public long ReadScale { get; }

    public long Before { get; }

    public long After { get; }

    public long Factor { get; }

    /// <summary>The normalisers of <see cref="ReadSums"/>.</summary>
    public long ReadNormalizers { get; }

    public long KeyFeatures { get; }

    public long KeysRead { get; }

    public long KeysBehind { get; }

    /// <summary>The sums before each chunk, then R̂ behind it.</summary>
    public long ReadSums { get; }

    public long Steep { get; }

    public long KeyParts { get; }

    public long SteepParts { get; }

    public long ValueParts { get; }

    public long QueryInputs { get; }

    public long QueryTerms { get; }

    public long QueryFeatures { get; }

    public long Maxima { get; }

    public long RowMaxima { get; }

    public long Queries { get; }

    public long QueryDerivatives { get; }

    public long Denominators { get; }

    public long Gradients { get; }

    public long RowGradients { get; }

    public long Scores { get; }

    public long Products { get; }

    public long LogGradients { get; }

    public long LogSums { get; }

    public long InputGradients { get; }
}
