using System.Runtime.CompilerServices;

namespace Gpu.Attention;

/// <summary>Sizes and places of everything that a linear forward pass keeps in its workspace, in floats.</summary>
/// <remarks>
/// A chain is one key head of one sequence. Many chains run side by side, each chunk after chunk in one thread's scratch memory, all in the same thread or a stretch of them in whichever is free. Few
/// chains are spread over threads by chunks: some are reduced ahead of the state, which takes them in one after the other. Both orders do the
/// same arithmetic. With a <see cref="SequencePlan"/> lengths differ; sizes are the longest's.
/// </remarks>
internal readonly struct LinearLayout
{
    /// <summary>Tokens in a chunk: the product inside a chunk costs <c>Chunk·(r + dv)</c> a token, everything done once a chunk is shared by it.</summary>
    public const int Chunk = 64;

    /// <summary>Floats in a cache line.</summary>
    public const int LineFloats = 16;

    /// <summary>Cache lines of a row that a product takes whole.</summary>
    private const int LongestRow = 4;

    /// <summary>The least chunks of a stretch: what changes its thread has to be brought to another core's cache.</summary>
    private const int LeastStretch = 2;

    /// <summary>Stretches, over all its chains, that a thread takes of long chains: of keys, and where it is not causal as many of queries.</summary>
    private const int StretchesOfThread = 32;

    /// <summary>The most floats of states that threads hand to each other: all are kept at once then.</summary>
    private const long RelayStates = 1 << 23;

    /// <summary>Threads of a chain for each piece of its state: to add a chunk takes up to an eighth of all that is done with it.</summary>
    private const int ThreadsOfPiece = 4;

    /// <summary>Floats of a piece, 16 KB: with fewer, handing it on takes longer than adding to it.</summary>
    private const int FloatsOfPiece = 1 << 12;

    /// <summary>The most rows of a token that are projected together: its keys' lie where a chunk's keys would, its queries' where a chunk's queries would, fewer than <see cref="Chunk"/>.</summary>
    private const int MaxTokenRows = 56;

    /// <summary>Floats of states, 128 KB, that leave the second-level cache to what a chunk needs.</summary>
    private const long SmallStates = 1 << 15;

    /// <summary>The sums of a token's states, in floats, from which on other threads wake up in time to help: 2 MB, some 50 µs of work.</summary>
    private const long FloatsWorthThreads = 1 << 19;

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public unsafe LinearLayout(AttentionProblem problem, int degree, int vectorLength, bool sweepsTokens = true)
    {
        FeaturePair features = problem.Features!;
        AttentionShape shape = problem.Shape;
        Features = features.FeatureDimension;
        FeatureWidth = RoundUp(Features, vectorLength);
        FeatureStride = Spread(FeatureWidth);
        ValueStride = RoundUp(shape.ValueDimension, vectorLength);
        int inputStride = RoundUp(shape.KeyDimension, vectorLength);
        Plan = SequencePlan.Of(problem, Chunk);
        Chains = (long)problem.Sequences * shape.KeyHeads;
        KeyChunks = Plan?.MaxKeyChunks ?? Pieces(shape.KeyLength, Chunk);
        QueryBlocks = Plan?.MaxBlocks ?? Pieces(shape.QueryLength, Chunk);
        bool isEven = Plan is null || Plan.FirstChunk[^1] == (long)Plan.Sequences * Plan.MaxKeyChunks;
        ByToken = sweepsTokens && IsOneToken(problem);
        int tokenHeads = Math.Clamp(MaxTokenRows / (1 + shape.HeadGroup), 1, shape.KeyHeads);
        TokensOnThreads = Chains * Features * ValueStride >= FloatsWorthThreads;
        TokenHeads = TokensOnThreads ? (int)Math.Clamp(Chains / degree, 1, tokenHeads) : tokenHeads;
        ByChain = SuitThreads(Chains, degree, isEven);
        bool gathers = Plan is not null || problem.Storage != ElementType.Single;
        bool segments = problem.Causal && features.Family == FeatureFamily.Exponential;

        long tokenFloats = shape.HeadGroup < MaxTokenRows ? new Token(null, tokenHeads, FeatureStride, ValueStride).Floats : 0;
        KeysFloats = Math.Max(new Keys(null, Features, FeatureStride, ValueStride).Floats, tokenFloats);
        StateFloats = new State(null, Features, FeatureStride, ValueStride).Floats;
        ScratchFloats = new Scratch(null, Features, FeatureStride, ValueStride, inputStride, shape.KeyDimension, segments, gathers).Floats;
        InputStride = inputStride;
        InputDimension = shape.KeyDimension;
        Segments = segments;
        Gathers = gathers;
        Slots = degree;
        while (ByChain && CanShare(2 * ChainsTogether, shape.KeyHeads, degree, isEven))
        {
            ChainsTogether *= 2;
        }

        // Where lengths differ, whole chains come longest first.
        bool suitsRelay = ByChain && isEven && !ByToken && Chains * StateFloats <= RelayStates && ChainRelay.Suits(Chains, ChainsTogether, degree);
        int reach = problem.Causal ? KeyChunks : Math.Max(KeyChunks, QueryBlocks);
        int stretches = suitsRelay ? (int)Math.Max(1, StretchesOfThread * (long)degree / (Chains / ChainsTogether)) : 1;
        StretchChunks = Math.Max(LeastStretch, Pieces(reach, stretches));
        ByRelay = suitsRelay && reach > StretchChunks;
        KeyStretches = Math.Max(1, Pieces(KeyChunks, StretchChunks));
        Stretches = KeyStretches + (problem.Causal ? 0 : Pieces(QueryBlocks, StretchChunks));
        StateCount = ByChain && !ByRelay ? (long)degree * ChainsTogether : Chains;
        if (!ByChain)
        {
            long chunks = Plan is null ? Chains * KeyChunks : (long)Plan.FirstChunk[^1] * shape.KeyHeads;
            ChunkThreads = (int)Math.Clamp(chunks, 1, degree);
            ChunksOfThread = (int)Math.Clamp((chunks + ChunkThreads - 1) / ChunkThreads, 1, ChunkRelay.MaxSlots);
            StatePieces = PiecesOfState((int)(ChunkThreads / Chains), FeatureWidth / vectorLength, StateFloats);
        }

        KeysCount = ByChain ? degree : Math.Max(ChunkThreads * ChunksOfThread, Math.Min(degree, Chains));
        StabilizerFloats = Line(Chains);
        Bytes = ((Slots * ScratchFloats) + (StateCount * StateFloats) + (KeysCount * KeysFloats) + StabilizerFloats) * sizeof(float);
    }

    public int Features { get; }

    /// <summary>r rounded up to whole vectors.</summary>
    public int FeatureWidth { get; }

    /// <summary>Floats from one row of features to the next.</summary>
    public int FeatureStride { get; }

    public int ValueStride { get; }

    public int InputStride { get; }

    public int InputDimension { get; }

    public bool Segments { get; }

    /// <summary>True when rows may have to be copied before they are used: they lie apart, or are stored in 16 bits.</summary>
    public bool Gathers { get; }

    /// <summary>What is whose; null when sequences fill their tensors.</summary>
    public SequencePlan? Plan { get; }

    public long Chains { get; }

    /// <summary>Chunks of keys of the longest sequence.</summary>
    public int KeyChunks { get; }

    /// <summary>Blocks of queries of the sequence that has most.</summary>
    public int QueryBlocks { get; }

    /// <summary>True when each chain runs in one thread, or in one after the other.</summary>
    public bool ByChain { get; }

    /// <summary>True when threads hand chains to each other after each stretch.</summary>
    public bool ByRelay { get; }

    /// <summary>Chunks of a stretch.</summary>
    public int StretchChunks { get; }

    public int KeyStretches { get; }

    /// <summary>Those of the keys, and behind them those of queries that read all keys.</summary>
    public int Stretches { get; }

    /// <summary>
    /// Heads of a sequence that a thread takes through it side by side, chunk by chunk, where their states are small: their rows lie side by side too, and what a memory page
    /// costs to find is paid once.
    /// </summary>
    public int ChainsTogether { get; } = 1;

    /// <summary>True when a token at most is read and added where the caller's state lies.</summary>
    public bool ByToken { get; }

    /// <summary>True when threads share a token's heads.</summary>
    public bool TokensOnThreads { get; }

    /// <summary>Key heads of a token that are projected together.</summary>
    public int TokenHeads { get; }

    /// <summary>Threads that chains of few are spread over.</summary>
    public int ChunkThreads { get; } = 1;

    /// <summary>Chunks that each of them keeps.</summary>
    public int ChunksOfThread { get; } = 1;

    /// <summary>Pieces of a state, each of which takes in one chunk after the other.</summary>
    public int StatePieces { get; } = 1;

    public long Slots { get; }

    public long StateCount { get; }

    public long KeysCount { get; }

    public long KeysFloats { get; }

    public long StateFloats { get; }

    public long ScratchFloats { get; }

    public long StabilizerFloats { get; }

    public long Bytes { get; }

    /// <summary>Pieces of one size that a length is cut into, the last of them perhaps shorter.</summary>
    public static int Pieces(int length, int size) => (int)(((long)length + size - 1) / size);

    public static int RoundUp(int length, int multiple) => (length + multiple - 1) / multiple * multiple;

    /// <summary>Pieces of a state, of so many rows or vectors, that so many threads add chunks to.</summary>
    public static int PiecesOfState(int threads, int most, long floats) => (int)Math.Clamp(threads / ThreadsOfPiece, 1, Math.Clamp(floats / FloatsOfPiece, 1, most));

    private bool CanShare(int chains, int keyHeads, int degree, bool isEven) =>
        keyHeads % chains == 0 && chains * StateFloats <= SmallStates && SuitThreads(Chains / chains, degree, isEven);

    /// <summary>True when threads that take one of so many after the other end at about the same time.</summary>
    private static bool SuitThreads(long chains, int degree, bool isEven) => degree == 1 || (isEven && chains % degree == 0) || chains >= 4L * degree;

    // Step: a query, a key, and both states. Append: no query. Read: no key, and the state stays.
    private static bool IsOneToken(AttentionProblem problem)
    {
        AttentionShape shape = problem.Shape;
        bool isPlain = problem.Features!.Family == FeatureFamily.Direct || (problem.Convention == ReferenceConvention.None && problem.FeatureEpsilon == 0);
        return isPlain && problem.Layout is null && problem.HasInitialState && shape.HeadGroup < MaxTokenRows && problem.WantsFinalState == (shape.KeyLength == 1) &&
            (shape.QueryLength, shape.KeyLength, problem.Causal) is (1, 1, true) or (0, 1, _) or (1, 0, _);
    }

    /// <summary>
    /// A distance of rows, where a product takes a part of each: an odd number of cache lines. Rows that are a power of two apart would share a few sets of the
    /// first-level cache and drive each other out.
    /// </summary>
    private static int Spread(int width)
    {
        int lines = RoundUp(width, LineFloats) / LineFloats;
        return lines <= LongestRow ? width : (lines | 1) * LineFloats;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static long Line(long floats) => (floats + LineFloats - 1) / LineFloats * LineFloats;

    /// <summary>Hands out pieces of one stretch of memory; with a null start it only counts.</summary>
    internal unsafe struct Arena(float* start)
    {
        public long Floats { get; private set; }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public float* Take(long floats)
        {
            float* piece = start + Floats;
            Floats += Line(floats);
            return piece;
        }
    }

    /// <summary>What a chunk's keys and values are turned into.</summary>
    public readonly unsafe struct Keys
    {
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        public Keys(float* start, int features, int featureStride, int valueStride)
        {
            var arena = new Arena(start);
            Transposed = arena.Take((long)features * Chunk);
            Values = arena.Take((long)Chunk * valueStride);
            Delta = arena.Take((long)features * valueStride);
            DeltaZ = arena.Take(featureStride);
            Before = arena.Take(featureStride);
            First = arena.Take(featureStride);
            Reference = arena.Take(featureStride);
            Scale = arena.Take(featureStride);
            Beta = arena.Take(featureStride);
            Maximum = arena.Take(featureStride);
            Terms = arena.Take(Chunk);
            Irregular = (int*)arena.Take(1);
            Floats = arena.Floats;
        }

        /// <summary>Key features, <c>r × Chunk</c>.</summary>
        public float* Transposed { get; }

        /// <summary>The values, <c>Chunk × ValueStride</c>.</summary>
        public float* Values { get; }

        /// <summary>K̂ᵀV, <c>r × ValueStride</c>; once it is added to a state that chunks wait for, the state before the chunk.</summary>
        public float* Delta { get; }

        /// <summary>K̂ᵀ1; likewise the normaliser before the chunk.</summary>
        public float* DeltaZ { get; }

        /// <summary>The log scale that the state before the chunk is thought to have, where chunks are reduced before states are known.</summary>
        public float* Before { get; }

        /// <summary>The log features of the chunk's first key: the scale that its readers may know.</summary>
        public float* First { get; }

        /// <summary>The log scale of <see cref="Delta"/>.</summary>
        public float* Reference { get; }

        /// <summary>The log scale that the chunk is read at.</summary>
        public float* Scale { get; }

        /// <summary>What brings sums of key features to <see cref="Scale"/>, where they are at another.</summary>
        public float* Beta { get; }

        /// <summary>The largest log feature of the chunk, where a final state is wanted.</summary>
        public float* Maximum { get; }

        /// <summary>The keys' own terms, between their projection and their features.</summary>
        public float* Terms { get; }

        /// <summary>Non-zero when the chunk's log features range too far for one scale.</summary>
        public int* Irregular { get; }

        public long Floats { get; }
    }

    /// <summary>A chain's state.</summary>
    public readonly unsafe struct State
    {
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        public State(float* start, int features, int featureStride, int valueStride)
        {
            var arena = new Arena(start);
            Sums = arena.Take((long)features * valueStride);
            Normalizers = arena.Take(featureStride);
            LogScale = arena.Take(featureStride);
            Maximum = arena.Take(featureStride);
            Expected = arena.Take(featureStride);
            Floats = arena.Floats;
        }

        public float* Sums { get; }

        public float* Normalizers { get; }

        /// <summary>The scale that the sums are kept at.</summary>
        public float* LogScale { get; }

        /// <summary>The largest log feature so far, where a final state is wanted.</summary>
        public float* Maximum { get; }

        /// <summary>The log scale that the state will have before the next chunk that is reduced, where that is done ahead of it.</summary>
        public float* Expected { get; }

        public long Floats { get; }
    }

    /// <summary>One token of some heads.</summary>
    public readonly unsafe struct Token
    {
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        public Token(float* start, int heads, int featureStride, int valueStride)
        {
            var arena = new Arena(start);
            Keys = arena.Take((long)heads * featureStride);
            KeyTerms = arena.Take(heads);
            Values = arena.Take((long)heads * valueStride);
            Raise = arena.Take((long)heads * featureStride);
            Normalizers = arena.Take(featureStride);
            Scale = arena.Take(featureStride);
            NotNumber = arena.Take(featureStride);
            Final = arena.Take(featureStride);
            FinalScale = arena.Take(featureStride);
            Lanes = arena.Take(LineFloats);
            Floats = arena.Floats;
        }

        /// <summary>Projected keys, a row a head; then their features at the scale that is read at.</summary>
        public float* Keys { get; }

        public float* KeyTerms { get; }

        /// <summary>A value a head.</summary>
        public float* Values { get; }

        /// <summary>What brings the sums to the scale that they are read at, a row a head.</summary>
        public float* Raise { get; }

        /// <summary>One head's z at the scale that it is read at.</summary>
        public float* Normalizers { get; }

        /// <summary>One head's scale that is read at.</summary>
        public float* Scale { get; }

        /// <summary>NaN where one head's key has no finite logarithm, else 0.</summary>
        public float* NotNumber { get; }

        /// <summary>One head's z with the token, where it is not handed out at once.</summary>
        public float* Final { get; }

        /// <summary>One head's c with the token, likewise.</summary>
        public float* FinalScale { get; }

        /// <summary>A vector.</summary>
        public float* Lanes { get; }

        public long Floats { get; }
    }

    /// <summary>One thread's scratch memory.</summary>
    public readonly unsafe struct Scratch
    {
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        public Scratch(
            float* start, int features, int featureStride, int valueStride, int inputStride, int inputDimension, bool segments, bool gathers)
        {
            var arena = new Arena(start);
            Rows = arena.Take(gathers ? (long)Chunk * inputDimension : 0);
            InputTransposed = arena.Take((long)inputDimension * Chunk);
            Mapped = arena.Take((long)Chunk * inputStride);
            Queries = arena.Take((long)Chunk * featureStride);
            Scores = arena.Take(Chunk * Chunk);
            Output = arena.Take((long)Chunk * valueStride);
            RowTerm = arena.Take(Chunk);
            RowMaximum = arena.Take(Chunk);
            Denominator = arena.Take(Chunk);
            Bias = arena.Take(featureStride);
            Factors = arena.Take(featureStride);
            LogFeatures = arena.Take(segments ? (long)features * Chunk : 0);
            SegmentKeys = new Keys(start is null ? null : start + arena.Floats, features, featureStride, valueStride);
            arena.Take(segments ? SegmentKeys.Floats : 0);
            SegmentState = new State(start is null ? null : start + arena.Floats, features, featureStride, valueStride);
            arena.Take(segments ? SegmentState.Floats : 0);
            Floats = arena.Floats;
        }

        /// <summary>Query or key rows, gathered, as float32.</summary>
        public float* Rows { get; }

        public float* InputTransposed { get; }

        public float* Mapped { get; }

        public float* Queries { get; }

        public float* Scores { get; }

        public float* Output { get; }

        public float* RowTerm { get; }

        public float* RowMaximum { get; }

        public float* Denominator { get; }

        public float* Bias { get; }

        public float* Factors { get; }

        /// <summary>A chunk's log features, where it is taken in segments.</summary>
        public float* LogFeatures { get; }

        public Keys SegmentKeys { get; }

        public State SegmentState { get; }

        public long Floats { get; }
    }
}
