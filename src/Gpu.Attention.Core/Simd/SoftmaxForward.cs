using System.Numerics.Tensors;

namespace Gpu.Attention;

/// <summary>One forward pass on the host, kept and run again.</summary>
internal interface IForwardPass
{
    /// <summary>Runs a problem.</summary>
    void Run(AttentionProblem problem, in AttentionBuffers buffers);
}

/// <summary>
/// Exact softmax attention in blocks of queries and tiles of keys, with a running maximum and sum a row (online softmax), so that memory
/// does not grow with the square of the length.
/// </summary>
/// <remarks>Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao et al., "FlashAttention" (2022).</remarks>
internal sealed unsafe class SoftmaxForward<TV>(ParallelLoop loop) : IParallelBody, IForwardPass
    where TV : struct, ISimdVector<TV>
{
    /// <summary>Queries of a block: enough that laying out a tile of keys for it costs little beside using it.</summary>
    private const int BlockRows = 64 * MicroKernel<TV>.Rows;

    /// <summary>Keys of a tile: K and V of it stay in the first-level cache at the usual dimensions.</summary>
    private const int TileKeys = 64;

    private AttentionProblem _problem = null!;
    private AttentionBuffers _buffers;
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
        _blocks = LinearLayout.Pieces(problem.Shape.QueryLength, BlockRows);
        _lanes = (long)problem.Shape.Batch * problem.Shape.Heads;
        loop.Run(this, _lanes * _blocks);
        _buffers = default;
    }

    /// <inheritdoc/>
    void IParallelBody.Run(long item, int slot)
    {
        // Causal blocks grow towards the end; the longest first keeps the threads busy to the last.
        int block = _blocks - 1 - (int)(item / _lanes);
        long lane = item % _lanes;
        RunBlock(lane / _problem.Shape.Heads, (int)(lane % _problem.Shape.Heads), block * BlockRows, _scratch + (slot * _slotFloats));
    }

    private static long SlotFloats(AttentionProblem problem)
    {
        int valueStride = PackedForm<TV>.RoundUp(problem.Shape.ValueDimension);
        long floats = ((long)problem.Shape.KeyDimension * TileKeys) + ((long)TileKeys * valueStride) + ((long)BlockRows * valueStride)
            + (MicroKernel<TV>.Rows * TileKeys) + (2 * BlockRows);
        return (floats + 15) / 16 * 16;
    }

    private void RunBlock(long batch, int head, int firstQuery, float* scratch)
    {
        AttentionShape shape = _problem.Shape;
        int d = shape.KeyDimension;
        int queries = Math.Min(BlockRows, shape.QueryLength - firstQuery);
        int keyHead = head / shape.HeadGroup;
        float* keys = scratch;
        float* values = keys + ((nint)d * TileKeys);
        float* output = values + ((nint)TileKeys * _valueStride);
        float* scores = output + ((nint)BlockRows * _valueStride);
        float* maximum = scores + (MicroKernel<TV>.Rows * TileKeys);
        float* sum = maximum + BlockRows;
        for (int row = 0; row < queries; row++)
        {
            new Span<float>(output + ((nint)row * _valueStride), _valueStride).Clear();
        }

        new Span<float>(maximum, queries).Fill(float.NegativeInfinity);
        new Span<float>(sum, queries).Clear();

        int keyEnd = _problem.Causal ? Math.Min(shape.KeyLength, firstQuery + queries) : shape.KeyLength;
        int tiles = LinearLayout.Pieces(keyEnd, TileKeys);
        for (int tile = 0; tile < tiles; tile++)
        {
            int firstKey = tile * TileKeys;
            int n = Math.Min(TileKeys, keyEnd - firstKey);
            SimdBlas<TV>.Transpose(n, d, _buffers.Key.Row(batch, firstKey, keyHead), (nint)_buffers.Key.TokenStride, keys, TileKeys);
            SimdBlas<TV>.CopyRows(
                n, shape.ValueDimension, _buffers.Value.Row(batch, firstKey, keyHead), (nint)_buffers.Value.TokenStride, values, _valueStride);

            // Rows whose own key lies before the tile see nothing of it.
            int firstRow = _problem.Causal ? Math.Max(0, firstKey - firstQuery) / MicroKernel<TV>.Rows * MicroKernel<TV>.Rows : 0;
            for (int row = firstRow; row < queries; row += MicroKernel<TV>.Rows)
            {
                int height = Math.Min(MicroKernel<TV>.Rows, queries - row);
                int diagonal = _problem.Causal ? firstQuery + row - firstKey : n;
                AddTile(
                    height, n, diagonal, _buffers.Query.Row(batch, firstQuery + row, head), keys, values, scores, maximum + row, sum + row,
                    output + ((nint)row * _valueStride));
            }
        }

        for (int row = 0; row < queries; row++)
        {
            TensorPrimitives.Multiply(
                new ReadOnlySpan<float>(output + ((nint)row * _valueStride), shape.ValueDimension), sum[row] == 0 ? 0 : 1 / sum[row],
                new Span<float>(_buffers.Output.Row(batch, firstQuery + row, head), shape.ValueDimension));
        }
    }

    /// <summary>Adds a tile of n keys to up to six output rows, of which row i sees the keys up to <c>i + diagonal</c>.</summary>
    private void AddTile(
        int height, int n, int diagonal, float* query, float* keys, float* values, float* scores, float* maximum, float* sum, float* output)
    {
        int d = _problem.Shape.KeyDimension;
        MicroKernel<TV>.Multiply(
            height, PackedForm<TV>.RoundUp(n), d, query, (nint)_buffers.Query.TokenStride, keys, TileKeys, scores, TileKeys, false);
        for (int i = 0; i < height; i++)
        {
            int seen = Math.Clamp(i + diagonal + 1, 0, n);
            if (seen > 0)
            {
                Rescale(seen, scores + ((nint)i * TileKeys), maximum + i, sum + i, output + ((nint)i * _valueStride));
            }
        }

        SimdBlas<TV>.AddCausalProduct(height, diagonal, n, scores, TileKeys, values, _valueStride, _valueStride, output, _valueStride);
    }

    private void Rescale(int seen, float* scores, float* maximum, float* sum, float* output)
    {
        TV scale = TV.Broadcast(_problem.Scale);
        int whole = seen / TV.Count * TV.Count;
        int padded = PackedForm<TV>.RoundUp(seen);
        TV highest = TV.Broadcast(float.NegativeInfinity);
        for (int j = 0; j < whole; j += TV.Count)
        {
            TV value = TV.Multiply(scale, TV.Load(scores + j));
            TV.Store(value, scores + j);
            highest = TV.Max(highest, value);
        }

        float top = MathF.Max(*maximum, TV.MaxAcross(highest));
        for (int j = whole; j < padded; j++)
        {
            scores[j] = j < seen ? scores[j] * _problem.Scale : float.NegativeInfinity;
            top = MathF.Max(top, scores[j]);
        }

        if (top > *maximum)
        {
            float factor = MathF.Exp(*maximum - top);
            *maximum = top;
            *sum *= factor;
            SimdBlas<TV>.Scale(_valueStride, factor, output);
        }

        // Nothing but −∞ seen yet: any finite shift gives the weight 0.
        TV shift = TV.Broadcast(float.IsNegativeInfinity(top) ? 0 : top);
        TV total = default;
        for (int j = 0; j < padded; j += TV.Count)
        {
            TV value = SimdExp.Exp(TV.Subtract(TV.Load(scores + j), shift));
            total = TV.Add(total, value);
            TV.Store(value, scores + j);
        }

        *sum += TV.Sum(total);
    }
}
