using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Keys = Gpu.Attention.LinearBackwardLayout.Keys;
using Room = Gpu.Attention.LinearBackwardLayout.Room;
using State = Gpu.Attention.LinearBackwardLayout.State;

namespace Gpu.Attention;

// Keys forward: their features, a row for each key, and the states before them, transposed as the products that go back take them.
internal sealed unsafe partial class LinearBackward<TV>
{
    // ---- features ----

    /// <summary>A chunk's values, its keys as far as the projection, and the log features that its scale comes from.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void ProjectKeys(long chain, int chunk, in Keys keys, in Room room)
    {
        int place = Place(chain);
        int dv = _problem.Shape.ValueDimension;
        TokenList tokens = KeyTokens(place, chunk);
        int n = tokens.Count;
        *keys.Irregular = 0;
        StoredRows.Copy(_buffers.Value, BatchRow(place), KeyHead(chain), tokens, dv, keys.Values, room.GradientStride);
        for (int row = 0; row < n; row++)
        {
            keys.Values[((nint)row * room.GradientStride) + dv] = 1;
        }

        float* x = StoredRows.Read(_buffers.Key, BatchRow(place), KeyHead(chain), tokens, _layout.InputDimension, room.Scratch.Rows, out nint stride);
        LinesAhead ahead = default;
        if (_problem.Causal && chunk + _chunksApart < KeyChunks(place))
        {
            // Where the next chunk's features go.
            ahead.AddStretch(room.KeysAt(chunk + _chunksApart).Rows, (long)Chunk * _layout.FeatureStride);
        }

        ProjectRows(_key, n, x, stride, keys.Rows, keys.Terms, room.Scratch, &ahead);
        if (_mode != FeatureMode.Logarithmic)
        {
            return;
        }

        // The scale of a causal chunk knows its first key only; where every query sees all keys it may be the largest.
        LogFeatures(keys.Rows, keys.Terms[0], keys.First);
        for (int row = 1; row < n && !_problem.Causal; row++)
        {
            TV term = TV.Broadcast(keys.Terms[row]);
            float* logs = keys.Rows + ((nint)row * _layout.FeatureStride);
            for (int i = 0; i < _layout.FeatureWidth; i += TV.Count)
            {
                TV log = TV.Add(TV.Add(TV.Load(logs + i), TV.Load(_key.Offset + i)), term);
                TV.Store(TV.MaxOrNaN(TV.Load(keys.First + i), log), keys.First + i);
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void LogFeatures(float* projected, float rowTerm, float* logs)
    {
        TV term = TV.Broadcast(rowTerm);
        for (int i = 0; i < _layout.FeatureWidth; i += TV.Count)
        {
            TV.Store(TV.Add(TV.Add(TV.Load(projected + i), TV.Load(_key.Offset + i)), term), logs + i);
        }

        // A row that is not finite has spoilt what pads it, and a scale there must spoil nothing else.
        new Span<float>(logs + _layout.Features, _layout.FeatureWidth - _layout.Features).Fill(float.NegativeInfinity);
    }

    /// <summary>Projected keys to features, at a scale where they are logarithms. False when they rise too far above it for float32.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private bool FinishKeyRows(int n, in Keys keys, float* scale, in Room room)
    {
        (int width, int rs) = (_layout.FeatureWidth, _layout.FeatureStride);
        if (_mode == FeatureMode.Logarithmic)
        {
            return ExponentiateRows(n, keys.Rows, keys.Terms, _key.Offset, scale, keys.Rows, room);
        }

        for (int row = 0; row < n; row++)
        {
            AddTerms(_key, keys.Terms[row], keys.Rows + ((nint)row * rs));
        }

        ActivateRows(_key.Form.Activation, n, _layout.Features, keys.Rows, rs);
        for (int row = 0; width > _layout.Features && row < n; row++)
        {
            new Span<float>(keys.Rows + ((nint)row * rs) + _layout.Features, width - _layout.Features).Clear();
        }

        return true;
    }

    /// <summary><c>target = e^(logs + offset + term − scale)</c>; false when any is too large for a causal chunk.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private bool ExponentiateRows(int n, float* logs, float* terms, float* offset, float* scale, float* target, in Room room)
    {
        (int width, int rs) = (_layout.FeatureWidth, _layout.FeatureStride);
        float* shift = room.Scratch.Bias;
        for (int i = 0; i < width; i += TV.Count)
        {
            // Features that are switched off, or that pad a row, are −∞ less something finite.
            TV.Store(TV.Finite(TV.Load(scale + i)), shift + i);
        }

        bool isRegular = true;
        for (int row = 0; row < n; row++)
        {
            float* x = logs + ((nint)row * rs);
            float* y = target + ((nint)row * rs);
            TV term = TV.Broadcast(terms[row]);
            TV total = default;
            int i = 0;
            for (; i <= width - (4 * TV.Count); i += 4 * TV.Count)
            {
                // Added as where the scale comes from: there the difference is 0.
                TV x0 = Lowered(x + i, offset + i, term, shift + i);
                TV x1 = Lowered(x + i + TV.Count, offset + i + TV.Count, term, shift + i + TV.Count);
                TV x2 = Lowered(x + i + (2 * TV.Count), offset + i + (2 * TV.Count), term, shift + i + (2 * TV.Count));
                TV x3 = Lowered(x + i + (3 * TV.Count), offset + i + (3 * TV.Count), term, shift + i + (3 * TV.Count));
                SimdExp.Exp(ref x0, ref x1, ref x2, ref x3);
                TV.Store(x0, y + i);
                TV.Store(x1, y + i + TV.Count);
                TV.Store(x2, y + i + (2 * TV.Count));
                TV.Store(x3, y + i + (3 * TV.Count));
                total = TV.Add(total, TV.Add(TV.Add(x0, x1), TV.Add(x2, x3)));
            }

            for (; i < width; i += TV.Count)
            {
                TV feature = SimdExp.Exp(Lowered(x + i, offset + i, term, shift + i));
                TV.Store(feature, y + i);
                total = TV.Add(total, feature);
            }

            if (width > _layout.Features)
            {
                new Span<float>(y + _layout.Features, width - _layout.Features).Clear();
            }

            // No feature lies above what they all come to. A NaN must not hide how far another rises.
            isRegular &= TV.Sum(total) <= MaxFeature || !IsAnyAbove(MaxFeature, _layout.Features, y);
        }

        return isRegular || !_problem.Causal;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        static TV Lowered(float* log, float* offset, TV term, float* shift) =>
            TV.Subtract(TV.Add(TV.Add(TV.Load(log), TV.Load(offset)), term), TV.Load(shift));
    }

    // ---- states ----

    /// <summary>Adds a block of chunks to the state, and keeps what came of each with the state before it.</summary>
    private void ReduceBlock(long chain, int block, in Room room)
    {
        int first = block * BlockChunks;
        int end = Math.Min(KeyChunks(Place(chain)), first + BlockChunks);
        for (int chunk = first; chunk < end; chunk++)
        {
            Keys keys = room.KeysAt(chunk);
            if (chunk == first)
            {
                CopySums(room.State.Sums, keys.Sums);
            }

            ProjectKeys(chain, chunk, keys, room);
            AddChunk(chain, chunk, keys, keys.Sums, chunk + 1 < end ? room.KeysAt(chunk + 1).Sums : room.State.Sums, room);
        }
    }

    /// <summary>As <see cref="ReduceBlock"/>, with chunks in all threads.</summary>
    private void ReduceByChunk(int first, int end, in Room room)
    {
        Copy(room.State.LogScale, room.Expected, _layout.FeatureWidth);
        Relay(Phase.Reduce, first, end);
    }

    /// <summary>[V 1]ᵀK̂ of a projected chunk at the scale that is expected to be its own.</summary>
    private void ReduceProjected(int chunk, in Keys keys, in Room room)
    {
        int n = KeyTokens(Place(_chain), chunk).Count;
        if (FinishKeyRows(n, keys, keys.Scale, room))
        {
            SumKeys(_chain, chunk, keys, null, keys.Sums, room);
        }
        else
        {
            *keys.Irregular = 1;
        }
    }

    /// <summary>Adds a reduced chunk to the state, or to rows of it, and leaves those before it in the chunk. What the chunk was reduced for must be so, else it is done again.</summary>
    private void AddReduced(in ChunkTask task, int chunk, in Keys keys, in Room room)
    {
        State state = room.State;
        if (task.Piece < 0 && (*keys.Irregular != 0 || (_mode == FeatureMode.Logarithmic && !IsSame(keys.Before, state.LogScale))))
        {
            CopySums(state.Sums, keys.Sums);
            ProjectKeys(_chain, chunk, keys, room);
            AddChunk(_chain, chunk, keys, keys.Sums, state.Sums, room);
            ExpectAtLeast(state.LogScale, room.Expected);
            return;
        }

        (int first, int end) = RowsOf(task);
        AddReducedRows(keys, first, end, room);
        if (_mode == FeatureMode.Logarithmic && first == 0)
        {
            Copy(keys.Scale, state.LogScale, _layout.FeatureWidth);
        }
    }

    /// <summary>Takes rows of the state from before a reduced chunk to behind it, and leaves those before it in the chunk.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void AddReducedRows(in Keys keys, int firstRow, int endRow, in Room room)
    {
        (int width, nint rs) = (_layout.FeatureWidth, _layout.FeatureStride);
        float* factors = room.Scratch.Factors;
        bool isRaised = _mode == FeatureMode.Logarithmic && FindRaise(keys.Before, keys.Scale, factors);
        for (int row = firstRow; row < endRow; row++)
        {
            float* state = room.State.Sums + (row * rs);
            float* sums = keys.Sums + (row * rs);
            for (int i = 0; i < width; i += TV.Count)
            {
                TV before = TV.Load(state + i);
                before = isRaised ? TV.Multiply(before, TV.Load(factors + i)) : before;
                TV.Store(TV.Add(TV.Load(sums + i), before), state + i);
                TV.Store(before, sums + i);
            }
        }
    }

    private bool IsSame(float* x, float* y) => MemoryMarshal.Cast<float, int>(new ReadOnlySpan<float>(x, _layout.FeatureWidth))
        .SequenceEqual(MemoryMarshal.Cast<float, int>(new ReadOnlySpan<float>(y, _layout.FeatureWidth)));

    /// <summary>The state behind a projected chunk, of the state before it, which is raised to the scale that the chunk is read at.</summary>
    private void AddChunk(long chain, int chunk, in Keys keys, float* sums, float* target, in Room room)
    {
        int n = KeyTokens(Place(chain), chunk).Count;
        State state = room.State;
        Raise(sums, state.LogScale, keys.First, keys.Before, keys.Scale, room);
        if (FinishKeyRows(n, keys, keys.Scale, room))
        {
            SumKeys(chain, chunk, keys, sums, target, room);
            return;
        }

        // The segments of a chunk that is cut.
        LogRows(chain, chunk, n, keys, room);
        if (target != sums)
        {
            CopySums(sums, target);
        }

        for (int start = 0, end; start < n; start = end)
        {
            end = SegmentEnd(start, n, room.LogRows, state.LogScale);
            AddSegment(start, end, keys, target, state.LogScale, room);
        }
    }

    /// <summary>[V 1]ᵀK̂ of a chunk, added to something unless that is null, while keys and values of this thread's next chunk are on their way.</summary>
    private void SumKeys(long chain, int chunk, in Keys keys, float* addend, float* target, in Room room)
    {
        AttentionShape shape = _problem.Shape;
        TokenList tokens = KeyTokens(Place(chain), chunk);
        int n = tokens.Count;
        LinesAhead ahead = default;
        int next = tokens[n - 1] + 1 + ((_chunksApart - 1) * Chunk);
        if (next < shape.KeyLength)
        {
            int batch = BatchRow(Place(chain));
            int head = KeyHead(chain);
            int rows = Math.Min(Chunk, shape.KeyLength - next);
            ahead.AddRows(_buffers.Key, batch, next, head, shape.KeyDimension, rows);
            ahead.AddRows(_buffers.Value, batch, next, head, shape.ValueDimension, rows);
        }

        int nextSums = chunk + (_layout.ByChain ? 2 : _chunksApart);
        if (_problem.Causal && nextSums < KeyChunks(Place(chain)))
        {
            // Where the state behind the next chunk goes, or that chunk's own sums.
            ahead.AddStretch(room.KeysAt(nextSums).Sums, SumFloats);
        }

        int rs = _layout.FeatureStride;
        MicroKernel<TV>.AddTransposedProduct(
            shape.ValueDimension + 1, _layout.FeatureWidth, n, keys.Values, room.GradientStride, keys.Rows, rs, target, rs, addend, null, &ahead);
    }

    /// <summary>Brings a state to the larger of its scale and another, and says which it had.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void Raise(float* sums, float* logScale, float* first, float* before, float* scale, in Room room)
    {
        if (_mode != FeatureMode.Logarithmic)
        {
            return;
        }

        int width = _layout.FeatureWidth;
        Copy(logScale, before, width);
        for (int i = 0; i < width; i += TV.Count)
        {
            TV raised = TV.MaxOrNaN(TV.Load(before + i), TV.Load(first + i));
            TV.Store(raised, scale + i);
            TV.Store(raised, logScale + i);
        }

        FindRaise(before, scale, room.Scratch.Factors);
        ScaleColumns(sums, room.Scratch.Factors);
    }

    /// <summary>What brings a state from one scale to a larger one; false when nothing changes.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private bool FindRaise(float* from, float* to, float* factors)
    {
        bool isAny = false;
        for (int i = 0; i < _layout.FeatureWidth; i += TV.Count)
        {
            // Of equals the difference is 0 even at −∞, where a feature is switched off.
            TV.Store(SimdExp.Exp(TV.Subtract(TV.Finite(TV.Load(from + i)), TV.Finite(TV.Load(to + i)))), factors + i);
            isAny |= IsChange(factors + i);
        }

        return isAny;
    }

    /// <summary>True when any factor of a vector is not 1.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool IsChange(float* factors)
    {
        bool isAny = false;
        for (int lane = 0; lane < TV.Count; lane++)
        {
            isAny |= factors[lane] != 1;
        }

        return isAny;
    }

    /// <summary>Ŝᵀ or R̂ᵀ, each feature times its factor. Scales change seldom: vectors of features that keep theirs are left alone.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void ScaleColumns(float* sums, float* factors)
    {
        for (int i = 0; i < _layout.FeatureWidth; i += TV.Count)
        {
            if (!IsChange(factors + i))
            {
                continue;
            }

            TV factor = TV.Load(factors + i);
            float* x = sums + i;
            for (int row = 0; row < SumRows; row++)
            {
                TV.Store(TV.Multiply(TV.Load(x), factor), x);
                x += _layout.FeatureStride;
            }
        }
    }

    // ---- chunks whose log features rise too far above their scale ----

    /// <summary>All log features of a chunk that is to be cut, and marks it so.</summary>
    private void LogRows(long chain, int chunk, int n, in Keys keys, in Room room)
    {
        ProjectKeys(chain, chunk, keys, room);
        *keys.Irregular = 1;
        for (int row = 0; row < n; row++)
        {
            nint at = (nint)row * _layout.FeatureStride;
            LogFeatures(keys.Rows + at, keys.Terms[row], room.LogRows + at);
        }
    }

    /// <summary>
    /// How far keys from one on do not rise too far above their scale, the larger of a state's and of their first one's, by the arithmetic that finds out whether a chunk is cut: up to
    /// there a chunk that is cut must have the bits of one that is not.
    /// </summary>
    private int SegmentEnd(int start, int n, float* logRows, float* logScale)
    {
        float* lanes = stackalloc float[TV.Count];
        float* first = logRows + ((nint)start * _layout.FeatureStride);
        for (int row = start + 1; row < n; row++)
        {
            float* logs = logRows + ((nint)row * _layout.FeatureStride);
            for (int i = 0; i < _layout.Features; i += TV.Count)
            {
                TV scale = TV.MaxOrNaN(TV.Load(logScale + i), TV.Load(first + i));
                TV.Store(SimdExp.Exp(TV.Subtract(TV.Load(logs + i), TV.Finite(scale))), lanes);
                if (IsAnyAbove(MaxFeature, Math.Min(TV.Count, _layout.Features - i), lanes))
                {
                    return row;
                }
            }
        }

        return n;
    }

    /// <summary>The features of a segment's keys at the scale that it is read at, and the state behind it of the one before it.</summary>
    private void AddSegment(int start, int end, in Keys keys, float* sums, float* logScale, in Room room)
    {
        int rs = _layout.FeatureStride;
        RaiseForSegment(start, end, sums, logScale, room);
        MicroKernel<TV>.AddTransposedProduct(
            _problem.Shape.ValueDimension + 1, _layout.FeatureWidth, end - start, keys.Values + ((nint)start * room.GradientStride), room.GradientStride,
            room.SegmentRows + ((nint)start * rs), rs, sums, rs, sums);
    }

    private void RaiseForSegment(int start, int end, float* sums, float* logScale, in Room room)
    {
        int rs = _layout.FeatureStride;
        float* first = room.LogRows + ((nint)start * rs);
        Raise(sums, logScale, first, room.Before, logScale, room);

        // Offsets and terms are in the log features already; what else is written here holds zeros in their place.
        float* terms = room.RowSums;
        float* offset = room.QueryFeatureGradient;
        new Span<float>(terms, Chunk).Clear();
        new Span<float>(offset, _layout.FeatureWidth).Clear();
        ExponentiateRows(end - start, first, terms, offset, logScale, room.SegmentRows + ((nint)start * rs), room);
    }

    // ---- from and to the caller ----

    private void Import(long chain, in State state)
    {
        new Span<float>(state.Sums, checked((int)SumFloats)).Clear();
        new Span<float>(state.LogScale, _layout.FeatureWidth).Fill(float.NegativeInfinity);
        StateBuffers initial = _buffers.InitialState;
        if (initial.IsEmpty)
        {
            return;
        }

        nint row = StateRow(chain) * _layout.Features;
        ImportSums(initial, row, state.Sums);
        if (_mode == FeatureMode.Logarithmic)
        {
            Copy(initial.LogScale.HostPointer + row, state.LogScale, _layout.Features);
        }
    }

    private void ImportSums(StateBuffers state, nint row, float* target)
    {
        (int r, int rs, int dv) = (_layout.Features, _layout.FeatureStride, _problem.Shape.ValueDimension);
        SimdBlas<TV>.Transpose(r, dv, state.Sums.HostPointer + (row * dv), dv, target, rs);
        SimdBlas<TV>.CopyRows(1, r, state.Normalizers.HostPointer + row, r, target + ((nint)dv * rs), _layout.FeatureWidth);
    }
}
