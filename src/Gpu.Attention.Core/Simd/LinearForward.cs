using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using Keys = Gpu.Attention.LinearLayout.Keys;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;

namespace Gpu.Attention;

/// <summary>The forward pass of linear attention on the host; <c>Simd/README.md</c> derives it.</summary>
/// <remarks>Shape tags: C tokens of a chunk, r features, d inputs, dv values; strides round up to whole vectors.</remarks>
internal sealed unsafe partial class LinearForward<TV>(ParallelLoop loop, bool sweepsTokens) : IParallelBody, IForwardPass
    where TV : struct, ISimdVector<TV>
{
    private const int Chunk = LinearLayout.Chunk;

    /// <summary>How far above its scale a log feature may lie: <c>e^60</c>, summed over any length and squared by nothing, stays finite.</summary>
    private const float MaxLogRange = 60;

    /// <summary>What lucidrains adds to each summed key feature of a causal normaliser.</summary>
    private const float LucidrainsNormalizerOffset = 1e-6f;

    private AttentionProblem _problem = null!;
    private AttentionBuffers _buffers;
    private LinearLayout _layout;
    private PackedForm<TV> _query = null!;
    private PackedForm<TV> _key = null!;
    private FeatureMode _mode;
    private Phase _phase;
    private float _epsilon;
    private int _firstChunk;
    private int _chunks;
    private float* _scratch;
    private float* _states;
    private float* _keys;
    private float* _stabilizers;

    /// <summary>How features are computed and kept.</summary>
    private enum FeatureMode
    {
        /// <summary>As they are.</summary>
        Direct,

        /// <summary>As logarithms, with a running maximum.</summary>
        Logarithmic,

        /// <summary>As exponentials below a maximum over the whole sequence, plus an epsilon: a published convention.</summary>
        Stabilized,
    }

    private enum Phase
    {
        Stabilize,
        Chain,
        Reduce,
        Scan,
        Read,
        Export,
        Token,
    }

    /// <summary>The scratch memory that a problem takes.</summary>
    public static long WorkspaceBytes(AttentionProblem problem, int degree, bool sweepsTokens) =>
        new LinearLayout(problem, degree, TV.Count, sweepsTokens).Bytes;

    /// <inheritdoc/>
    public void Run(AttentionProblem problem, in AttentionBuffers buffers)
    {
        _problem = problem;
        _buffers = buffers;
        _layout = new LinearLayout(problem, loop.Degree, TV.Count, sweepsTokens);
        _query = PackedForm<TV>.Of(problem.Features!.Query);
        _key = PackedForm<TV>.Of(problem.Features.Key);
        _epsilon = problem.FeatureEpsilon;
        _mode = problem.Features.Family == FeatureFamily.Direct ? FeatureMode.Direct
            : problem.Convention == ReferenceConvention.None ? FeatureMode.Logarithmic : FeatureMode.Stabilized;
        _scratch = (float*)(((nint)buffers.Workspace.HostPointer + 63) & ~(nint)63);
        _states = _scratch + (_layout.Slots * _layout.ScratchFloats);
        _keys = _states + (_layout.StateCount * _layout.StateFloats);
        _stabilizers = _keys + (_layout.KeysCount * _layout.KeysFloats);

        if (_mode == FeatureMode.Stabilized)
        {
            Do(Phase.Stabilize, _layout.Chains);
        }

        // A state that keeps its scale lies between segments, where one piece would have a chunk.
        if (_layout.ByToken && buffers.InitialState.Maximum.IsEmpty && buffers.FinalState.Maximum.IsEmpty)
        {
            RunByToken();
        }
        else if (_layout.ByChain)
        {
            Do(Phase.Chain, _layout.Chains);
        }
        else
        {
            RunByChunk();
        }

        _buffers = default;
    }

    /// <inheritdoc/>
    void IParallelBody.Run(long item, int slot)
    {
        Scratch scratch = ScratchAt(slot);
        switch (_phase)
        {
            case Phase.Stabilize:
                Stabilize(item, KeysAt(_layout.ByChain ? slot : item * _layout.BlockChunks), scratch);
                break;
            case Phase.Chain:
                RunChain(item, StateAt(slot), KeysAt(slot), scratch);
                break;
            case Phase.Reduce:
                Reduce(item / _chunks, _firstChunk + (int)(item % _chunks), KeysAt(item), scratch);
                break;
            case Phase.Scan:
                for (int chunk = 0; chunk < _chunks; chunk++)
                {
                    Keys keys = KeysAt((item * _chunks) + chunk);
                    Raise(StateAt(item), keys, scratch);
                    Absorb(StateAt(item), keys, keepPrefix: _problem.Causal);
                }

                break;
            case Phase.Read when _problem.Causal:
                ReadCausal(item / _chunks, _firstChunk + (int)(item % _chunks), KeysAt(item), scratch, prefixInDelta: true, default);
                break;
            case Phase.Read:
                ReadState(item / _chunks, (int)(item % _chunks), StateAt(item / _chunks), scratch);
                break;
            case Phase.Export:
                Export(item, StateAt(item));
                break;
            case Phase.Token:
                RunToken(item, slot);
                break;
        }
    }

    private void RunByChunk()
    {
        for (long chain = 0; chain < _layout.Chains; chain++)
        {
            Import(chain, StateAt(chain));
        }

        for (_firstChunk = 0; _firstChunk < _layout.KeyChunks; _firstChunk += _chunks)
        {
            _chunks = Math.Min(_layout.BlockChunks, _layout.KeyChunks - _firstChunk);
            Do(Phase.Reduce, _layout.Chains * _chunks);
            Do(Phase.Scan, _layout.Chains);
            if (_problem.Causal)
            {
                Do(Phase.Read, _layout.Chains * _chunks);
            }
        }

        if (!_problem.Causal && _layout.QueryChunks > 0)
        {
            _chunks = _layout.QueryChunks;
            Do(Phase.Read, _layout.Chains * _chunks);
        }

        Do(Phase.Export, _layout.Chains);
    }

    private void RunChain(long chain, State state, Keys keys, Scratch scratch)
    {
        Import(chain, state);
        for (int chunk = 0; chunk < _layout.KeyChunks; chunk++)
        {
            Reduce(chain, chunk, keys, scratch);
            Raise(state, keys, scratch);
            if (_problem.Causal)
            {
                ReadCausal(chain, chunk, keys, scratch, prefixInDelta: false, state);
            }

            Absorb(state, keys, keepPrefix: false);
        }

        for (int chunk = 0; !_problem.Causal && chunk < _layout.QueryChunks; chunk++)
        {
            ReadState(chain, chunk, state, scratch);
        }

        Export(chain, state);
    }

    private void Do(Phase phase, long items)
    {
        _phase = phase;
        loop.Run(this, items);
    }

    private Scratch ScratchAt(int slot) => new(
        _scratch + (slot * _layout.ScratchFloats), _layout.Features, _layout.FeatureStride, _layout.ValueStride, _layout.InputStride,
        _layout.InputDimension, _layout.Segments);

    private State StateAt(long index) =>
        new(_states + (index * _layout.StateFloats), _layout.Features, _layout.FeatureStride, _layout.ValueStride);

    private Keys KeysAt(long index) =>
        new(_keys + (index * _layout.KeysFloats), _layout.Features, _layout.FeatureStride, _layout.ValueStride);

    private int KeyTokens(int chunk) => Math.Min(Chunk, _problem.Shape.KeyLength - (chunk * Chunk));

    private float* KeyRow(long chain, int token) =>
        _buffers.Key.Row(chain / _problem.Shape.KeyHeads, token, chain % _problem.Shape.KeyHeads);

    private float* ValueRow(long chain, int token) =>
        _buffers.Value.Row(chain / _problem.Shape.KeyHeads, token, chain % _problem.Shape.KeyHeads);

    // ---- keys ----

    /// <summary>Turns a chunk's keys and values into features and their sums K̂ᵀ[V 1].</summary>
    private void Reduce(long chain, int chunk, Keys keys, Scratch scratch)
    {
        int n = KeyTokens(chunk);
        *keys.Irregular = 0;
        new Span<float>(keys.DeltaZ + _layout.Features, _layout.FeatureStride - _layout.Features).Clear();
        SimdBlas<TV>.CopyRows(
            n, _problem.Shape.ValueDimension, ValueRow(chain, chunk * Chunk), (nint)_buffers.Value.TokenStride, keys.Values, _layout.ValueStride);
        LinearKeyFeatures(chain, chunk, n, keys.Transposed, scratch);
        switch (_mode)
        {
            case FeatureMode.Direct:
                ActivateKeys(n, keys, scratch);
                break;
            case FeatureMode.Stabilized:
                ExponentiateStabilizedKeys(n, _stabilizers[chain], keys, scratch);
                break;
            case FeatureMode.Logarithmic when !ExponentiateKeys(n, keys, scratch):
                ReduceInSegments(chain, chunk, n, keys, scratch);
                return;
        }

        MicroKernel<TV>.Multiply(
            _layout.Features, _layout.ValueStride, n, keys.Transposed, Chunk, keys.Values, _layout.ValueStride, keys.Delta, _layout.ValueStride, false);
    }

    /// <summary>W x' of every key, as columns, and each key's row term.</summary>
    private void LinearKeyFeatures(long chain, int chunk, int n, float* target, Scratch scratch)
    {
        int d = _layout.InputDimension;
        float* x = KeyRow(chain, chunk * Chunk);
        nint stride = (nint)_buffers.Key.TokenStride;
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

    /// <summary>The maximum of W x over every key and feature of a chain.</summary>
    private void Stabilize(long chain, Keys keys, Scratch scratch)
    {
        float maximum = float.NegativeInfinity;
        for (int chunk = 0; chunk < _layout.KeyChunks; chunk++)
        {
            int n = KeyTokens(chunk);
            LinearKeyFeatures(chain, chunk, n, keys.Transposed, scratch);
            for (int feature = 0; feature < _layout.Features; feature++)
            {
                maximum = MathF.Max(maximum, TensorPrimitives.Max(new ReadOnlySpan<float>(keys.Transposed + ((nint)feature * Chunk), n)));
            }
        }

        _stabilizers[chain] = maximum;
    }

    // ---- chunks whose log features rise too far above their first key's ----

    // Such a chunk is cut where a key rises too far, so that where it is cut depends on earlier keys only; the segments' sums are merged.
    private void ReduceInSegments(long chain, int chunk, int n, Keys keys, Scratch scratch)
    {
        *keys.Irregular = 1;
        LogKeyFeatures(chain, chunk, n, scratch);
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

    private void ReadInSegments(long chain, int chunk, Keys keys, Scratch scratch, float* sums, float* normalizers)
    {
        int n = KeyTokens(chunk);
        LogKeyFeatures(chain, chunk, n, scratch);
        State state = scratch.SegmentState;
        Copy(sums, state.Sums, (long)_layout.Features * _layout.ValueStride);
        Copy(normalizers, state.Normalizers, _layout.FeatureStride);
        Copy(keys.Scale, state.LogScale, _layout.FeatureStride);
        for (int start = 0; start < n;)
        {
            int end = SegmentEnd(start, n, scratch.LogFeatures);
            Keys segment = ReduceSegment(start, end, keys.Values, scratch);
            Raise(state, segment, scratch);
            ScaleKeys(segment);
            ReadHeads(
                chain, (chunk * Chunk) + start, end - start, scratch, segment.Scale, state.Sums, state.Normalizers,
                segment.Transposed + start, keys.Values + ((nint)start * _layout.ValueStride));
            Absorb(state, segment, keepPrefix: false);
            start = end;
        }
    }

    /// <summary>Log features of a chunk less the offset b, as columns.</summary>
    private void LogKeyFeatures(long chain, int chunk, int n, Scratch scratch)
    {
        LinearKeyFeatures(chain, chunk, n, scratch.LogFeatures, scratch);
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

    private int SegmentEnd(int start, int n, float* logFeatures)
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

    private Keys ReduceSegment(int start, int end, float* values, Scratch scratch)
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
    private void Raise(State state, Keys keys, Scratch scratch)
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
    private void Absorb(State state, Keys keys, bool keepPrefix)
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

    private void ScaleKeys(Keys keys)
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

    private void Import(long chain, State state)
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
        SimdBlas<TV>.CopyRows(r, dv, initial.Sums.HostPointer + ((nint)chain * r * dv), dv, state.Sums, _layout.ValueStride);
        Copy(initial.Normalizers.HostPointer + ((nint)chain * r), state.Normalizers, r);
        if (_mode == FeatureMode.Logarithmic)
        {
            Copy(initial.LogScale.HostPointer + ((nint)chain * r), state.LogScale, r);
            MemoryRegion maximum = initial.Maximum.IsEmpty ? initial.LogScale : initial.Maximum;
            Copy(maximum.HostPointer + ((nint)chain * r), state.Maximum, r);
        }
    }

    private void Export(long chain, State state)
    {
        StateBuffers final = _buffers.FinalState;
        if (final.IsEmpty)
        {
            return;
        }

        int r = _layout.Features;
        int dv = _problem.Shape.ValueDimension;
        bool keepsScale = !final.Maximum.IsEmpty;
        if (keepsScale)
        {
            Copy(state.LogScale, final.LogScale.HostPointer + ((nint)chain * r), r);
            Copy(state.Maximum, final.Maximum.HostPointer + ((nint)chain * r), r);
        }

        for (int feature = 0; feature < r; feature++)
        {
            float factor = 1;
            if (_mode == FeatureMode.Logarithmic && !keepsScale)
            {
                float maximum = state.Maximum[feature];
                factor = float.IsNegativeInfinity(maximum) ? 1 : MathF.Exp(state.LogScale[feature] - maximum);
                final.LogScale.HostPointer[((nint)chain * r) + feature] = maximum;
            }

            final.Normalizers.HostPointer[((nint)chain * r) + feature] = state.Normalizers[feature] * factor;
            TensorPrimitives.Multiply(
                new ReadOnlySpan<float>(state.Sums + ((nint)feature * _layout.ValueStride), dv), factor,
                new Span<float>(final.Sums.HostPointer + ((((nint)chain * r) + feature) * dv), dv));
        }
    }

    // ---- queries ----

    private void ReadCausal(long chain, int chunk, Keys keys, Scratch scratch, bool prefixInDelta, State state)
    {
        float* sums = prefixInDelta ? keys.Delta : state.Sums;
        float* normalizers = prefixInDelta ? keys.DeltaZ : state.Normalizers;
        if (*keys.Irregular != 0)
        {
            ReadInSegments(chain, chunk, keys, scratch, sums, normalizers);
            return;
        }

        ScaleKeys(keys);
        ReadHeads(chain, chunk * Chunk, KeyTokens(chunk), scratch, keys.Scale, sums, normalizers, keys.Transposed, keys.Values);
    }

    private void ReadState(long chain, int chunk, State state, Scratch scratch) =>
        ReadHeads(
            chain, chunk * Chunk, Math.Min(Chunk, _problem.Shape.QueryLength - (chunk * Chunk)), scratch, state.LogScale, state.Sums, state.Normalizers,
            null, null);

    /// <summary>Output rows of every query head that reads a key head: the state before the chunk and, when causal, the chunk itself.</summary>
    private void ReadHeads(
        long chain, int token, int n, Scratch scratch, float* scale, float* sums, float* normalizers, float* keysTransposed, float* values)
    {
        AttentionShape shape = _problem.Shape;
        long batch = chain / shape.KeyHeads;
        int firstHead = (int)(chain % shape.KeyHeads) * shape.HeadGroup;
        for (int head = firstHead; head < firstHead + shape.HeadGroup; head++)
        {
            QueryFeatures(_buffers.Query.Row(batch, token, head), n, scratch, scale, normalizers);
            if (keysTransposed is not null)
            {
                Scores(n, scratch, keysTransposed);
            }

            int dvStride = _layout.ValueStride;
            MicroKernel<TV>.Multiply(
                n, dvStride, _layout.Features, scratch.Queries, _layout.FeatureStride, sums, dvStride, scratch.Output, dvStride, false);
            if (keysTransposed is not null)
            {
                SimdBlas<TV>.AddCausalProduct(n, 0, n, scratch.Scores, Chunk, values, dvStride, dvStride, scratch.Output, dvStride);
            }

            WriteOutput(_buffers.Output.Row(batch, token, head), n, (nint)_buffers.Output.TokenStride, scratch);
        }
    }

    /// <summary>Q̂ (C × r), and the part of each normaliser that comes from the state.</summary>
    private void QueryFeatures(float* x, int n, Scratch scratch, float* scale, float* normalizers)
    {
        int rs = _layout.FeatureStride;
        nint stride = (nint)_buffers.Query.TokenStride;
        float* mapped = PreMap(_query, n, x, stride, scratch, out nint mappedStride);
        if (_query.Panels is null)
        {
            SimdBlas<TV>.CopyRows(n, _layout.Features, mapped, mappedStride, scratch.Queries, rs);
        }
        else
        {
            PackedForm<TV>.MultiplyPanels(n, _layout.Features, _layout.InputDimension, mapped, mappedStride, _query.Panels, scratch.Queries, rs);
        }

        // A row's own term scales all of its features alike: it cancels under the normaliser unless a constant is added to them.
        bool needsTerm = !_problem.Normalize || _epsilon != 0 || _mode != FeatureMode.Logarithmic;
        if (needsTerm)
        {
            RowTerms(_query, n, x, stride, mapped, mappedStride, scratch.RowTerm);
        }

        ActivateQueries(n, scratch, scale, normalizers);
    }

    /// <summary>Q̂ of projected rows and their terms, and the part of each normaliser that comes from the state.</summary>
    private void ActivateQueries(int n, Scratch scratch, float* scale, float* normalizers)
    {
        int rs = _layout.FeatureStride;
        if (_mode == FeatureMode.Logarithmic)
        {
            ExponentiateQueries(n, scratch, scale, normalizers);
            return;
        }

        for (int row = 0; row < n; row++)
        {
            float* q = scratch.Queries + ((nint)row * rs);
            if (_mode == FeatureMode.Direct)
            {
                if (_query.HasRowTerm || _query.Form.Offset is not null)
                {
                    TV term = TV.Broadcast(scratch.RowTerm[row]);
                    for (int i = 0; i < rs; i += TV.Count)
                    {
                        TV.Store(TV.Add(TV.Load(q + i), TV.Add(term, TV.Load(_query.Offset + i))), q + i);
                    }
                }

                Activate(_query.Form.Activation, _layout.Features, q);
            }
            else
            {
                var features = new Span<float>(q, _layout.Features);
                float shift = scratch.RowTerm[row] - TensorPrimitives.Max<float>(features);
                for (int i = 0; i < features.Length; i++)
                {
                    features[i] = MathF.Exp(_query.Offset[i]) * (MathF.Exp(features[i] + shift) + _epsilon);
                }
            }

            new Span<float>(q + _layout.Features, rs - _layout.Features).Clear();
            scratch.Denominator[row] = SimdBlas<TV>.Dot(rs, q, normalizers);
        }
    }

    private void ExponentiateQueries(int n, Scratch scratch, float* scale, float* normalizers)
    {
        int rs = _layout.FeatureStride;
        float* bias = scratch.Bias;
        for (int i = 0; i < rs; i++)
        {
            bias[i] = i < _layout.Features ? scale[i] + _query.Offset[i] : float.NegativeInfinity;
        }

        for (int row = 0; row < n; row++)
        {
            float* q = scratch.Queries + ((nint)row * rs);
            if (_epsilon != 0)
            {
                AddEpsilonToQuery(q, scratch.RowTerm[row]);
                scratch.RowTerm[row] = 0;
            }

            TV maximum = TV.Broadcast(float.NegativeInfinity);
            for (int i = 0; i < rs; i += TV.Count)
            {
                TV log = TV.Add(TV.Load(q + i), TV.Load(bias + i));
                TV.Store(log, q + i);
                maximum = TV.Max(maximum, log);
            }

            // −∞ throughout: the state is empty and nothing inside the chunk counts either; every feature is 0.
            float top = TV.MaxAcross(maximum);
            float shift = float.IsNegativeInfinity(top) ? 0 : top;
            scratch.RowMaximum[row] = top;
            TV down = TV.Broadcast(shift);
            TV sum = default;
            for (int i = 0; i < rs; i += TV.Count)
            {
                TV value = SimdExp.Exp(TV.Subtract(TV.Load(q + i), down));
                sum = TV.MultiplyAdd(value, TV.Load(normalizers + i), sum);
                TV.Store(value, q + i);
            }

            scratch.Denominator[row] = TV.Sum(sum);
        }
    }

    /// <summary>Q̂K̂ᵀ up to the diagonal, and its row sums to the normalisers.</summary>
    private void Scores(int n, Scratch scratch, float* keysTransposed)
    {
        for (int row = 0; row < n; row += MicroKernel<TV>.Rows)
        {
            int height = Math.Min(MicroKernel<TV>.Rows, n - row);
            MicroKernel<TV>.Multiply(
                height, PackedForm<TV>.RoundUp(row + height), _layout.Features, scratch.Queries + ((nint)row * _layout.FeatureStride),
                _layout.FeatureStride, keysTransposed, Chunk, scratch.Scores + ((nint)row * Chunk), Chunk, false);
            for (int i = row; i < row + height; i++)
            {
                scratch.Denominator[i] += SimdBlas<TV>.Sum(i + 1, scratch.Scores + ((nint)i * Chunk));
            }
        }
    }

    private void WriteOutput(float* output, int n, nint stride, Scratch scratch)
    {
        int dv = _problem.Shape.ValueDimension;
        for (int row = 0; row < n; row++)
        {
            var sums = new ReadOnlySpan<float>(scratch.Output + ((nint)row * _layout.ValueStride), dv);
            var target = new Span<float>(output + (row * stride), dv);
            if (_problem.Normalize)
            {
                float denominator = scratch.Denominator[row];
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
                    // Not times 1 / denominator, which is infinite below 2.9e-39.
                    TensorPrimitives.Divide(sums, denominator, target);
                }
            }
            else if (_mode == FeatureMode.Logarithmic)
            {
                // In two steps: e^M alone may overflow or vanish where its product with sums of e^(l − s) does neither.
                float root = MathF.Exp((scratch.RowMaximum[row] + scratch.RowTerm[row]) / 2);
                TensorPrimitives.Multiply(sums, root, target);
                TensorPrimitives.Multiply(target, root, target);
            }
            else
            {
                TensorPrimitives.Multiply(sums, _problem.Scale, target);
            }
        }
    }

    // ---- the parts of the normal form ----

    /// <summary>x' = P x + p, or x itself.</summary>
    private float* PreMap(PackedForm<TV> form, int n, float* x, nint stride, Scratch scratch, out nint mappedStride)
    {
        mappedStride = form.HasPreMap ? form.InputStride : stride;
        if (!form.HasPreMap)
        {
            return x;
        }

        int d = _layout.InputDimension;
        if (form.PrePanels is null)
        {
            SimdBlas<TV>.CopyRows(n, d, x, stride, scratch.Mapped, form.InputStride);
        }
        else
        {
            PackedForm<TV>.MultiplyPanels(n, d, d, x, stride, form.PrePanels, scratch.Mapped, form.InputStride);
        }

        for (int row = 0; form.PreOffset is not null && row < n; row++)
        {
            var target = new Span<float>(scratch.Mapped + ((nint)row * form.InputStride), d);
            TensorPrimitives.Add(target, new ReadOnlySpan<float>(form.PreOffset, d), target);
        }

        return scratch.Mapped;
    }

    /// <summary>−β|x'|² + u·x of every row.</summary>
    private void RowTerms(PackedForm<TV> form, int n, float* x, nint stride, float* mapped, nint mappedStride, float* terms)
    {
        int d = _layout.InputDimension;
        for (int row = 0; row < n; row++)
        {
            float term = 0;
            if (form.Form.NormCoefficient != 0)
            {
                term = -form.Form.NormCoefficient * TensorPrimitives.SumOfSquares(new ReadOnlySpan<float>(mapped + (row * mappedStride), d));
            }

            if (form.Linear is not null)
            {
                term += TensorPrimitives.Dot(new ReadOnlySpan<float>(form.Linear, d), new ReadOnlySpan<float>(x + (row * stride), d));
            }

            terms[row] = term;
        }
    }

    /// <summary>A direct activation of n elements in place, epsilon included. The row is padded to whole vectors.</summary>
    private void Activate(FeatureActivation activation, int n, float* row)
    {
        TV epsilon = TV.Broadcast(_epsilon);
        if (activation == FeatureActivation.EluPlusOne)
        {
            for (int i = 0; i < n; i += TV.Count)
            {
                TV x = TV.Load(row + i);
                TV value = TV.SelectPositive(x, TV.Add(x, TV.Broadcast(1)), SimdExp.Exp(x));
                TV.Store(TV.Add(value, epsilon), row + i);
            }
        }
        else if (activation == FeatureActivation.Relu)
        {
            for (int i = 0; i < n; i += TV.Count)
            {
                TV.Store(TV.Add(TV.Max(default, TV.Load(row + i)), epsilon), row + i);
            }
        }
        else
        {
            var elements = new Span<float>(row, n);
            activation.Apply(elements, elements);
            if (_epsilon != 0)
            {
                TensorPrimitives.Add(elements, _epsilon, elements);
            }
        }
    }

    // The constant is added to exp(l) before the factor e^b, as the published implementations place it.
    private void AddEpsilonToKeys(int n, float* transposed, float* term)
    {
        if (_epsilon == 0)
        {
            return;
        }

        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float* row = transposed + ((nint)feature * Chunk);
            for (int j = 0; j < n; j++)
            {
                row[j] = LogAddEpsilon(row[j] + term[j]);
            }
        }

        new Span<float>(term, n).Clear();
    }

    private void AddEpsilonToQuery(float* logs, float term)
    {
        for (int i = 0; i < _layout.Features; i++)
        {
            logs[i] = LogAddEpsilon(logs[i] + term);
        }
    }

    private float LogAddEpsilon(float log)
    {
        float other = MathF.Log(_epsilon);
        float larger = MathF.Max(log, other);
        return larger + MathF.Log(1 + MathF.Exp(MathF.Min(log, other) - larger));
    }

    private void ExponentiateInPlace(float* logs)
    {
        for (int i = 0; i < _layout.FeatureStride; i += TV.Count)
        {
            TV.Store(SimdExp.Exp(TV.Load(logs + i)), logs + i);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Copy(float* source, float* target, long count) =>
        new ReadOnlySpan<float>(source, checked((int)count)).CopyTo(new Span<float>(target, (int)count));
}
