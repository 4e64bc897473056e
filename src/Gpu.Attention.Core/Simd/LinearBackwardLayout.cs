using Arena = Gpu.Attention.LinearLayout.Arena;
using Keys = Gpu.Attention.LinearLayout.Keys;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;

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

    /// <summary>Chunks, or blocks of queries, that every thread finds at once where nothing is asked of a chunk but its sums.</summary>
    private const int ChunksPerThread = 8;

    private readonly int _boundaries;
    private readonly int _gradientStride;
    private readonly bool _isDirect;
    private readonly int _tiles;

    public unsafe LinearBackwardLayout(AttentionProblem problem, int degree, int vectorLength)
    {
        Passes = new LinearLayout(problem, degree, vectorLength, sweepsTokens: false);
        bool byChain = Passes.ByChain;
        KeptChunks = problem.Causal ? Math.Clamp(Passes.KeyChunks, 1, BlockChunks)
            : byChain ? 1
            : Math.Clamp(Math.Max(Passes.KeyChunks, Passes.QueryBlocks), 1, (int)Math.Min(BlockChunks, (long)ChunksPerThread * degree));
        _tiles = byChain ? 1 : KeptChunks;
        _boundaries = problem.Causal ? Math.Max(1, LinearLayout.Pieces(Passes.KeyChunks, BlockChunks)) : 0;
        _gradientStride = LinearLayout.RoundUp(problem.Shape.ValueDimension + 1, vectorLength);
        _isDirect = problem.Features!.Family == FeatureFamily.Direct;
        ValueDimension = problem.Shape.ValueDimension;
        Threads = byChain ? Math.Clamp(Passes.Chains, 1, degree) : degree;
        Room room = new(null, null, this);
        ThreadFloats = room.ThreadFloats;
        ChainFloats = room.ChainFloats;
        Bytes = ((Threads * ThreadFloats) + ((byChain ? Threads : 1) * ChainFloats)) * sizeof(float);
    }

    /// <summary>What a backward pass has in common with a forward pass.</summary>
    public LinearLayout Passes { get; }

    public int ValueDimension { get; }

    /// <summary>Chunks whose keys are kept at once.</summary>
    public int KeptChunks { get; }

    public long Threads { get; }

    public long ThreadFloats { get; }

    public long ChainFloats { get; }

    public long Bytes { get; }

    /// <summary>The memory that a thread works in.</summary>
    public unsafe Room RoomAt(float* start, int slot) => new(
        start + (slot * ThreadFloats), start + (Threads * ThreadFloats) + (Passes.ByChain ? slot * ChainFloats : 0), this);

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

        /// <summary>dK̂, then the gradient of the log features or arguments.</summary>
        public float* KeyFeatureGradient { get; }

        /// <summary>dV, <c>Chunk × ValueStride</c>.</summary>
        public float* ValueGradient { get; }

        /// <summary>What the chunk's queries add to R̂, laid out as it is; after a scan, R̂ behind the chunk.</summary>
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
            Scratch = new Scratch(arena.Take(passes.ScratchFloats), r, rs, dvs, passes.InputStride, passes.InputDimension, passes.Segments, passes.Gathers);
            StateTransposed = arena.Take((long)rows * rs);
            ValuesTransposed = arena.Take((long)rows * chunk);
            KeyRows = arena.Take((long)chunk * rs);
            Gradient = arena.Take((long)chunk * GradientStride);
            GradientTransposed = arena.Take((long)rows * chunk);
            Products = arena.Take(chunk * chunk);
            Turned = arena.Take(chunk * chunk);
            QueryFeatureGradient = arena.Take((long)chunk * rs);
            ValueGradientPart = arena.Take((long)chunk * dvs);
            ValueGradientTransposed = arena.Take((long)layout.ValueDimension * chunk);
            Arguments = arena.Take(layout._isDirect ? (long)chunk * rs : 0);
            ProjectedGradient = arena.Take((long)chunk * passes.InputStride);
            InputGradient = arena.Take((long)chunk * passes.InputStride);
            RowSums = arena.Take(chunk);
            Before = arena.Take(rs);
            ThreadFloats = arena.Floats;

            arena = new Arena(chain);
            State = new State(arena.Take(passes.StateFloats), r, rs, dvs);
            Reverse = arena.Take((long)rows * rs);
            _keys = arena.Take(layout.KeptChunks * passes.KeysFloats);
            _boundaries = arena.Take(layout._boundaries * passes.StateFloats);
            _tiles = arena.Take(layout._tiles * new Tile(null, passes, layout.ValueDimension).Floats);
            ChainFloats = arena.Floats;
        }

        public Scratch Scratch { get; }

        /// <summary>The chain's state while keys are added to it.</summary>
        public State State { get; }

        /// <summary>R̂ᵀ with ρ for its last row, <c>(dv + 1) × FeatureStride</c>: what later queries ask of the sums and normalisers.</summary>
        public float* Reverse { get; }

        /// <summary>Ŝᵀ with ẑ for its last row.</summary>
        public float* StateTransposed { get; }

        /// <summary>[V 1]ᵀ, <c>(dv + 1) × Chunk</c>.</summary>
        public float* ValuesTransposed { get; }

        /// <summary>K̂, <c>Chunk × FeatureStride</c>.</summary>
        public float* KeyRows { get; }

        /// <summary>Floats from one row of <see cref="Gradient"/> to the next.</summary>
        public int GradientStride { get; }

        /// <summary>Ĝ, a row for each query: the gradient of its sums, and of its normaliser.</summary>
        public float* Gradient { get; }

        /// <summary>Ĝᵀ, <c>(dv + 1) × Chunk</c>.</summary>
        public float* GradientTransposed { get; }

        /// <summary>P = Ĝ [V 1]ᵀ, the gradient of the scores; a row for each query.</summary>
        public float* Products { get; }

        /// <summary>Products or scores, a row for each key.</summary>
        public float* Turned { get; }

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

        /// <summary>The scale of the state before a chunk or segment was added.</summary>
        public float* Before { get; }

        public long ThreadFloats { get; }

        public long ChainFloats { get; }

        /// <summary>What came of a chunk of the block at hand; after a scan, with the state before it.</summary>
        public Keys KeysAt(int chunk)
        {
            LinearLayout passes = _layout.Passes;
            return new(_keys + (chunk % _layout.KeptChunks * passes.KeysFloats), passes.Features, passes.FeatureStride, passes.ValueStride);
        }

        /// <summary>What is asked of a chunk of the block at hand.</summary>
        public Tile TileAt(int chunk)
        {
            Tile first = new(_tiles, _layout.Passes, _layout.ValueDimension);
            return _layout._tiles == 1 ? first : new(_tiles + (chunk % _layout.KeptChunks * first.Floats), _layout.Passes, _layout.ValueDimension);
        }

        /// <summary>The state before a block.</summary>
        public State Boundary(int block)
        {
            LinearLayout passes = _layout.Passes;
            return new(_boundaries + (block * passes.StateFloats), passes.Features, passes.FeatureStride, passes.ValueStride);
        }
    }
}
