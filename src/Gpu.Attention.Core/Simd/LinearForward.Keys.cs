using Keys = Gpu.Attention.LinearLayout.Keys;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;

namespace Gpu.Attention;

// Keys: their features, their sums, and the state that the sums are added to.
internal unsafe partial class LinearForward<TV>
{
    /// <summary>Turns a chunk's keys and values into features and their sums K̂ᵀ[V 1].</summary>
    private protected void Reduce(long chain, int chunk, Keys keys, Scratch scratch)
    {
        if (ReadKeys(chain, chunk, keys, scratch))
        {
            SumKeys(chain, KeyTokens(Place(chain), chunk), keys);
        }
        else
        {
            ReduceInSegments(chain, chunk, keys, scratch);
        }
    }

    /// <summary>A chunk's values, and its key features with their sums. False when its log features rise too far for one scale.</summary>
    private protected bool ReadKeys(long chain, int chunk, Keys keys, Scratch scratch)
    {
        TokenList tokens = KeyTokens(Place(chain), chunk);
        StartChunk(chain, chunk, keys);
        LinearKeyFeatures(chain, tokens, keys.Transposed, scratch);
        return FinishKeyFeatures(chain, tokens.Count, keys, scratch);
    }

    /// <summary>A chunk's values.</summary>
    private protected void StartChunk(long chain, int chunk, Keys keys)
    {
        int place = Place(chain);
        *keys.Irregular = 0;
        new Span<float>(keys.DeltaZ + _layout.Features, _layout.FeatureWidth - _layout.Features).Clear();
        StoredRows.Copy(
            _buffers.Value, BatchRow(place), KeyHead(chain), KeyTokens(place, chunk), _problem.Shape.ValueDimension, keys.Values, _layout.ValueStride);
    }

    /// <summary>Features of projected keys, with their sums. False when log features rise too far for one scale.</summary>
    private protected bool FinishKeyFeatures(long chain, int n, Keys keys, Scratch scratch)
    {
        switch (_mode)
        {
            case FeatureMode.Direct:
                ActivateKeys(n, keys, scratch);
                return true;
            case FeatureMode.Stabilized:
                ExponentiateStabilizedKeys(n, _stabilizers[chain], keys, scratch);
                return true;
            default:
                return ExponentiateKeys(n, keys, scratch);
        }
    }

    /// <summary>
    /// True where rows of the next chunk's queries are asked for while this one's keys are summed, since those of its keys were while these were projected. Else while
    /// queries read the state, which with many features are more steps than rows.
    /// </summary>
    private bool AsksWithKeys => _layout.ByChain && _problem.Causal && _problem.Shape.HeadGroup == 1 && _key.Rows is not null;

    /// <summary>K̂ᵀV.</summary>
    private void SumKeys(long chain, TokenList tokens, Keys keys)
    {
        LinesAhead ahead = Ahead(chain, tokens);
        MicroKernel<TV>.Multiply(
            _layout.Features, _layout.ValueStride, tokens.Count, keys.Transposed, Chunk, keys.Values, _layout.ValueStride, keys.Delta, _layout.ValueStride, false,
            &ahead);
    }

    /// <summary>Adds a chunk's keys to a state that was raised for them: <see cref="SumKeys"/> and <see cref="Absorb"/> at once, to the bit.</summary>
    private protected void AddKeys(long chain, TokenList tokens, Keys keys, State state)
    {
        LinesAhead ahead = Ahead(chain, tokens);
        bool isLogarithmic = _mode == FeatureMode.Logarithmic;
        MicroKernel<TV>.AddProduct(
            _layout.Features, _layout.ValueStride, tokens.Count, keys.Transposed, Chunk, keys.Values, _layout.ValueStride, state.Sums, _layout.ValueStride,
            state.Sums, isLogarithmic ? keys.Beta : null, &ahead);
        int i = 0;
        for (; i <= _layout.Features - TV.Count; i += TV.Count)
        {
            TV factor = isLogarithmic ? TV.Load(keys.Beta + i) : TV.Broadcast(1);
            TV.Store(TV.Add(TV.Multiply(factor, TV.Load(keys.DeltaZ + i)), TV.Load(state.Normalizers + i)), state.Normalizers + i);
        }

        // What pads the features has no scale.
        for (; i < _layout.Features; i++)
        {
            state.Normalizers[i] += (isLogarithmic ? keys.Beta[i] : 1) * keys.DeltaZ[i];
        }

        for (int feature = 0; isLogarithmic && _problem.WantsFinalState && feature < _layout.Features; feature++)
        {
            state.Maximum[feature] = MathF.Max(state.Maximum[feature], keys.Maximum[feature]);
        }
    }

    /// <summary>Rows of this thread's next chunk.</summary>
    private LinesAhead Ahead(long chain, TokenList tokens)
    {
        AttentionShape shape = _problem.Shape;
        int next = Following(tokens);
        int batch = BatchRow(Place(chain));
        int head = KeyHead(chain);
        LinesAhead ahead = default;
        if (AsksWithKeys && next < shape.QueryLength)
        {
            ahead.AddRows(_buffers.Query, batch, next, head, shape.KeyDimension);
            ahead.AddRows(_buffers.Output, batch, next, head, shape.ValueDimension);
        }

        if (_key.Rows is null)
        {
            AskForKeys(ref ahead, chain, next);
        }

        return ahead;
    }

    /// <summary>The first token of this thread's next chunk, most likely.</summary>
    private int Following(TokenList tokens) => tokens[tokens.Count - 1] + 1 + ((_chunksApart - 1) * Chunk);

    private void AskForKeys(ref LinesAhead ahead, long chain, int token)
    {
        AttentionShape shape = _problem.Shape;
        if (token < shape.KeyLength)
        {
            int batch = BatchRow(Place(chain));
            int head = KeyHead(chain);
            ahead.AddRows(_buffers.Key, batch, token, head, shape.KeyDimension);
            ahead.AddRows(_buffers.Value, batch, token, head, shape.ValueDimension);
        }
    }

    /// <summary>W x' of every key, as columns, and each key's row term, while keys and values of this thread's next chunk are on their way.</summary>
    private protected void LinearKeyFeatures(long chain, TokenList tokens, float* target, Scratch scratch)
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
            AskForKeys(ref ahead, chain, Following(tokens));
            MicroKernel<TV>.Multiply(
                _layout.Features, PackedForm<TV>.RoundUp(n), d, _key.Rows, d, scratch.InputTransposed, Chunk, target, Chunk, false, &ahead);
        }

        RowTerms(_key, n, x, stride, mapped, mappedStride, scratch.RowTerm);
    }

    /// <summary>Direct features in place, with their sums; columns beyond the chunk's end become zero.</summary>
    private void ActivateKeys(int n, Keys keys, Scratch scratch)
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
    /// Log features to features at the scale of the chunk's first key (causal) or of its maximum, with their sums. False when the chunk's
    /// log features rise too far above its first key's for float32.
    /// </summary>
    private bool ExponentiateKeys(int n, Keys keys, Scratch scratch)
    {
        float* term = scratch.RowTerm;
        int padded = PackedForm<TV>.RoundUp(n);
        new Span<float>(term + n, padded - n).Fill(float.NegativeInfinity);
        AddEpsilonToKeys(n, keys.Transposed, term);
        bool wantsMaximum = _problem.WantsFinalState;
        bool isRegular = true;
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float* row = keys.Transposed + ((nint)feature * Chunk);
            float reference = row[0] + term[0];
            if (!_problem.Causal || wantsMaximum)
            {
                TV maximum = TV.Add(TV.Load(row), TV.Load(term));
                for (int j = TV.Count; j < padded; j += TV.Count)
                {
                    maximum = TV.Max(maximum, TV.Add(TV.Load(row + j), TV.Load(term + j)));
                }

                float top = TV.MaxAcross(maximum);
                keys.Maximum[feature] = top + _key.Offset[feature];
                reference = _problem.Causal ? reference : top;
            }

            TV shift = TV.Broadcast(reference);
            float total = TV.Sum(Exponentiate<Plain>(padded, row, term, shift, null));
            keys.DeltaZ[feature] = total;
            if (float.IsNaN(total))
            {
                // A NaN may be lost in TV.Max, but not in a sum.
                keys.Maximum[feature] = float.NaN;
            }

            // No key lies above what they all come to. A NaN must not hide how far another key rises.
            isRegular &= total <= MaxFeature || !IsAnyAbove(MaxFeature, n, row);

            keys.First[feature] = reference + _key.Offset[feature];
            keys.Reference[feature] = keys.First[feature];
        }

        // Where every query sees all keys nothing lies above the scale, unless a NaN has hidden it.
        return isRegular || !_problem.Causal;
    }

    /// <summary>The published conventions: below a maximum over all keys, plus an epsilon.</summary>
    private void ExponentiateStabilizedKeys(int n, float stabilizer, Keys keys, Scratch scratch)
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
    private void ReduceInSegments(long chain, int chunk, Keys keys, Scratch scratch)
    {
        int n = KeyTokens(Place(chain), chunk).Count;
        *keys.Irregular = 1;
        LogKeyFeatures(chain, chunk, scratch);
        State local = scratch.SegmentState;
        Clear(local);
        for (int start = 0; start < n;)
        {
            int end = SegmentEnd(start, n, scratch.LogFeatures);
            Keys segment = ReduceSegment(start, end, keys.Values, scratch);
            Raise(local, segment, scratch);
            Absorb(local, segment, keepPrefix: false);
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
    private protected void LogKeyFeatures(long chain, int chunk, Scratch scratch)
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

    private protected int SegmentEnd(int start, int n, float* logFeatures)
    {
        for (int j = start + 1; j < n; j++)
        {
            for (int feature = 0; feature < _layout.Features; feature++)
            {
                float* row = logFeatures + ((nint)feature * Chunk);
                if (row[j] - row[start] > MaxLogRange)
                {
                    return j;
                }
            }
        }

        return n;
    }

    private protected Keys ReduceSegment(int start, int end, float* values, Scratch scratch)
    {
        Keys segment = scratch.SegmentKeys;
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float* logs = scratch.LogFeatures + ((nint)feature * Chunk);
            float* row = segment.Transposed + ((nint)feature * Chunk);
            TV reference = TV.Broadcast(logs[start]);
            for (int j = start; j < end; j += TV.Count)
            {
                // Whole vectors: what runs over the segment's end is overwritten or never read.
                TV.Store(SimdExp.Exp(TV.Subtract(TV.Load(logs + j), reference)), row + j);
            }

            segment.DeltaZ[feature] = SimdBlas<TV>.Sum(end - start, row + start);
            segment.First[feature] = segment.Reference[feature] = logs[start] + _key.Offset[feature];
        }

        MicroKernel<TV>.Multiply(
            _layout.Features, _layout.ValueStride, end - start, segment.Transposed + start, Chunk, values + ((nint)start * _layout.ValueStride),
            _layout.ValueStride, segment.Delta, _layout.ValueStride, false);
        return segment;
    }

    // ---- the state ----

    /// <summary>Brings a state to the scale that a chunk is read at: the larger of its own and that of the chunk's first key.</summary>
    private protected void Raise(State state, Keys keys, Scratch scratch)
    {
        if (_mode != FeatureMode.Logarithmic)
        {
            return;
        }

        for (int i = 0; i < _layout.FeatureWidth; i += TV.Count)
        {
            TV before = TV.Load(state.LogScale + i);
            TV first = TV.Load(keys.First + i);
            TV scale = TV.MaxOrNaN(before, first);
            TV.Store(scale, keys.Scale + i);

            // Of equals the difference is 0 even at −∞, where a feature is switched off.
            TV finite = TV.Finite(scale);
            TV.Store(TV.Subtract(TV.Finite(before), finite), scratch.Factors + i);
            TV.Store(TV.Subtract(TV.Finite(first), finite), keys.Beta + i);
        }

        ExponentiateInPlace(scratch.Factors);
        ExponentiateInPlace(keys.Beta);
        for (int feature = 0; feature < _layout.Features; feature++)
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

    /// <summary>Adds a chunk's sums to a state that was raised for it, and leaves the state before it in the chunk when that is to be kept.</summary>
    private protected void Absorb(State state, Keys keys, bool keepPrefix)
    {
        bool logarithmic = _mode == FeatureMode.Logarithmic;
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float before = 1;
            float factor = 1;
            if (logarithmic)
            {
                factor = keys.Beta[feature];
                float reference = keys.Reference[feature];
                float scale = state.LogScale[feature];
                if (reference != keys.First[feature])
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

    /// <summary>Key features at the scale that they are read at: in a place of their own, or where they are.</summary>
    private protected void ScaleKeys(Keys keys, float* target)
    {
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float* source = keys.Transposed + ((nint)feature * Chunk);
            if (keys.Beta[feature] != 1 || source != target)
            {
                SimdBlas<TV>.Scale(Chunk, keys.Beta[feature], source, target);
            }

            target += Chunk;
        }
    }

    private void Clear(State state)
    {
        new Span<float>(state.Sums, checked(_layout.Features * _layout.ValueStride)).Clear();
        new Span<float>(state.Normalizers, _layout.FeatureWidth).Clear();
        new Span<float>(state.LogScale, _layout.FeatureWidth).Fill(float.NegativeInfinity);
        new Span<float>(state.Maximum, _layout.FeatureWidth).Fill(float.NegativeInfinity);
    }

    private protected void Import(long chain, State state)
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
