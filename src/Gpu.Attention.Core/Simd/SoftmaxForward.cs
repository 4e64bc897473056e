using System.Numerics.Tensors;
using System.Runtime.CompilerServices;

namespace Gpu.Attention;

/// <summary>One forward pass on the host, kept and run again.</summary>
internal interface IForwardPass
{
    /// <summary>Runs a problem.</summary>
    void Run(AttentionProblem problem, in AttentionBuffers buffers);
}

/// <summary>
/// Exact softmax attention in blocks of queries and tiles of keys, with a running shift and sum a row (<see cref="OnlineSoftmax{TV}"/>), so that memory
/// does not grow with the square of the length.
/// </summary>
/// <remarks>Dao et al., "FlashAttention" (2022).</remarks>
internal sealed unsafe class SoftmaxForward<TV>(ParallelLoop loop) : IParallelBody, IForwardPass
    where TV : struct, ISimdVector<TV>
{
    /// <summary>Queries of a block: enough that laying out a tile of keys for it costs little beside using it.</summary>
    private const int BlockRows = 64 * MicroKernel<TV>.Rows;

    /// <summary>Keys of a tile: K or V of it stays in the first-level cache at the usual dimensions.</summary>
    private const int TileKeys = OnlineSoftmax<TV>.TileKeys;

    /// <summary>Rows that meet a tile of which they see all together: they go through its keys, are weighed, and go through its values.</summary>
    private const int RowsTogether = OnlineSoftmax<TV>.RowsTogether;

    private AttentionProblem _problem = null!;
    private AttentionBuffers _buffers;
    private SequencePlan? _plan;
    private float* _scratch;
    private long _slotFloats;
    private int _valueStride;
    private int _blocks;
    private long _lanes;

    public static long WorkspaceBytes(AttentionProblem problem, int degree) => degree * SlotFloats(problem) * sizeof(float);

    /// <inheritdoc/>
    public void Run(AttentionProblem problem, in AttentionBuffers buffers)
    {
        _problem = problem;
        _buffers = buffers;
        _slotFloats = SlotFloats(problem);
        _valueStride = PackedForm<TV>.RoundUp(problem.Shape.ValueDimension);
        _scratch = (float*)(((nint)buffers.Workspace.HostPointer + 63) & ~(nint)63);
        _plan = SequencePlan.Of(problem, TileKeys);
        _blocks = LinearLayout.Pieces(_plan?.MaxQueries ?? problem.Shape.QueryLength, BlockRows);
        _lanes = (long)problem.Sequences * problem.Shape.Heads;
        loop.Run(this, _lanes * _blocks);
        _buffers = default;
    }

    /// <inheritdoc/>
    void IParallelBody.Run(long item, int slot)
    {
        // Causal blocks grow towards the end; the longest first keeps the threads busy to the last.
        int block = _blocks - 1 - (int)(item / _lanes);
        long lane = item % _lanes;
        int place = (int)(lane / _problem.Shape.Heads);
        if (block * BlockRows < (_plan?.Queries(place) ?? _problem.Shape.QueryLength))
        {
            RunBlock(place, (int)(lane % _problem.Shape.Heads), block * BlockRows, new Scratch(_scratch + (slot * _slotFloats), _problem, _valueStride));
        }
    }

    private static long SlotFloats(AttentionProblem problem)
    {
        long floats = new Scratch(null, problem, PackedForm<TV>.RoundUp(problem.Shape.ValueDimension)).Floats;
        return (floats + 15) / 16 * 16;
    }

    /// <summary>How many of its sequence's keys a query sees; queries are counted from their sequence's first one on.</summary>
    private int Seen(int place, int query) =>
        _plan is not null ? _plan.Visible[_plan.FirstRow[place] + query]
        : _problem.Causal ? query + 1
        : _problem.Shape.KeyLength;

    private void RunBlock(int place, int head, int firstQuery, in Scratch scratch)
    {
        AttentionShape shape = _problem.Shape;
        int batch = _plan?.Batch[place] ?? place;
        int firstToken = firstQuery + (_plan?.FirstQuery[place] ?? 0);
        int queries = Math.Min(BlockRows, (_plan?.Queries(place) ?? shape.QueryLength) - firstQuery);
        int keyHead = head / shape.HeadGroup;
        for (int row = 0; row < queries; row++)
        {
            new Span<float>(scratch.Output + ((nint)row * _valueStride), _valueStride).Clear();
        }

        new Span<float>(scratch.Shift, queries).Fill(float.NegativeInfinity);
        new Span<float>(scratch.Sum, queries).Clear();

        // Rows of one head of many may lie so far apart that they drive each other out of the second-level cache.
        StoredRows.Copy(_buffers.Query, batch, head, new TokenList(firstToken, queries), shape.KeyDimension, scratch.Queries, shape.KeyDimension);
        int* visible = stackalloc int[BlockRows];
        for (int row = 0; row < queries; row++)
        {
            visible[row] = Seen(place, firstQuery + row);
        }

        int keyEnd = visible[queries - 1];
        int tiles = LinearLayout.Pieces(keyEnd, TileKeys);
        int firstRow = 0;
        int* seen = stackalloc int[RowsTogether];
        for (int tile = 0; tile < tiles; tile++)
        {
            int firstKey = tile * TileKeys;
            TokenList tokens = TokenList.OfKeys(_plan, place, firstKey, Math.Min(TileKeys, keyEnd - firstKey));
            float* key = StoredRows.Read(_buffers.Key, batch, keyHead, tokens, shape.KeyDimension, scratch.KeyRows, out nint keyStride);
            SimdBlas<TV>.Transpose(tokens.Count, shape.KeyDimension, key, keyStride, scratch.Keys, TileKeys);
            StoredRows.Copy(_buffers.Value, batch, keyHead, tokens, shape.ValueDimension, scratch.Values, _valueStride);

            // Rows whose last key lies before the tile see nothing of it.
            while (visible[Math.Min(firstRow + MicroKernel<TV>.Rows, queries) - 1] <= firstKey)
            {
                firstRow += MicroKernel<TV>.Rows;
            }

            for (int row = firstRow, height; row < queries; row += height)
            {
                int most = visible[row] - firstKey >= tokens.Count ? RowsTogether : MicroKernel<TV>.Rows;
                height = Math.Min(most, queries - row);
                for (int i = 0; i < height; i++)
                {
                    seen[i] = Math.Clamp(visible[row + i] - firstKey, 0, tokens.Count);
                }

                AddTile(height, seen, row, scratch);
            }
        }

        bool isFloat = _problem.Storage == ElementType.Single;
        for (int row = 0; row < queries; row++)
        {
            float* sums = scratch.Output + ((nint)row * _valueStride);
            void* output = _buffers.Output.Row(batch, firstToken + row, head);
            TensorPrimitives.Multiply(
                new ReadOnlySpan<float>(sums, shape.ValueDimension), scratch.Sum[row] == 0 ? 0 : 1 / scratch.Sum[row],
                new Span<float>(isFloat ? output : sums, shape.ValueDimension));
            if (!isFloat)
            {
                StoredRows.Narrow(sums, shape.ValueDimension, _problem.Storage, output);
            }
        }
    }

    /// <summary>Adds a tile of keys to some output rows, of which row i sees the first <c>seen[i]</c>, the last row most.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void AddTile(int height, int* seen, int row, in Scratch scratch)
    {
        int d = _problem.Shape.KeyDimension;
        float* output = scratch.Output + ((nint)row * _valueStride);
        MicroKernel<TV>.Multiply(
            height, PackedForm<TV>.RoundUp(seen[height - 1]), d, scratch.Queries + ((nint)row * d), d, scratch.Keys, TileKeys, scratch.Scores, TileKeys, false);
        for (int i = 0; i < height; i++)
        {
            if (seen[i] > 0)
            {
                OnlineSoftmax<TV>.Weigh(
                    seen[i], _problem.Scale, scratch.Scores + ((nint)i * TileKeys), scratch.Weights + ((nint)i * TileKeys), scratch.Shift + row + i,
                    scratch.Sum + row + i, _valueStride, output + ((nint)i * _valueStride));
            }
        }

        SimdBlas<TV>.AddCausalProduct(height, seen, scratch.Weights, TileKeys, scratch.Values, _valueStride, _valueStride, output, _valueStride);
    }

    /// <summary>One thread's scratch memory; with a null start only its size.</summary>
    private readonly struct Scratch
    {
        public Scratch(float* start, AttentionProblem problem, int valueStride)
        {
            long d = problem.Shape.KeyDimension;
            bool isStoredWide = problem.Storage == ElementType.Single;
            Keys = start;
            Values = Keys + (d * TileKeys);
            Output = Values + ((nint)TileKeys * valueStride);
            Scores = Output + ((nint)BlockRows * valueStride);
            Weights = Scores + (RowsTogether * TileKeys);
            Shift = Weights + (RowsTogether * TileKeys);
            Sum = Shift + BlockRows;
            KeyRows = Sum + BlockRows;
            Queries = KeyRows + (isStoredWide && problem.Layout is null ? 0 : d * TileKeys);
            Floats = Queries + (d * BlockRows) - start;
        }

        /// <summary>A tile's keys, a column each.</summary>
        public float* Keys { get; }

        /// <summary>A tile's values.</summary>
        public float* Values { get; }

        /// <summary>A block's sums.</summary>
        public float* Output { get; }

        public float* Scores { get; }

        /// <summary>What the scores come to, beside them: a row may have to be weighed twice.</summary>
        public float* Weights { get; }

        /// <summary>What each row's logits are lowered by: none is larger by much.</summary>
        public float* Shift { get; }

        public float* Sum { get; }

        /// <summary>A tile's keys gathered, as float32.</summary>
        public float* KeyRows { get; }

        /// <summary>A block's queries as float32, one behind the other.</summary>
        public float* Queries { get; }

        public long Floats { get; }
    }
}
