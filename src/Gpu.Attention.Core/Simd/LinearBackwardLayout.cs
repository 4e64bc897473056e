using Arena = Gpu.Attention.LinearLayout.Arena;
using Keys = Gpu.Attention.LinearLayout.Keys;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;

namespace Gpu.Attention;

/// <summary>Sizes and places of everything that a linear backward pass keeps in its workspace, in floats.</summary>
/// <remarks>
/// Each chain runs in one thread's room. Causal, a room keeps what came of the keys of one block of chunks, with the state before each of them, and the state
/// before each block: <c>(256 + chunks / 256)</c> states at most, whatever the length.
/// </remarks>
internal readonly struct LinearBackwardLayout
{
    /// <summary>Chunks of a block.</summary>
    public const int BlockChunks = 256;

    private readonly int _keptChunks;
    private readonly int _boundaries;
    private readonly int _gradientStride;
    private readonly bool _isDirect;

    public unsafe LinearBackwardLayout(AttentionProblem problem, int degree, int vectorLength)
    {
        Passes = new LinearLayout(problem, degree: 1, vectorLength, sweepsTokens: false);
        _keptChunks = problem.Causal ? Math.Clamp(Passes.KeyChunks, 1, BlockChunks) : 1;
        _boundaries = problem.Causal ? Math.Max(1, LinearLayout.Pieces(Passes.KeyChunks, BlockChunks)) : 0;
        _gradientStride = LinearLayout.RoundUp(problem.Shape.ValueDimension + 1, vectorLength);
        _isDirect = problem.Features!.Family == FeatureFamily.Direct;
        ValueDimension = problem.Shape.ValueDimension;
        RoomFloats = RoomAt(null).Floats;
        Bytes = Math.Clamp(Passes.Chains, 1, degree) * RoomFloats * sizeof(float);
    }

    /// <summary>What a backward pass has in common with a forward pass in one thread.</summary>
    public LinearLayout Passes { get; }

    public int ValueDimension { get; }

    public long RoomFloats { get; }

    public long Bytes { get; }

    public unsafe Room RoomAt(float* start) => new(start, this);

    /// <summary>One thread's memory.</summary>
    public readonly unsafe struct Room
    {
        private readonly LinearLayout _passes;
        private readonly float* _keys;
        private readonly float* _boundaries;

        public Room(float* start, in LinearBackwardLayout layout)
        {
            _passes = layout.Passes;
            (int r, int rs, int dvs) = (_passes.Features, _passes.FeatureStride, _passes.ValueStride);
            (int chunk, int rows) = (LinearLayout.Chunk, layout.ValueDimension + 1);
            GradientStride = layout._gradientStride;
            var arena = new Arena(start);
            Scratch = new Scratch(
                arena.Take(_passes.ScratchFloats), r, rs, dvs, _passes.InputStride, _passes.InputDimension, _passes.Segments, _passes.Gathers);
            State = new State(arena.Take(_passes.StateFloats), r, rs, dvs);
            _keys = arena.Take(layout._keptChunks * _passes.KeysFloats);
            _boundaries = arena.Take(layout._boundaries * _passes.StateFloats);
            Reverse = arena.Take((long)rows * rs);
            StateTransposed = arena.Take((long)rows * rs);
            ValuesTransposed = arena.Take((long)rows * chunk);
            KeyRows = arena.Take((long)chunk * rs);
            Gradient = arena.Take((long)chunk * GradientStride);
            GradientTransposed = arena.Take((long)rows * chunk);
            Products = arena.Take(chunk * chunk);
            Turned = arena.Take(chunk * chunk);
            QueryFeatureGradient = arena.Take((long)chunk * rs);
            KeyFeatureGradient = arena.Take((long)chunk * rs);
            ValueGradient = arena.Take((long)chunk * dvs);
            ValueGradientTransposed = arena.Take((long)layout.ValueDimension * chunk);
            Arguments = arena.Take(layout._isDirect ? (long)chunk * rs : 0);
            ProjectedGradient = arena.Take((long)chunk * _passes.InputStride);
            InputGradient = arena.Take((long)chunk * _passes.InputStride);
            RowSums = arena.Take(chunk);
            Before = arena.Take(rs);
            Floats = arena.Floats;
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

        /// <summary>dK̂, then the gradient of the log features or arguments.</summary>
        public float* KeyFeatureGradient { get; }

        /// <summary>dV, <c>Chunk × ValueStride</c>.</summary>
        public float* ValueGradient { get; }

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

        public long Floats { get; }

        /// <summary>What came of a chunk of the block at hand; after a scan, with the state before it.</summary>
        public Keys KeysAt(int chunk) => new(
            _keys + (chunk % BlockChunks * _passes.KeysFloats), _passes.Features, _passes.FeatureStride, _passes.ValueStride);

        /// <summary>The state before a block.</summary>
        public State Boundary(int block) =>
            new(_boundaries + (block * _passes.StateFloats), _passes.Features, _passes.FeatureStride, _passes.ValueStride);
    }
}
