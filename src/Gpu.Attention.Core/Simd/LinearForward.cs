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
    private SequencePlan? _plan;
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
        ReadChunk,
        ReadState,
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
        _plan = _layout.Plan;
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
            case Phase.Reduce when HasChunk(item, out long chain, out int chunk):
                Reduce(chain, chunk, KeysAt(item), scratch);
                break;
            case Phase.Scan:
                for (int chunk = _firstChunk; chunk < Math.Min(_firstChunk + _chunks, KeyChunks(Place(item))); chunk++)
                {
                    Keys keys = KeysAt((item * _chunks) + chunk - _firstChunk);
                    Raise(StateAt(item), keys, scratch);
                    Absorb(StateAt(item), keys, keepPrefix: _problem.Causal);
                }

                break;
            case Phase.ReadChunk when HasChunk(item, out long chain, out int chunk):
                ReadCausal(chain, chunk, KeysAt(item), scratch, prefixInDelta: true, default);
                break;
            case Phase.ReadState:
                ReadStateBlock(item / _layout.QueryBlocks, (int)(item % _layout.QueryBlocks), scratch);
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

        // Queries that see no key read the initial state, before any key raises its scale.
        if (_plan is { HasBlindQueries: true })
        {
            Do(Phase.ReadState, _layout.Chains * _layout.QueryBlocks);
        }

        // Chains stand in order of falling length; as the shorter ones end, the longer ones take their room.
        int places = _problem.Sequences;
        for (_firstChunk = 0; _firstChunk < _layout.KeyChunks; _firstChunk += _chunks)
        {
            while (KeyChunks(places - 1) <= _firstChunk)
            {
                places--;
            }

            long chains = (long)places * _problem.Shape.KeyHeads;
            _chunks = (int)Math.Min(_layout.KeysCount / chains, _layout.KeyChunks - _firstChunk);
            Do(Phase.Reduce, chains * _chunks);
            Do(Phase.Scan, chains);
            if (_problem.Causal)
            {
                Do(Phase.ReadChunk, chains * _chunks);
            }
        }

        if (!_problem.Causal)
        {
            Do(Phase.ReadState, _layout.Chains * _layout.QueryBlocks);
        }

        Do(Phase.Export, _layout.Chains);
    }

    private void RunChain(long chain, State state, Keys keys, Scratch scratch)
    {
        int place = Place(chain);
        Import(chain, state);
        if (_problem.Causal)
        {
            ReadStateBlocks(chain, state, scratch);
        }

        for (int chunk = 0; chunk < KeyChunks(place); chunk++)
        {
            Reduce(chain, chunk, keys, scratch);
            Raise(state, keys, scratch);
            if (_problem.Causal)
            {
                ReadCausal(chain, chunk, keys, scratch, prefixInDelta: false, state);
            }

            Absorb(state, keys, keepPrefix: false);
        }

        if (!_problem.Causal)
        {
            ReadStateBlocks(chain, state, scratch);
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
        _layout.InputDimension, _layout.Segments, _layout.Gathers);

    private State StateAt(long index) =>
        new(_states + (index * _layout.StateFloats), _layout.Features, _layout.FeatureStride, _layout.ValueStride);

    private Keys KeysAt(long index) =>
        new(_keys + (index * _layout.KeysFloats), _layout.Features, _layout.FeatureStride, _layout.ValueStride);

    // ---- sequences ----

    // A chain is a key head of the sequence at a place in the plan. Without a plan, places are rows of the batch.
    private int Place(long chain) => (int)(chain / _problem.Shape.KeyHeads);

    private int KeyHead(long chain) => (int)(chain % _problem.Shape.KeyHeads);

    private int BatchRow(int place) => _plan is null ? place : _plan.Batch[place];

    /// <summary>Where a chain's state stands among the caller's.</summary>
    private nint StateRow(long chain) =>
        _plan is null ? (nint)chain : ((nint)_plan.Order[Place(chain)] * _problem.Shape.KeyHeads) + KeyHead(chain);

    private int KeysOf(int place) => _plan is null ? _problem.Shape.KeyLength : _plan.Keys(place);

    private int KeyChunks(int place) => _plan is null ? _layout.KeyChunks : _plan.KeyChunks(place);

    private TokenList KeyTokens(int place, int chunk) =>
        TokenList.OfKeys(_plan, place, chunk * Chunk, Math.Min(Chunk, KeysOf(place) - (chunk * Chunk)));

    /// <summary>The blocks of queries that read a chunk, or with chunk −1 those that read nothing but a state.</summary>
    private (int First, int End) BlocksOf(int place, int chunk) =>
        _plan is not null ? _plan.BlocksOf(place, chunk)
        : chunk >= 0 ? (chunk, chunk + 1)
        : (0, _problem.Causal ? 0 : _layout.QueryBlocks);

    private QueryBlock BlockAt(int block) => _plan is not null ? _plan.Blocks[block]
        : new QueryBlock(block * Chunk, Math.Min(Chunk, _problem.Shape.QueryLength - (block * Chunk)), _problem.Causal ? block : -1);

    /// <summary>How many of its sequence's keys a causal query sees.</summary>
    private int Seen(int place, int query) =>
        _plan is null ? query + 1 : _plan.Visible[_plan.FirstRow[place] + query - _plan.FirstQuery[place]];

    /// <summary>The chunk that an item of a block of chunks stands for; false when its chain has ended.</summary>
    private bool HasChunk(long item, out long chain, out int chunk)
    {
        chain = item / _chunks;
        chunk = _firstChunk + (int)(item % _chunks);
        return chunk < KeyChunks(Place(chain));
    }

    // ---- keys ----

    /// <summary>Turns a chunk's keys and values into features and their sums K̂ᵀ[V 1].</summary>
    private void Reduce(long chain, int chunk, Keys keys, Scratch scratch)
    {
        int place = Place(chain);
        TokenList tokens = KeyTokens(place, chunk);
        int n = tokens.Count;
        *keys.Irregular = 0;
        new Span<float>(keys.DeltaZ + _layout.Features, _layout.FeatureStride - _layout.Features).Clear();
        StoredRows.Copy(
            _buffers.Value, BatchRow(place), KeyHead(chain), tokens, _problem.Shape.ValueDimension, keys.Values, _layout.ValueStride);
        LinearKeyFeatures(chain, tokens, keys.Transposed, scratch);
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
    private void LinearKeyFeatures(long chain, TokenList tokens, float* target, Scratch scratch)
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

    /// <summary>The maximum of W x over every key and feature of a chain.</summary>
    private void Stabilize(long chain, Keys keys, Scratch scratch)
    {
        float maximum = float.NegativeInfinity;
        int place = Place(chain);
        for (int chunk = 0; chunk < KeyChunks(place); chunk++)
        {
            TokenList tokens = KeyTokens(place, chunk);
            LinearKeyFeatures(chain, tokens, keys.Transposed, scratch);
            for (int feature = 0; feature < _layout.Features; feature++)
            {
                maximum = MathF.Max(maximum, TensorPrimitives.Max(new ReadOnlySpan<float>(keys.Transposed + ((nint)feature * Chunk), tokens.Count)));
            }
        }

        _stabilizers[chain] = maximum;
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
    private void LogKeyFeatures(long chain, int chunk, Scratch scratch)
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

    private void Export(long chain, State state)
    {
        StateBuffers final = _buffers.FinalState;
        if (final.IsEmpty)
        {
            return;
        }

        int r = _layout.Features;
        int dv = _problem.Shape.ValueDimension;
        nint row = StateRow(chain) * r;
        bool keepsScale = !final.Maximum.IsEmpty;
        if (keepsScale)
        {
            Copy(state.LogScale, final.LogScale.HostPointer + row, r);
            Copy(state.Maximum, final.Maximum.HostPointer + row, r);
        }

        for (int feature = 0; feature < r; feature++)
        {
            float factor = 1;
            if (_mode == FeatureMode.Logarithmic && !keepsScale)
            {
                float maximum = state.Maximum[feature];
                factor = float.IsNegativeInfinity(maximum) ? 1 : MathF.Exp(state.LogScale[feature] - maximum);
                final.LogScale.HostPointer[row + feature] = maximum;
            }

            final.Normalizers.HostPointer[row + feature] = state.Normalizers[feature] * factor;
            TensorPrimitives.Multiply(
                new ReadOnlySpan<float>(state.Sums + ((nint)feature * _layout.ValueStride), dv), factor,
                new Span<float>(final.Sums.HostPointer + ((row + feature) * dv), dv));
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
