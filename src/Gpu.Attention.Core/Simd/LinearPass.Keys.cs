using Keys = Gpu.Attention.LinearLayout.Keys;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;

namespace Gpu.Attention;

// Keys: their features, their sums, and the state that the sums are added to.
internal abstract unsafe partial class LinearPass<TV>
{
    /// <summary>Turns a chunk's keys and values into features and their sums K̂ᵀ[V 1].</summary>
    private protected void Reduce(long chain, int chunk, Keys keys, Scratch scratch)
    {
        int n = KeyTokens(Place(chain), chunk).Count;
        if (ReadKeys(chain, chunk, keys, scratch))
        {
            SumKeys(n, keys);
        }
        else
        {
            ReduceInSegments(chain, chunk, n, keys, scratch);
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
        new Span<float>(keys.DeltaZ + _layout.Features, _layout.FeatureStride - _layout.Features).Clear();
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

    /// <summary>K̂ᵀV.</summary>
    private protected void SumKeys(int n, Keys keys) => MicroKernel<TV>.Multiply(
        _layout.Features, _layout.ValueStride, n, keys.Transposed, Chunk, keys.Values, _layout.ValueStride, keys.Delta, _layout.ValueStride, false);

    /// <summary>W x' of every key, as columns, and each key's row term.</summary>
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
            MicroKernel<TV>.Multiply(_layout.Features, PackedForm<TV>.RoundUp(n), d, _key.Rows, d, scratch.InputTransposed, Chunk, target, Chunk, false);
        }

        RowTerms(_key, n, x, stride, mapped, mappedStride, scratch.RowTerm);
    }

    /// <summary>Direct features in place, with their sums; columns beyond the chunk's end become zero.</summary>
    private void ActivateKeys(int n, Keys keys, Scratch scratch)
    {
        bool hasTerm = _key.HasRowTerm || _key.Form.Offset is not null;
        int padded = PackedForm<TV>.RoundUp(n);
        new Span<float>(scratch.RowTerm + n, padded - n).Clear();
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float* row = keys.Transposed + ((nint)feature * Chunk);
            TV offset = TV.Broadcast(_key.Offset[feature]);
            for (int j = 0; hasTerm && j < padded; j += TV.Count)
            {
                TV.Store(TV.Add(TV.Load(row + j), TV.Add(TV.Load(scratch.RowTerm + j), offset)), row + j);
            }

            Activate(_key.Form.Activation, n, row);
            new Span<float>(row + n, padded - n).Clear();
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
        TV highest = TV.Broadcast(float.NegativeInfinity);
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
            TV sum = default;
            for (int j = 0; j < padded; j += TV.Count)
            {
                TV log = TV.Subtract(TV.Add(TV.Load(row + j), TV.Load(term + j)), shift);

                // Not TV.Max, which a NaN may pass through: a NaN must not hide how far another key rises.
                highest = TV.SelectPositive(TV.Subtract(log, highest), log, highest);
                TV value = SimdExp.Exp(log);
                sum = TV.Add(sum, value);
                TV.Store(value, row + j);
            }

            keys.DeltaZ[feature] = TV.Sum(sum);
            if (float.IsNaN(keys.DeltaZ[feature]))
            {
                // A NaN may be lost in TV.Max, but not in a sum.
                keys.Maximum[feature] = float.NaN;
            }

            keys.First[feature] = reference + _key.Offset[feature];
            keys.Reference[feature] = keys.First[feature];
        }

        return TV.MaxAcross(highest) <= MaxLogRange;
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
    private void ReduceInSegments(long chain, int chunk, int n, Keys keys, Scratch scratch)
    {
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
        Copy(local.Normalizers, keys.DeltaZ, _layout.FeatureStride);
        Copy(local.LogScale, keys.Reference, _layout.FeatureStride);
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

        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float scale = MathF.Max(state.LogScale[feature], keys.First[feature]);
            keys.Scale[feature] = scale;

            // Of equals the difference is 0 even at −∞, where a feature is switched off.
            scratch.Factors[feature] = state.LogScale[feature] == scale ? 0 : state.LogScale[feature] - scale;
            keys.Beta[feature] = keys.First[feature] == scale ? 0 : keys.First[feature] - scale;
        }

        ExponentiateInPlace(scratch.Factors);
        ExponentiateInPlace(keys.Beta);
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float factor = scratch.Factors[feature];
            if (factor != 1)
            {
                SimdBlas<TV>.Scale(_layout.ValueStride, factor, state.Sums + ((nint)feature * _layout.ValueStride));
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

    private protected void ScaleKeys(Keys keys)
    {
        if (_mode != FeatureMode.Logarithmic)
        {
            return;
        }

        for (int feature = 0; feature < _layout.Features; feature++)
        {
            SimdBlas<TV>.Scale(Chunk, keys.Beta[feature], keys.Transposed + ((nint)feature * Chunk));
        }
    }

    private void Clear(State state)
    {
        new Span<float>(state.Sums, checked(_layout.Features * _layout.ValueStride)).Clear();
        new Span<float>(state.Normalizers, _layout.FeatureStride).Clear();
        new Span<float>(state.LogScale, _layout.FeatureStride).Fill(float.NegativeInfinity);
        new Span<float>(state.Maximum, _layout.FeatureStride).Fill(float.NegativeInfinity);
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
