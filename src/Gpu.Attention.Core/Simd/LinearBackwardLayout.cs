using Arena = Gpu.Attention.LinearLayout.Arena;
using Scratch = Gpu.Attention.LinearLayout.Scratch;

namespace Gpu.Attention;

/// <summary>Sizes and places of everything that a linear backward pass keeps in its workspace, in floats.</summary>
/// <remarks>
/// Enough chains run in one thread each, every thread with a chain's memory of its own. Otherwise the threads share one chain's memory and take its chunks in
/// turn. Causal, a chain keeps what came of the keys of one block of chunks, with the state before each of them, and the state before each block:
/// <c>(256 + chunks / 256)</c> states at most, whatever the length.
/// </remarks>
internal readonly struct LinearBackwardLayout
{
    /// <summary>Chunks of a block.</summary>
    public const int BlockChunks = 256;

    private readonly int _boundaries;
    private readonly int _gradientStride;
    private readonly bool _isDirect;
    private readonly long _keysFloats;
    private readonly long _stateFloats;
    private readonly long _scratchFloats;

    public unsafe LinearBackwardLayout(AttentionProblem problem, int degree, int vectorLength)
    {
        Passes = new LinearLayout(problem, degree, vectorLength, sweepsTokens: false);
        bool byChain = Passes.ByChain;
        if (!byChain)
        {
            int chunks = Math.Max(Passes.KeyChunks, Passes.QueryBlocks);
            ChunkThreads = Math.Clamp(chunks, 1, degree);
            ChunksOfThread = Math.Clamp(LinearLayout.Pieces(chunks, ChunkThreads), 1, ChunkRelay.MaxSlots);
            StatePieces = LinearLayout.PiecesOfState(ChunkThreads, problem.Shape.ValueDimension + 1, (problem.Shape.ValueDimension + 1L) * Passes.FeatureStride);
        }

        KeptChunks = problem.Causal ? Math.Clamp(Passes.KeyChunks, 1, BlockChunks) : ChunksAtOnce;
        _boundaries = problem.Causal ? Math.Max(1, LinearLayout.Pieces(Passes.KeyChunks, BlockChunks)) : 0;
        _gradientStride = LinearLayout.RoundUp(problem.Shape.ValueDimension + 1, vectorLength);
        _isDirect = problem.Features!.Family == FeatureFamily.Direct;
        ValueDimension = problem.Shape.ValueDimension;
        _keysFloats = new Keys(null, this).Floats;
        _stateFloats = new State(null, this).Floats;
        _scratchFloats = new Scratch(
            null, Passes.Features, Passes.FeatureStride, Passes.ValueStride, Passes.InputStride, Passes.InputDimension, false, Passes.Gathers).Floats;
        Threads = byChain ? Math.Clamp(Passes.Chains, 1, degree) : degree;
        Room room = new(null, null, this);
        ThreadFloats = room.ThreadFloats;
        ChainFloats = room.ChainFloats;
        Bytes = ((Threads * ThreadFloats) + ((byChain ? Threads : 1) * ChainFloats)) * sizeof(float);
    }

    /// <summary>What a backward pass has in common with a forward pass.</summary>
    public LinearLayout Passes { get; }

    public int ValueDimension { get; }

    /// <summary>Threads that share a chain.</summary>
    public int ChunkThreads { get; } = 1;

    /// <summary>Chunks, or blocks of queries, that each of them keeps.</summary>
    public int ChunksOfThread { get; } = 1;

    /// <summary>Pieces of a state, to each of which one chunk is added after the other.</summary>
    public int StatePieces { get; } = 1;

    /// <summary>Chunks, or blocks of queries, that threads keep together.</summary>
    public int ChunksAtOnce => ChunkThreads * ChunksOfThread;

    /// <summary>Chunks whose keys are kept at once.</summary>
    public int KeptChunks { get; }

    public long Threads { get; }

    public long ThreadFloats { get; }

    public long ChainFloats { get; }

    public long Bytes { get; }

    /// <summary>The memory that a thread works in.</summary>
    public unsafe Room RoomAt(float* start, int slot) => new(
        start + (slot * ThreadFloats), start + (Threads * ThreadFloats) + (Passes.ByChain ? slot * ChainFloats : 0), this);

    /// <summary>What a chunk's keys and values are turned into, with the state before them.</summary>
    public readonly unsafe struct Keys
    {
        public Keys(float* start, in LinearBackwardLayout layout)
        {
            (int rs, int rows) = (layout.Passes.FeatureStride, layout.ValueDimension + 1);
            var arena = new Arena(start);
            Rows = arena.Take((long)LinearLayout.Chunk * rs);
            Values = arena.Take((long)LinearLayout.Chunk * layout._gradientStride);
            Sums = arena.Take((long)rows * rs);
            Terms = arena.Take(LinearLayout.Chunk);
            First = arena.Take(rs);
            Before = arena.Take(rs);
            Scale = arena.Take(rs);
            Irregular = (int*)arena.Take(1);
            Floats = arena.Floats;
        }

        /// <summary>W x', then K̂, a row for each key.</summary>
        public float* Rows { get; }

        /// <summary>[V 1], a row for each key.</summary>
        public float* Values { get; }

        /// <summary>Ŝᵀ before the chunk, at <see cref="Scale"/>, with ẑ for its last row; on the way there [V 1]ᵀK̂.</summary>
        public float* Sums { get; }

        /// <summary>The keys' own terms.</summary>
        public float* Terms { get; }

        /// <summary>The log features of the chunk's first key, or the largest of them where every query sees all keys.</summary>
        public float* First { get; }

        /// <summary>The log scale of the state before the chunk, as it arrives.</summary>
        public float* Before { get; }

        /// <summary>The log scale that the chunk is read at, the larger of the two.</summary>
        public float* Scale { get; }

        /// <summary>Non-zero when the chunk's log features range too far for one scale.</summary>
        public int* Irregular { get; }

        public long Floats { get; }
    }

    /// <summary>A chain's state.</summary>
    public readonly unsafe struct State
    {
        public State(float* start, in LinearBackwardLayout layout)
        {
            var arena = new Arena(start);
            Sums = arena.Take((long)(layout.ValueDimension + 1) * layout.Passes.FeatureStride);
            LogScale = arena.Take(layout.Passes.FeatureStride);
            Floats = arena.Floats;
        }

        /// <summary>Ŝᵀ with ẑ for its last row, <c>(dv + 1) × FeatureStride</c>.</summary>
        public float* Sums { get; }

        /// <summary>The scale that the sums are kept at.</summary>
        public float* LogScale { get; }

        public long Floats { get; }
    }

    /// <summary>What queries ask of a chunk's keys and of what lies before it.</summary>
    public readonly unsafe struct Tile
    {
        public Tile(float* start, in LinearLayout passes, int valueDimension)
        {
            var arena = new Arena(start);
            KeyFeatureGradient = arena.Take((long)LinearLayout.Chunk * passes.FeatureStride);
            ValueGradient = arena.Take((long)LinearLayout.Chunk * passes.ValueStride);
            Asked = arena.Take((long)(valueDimension + 1) * passes.FeatureStride);
            Floats = arena.Floats;
        }

        /// <summary>dK̂, then the gradient of the log features or arguments; before that dQ̂, where one block of one head asks.</summary>
        public float* KeyFeatureGradient { get; }

        /// <summary>dV, <c>Chunk × ValueStride</c>.</summary>
        public float* ValueGradient { get; }

        /// <summary>What the chunk's queries add to R̂, laid out as it is; then R̂ behind the chunk.</summary>
        public float* Asked { get; }

        public long Floats { get; }
    }

    /// <summary>One thread's memory, and that of the chain that it works on.</summary>
    public readonly unsafe struct Room
    {
        private readonly LinearBackwardLayout _layout;
        private readonly float* _keys;
        private readonly float* _boundaries;
        private readonly float* _tiles;

        public Room(float* thread, float* chain, in LinearBackwardLayout layout)
        {
            _layout = layout;
            LinearLayout passes = layout.Passes;
            (int r, int rs, int dvs) = (passes.Features, passes.FeatureStride, passes.ValueStride);
            (int chunk, int rows) = (LinearLayout.Chunk, layout.ValueDimension + 1);
            GradientStride = layout._gradientStride;
            var arena = new Arena(thread);
            Scratch = new Scratch(arena.Take(layout._scratchFloats), r, rs, dvs, passes.InputStride, passes.InputDimension, false, passes.Gathers);
            KeysTransposed = arena.Take((long)r * chunk);
            ValuesTransposed = arena.Take((long)rows * chunk);
            Gradient = arena.Take((long)chunk * GradientStride);
            Products = arena.Take(chunk * chunk);
            QueryFeatureGradient = arena.Take((long)chunk * rs);
            ValueGradientPart = arena.Take((long)chunk * dvs);
            ValueGradientTransposed = arena.Take((long)layout.ValueDimension * chunk);
            Arguments = arena.Take(layout._isDirect ? (long)chunk * rs : 0);
            ProjectedGradient = arena.Take((long)chunk * passes.InputStride);
            InputGradient = arena.Take((long)chunk * passes.InputStride);
            RowSums = arena.Take(chunk);
            LogRows = arena.Take(passes.Segments ? (long)chunk * rs : 0);
            SegmentRows = arena.Take(passes.Segments ? (long)chunk * rs : 0);
            Before = arena.Take(passes.Segments ? rs : 0);
            SegmentState = new State(arena.Take(passes.Segments ? layout._stateFloats : 0), layout);
            ThreadFloats = arena.Floats;

            arena = new Arena(chain);
            State = new State(arena.Take(layout._stateFloats), layout);
            Expected = arena.Take(rs);
            Reverse = arena.Take((long)rows * rs);
            _keys = arena.Take(layout.KeptChunks * layout._keysFloats);
            _boundaries = arena.Take(layout._boundaries * layout._stateFloats);
            _tiles = arena.Take(layout.ChunksAtOnce * new Tile(null, passes, layout.ValueDimension).Floats);
            ChainFloats = arena.Floats;
        }

        public Scratch Scratch { get; }

        /// <summary>The chain's state while keys are added to it.</summary>
        public State State { get; }

        /// <summary>The log scale that the state will have before the next chunk that is reduced, where that is done ahead of it.</summary>
        public float* Expected { get; }

        /// <summary>R̂ᵀ with ρ for its last row, <c>(dv + 1) × FeatureStride</c>: what later queries ask of the sums and normalisers.</summary>
        public float* Reverse { get; }

        /// <summary>K̂ᵀ of the keys at hand, <c>r × Chunk</c>.</summary>
        public float* KeysTransposed { get; }

        /// <summary>[V 1]ᵀ of the keys at hand, <c>(dv + 1) × Chunk</c>.</summary>
        public float* ValuesTransposed { get; }

        /// <summary>Floats from one row of <see cref="Gradient"/>, or of <see cref="Keys.Values"/>, to the next.</summary>
        public int GradientStride { get; }

        /// <summary>Ĝ, a row for each query: the gradient of its sums, and of its normaliser.</summary>
        public float* Gradient { get; }

        /// <summary>P = Ĝ [V 1]ᵀ, the gradient of the scores; a row for each query.</summary>
        public float* Products { get; }

        /// <summary>dQ̂, then the gradient of the log features or arguments.</summary>
        public float* QueryFeatureGradient { get; }

        /// <summary>What dV has of later chunks, <c>Chunk × ValueStride</c>.</summary>
        public float* ValueGradientPart { get; }

        /// <summary>What dV has of later chunks, <c>dv × Chunk</c>.</summary>
        public float* ValueGradientTransposed { get; }

        /// <summary>Arguments of direct activations.</summary>
        public float* Arguments { get; }

        /// <summary>Gradients of x', <c>Chunk × InputStride</c>.</summary>
        public float* ProjectedGradient { get; }

        /// <summary>Gradients of x where a pre-map stands before x'.</summary>
        public float* InputGradient { get; }

        /// <summary>The gradient of each row's own term.</summary>
        public float* RowSums { get; }

        /// <summary>The log features of a chunk that is cut into segments.</summary>
        public float* LogRows { get; }

        /// <summary>K̂ of a segment.</summary>
        public float* SegmentRows { get; }

        /// <summary>The state before a segment.</summary>
        public State SegmentState { get; }

        /// <summary>Its scale before it was raised for the segment.</summary>
        public float* Before { get; }

        public long ThreadFloats { get; }

        public long ChainFloats { get; }

        /// <summary>What came of the keys of a chunk of the block at hand.</summary>
        public Keys KeysAt(int chunk) => new(_keys + (chunk % _layout.KeptChunks * _layout._keysFloats), _layout);

        /// <summary>What is asked of one of those chunks that threads keep.</summary>
        public Tile TileAt(int slot)
        {
            Tile first = new(_tiles, _layout.Passes, _layout.ValueDimension);
            return new(_tiles + (slot * first.Floats), _layout.Passes, _layout.ValueDimension);
        }

        /// <summary>The state before a block.</summary>
        public State Boundary(int block) => new(_boundaries + (block * _layout._stateFloats), _layout);
    }
}
