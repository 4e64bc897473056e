using System.Runtime.CompilerServices;

namespace Gpu.Attention;

/// <summary>
/// The backward pass of exact softmax attention in memory that grows with the length and not with its square: scores are computed again, a block of queries and a
/// tile of keys at a time. "Exact attention, backward" in <c>Simd/README.md</c> derives it.
/// </summary>
/// <remarks>
/// First over blocks of queries, which leaves each row's shift, sum and mean and makes the query gradient; then over tiles of keys, all query heads of a
/// tile one after the other. Nobody adds to what another thread writes, so the bits do not depend on threads. Dao et al., "FlashAttention" (2022).
/// </remarks>
internal sealed unsafe class SoftmaxBackward<TV>(ParallelLoop loop) : IParallelBody, IBackwardPass
    where TV : struct, ISimdVector<TV>
{
    /// <summary>Queries of a block: enough that laying out a tile of keys for it costs little beside using it.</summary>
    private const int BlockRows = 64 * MicroKernel<TV>.Rows;

    /// <summary>Keys of a tile, and queries that one meets at a time.</summary>
    private const int Tile = OnlineSoftmax<TV>.TileKeys;

    private const int LineFloats = 16;

    private AttentionProblem _problem = null!;
    private AttentionBuffers _buffers;
    private GradientBuffers _gradients;
    private SequencePlan? _plan;
    private float* _shift;
    private float* _inverse;
    private float* _mean;
    private float* _scratch;
    private long _slotFloats;
    private int _keyStride;
    private int _valueStride;
    private int _pieces;
    private long _lanes;
    private bool _isOverKeys;
    private bool _hasGradient;
    private bool _wantsQueries;
    private bool _wantsKeys;
    private bool _wantsValues;

    /// <summary>The scratch memory that a problem takes.</summary>
    public static long WorkspaceBytes(AttentionProblem problem, int degree) =>
        ((3 * RowFloats(problem)) + (degree * SlotFloats(problem))) * sizeof(float);

    /// <inheritdoc/>
    public void Run(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients)
    {
        AttentionShape shape = problem.Shape;
        (_problem, _buffers, _gradients) = (problem, buffers, gradients);
        _plan = SequencePlan.Of(problem, Tile);
        _keyStride = PackedForm<TV>.RoundUp(shape.KeyDimension);
        _valueStride = PackedForm<TV>.RoundUp(shape.ValueDimension);
        _shift = (float*)(((nint)buffers.Workspace.HostPointer + 63) & ~(nint)63);
        _inverse = _shift + RowFloats(problem);
        _mean = _inverse + RowFloats(problem);
        _scratch = _mean + RowFloats(problem);
        _slotFloats = SlotFloats(problem);
        _hasGradient = !gradients.OutputGradient.Memory.IsEmpty;
        _wantsQueries = !gradients.QueryGradient.Memory.IsEmpty;
        _wantsKeys = !gradients.KeyGradient.Memory.IsEmpty;
        _wantsValues = !gradients.ValueGradient.Memory.IsEmpty;

        _isOverKeys = false;
        _pieces = LinearLayout.Pieces(_plan?.MaxQueries ?? shape.QueryLength, BlockRows);
        _lanes = (long)problem.Sequences * shape.Heads;
        loop.Run(this, _lanes * _pieces);
        if (_wantsKeys || _wantsValues)
        {
            _isOverKeys = true;
            _pieces = Math.Max(1, LinearLayout.Pieces(_plan?.MaxKeys ?? shape.KeyLength, Tile));
            _lanes = (long)problem.Sequences * shape.KeyHeads;
            loop.Run(this, _lanes * _pieces);
        }

        (_buffers, _gradients) = (default, default);
    }

    /// <inheritdoc/>
    void IParallelBody.Run(long item, int slot)
    {
        // Causal: the last queries see most and the first keys are seen by most; the longest first keeps the threads busy to the last.
        int piece = (int)(item / _lanes);
        long lane = item % _lanes;
        float* scratch = _scratch + (slot * _slotFloats);
        if (_isOverKeys)
        {
            RunTile(
                (int)(lane / _problem.Shape.KeyHeads), (int)(lane % _problem.Shape.KeyHeads), piece, new KeyRoom(scratch, _problem, _keyStride, _valueStride));
            return;
        }

        int firstQuery = (_pieces - 1 - piece) * BlockRows;
        int place = (int)(lane / _problem.Shape.Heads);
        if (firstQuery < Queries(place))
        {
            RunBlock(place, (int)(lane % _problem.Shape.Heads), firstQuery, new QueryRoom(scratch, _problem, _keyStride, _valueStride));
        }
    }

    /// <summary>A number for each row of the output, and a vector's worth beyond, for rows are read in whole vectors.</summary>
    private static long RowFloats(AttentionProblem problem) =>
        ((problem.Shape.OutputElements / problem.Shape.ValueDimension) + (2 * LineFloats) - 1) / LineFloats * LineFloats;

    private static long SlotFloats(AttentionProblem problem)
    {
        int keyStride = PackedForm<TV>.RoundUp(problem.Shape.KeyDimension);
        int valueStride = PackedForm<TV>.RoundUp(problem.Shape.ValueDimension);
        long floats = Math.Max(new QueryRoom(null, problem, keyStride, valueStride).Floats, new KeyRoom(null, problem, keyStride, valueStride).Floats);
        return (floats + LineFloats - 1) / LineFloats * LineFloats;
    }

    private int Queries(int place) => _plan?.Queries(place) ?? _problem.Shape.QueryLength;

    private int FirstQuery(int place) => _plan?.FirstQuery[place] ?? 0;

    private int Batch(int place) => _plan?.Batch[place] ?? place;

    /// <summary>How many of its sequence's keys a query sees; queries are counted from their sequence's first one on.</summary>
    private int Seen(int place, int query) =>
        _plan is not null ? _plan.Visible[_plan.FirstRow[place] + query]
        : _problem.Causal ? query + 1
        : _problem.Shape.KeyLength;

    /// <summary>Where the numbers of a query's row stand.</summary>
    private long RowIndex(int place, int head, int query)
    {
        AttentionShape shape = _problem.Shape;
        return ((long)head * shape.Batch * shape.QueryLength) + (_plan?.FirstRow[place] ?? (long)place * shape.QueryLength) + query;
    }

    // ---- over queries ----

    private void RunBlock(int place, int head, int firstQuery, QueryRoom room)
    {
        AttentionShape shape = _problem.Shape;
        int batch = Batch(place);
        int queries = Math.Min(BlockRows, Queries(place) - firstQuery);
        var rows = new TokenList(FirstQuery(place) + firstQuery, queries);
        if (!_hasGradient)
        {
            if (_wantsQueries)
            {
                StoredRows.Clear(_gradients.QueryGradient, batch, head, rows, shape.KeyDimension);
            }

            return;
        }

        long at = RowIndex(place, head, firstQuery);
        new Span<float>(_shift + at, queries).Fill(float.NegativeInfinity);
        new Span<float>(_inverse + at, queries).Clear();
        StoredRows.Copy(_buffers.Query, batch, head, rows, shape.KeyDimension, room.Queries, shape.KeyDimension);
        StoredRows.Copy(_gradients.OutputGradient, batch, head, rows, shape.ValueDimension, room.Gradients, _valueStride);
        for (int row = 0; row < queries; row++)
        {
            StoredRows.Copy(_buffers.Output, batch, head, new TokenList(rows[row], 1), shape.ValueDimension, room.Output, _valueStride);
            _mean[at + row] = SimdBlas<TV>.Dot(_valueStride, room.Gradients + ((nint)row * _valueStride), room.Output);
            new Span<float>(room.QueryGradient + ((nint)row * _keyStride), _keyStride).Clear();
        }

        int keyEnd = Seen(place, firstQuery + queries - 1);
        int tiles = LinearLayout.Pieces(keyEnd, Tile);
        int firstRow = 0;
        int* seen = stackalloc int[OnlineSoftmax<TV>.RowsTogether];
        for (int tile = 0; tile < tiles; tile++)
        {
            int firstKey = tile * Tile;
            TokenList tokens = TokenList.OfKeys(_plan, place, firstKey, Math.Min(Tile, keyEnd - firstKey));
            ReadTile(batch, head / shape.HeadGroup, tokens, room);

            // Rows whose last key lies before the tile see nothing of it.
            while (Seen(place, firstQuery + Math.Min(firstRow + MicroKernel<TV>.Rows, queries) - 1) <= firstKey)
            {
                firstRow += MicroKernel<TV>.Rows;
            }

            for (int row = firstRow, height; row < queries; row += height)
            {
                int most = Seen(place, firstQuery + row) - firstKey >= tokens.Count ? OnlineSoftmax<TV>.RowsTogether : MicroKernel<TV>.Rows;
                height = Math.Min(most, queries - row);
                for (int i = 0; i < height; i++)
                {
                    seen[i] = Math.Clamp(Seen(place, firstQuery + row + i) - firstKey, 0, tokens.Count);
                }

                AddTile(height, seen, row, at, room);
            }
        }

        for (int row = 0; row < queries; row++)
        {
            float sum = _inverse[at + row];
            _inverse[at + row] = sum == 0 ? 0 : 1 / sum;

            // Where nothing but −∞ was seen, any finite shift gives the weight 0.
            _shift[at + row] = float.IsNegativeInfinity(_shift[at + row]) ? 0 : _shift[at + row];
            SimdBlas<TV>.Scale(_keyStride, _problem.Scale * _inverse[at + row], room.QueryGradient + ((nint)row * _keyStride), room.QueryGradient + ((nint)row * _keyStride));
        }

        if (_wantsQueries)
        {
            StoredRows.Write(_gradients.QueryGradient, batch, head, rows, shape.KeyDimension, room.QueryGradient, _keyStride);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void ReadTile(int batch, int keyHead, TokenList tokens, QueryRoom room)
    {
        AttentionShape shape = _problem.Shape;
        StoredRows.Copy(_buffers.Key, batch, keyHead, tokens, shape.KeyDimension, room.KeyRows, _keyStride);
        SimdBlas<TV>.Transpose(tokens.Count, shape.KeyDimension, room.KeyRows, _keyStride, room.Keys, Tile);
        if (_wantsQueries)
        {
            float* values = StoredRows.Read(_buffers.Value, batch, keyHead, tokens, shape.ValueDimension, room.ValueRows, out nint stride);
            SimdBlas<TV>.Transpose(tokens.Count, shape.ValueDimension, values, stride, room.Values, Tile);
        }
    }

    /// <summary>Adds a tile of keys to the sums and gradients of some rows, of which row i sees the first <c>seen[i]</c>, the last row most.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void AddTile(int height, int* seen, int row, long at, QueryRoom room)
    {
        AttentionShape shape = _problem.Shape;
        int d = shape.KeyDimension;
        int width = PackedForm<TV>.RoundUp(seen[height - 1]);
        float* gradient = room.QueryGradient + ((nint)row * _keyStride);
        MicroKernel<TV>.Multiply(height, width, d, room.Queries + ((nint)row * d), d, room.Keys, Tile, room.Scores, Tile, false);
        if (_wantsQueries)
        {
            MicroKernel<TV>.Multiply(
                height, width, shape.ValueDimension, room.Gradients + ((nint)row * _valueStride), _valueStride, room.Values, Tile, room.Products, Tile, false);
        }

        for (int i = 0; i < height; i++)
        {
            if (seen[i] > 0)
            {
                AddRow(seen[i], room.Scores + (i * Tile), room.Weights, room.Products + (i * Tile), at + row + i, gradient + ((nint)i * _keyStride));
            }
        }

        if (_wantsQueries)
        {
            SimdBlas<TV>.AddCausalProduct(height, seen, room.Scores, Tile, room.KeyRows, _keyStride, _keyStride, gradient, _keyStride);
        }
    }

    /// <summary>Puts the gradients of a row's logits where its scores were; all are divided by the sum at the end.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void AddRow(int seen, float* scores, float* weights, float* products, long row, float* gradient)
    {
        OnlineSoftmax<TV>.Weigh(seen, _problem.Scale, scores, weights, _shift + row, _inverse + row, _keyStride, gradient);
        TV mean = TV.Broadcast(_mean[row]);
        for (int j = 0; j < seen; j += TV.Count)
        {
            TV.Store(TV.Multiply(TV.Load(weights + j), TV.Subtract(TV.Load(products + j), mean)), scores + j);
        }
    }

    // ---- over keys ----

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void RunTile(int place, int keyHead, int tile, KeyRoom room)
    {
        AttentionShape shape = _problem.Shape;
        int batch = Batch(place);
        if (tile == 0 && _plan is not null)
        {
            ClearMasked(place, keyHead);
        }

        int firstKey = tile * Tile;
        int n = Math.Min(Tile, (_plan?.Keys(place) ?? shape.KeyLength) - firstKey);
        if (n <= 0)
        {
            return;
        }

        TokenList tokens = TokenList.OfKeys(_plan, place, firstKey, n);
        StoredRows.Copy(_buffers.Key, batch, keyHead, tokens, shape.KeyDimension, room.Keys, _keyStride);
        StoredRows.Copy(_buffers.Value, batch, keyHead, tokens, shape.ValueDimension, room.Values, _valueStride);
        new Span<float>(room.KeyGradient, Tile * _keyStride).Clear();
        new Span<float>(room.ValueGradient, Tile * _valueStride).Clear();
        int queries = _hasGradient ? Queries(place) : 0;
        for (int head = keyHead * shape.HeadGroup; head < (keyHead + 1) * shape.HeadGroup; head++)
        {
            for (int firstQuery = 0; firstQuery < queries; firstQuery += Tile)
            {
                int rows = Math.Min(Tile, queries - firstQuery);
                if (Seen(place, firstQuery + rows - 1) > firstKey)
                {
                    AddRows(place, head, firstQuery, rows, firstKey, n, room);
                }
            }
        }

        if (_wantsValues)
        {
            StoredRows.Write(_gradients.ValueGradient, batch, keyHead, tokens, shape.ValueDimension, room.ValueGradient, _valueStride);
        }

        if (_wantsKeys)
        {
            SimdBlas<TV>.Scale(n * _keyStride, _problem.Scale, room.KeyGradient, room.KeyGradient);
            StoredRows.Write(_gradients.KeyGradient, batch, keyHead, tokens, shape.KeyDimension, room.KeyGradient, _keyStride);
        }
    }

    /// <summary>Adds what some rows of a query head send back to a tile of n keys, each of which those rows see that come last.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void AddRows(int place, int head, int firstQuery, int rows, int firstKey, int n, KeyRoom room)
    {
        AttentionShape shape = _problem.Shape;
        int* first = stackalloc int[Tile];
        for (int key = 0, row = 0; key < n; key++)
        {
            while (row < rows && Seen(place, firstQuery + row) <= firstKey + key)
            {
                row++;
            }

            first[key] = row;
        }

        var tokens = new TokenList(FirstQuery(place) + firstQuery, rows);
        int width = PackedForm<TV>.RoundUp(rows);
        StoredRows.Copy(_buffers.Query, Batch(place), head, tokens, shape.KeyDimension, room.Queries, _keyStride);
        StoredRows.Copy(_gradients.OutputGradient, Batch(place), head, tokens, shape.ValueDimension, room.Gradients, _valueStride);
        SimdBlas<TV>.Transpose(rows, shape.KeyDimension, room.Queries, _keyStride, room.Columns, Tile);
        MultiplySeen(n, width, first, shape.KeyDimension, room.Keys, _keyStride, room.Columns, room.Weights);
        if (_wantsKeys)
        {
            SimdBlas<TV>.Transpose(rows, shape.ValueDimension, room.Gradients, _valueStride, room.Columns, Tile);
            MultiplySeen(n, width, first, shape.ValueDimension, room.Values, _valueStride, room.Columns, room.Products);
        }

        long at = RowIndex(place, head, firstQuery);
        TV scale = TV.Broadcast(_problem.Scale);
        for (int key = 0; key < n; key++)
        {
            float* weights = room.Weights + (key * Tile);
            float* products = room.Products + (key * Tile);
            for (int row = first[key] / TV.Count * TV.Count; row < width; row += TV.Count)
            {
                TV logit = TV.Multiply(scale, TV.Load(weights + row));
                TV weight = TV.Multiply(SimdExp.Exp(TV.Subtract(logit, TV.Load(_shift + at + row))), TV.Load(_inverse + at + row));
                TV.Store(weight, weights + row);
                TV.Store(TV.Multiply(weight, TV.Subtract(TV.Load(products + row), TV.Load(_mean + at + row))), products + row);
            }
        }

        if (_wantsValues)
        {
            SimdBlas<TV>.AddSuffixProduct(
                n, rows, first, room.Weights, Tile, false, room.Gradients, _valueStride, _valueStride, room.ValueGradient, _valueStride);
        }

        if (_wantsKeys)
        {
            SimdBlas<TV>.AddSuffixProduct(n, rows, first, room.Products, Tile, false, room.Queries, _keyStride, _keyStride, room.KeyGradient, _keyStride);
        }
    }

    /// <summary><c>A B</c>, a row for each key and a column for each query, from the first query on that sees the key; what stands before is of no meaning.</summary>
    private static void MultiplySeen(int n, int width, int* first, int inner, float* a, nint aStride, float* b, float* product)
    {
        int most = first[n - 1] < TV.Count ? n : MicroKernel<TV>.Rows;
        for (int key = 0; key < n; key += most)
        {
            int from = first[key] / TV.Count * TV.Count;
            MicroKernel<TV>.Multiply(
                Math.Min(most, n - key), width - from, inner, a + (key * aStride), aStride, b + from, Tile, product + ((nint)key * Tile) + from, Tile,
                false);
        }
    }

    /// <summary>Keys that take no part have no gradient.</summary>
    private void ClearMasked(int place, int keyHead)
    {
        if (_wantsKeys)
        {
            StoredRows.ClearMasked(_gradients.KeyGradient, _problem.Layout!, _plan!, place, keyHead, _problem.Shape.KeyDimension);
        }

        if (_wantsValues)
        {
            StoredRows.ClearMasked(_gradients.ValueGradient, _problem.Layout!, _plan!, place, keyHead, _problem.Shape.ValueDimension);
        }
    }

    /// <summary>One thread's scratch memory over queries; with a null start only its size.</summary>
    private readonly struct QueryRoom
    {
        public QueryRoom(float* start, AttentionProblem problem, int keyStride, int valueStride)
        {
            (long d, long dv) = (problem.Shape.KeyDimension, problem.Shape.ValueDimension);
            Keys = start;
            Values = Keys + (d * Tile);
            KeyRows = Values + (dv * Tile);
            ValueRows = KeyRows + ((long)keyStride * Tile);
            Gradients = ValueRows + (dv * Tile);
            QueryGradient = Gradients + ((long)valueStride * BlockRows);
            Output = QueryGradient + ((long)keyStride * BlockRows);
            Scores = Output + valueStride;
            Weights = Scores + (OnlineSoftmax<TV>.RowsTogether * Tile);
            Products = Weights + Tile;
            Queries = Products + (OnlineSoftmax<TV>.RowsTogether * Tile);
            Floats = Queries + (d * BlockRows) - start;
        }

        /// <summary>A tile's keys, a column each.</summary>
        public float* Keys { get; }

        /// <summary>A tile's values, a column each.</summary>
        public float* Values { get; }

        public float* KeyRows { get; }

        /// <summary>A tile's values gathered, as float32.</summary>
        public float* ValueRows { get; }

        /// <summary>A block's output gradients.</summary>
        public float* Gradients { get; }

        public float* QueryGradient { get; }

        /// <summary>One row of the output.</summary>
        public float* Output { get; }

        public float* Scores { get; }

        /// <summary>One row's weights.</summary>
        public float* Weights { get; }

        /// <summary><c>g·v</c> for each score.</summary>
        public float* Products { get; }

        /// <summary>A block's queries as float32, one behind the other.</summary>
        public float* Queries { get; }

        public long Floats { get; }
    }

    /// <summary>One thread's scratch memory over keys; with a null start only its size. What is laid out by keys has a row of queries for each.</summary>
    private readonly struct KeyRoom
    {
        public KeyRoom(float* start, AttentionProblem problem, int keyStride, int valueStride)
        {
            Keys = start;
            Values = Keys + ((long)keyStride * Tile);
            KeyGradient = Values + ((long)valueStride * Tile);
            ValueGradient = KeyGradient + ((long)keyStride * Tile);
            Queries = ValueGradient + ((long)valueStride * Tile);
            Gradients = Queries + ((long)keyStride * Tile);
            Weights = Gradients + ((long)valueStride * Tile);
            Products = Weights + (Tile * Tile);
            Columns = Products + (Tile * Tile);
            Floats = Columns + ((long)Math.Max(problem.Shape.KeyDimension, problem.Shape.ValueDimension) * Tile) - start;
        }

        public float* Keys { get; }

        public float* Values { get; }

        public float* KeyGradient { get; }

        public float* ValueGradient { get; }

        public float* Queries { get; }

        /// <summary>Output gradients.</summary>
        public float* Gradients { get; }

        public float* Weights { get; }

        /// <summary><c>v·g</c>, then the gradients of the logits.</summary>
        public float* Products { get; }

        /// <summary>Queries, then output gradients, a column each.</summary>
        public float* Columns { get; }

        public long Floats { get; }
    }
}
