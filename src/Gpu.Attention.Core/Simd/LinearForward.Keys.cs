using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Keys = Gpu.Attention.LinearLayout.Keys;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;

namespace Gpu.Attention;

// Keys: their features, their sums, and the state that the sums are added to.
internal unsafe partial class LinearForward<TV>
{
    /// <summary>Rows of keys that are turned together: so many lanes as the widest vector has.</summary>
    private const int RowsTurned = 16;

    /// <summary>Turns a chunk's keys and values into features and their sums K̂ᵀV and K̂ᵀ1.</summary>
    private void Reduce(long chain, int chunk, in Keys keys, in Scratch scratch, float* before)
    {
        if (ReadKeys(chain, chunk, keys, scratch, before))
        {
            SumKeys(chain, KeyTokens(Place(chain), chunk), keys);
        }
        else
        {
            ReduceInSegments(chain, chunk, keys, scratch);
        }
    }

    /// <summary>
    /// A chunk's values, and its key features with their sums; causal log features at the scale that they are read at, which the log scale of the state before the chunk decides
    /// with the first of them. False when they rise too far above it.
    /// </summary>
    private protected bool ReadKeys(long chain, int chunk, in Keys keys, in Scratch scratch, float* before)
    {
        TokenList tokens = KeyTokens(Place(chain), chunk);
        StartChunk(chain, chunk, keys);
        if (ReadsFeatures(_key))
        {
            ReadKeyFeatures(chain, tokens, keys, scratch);
            return true;
        }

        LinearKeyFeatures(chain, tokens, keys.Transposed, scratch);
        if (_mode == FeatureMode.Logarithmic)
        {
            AddEpsilonToKeys(tokens.Count, keys.Transposed, scratch.RowTerm);
            return ExponentiateKeys(chain, tokens.Count, keys, scratch, before);
        }

        if (_mode == FeatureMode.Direct)
        {
            ActivateKeys(tokens.Count, keys, scratch);
        }
        else
        {
            ExponentiateStabilizedKeys(tokens.Count, _stabilizers[chain], keys, scratch);
        }

        return true;
    }

    /// <summary>Features that are activations of the caller's elements, as columns, with their sums: some rows at a time, which are turned while they are at hand.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void ReadKeyFeatures(long chain, TokenList tokens, in Keys keys, in Scratch scratch)
    {
        (int n, int d) = (tokens.Count, _layout.Features);
        float* x = StoredRows.Read(_buffers.Key, BatchRow(Place(chain)), KeyHead(chain), tokens, d, scratch.Rows, out nint stride);
        for (int first = 0; first < n; first += RowsTurned)
        {
            int rows = Math.Min(RowsTurned, n - first);
            for (int row = 0; row < rows; row++)
            {
                ActivateRow(_key.Form.Activation, d, x + ((first + row) * stride), scratch.Mapped + ((nint)row * d), null);
            }

            SimdBlas<TV>.Transpose(rows, d, scratch.Mapped, d, keys.Transposed + first, Chunk);
        }

        for (int feature = 0; feature < d; feature++)
        {
            keys.DeltaZ[feature] = SimdBlas<TV>.Sum(n, keys.Transposed + ((nint)feature * Chunk));
        }
    }

    /// <summary>A chunk's values.</summary>
    private protected void StartChunk(long chain, int chunk, in Keys keys)
    {
        int place = Place(chain);
        *keys.Irregular = 0;
        new Span<float>(keys.DeltaZ + _layout.Features, _layout.FeatureWidth - _layout.Features).Clear();
        StoredRows.Copy(
            _buffers.Value, BatchRow(place), KeyHead(chain), KeyTokens(place, chunk), _problem.Shape.ValueDimension, keys.Values, _layout.ValueStride);
    }

    /// <summary>
    /// True where rows of queries are asked for while keys are summed, since those of the next chunk's keys were while these were projected. Else while
    /// queries read the state.
    /// </summary>
    private bool AsksWithKeys => _problem.Causal && _problem.Shape.HeadGroup == 1 && _key.Rows is not null;

    /// <summary>K̂ᵀV.</summary>
    private void SumKeys(long chain, TokenList tokens, in Keys keys)
    {
        LinesAhead ahead = Ahead(chain, tokens);
        MicroKernel<TV>.Multiply(
            _layout.Features, _layout.ValueStride, tokens.Count, keys.Transposed, Chunk, keys.Values, _layout.ValueStride, keys.Delta, _layout.ValueStride, false,
            &ahead);
    }

    /// <summary>Adds a chunk's keys to a state that was raised for them: <see cref="SumKeys"/> and <see cref="Absorb(in State, in Keys, int, int, bool)"/> at once, to the bit.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void AddKeys(long chain, TokenList tokens, in Keys keys, in State state)
    {
        LinesAhead ahead = Ahead(chain, tokens);
        bool isLogarithmic = _mode == FeatureMode.Logarithmic;
        bool isWeighted = isLogarithmic && !IsAtScale(keys);
        MicroKernel<TV>.AddProduct(
            _layout.Features, _layout.ValueStride, tokens.Count, keys.Transposed, Chunk, keys.Values, _layout.ValueStride, state.Sums, _layout.ValueStride,
            state.Sums, isWeighted ? keys.Beta : null, &ahead);
        int i = 0;
        for (; i <= _layout.Features - TV.Count; i += TV.Count)
        {
            TV factor = isWeighted ? TV.Load(keys.Beta + i) : TV.Broadcast(1);
            TV.Store(TV.Add(TV.Multiply(factor, TV.Load(keys.DeltaZ + i)), TV.Load(state.Normalizers + i)), state.Normalizers + i);
        }

        // What pads the features has no scale.
        for (; i < _layout.Features; i++)
        {
            state.Normalizers[i] += (isWeighted ? keys.Beta[i] : 1) * keys.DeltaZ[i];
        }

        for (int feature = 0; isLogarithmic && _problem.WantsFinalState && feature < _layout.Features; feature++)
        {
            state.Maximum[feature] = MathF.Max(state.Maximum[feature], keys.Maximum[feature]);
        }
    }

    /// <summary>Rows of this thread's next chunk, but of the queries of this one where they read it soon and not before its keys are summed.</summary>
    private LinesAhead Ahead(long chain, TokenList tokens)
    {
        AttentionShape shape = _problem.Shape;
        LinesAhead ahead = default;
        if (AsksWithKeys)
        {
            // One query head a key head.
            (int token, int head) = _layout.ByChain ? Following(chain, tokens) : (tokens[0], KeyHead(chain));
            if (token < shape.QueryLength)
            {
                int batch = BatchRow(Place(chain));
                int rows = Math.Min(Chunk, shape.QueryLength - token);
                ahead.AddRows(_buffers.Query, batch, token, head, shape.KeyDimension, rows);
                ahead.AddRows(_buffers.Output, batch, token, head, shape.ValueDimension, rows);
            }
        }

        if (_key.Rows is null)
        {
            AskForKeys(ref ahead, chain, tokens);
        }

        return ahead;
    }

    /// <summary>The first token of this thread's next chunk, and the key head that it is of, most likely.</summary>
    private (int Token, int Head) Following(long chain, TokenList tokens)
    {
        int head = KeyHead(chain) + 1;
        return head % _layout.ChainsTogether != 0
            ? (tokens[0], head)
            : (tokens[tokens.Count - 1] + 1 + ((_chunksApart - 1) * Chunk), head - _layout.ChainsTogether);
    }

    private void AskForKeys(ref LinesAhead ahead, long chain, TokenList tokens)
    {
        AttentionShape shape = _problem.Shape;
        (int token, int head) = Following(chain, tokens);
        if (token < shape.KeyLength)
        {
            int batch = BatchRow(Place(chain));
            int rows = Math.Min(Chunk, shape.KeyLength - token);
            ahead.AddRows(_buffers.Key, batch, token, head, shape.KeyDimension, rows);
            ahead.AddRows(_buffers.Value, batch, token, head, shape.ValueDimension, rows);
        }
    }

    /// <summary>W x' of every key, as columns, and each key's row term, while keys and values of this thread's next chunk are on their way.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void LinearKeyFeatures(long chain, TokenList tokens, float* target, in Scratch scratch)
    {
        int n = tokens.Count;
        int d = _layout.InputDimension;
        float* x = StoredRows.Read(_buffers.Key, BatchRow(Place(chain)), KeyHead(chain), tokens, d, scratch.Rows, out nint stride);
        float* mapped = PreMap(_key, n, x, stride, scratch, out nint mappedStride);
        if (_key.Rows is null)
        {
            SimdBlas<TV>.Transpose(n, d, mapped, mappedStride, target, Chunk);
        }
        else
        {
            SimdBlas<TV>.Transpose(n, d, mapped, mappedStride, scratch.InputTransposed, Chunk);
            LinesAhead ahead = default;
            AskForKeys(ref ahead, chain, tokens);
            MicroKernel<TV>.Multiply(
                _layout.Features, PackedForm<TV>.RoundUp(n), d, _key.Rows, d, scratch.InputTransposed, Chunk, target, Chunk, false, &ahead);
        }

        RowTerms(_key, n, x, stride, mapped, mappedStride, scratch.RowTerm);
    }

    /// <summary>Direct features in place, with their sums; columns beyond the chunk's end become zero.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void ActivateKeys(int n, in Keys keys, in Scratch scratch)
    {
        bool hasTerm = _key.HasRowTerm || _key.Form.Offset is not null;
        int padded = PackedForm<TV>.RoundUp(n);
        new Span<float>(scratch.RowTerm + n, padded - n).Clear();
        for (int feature = 0; hasTerm && feature < _layout.Features; feature++)
        {
            float* row = keys.Transposed + ((nint)feature * Chunk);
            TV offset = TV.Broadcast(_key.Offset[feature]);
            for (int j = 0; j < padded; j += TV.Count)
            {
                TV.Store(TV.Add(TV.Load(row + j), TV.Add(TV.Load(scratch.RowTerm + j), offset)), row + j);
            }
        }

        ActivateRows(_key.Form.Activation, _layout.Features, n, keys.Transposed, Chunk);
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float* row = keys.Transposed + ((nint)feature * Chunk);
            if (padded > n)
            {
                new Span<float>(row + n, padded - n).Clear();
            }

            keys.DeltaZ[feature] = SimdBlas<TV>.Sum(n, row);
        }
    }

    /// <summary>
    /// Log features to features with their sums: causal ones at their scale, others at the chunk's maximum. False when they rise too far above that for float32. With no scale of the state
    /// <paramref name="before"/> the chunk, it is the one that is expected.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private bool ExponentiateKeys(long chain, int n, in Keys keys, in Scratch scratch, float* before)
    {
        float* term = scratch.RowTerm;
        float* shift = scratch.Bias;
        int padded = PackedForm<TV>.RoundUp(n);
        bool causal = _problem.Causal;
        new Span<float>(term + n, padded - n).Fill(float.NegativeInfinity);
        if (causal)
        {
            for (int feature = 0; feature < _layout.Features; feature++)
            {
                keys.First[feature] = keys.Transposed[(nint)feature * Chunk] + term[0] + _key.Offset[feature];
            }

            if (before is null)
            {
                ExpectScale(chain, StateAt(chain).Expected, keys.First, keys.Before);
                before = keys.Before;
            }

            FindScale(before, keys, 0, _layout.FeatureWidth, scratch);
        }

        bool wantsMaximum = !causal || _problem.WantsFinalState;
        for (int feature = 0; wantsMaximum && feature < _layout.Features; feature++)
        {
            float* row = keys.Transposed + ((nint)feature * Chunk);
            TV maximum = TV.Add(TV.Load(row), TV.Load(term));
            for (int j = TV.Count; j < padded; j += TV.Count)
            {
                maximum = TV.Max(maximum, TV.Add(TV.Load(row + j), TV.Load(term + j)));
            }

            shift[feature] = TV.MaxAcross(maximum);
            keys.Maximum[feature] = shift[feature] + _key.Offset[feature];
        }

        if (causal)
        {
            FindShift(keys, shift);
        }
        else
        {
            Copy(keys.Maximum, keys.First, _layout.Features);
            Copy(keys.Maximum, keys.Reference, _layout.Features);
        }

        bool isRegular = true;
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float* row = keys.Transposed + ((nint)feature * Chunk);
            float total = TV.Sum(Exponentiate<Plain>(padded, row, term, TV.Broadcast(shift[feature]), null));
            keys.DeltaZ[feature] = total;
            if (float.IsNaN(total))
            {
                // A NaN may be lost in TV.Max, but not in a sum.
                keys.Maximum[feature] = float.NaN;
            }

            // No key lies above what they all come to. A NaN must not hide how far another key rises.
            isRegular &= total <= MaxFeature || !IsAnyAbove(MaxFeature, n, row);
        }

        // Where every query sees all keys nothing lies above the scale, unless a NaN has hidden it.
        return isRegular || !causal;
    }

    /// <summary>What logarithms of features, less the offset b, are lowered by to their scale.</summary>
    private void FindShift(in Keys keys, float* shift)
    {
        for (int i = 0; i < _layout.FeatureWidth; i += TV.Count)
        {
            TV.Store(TV.Subtract(TV.Finite(TV.Load(keys.Scale + i)), TV.Load(_key.Offset + i)), shift + i);
        }
    }

    // ---- chunks that are reduced ahead of their states ----

    /// <summary>A chunk's values, and its keys as far as needs no scale.</summary>
    private void ProjectKeys(long chain, int chunk, in Keys keys, in Scratch scratch)
    {
        TokenList tokens = KeyTokens(Place(chain), chunk);
        StartChunk(chain, chunk, keys);
        LinearKeyFeatures(chain, tokens, keys.Transposed, scratch);
        AddEpsilonToKeys(tokens.Count, keys.Transposed, scratch.RowTerm);
        Copy(scratch.RowTerm, keys.Terms, Chunk);
    }

    /// <summary>As <see cref="Reduce"/>, of a projected chunk, whose turn it is, at the scale that is expected.</summary>
    private void ReduceProjected(long chain, int chunk, in Keys keys, in Scratch scratch)
    {
        TokenList tokens = KeyTokens(Place(chain), chunk);
        Copy(keys.Terms, scratch.RowTerm, Chunk);
        if (ExponentiateKeys(chain, tokens.Count, keys, scratch, null))
        {
            SumKeys(chain, tokens, keys);
        }
        else
        {
            ReduceInSegments(chain, chunk, keys, scratch);
        }
    }

    /// <summary>Adds a chunk to its chain's state, or to a piece of it: some of its features, to which no other matters. Where the scale is not the expected one, the chunk is reduced again.</summary>
    private void Absorb(in ChunkTask task, in Keys keys, in Scratch scratch)
    {
        State state = StateAt(task.Chain);
        int vectors = _layout.FeatureWidth / TV.Count;
        (int first, int end) = task.Piece < 0 ? (0, _layout.FeatureWidth)
            : ((int)((long)vectors * task.Piece / _layout.StatePieces) * TV.Count, (int)((long)vectors * (task.Piece + 1) / _layout.StatePieces) * TV.Count);
        if (_hasScales && task.Piece < 0 && !IsSame(keys.Before, state.LogScale))
        {
            Reduce(task.Chain, task.Chunk, keys, scratch, state.LogScale);
        }

        Raise(state, keys, first, end, scratch);
        Absorb(state, keys, first, end, keepPrefix: _problem.Causal);
        if (_hasScales && *keys.Irregular != 0)
        {
            ExpectAtLeast(state.LogScale, state.Expected);
        }
    }

    private bool IsSame(float* x, float* y) => MemoryMarshal.Cast<float, int>(new ReadOnlySpan<float>(x, _layout.Features))
        .SequenceEqual(MemoryMarshal.Cast<float, int>(new ReadOnlySpan<float>(y, _layout.Features)));

    /// <summary>The published conventions: below a maximum over all keys, plus an epsilon.</summary>
    private void ExponentiateStabilizedKeys(int n, float stabilizer, in Keys keys, in Scratch scratch)
    {
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float* row = keys.Transposed + ((nint)feature * Chunk);
            float ratio = MathF.Exp(_key.Offset[feature]);
            for (int j = 0; j < n; j++)
            {
                row[j] = ratio * (MathF.Exp(row[j] + scratch.RowTerm[j] - stabilizer) + _epsilon);
            }

            keys.DeltaZ[feature] = SimdBlas<TV>.Sum(n, row);
        }
    }

    // ---- chunks whose log features rise too far above their first key's ----

    // Such a chunk is cut where a key rises too far, so that where it is cut depends on earlier keys only; the segments' sums are merged.
    private void ReduceInSegments(long chain, int chunk, in Keys keys, in Scratch scratch)
    {
        int n = KeyTokens(Place(chain), chunk).Count;
        *keys.Irregular = 1;
        LogKeyFeatures(chain, chunk, scratch);
        State local = scratch.SegmentState;
        Clear(local);
        for (int start = 0; start < n;)
        {
            Keys segment = ReduceSegment(start, n, out int end, keys.Values, local.LogScale, scratch);
            Raise(local, segment, 0, _layout.FeatureWidth, scratch);
            Absorb(local, segment, 0, _layout.FeatureWidth, keepPrefix: false);
            start = end;
        }

        Copy(local.Sums, keys.Delta, (long)_layout.Features * _layout.ValueStride);
        Copy(local.Normalizers, keys.DeltaZ, _layout.FeatureWidth);
        Copy(local.LogScale, keys.Reference, _layout.FeatureWidth);
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            keys.First[feature] = scratch.LogFeatures[(nint)feature * Chunk] + _key.Offset[feature];
        }
    }

    /// <summary>Log features of a chunk less the offset b, as columns.</summary>
    private protected void LogKeyFeatures(long chain, int chunk, in Scratch scratch)
    {
        TokenList tokens = KeyTokens(Place(chain), chunk);
        int n = tokens.Count;
        LinearKeyFeatures(chain, tokens, scratch.LogFeatures, scratch);
        AddEpsilonToKeys(n, scratch.LogFeatures, scratch.RowTerm);
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float* row = scratch.LogFeatures + ((nint)feature * Chunk);
            for (int j = 0; j < n; j++)
            {
                row[j] += scratch.RowTerm[j];
            }
        }
    }

    /// <summary>
    /// Features and sums of keys from one on as far as they do not rise too far above their scale, by the arithmetic that finds out whether a chunk is cut: up to there a chunk that
    /// is cut must have the bits of one that is not.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private Keys ReduceSegment(int start, int n, out int end, float* values, float* before, in Scratch scratch)
    {
        Keys segment = scratch.SegmentKeys;
        end = n;
        *segment.Irregular = 0;
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            segment.First[feature] = segment.Reference[feature] = scratch.LogFeatures[((nint)feature * Chunk) + start] + _key.Offset[feature];
        }

        FindScale(before, segment, 0, _layout.FeatureWidth, scratch);
        FindShift(segment, scratch.Bias);
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float* logs = scratch.LogFeatures + ((nint)feature * Chunk);
            float* row = segment.Transposed + ((nint)feature * Chunk);
            TV shift = TV.Broadcast(scratch.Bias[feature]);
            for (int j = start; j < n; j += TV.Count)
            {
                // Whole vectors: what runs over the segment's end is overwritten or never read.
                TV.Store(SimdExp.Exp(TV.Subtract(TV.Load(logs + j), shift)), row + j);
            }

            for (int j = start + 1; j < end; j++)
            {
                end = row[j] > MaxFeature ? j : end;
            }
        }

        for (int feature = 0; feature < _layout.Features; feature++)
        {
            segment.DeltaZ[feature] = SimdBlas<TV>.Sum(end - start, segment.Transposed + ((nint)feature * Chunk) + start);
        }

        MicroKernel<TV>.Multiply(
            _layout.Features, _layout.ValueStride, end - start, segment.Transposed + start, Chunk, values + ((nint)start * _layout.ValueStride),
            _layout.ValueStride, segment.Delta, _layout.ValueStride, false);
        return segment;
    }

    // ---- the state ----

    /// <summary>Brings features of a state to the scale that a chunk is read at: the larger of the state's own and that of the chunk's first key.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void Raise(in State state, in Keys keys, int first, int end, in Scratch scratch)
    {
        if (_mode != FeatureMode.Logarithmic)
        {
            return;
        }

        FindScale(state.LogScale, keys, first, end, scratch);
        for (int i = first; i < end && !IsAtScale(keys); i += TV.Count)
        {
            TV.Store(SimdExp.Exp(TV.Subtract(TV.Finite(TV.Load(keys.First + i)), TV.Finite(TV.Load(keys.Scale + i)))), keys.Beta + i);
        }

        RaiseSums(state, keys, first, end, scratch);
    }

    /// <summary>The larger of a state's scale and of that of a chunk's first key, and what brings the state to it. Whole vectors of features, as in <see cref="Raise"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void FindScale(float* logScale, in Keys keys, int first, int end, in Scratch scratch)
    {
        for (int i = first; i < end; i += TV.Count)
        {
            TV before = TV.Load(logScale + i);
            TV scale = TV.MaxOrNaN(before, TV.Load(keys.First + i));
            TV.Store(scale, keys.Scale + i);

            // Of equals the difference is 0 even at −∞, where a feature is switched off.
            TV.Store(SimdExp.Exp(TV.Subtract(TV.Finite(before), TV.Finite(scale))), scratch.Factors + i);
        }
    }

    /// <summary>True where features stand at the scale that they are read at.</summary>
    private bool IsAtScale(in Keys keys) => _mode == FeatureMode.Logarithmic && _problem.Causal && *keys.Irregular == 0;

    /// <summary>Brings features of a state to a scale that was found for it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void RaiseSums(in State state, in Keys keys, int first, int end, in Scratch scratch)
    {
        for (int feature = first; feature < Math.Min(end, _layout.Features); feature++)
        {
            float factor = scratch.Factors[feature];
            if (factor != 1)
            {
                float* sums = state.Sums + ((nint)feature * _layout.ValueStride);
                SimdBlas<TV>.Scale(_layout.ValueStride, factor, sums, sums);
                state.Normalizers[feature] *= factor;
            }

            state.LogScale[feature] = keys.Scale[feature];
        }
    }

    /// <summary>Adds a chunk's sums to features of a state that was raised for it, and leaves the state before it in the chunk when that is to be kept.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void Absorb(in State state, in Keys keys, int first, int end, bool keepPrefix)
    {
        bool logarithmic = _mode == FeatureMode.Logarithmic;
        bool isAtScale = IsAtScale(keys);
        for (int feature = first; feature < Math.Min(end, _layout.Features); feature++)
        {
            float before = 1;
            float factor = 1;
            if (logarithmic)
            {
                factor = isAtScale ? 1 : keys.Beta[feature];
                float reference = keys.Reference[feature];
                float scale = state.LogScale[feature];
                if (!isAtScale && reference != keys.First[feature])
                {
                    float raised = MathF.Max(scale, reference);
                    before = MathF.Exp(scale - raised);
                    factor = MathF.Exp(reference - raised);
                    state.LogScale[feature] = raised;
                }

                if (_problem.WantsFinalState)
                {
                    state.Maximum[feature] = MathF.Max(state.Maximum[feature], keys.Maximum[feature]);
                }
            }

            float* sums = state.Sums + ((nint)feature * _layout.ValueStride);
            float* delta = keys.Delta + ((nint)feature * _layout.ValueStride);
            TV weight = TV.Broadcast(factor);
            TV keep = TV.Broadcast(before);
            for (int j = 0; j < _layout.ValueStride; j += TV.Count)
            {
                TV old = TV.Load(sums + j);
                TV added = TV.Load(delta + j);
                TV.Store(TV.MultiplyAdd(weight, added, TV.Multiply(keep, old)), sums + j);
                if (keepPrefix)
                {
                    TV.Store(old, delta + j);
                }
            }

            float oldZ = state.Normalizers[feature];
            state.Normalizers[feature] = (factor * keys.DeltaZ[feature]) + (before * oldZ);
            if (keepPrefix)
            {
                keys.DeltaZ[feature] = oldZ;
            }
        }
    }

    private void Clear(in State state)
    {
        new Span<float>(state.Sums, checked(_layout.Features * _layout.ValueStride)).Clear();
        new Span<float>(state.Normalizers, _layout.FeatureWidth).Clear();
        new Span<float>(state.LogScale, _layout.FeatureWidth).Fill(float.NegativeInfinity);
        new Span<float>(state.Maximum, _layout.FeatureWidth).Fill(float.NegativeInfinity);
    }

    private protected void Import(long chain, in State state)
    {
        Clear(state);
        StateBuffers initial = _buffers.InitialState;
        if (initial.IsEmpty)
        {
            if (_problem is { Convention: ReferenceConvention.Lucidrains, Causal: true })
            {
                new Span<float>(state.Normalizers, _layout.Features).Fill(LucidrainsNormalizerOffset);
            }

            return;
        }

        int r = _layout.Features;
        int dv = _problem.Shape.ValueDimension;
        nint row = StateRow(chain) * r;
        SimdBlas<TV>.CopyRows(r, dv, initial.Sums.HostPointer + (row * dv), dv, state.Sums, _layout.ValueStride);
        Copy(initial.Normalizers.HostPointer + row, state.Normalizers, r);
        if (_mode == FeatureMode.Logarithmic)
        {
            Copy(initial.LogScale.HostPointer + row, state.LogScale, r);
            MemoryRegion maximum = initial.Maximum.IsEmpty ? initial.LogScale : initial.Maximum;
            Copy(maximum.HostPointer + row, state.Maximum, r);
        }
    }
}
