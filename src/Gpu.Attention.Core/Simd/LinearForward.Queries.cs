using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using Keys = Gpu.Attention.LinearLayout.Keys;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;

namespace Gpu.Attention;

// Queries: their features, what they read of a state and of the chunk that they see a part of, and what is written of it.
internal unsafe partial class LinearForward<TV>
{
    /// <summary>Every block that reads nothing but a state, of the chains that a thread takes together.</summary>
    private void ReadStateBlocks(long firstChain, int chains, long firstState, int from, int to, in Scratch scratch)
    {
        (int block, int end) = BlocksOf(Place(firstChain), -1);
        end = (int)Math.Min(end, block + (long)to);
        for (block += from; block < end; block++)
        {
            for (int i = 0; i < chains; i++)
            {
                ReadState(firstChain + i, BlockAt(block), StateAt(firstState + i), scratch);
            }
        }
    }

    /// <summary>One of them, if there are so many.</summary>
    private void ReadStateBlock(long chain, int index, in Scratch scratch)
    {
        (int first, int end) = BlocksOf(Place(chain), -1);
        if (index < end - first)
        {
            ReadState(chain, BlockAt(first + index), StateAt(chain), scratch);
        }
    }

    /// <summary>A block of queries that sees everything the state has seen, or nothing but that.</summary>
    private void ReadState(long chain, QueryBlock block, in State state, in Scratch scratch)
    {
        if (!_problem.HasInitialState && (_problem.Causal || KeysOf(Place(chain)) == 0))
        {
            ClearOutput(chain, block);
            return;
        }

        ReadHeads(chain, block.FirstQuery, block.Queries, scratch, state.LogScale, state.Sums, state.Normalizers, null, null, 0);
    }

    /// <summary>Rows that see no key are 0, whatever the query holds.</summary>
    private void ClearOutput(long chain, QueryBlock block)
    {
        int place = Place(chain);
        int firstHead = KeyHead(chain) * _problem.Shape.HeadGroup;
        var tokens = new TokenList(block.FirstQuery, block.Queries);
        for (int head = firstHead; head < firstHead + _problem.Shape.HeadGroup; head++)
        {
            StoredRows.Clear(_buffers.Output, BatchRow(place), head, tokens, _problem.Shape.ValueDimension);
        }
    }

    /// <summary>The queries that see a part of a chunk and the state before it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void ReadCausal(long chain, int chunk, in Keys keys, in Scratch scratch, bool prefixInDelta, in State state)
    {
        (int block, int end) = BlocksOf(Place(chain), chunk);
        if (block == end)
        {
            return;
        }

        float* sums = prefixInDelta ? keys.Delta : state.Sums;
        float* normalizers = prefixInDelta ? keys.DeltaZ : state.Normalizers;
        if (*keys.Irregular != 0)
        {
            ReadInSegments(chain, chunk, keys, scratch, sums, normalizers);
            return;
        }

        for (; block < end; block++)
        {
            (int query, int n, _) = BlockAt(block);
            ReadHeads(chain, query, n, scratch, keys.Scale, sums, normalizers, keys.Transposed, keys.Values, chunk * Chunk);
        }
    }

    private void ReadInSegments(long chain, int chunk, in Keys keys, in Scratch scratch, float* sums, float* normalizers)
    {
        int n = KeyTokens(Place(chain), chunk).Count;
        LogKeyFeatures(chain, chunk, scratch);
        State state = scratch.SegmentState;
        Copy(sums, state.Sums, (long)_layout.Features * _layout.ValueStride);
        Copy(normalizers, state.Normalizers, _layout.FeatureWidth);
        Copy(keys.Scale, state.LogScale, _layout.FeatureWidth);
        for (int start = 0; start < n;)
        {
            Keys segment = ReduceSegment(start, n, out int end, keys.Values, state.LogScale, scratch);
            Raise(state, segment, 0, _layout.FeatureWidth, scratch);
            ReadSegment(chain, chunk, start, end, keys.Values, state, scratch);
            Absorb(state, segment, 0, _layout.FeatureWidth, keepPrefix: false);
            start = end;
        }
    }

    /// <summary>The queries whose last key lies in a segment.</summary>
    private void ReadSegment(long chain, int chunk, int start, int end, float* values, in State state, in Scratch scratch)
    {
        int place = Place(chain);
        int before = (chunk * Chunk) + start;
        (int block, int endBlock) = BlocksOf(place, chunk);
        for (; block < endBlock; block++)
        {
            (int query, int n, _) = BlockAt(block);
            int endQuery = query + n;
            while (query < endQuery && Seen(place, query) <= before)
            {
                query++;
            }

            int stop = query;
            while (stop < endQuery && Seen(place, stop) <= before - start + end)
            {
                stop++;
            }

            if (stop > query)
            {
                Keys segment = scratch.SegmentKeys;
                ReadHeads(
                    chain, query, stop - query, scratch, segment.Scale, state.Sums, state.Normalizers, segment.Transposed + start,
                    values + ((nint)start * _layout.ValueStride), before);
            }
        }
    }

    /// <summary>
    /// Output rows of every query head that reads a key head: the state, and of the keys, when there are any, those that a row sees; the first of them is
    /// number <paramref name="before"/> of the sequence.
    /// </summary>
    private void ReadHeads(
        long chain, int token, int n, in Scratch scratch, float* scale, float* sums, float* normalizers, float* keysTransposed, float* values, int before)
    {
        AttentionShape shape = _problem.Shape;
        int place = Place(chain);
        int batch = BatchRow(place);
        int* seen = stackalloc int[Chunk];
        for (int row = 0; keysTransposed is not null && row < n; row++)
        {
            seen[row] = Seen(place, token + row) - before;
        }

        int firstHead = KeyHead(chain) * shape.HeadGroup;
        for (int head = firstHead; head < firstHead + shape.HeadGroup; head++)
        {
            float* x = StoredRows.Read(_buffers.Query, batch, head, new TokenList(token, n), shape.KeyDimension, scratch.Rows, out nint stride);
            QueryFeatures(x, n, stride, scratch, scale, normalizers);
            if (keysTransposed is not null)
            {
                Scores(n, seen, scratch, keysTransposed);
            }

            Read(n, token, head, batch, scratch, sums, keysTransposed is null ? null : seen, values);
        }
    }

    /// <summary>
    /// Q̂S and, where rows see a part of a chunk, scores times its values; what comes of a few rows is divided and written while it is at hand. Queries and outputs of
    /// this thread's next chunk are on their way meanwhile.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void Read(int n, int token, int head, int batch, in Scratch scratch, float* sums, int* seen, float* values)
    {
        AttentionShape shape = _problem.Shape;

        // Heads that are taken side by side have the same tokens.
        int heads = shape.HeadGroup * _layout.ChainsTogether;
        bool isLast = (head + 1) % heads == 0;
        int next = isLast ? token + (_chunksApart * n) : token;
        int nextHead = isLast ? head + 1 - heads : head + 1;
        LinesAhead ahead = default;
        if (!AsksWithKeys && next < shape.QueryLength)
        {
            int rows = Math.Min(n, shape.QueryLength - next);
            ahead.AddRows(_buffers.Query, batch, next, nextHead, shape.KeyDimension, rows);
            ahead.AddRows(_buffers.Output, batch, next, nextHead, shape.ValueDimension, rows);
        }

        (int rs, int dvs) = (_layout.FeatureStride, _layout.ValueStride);
        nint stride = (nint)_buffers.Output.TokenStride;
        float* factors = stackalloc float[Chunk];
        bool isPlain = PlainFactors(n, scratch.Denominator, factors);
        ahead.Expect(MicroKernel<TV>.Tiles(n, dvs));
        for (int row = 0; row < n; row += MicroKernel<TV>.Rows)
        {
            int height = Math.Min(MicroKernel<TV>.Rows, n - row);
            float* queries = scratch.Queries + ((nint)row * rs);
            if (seen is null)
            {
                MicroKernel<TV>.Multiply(height, dvs, _layout.Features, queries, rs, sums, dvs, scratch.Output, dvs, false, &ahead);
            }
            else
            {
                SimdBlas<TV>.CausalProduct(
                    height, dvs, _layout.Features, queries, rs, sums, dvs, seen + row, scratch.Scores + ((nint)row * Chunk), Chunk, values, dvs, scratch.Output, dvs,
                    &ahead);
            }

            void* output = _buffers.Output.Row(batch, token + row, head);
            if (isPlain)
            {
                SimdBlas<TV>.ScaleRows(height, dvs, factors + row, scratch.Output, dvs, (float*)output, stride);
            }
            else
            {
                WriteOutput(row, height, scratch.Output, output, stride, scratch);
            }
        }
    }

    /// <summary>What rows are multiplied by, if that is all that is to be done: float32 rows of whole vectors under normalisers that may be inverted.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private bool PlainFactors(int n, float* denominators, float* factors)
    {
        bool isPlain = _problem.Normalize && _problem.Storage == ElementType.Single && _problem.Convention != ReferenceConvention.Jax &&
            _problem.Shape.ValueDimension == _layout.ValueStride;
        for (int row = 0; isPlain && row < n; row++)
        {
            isPlain = SimdBlas<TV>.TryInvert(denominators[row], out factors[row]);
        }

        return isPlain;
    }

    /// <summary>Some rows' sums to outputs, the first of them being a row of a chunk whose normalisers are known.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void WriteOutput(int first, int n, float* rows, void* output, nint stride, in Scratch scratch)
    {
        int dv = _problem.Shape.ValueDimension;
        bool isFloat = _problem.Storage == ElementType.Single;
        for (int row = 0; row < n; row++)
        {
            float* result = rows + ((nint)row * _layout.ValueStride);
            var sums = new ReadOnlySpan<float>(result, dv);
            var target = new Span<float>(isFloat ? (float*)output + (row * stride) : result, dv);
            if (_problem.Normalize)
            {
                float denominator = scratch.Denominator[first + row];
                if (_problem.Convention == ReferenceConvention.Jax && _mode == FeatureMode.Stabilized && MathF.Abs(denominator) <= _epsilon)
                {
                    denominator += 2 * _epsilon;
                }

                if (denominator == 0)
                {
                    target.Clear();
                }
                else
                {
                    SimdBlas<TV>.Divide(dv, result, denominator, isFloat ? (float*)output + (row * stride) : result);
                }
            }
            else if (_mode == FeatureMode.Logarithmic)
            {
                // In two steps: e^M alone may overflow or vanish where its product with sums of e^(l − s) does neither.
                float root = MathF.Exp((scratch.RowMaximum[first + row] + scratch.RowTerm[first + row]) / 2);
                TensorPrimitives.Multiply(sums, root, target);
                TensorPrimitives.Multiply(target, root, target);
            }
            else
            {
                TensorPrimitives.Multiply(sums, _problem.Scale, target);
            }

            if (!isFloat)
            {
                StoredRows.Narrow(result, dv, _problem.Storage, (ushort*)output + (row * stride));
            }
        }
    }
}
