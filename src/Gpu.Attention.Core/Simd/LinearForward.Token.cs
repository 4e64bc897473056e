using System.Runtime.CompilerServices;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;
using Token = Gpu.Attention.LinearLayout.Token;

namespace Gpu.Attention;

// One token against a caller's state: every element of S is read once and written once, where it lies. The arithmetic is that of a chunk of
// one token, step for step, so the bits are too; "One token" in README.md says why.
internal unsafe partial class LinearForward<TV>
{
    /// <summary>What a sweep over a state does.</summary>
    private interface ISweep
    {
        /// <summary>Sums up what a query sees before the token.</summary>
        static abstract bool Reads { get; }

        /// <summary>Adds the token's key and value.</summary>
        static abstract bool Writes { get; }

        /// <summary>Brings the sums to another scale first: exponential features.</summary>
        static abstract bool Raises { get; }

        /// <summary>Of e^0 there is nothing to be rounded but its product with a weight: exponential features where direction does not count.</summary>
        static abstract bool Weighs { get; }

        /// <summary>The query sees the token too.</summary>
        static abstract bool HasKey { get; }
    }

    private void RunByToken()
    {
        long items = _problem.Shape.Batch * (long)LinearLayout.Pieces(_problem.Shape.KeyHeads, _layout.TokenHeads);
        if (_layout.TokensOnThreads)
        {
            Do(Phase.Token, items);
            return;
        }

        for (long item = 0; item < items; item++)
        {
            RunToken(item, slot: 0);
        }
    }

    /// <summary>Some key heads of one sequence: their rows are projected together, so that the projection is read once.</summary>
    private void RunToken(long item, int slot)
    {
        AttentionShape shape = _problem.Shape;
        int pieces = LinearLayout.Pieces(shape.KeyHeads, _layout.TokenHeads);
        long batch = item / pieces;
        int firstHead = (int)(item % pieces) * _layout.TokenHeads;
        int heads = Math.Min(_layout.TokenHeads, shape.KeyHeads - firstHead);
        Scratch scratch = ScratchAt(slot);
        long place = _layout.ByChain ? slot : item;
        var token = new Token(
            _keys + (place * _layout.KeysFloats), _layout.TokenHeads, shape.HeadGroup, _layout.FeatureStride, _layout.ValueStride);
        bool hasKey = shape.KeyLength > 0;
        bool hasQuery = shape.QueryLength > 0;
        if (hasKey)
        {
            Project(_key, heads, _buffers.Key, batch, firstHead, token.Keys, token.KeyTerms, scratch);
        }

        if (hasQuery)
        {
            Project(
                _query, heads * shape.HeadGroup, _buffers.Query, batch, firstHead * shape.HeadGroup, token.Queries, token.QueryTerms, scratch);
        }

        for (int head = 0; head < heads; head++)
        {
            RunToken(batch, firstHead + head, head, token, scratch, StateAt(place), hasKey, hasQuery);
        }
    }

    private void RunToken(long batch, int head, int index, Token token, Scratch scratch, State copy, bool hasKey, bool hasQuery)
    {
        AttentionShape shape = _problem.Shape;
        (int r, int rs, int dv, int group) = (_layout.Features, _layout.FeatureStride, shape.ValueDimension, shape.HeadGroup);
        nint chain = (nint)((batch * shape.KeyHeads) + head);
        float* sums = _buffers.InitialState.Sums.HostPointer + (chain * r * dv);
        float* target = hasKey ? _buffers.FinalState.Sums.HostPointer + (chain * r * dv) : null;
        nint stride = dv;
        if (dv != _layout.ValueStride)
        {
            // Rows that end inside a vector are swept in a copy that has room for whole ones.
            stride = _layout.ValueStride;
            SimdBlas<TV>.CopyRows(r, dv, sums, dv, copy.Sums, _layout.ValueStride);
            sums = copy.Sums;
        }

        Load(_buffers.InitialState.Normalizers, chain, token.Normalizers);
        if (_mode == FeatureMode.Logarithmic)
        {
            Load(_buffers.InitialState.LogScale, chain, token.Scale);
        }

        if (hasKey)
        {
            StoredRows.Copy(_buffers.Value, batch, head, new TokenList(0, 1), dv, token.Value, _layout.ValueStride);
            for (int i = 0; i < _layout.ValueStride; i += TV.Count)
            {
                // A sum is never −0.
                TV.Store(TV.Add(TV.Load(token.Value + i), default), token.Value + i);
            }

            WeighKey(token, index);
        }

        if (hasQuery)
        {
            Copy(token.Queries + ((nint)index * group * rs), scratch.Queries, (long)group * rs);
            Copy(token.QueryTerms + (index * group), scratch.RowTerm, group);
            ActivateQueries(group, scratch, token.Scale, token.Normalizers);
        }

        float* updated = dv == _layout.ValueStride ? target : sums;
        for (int member = group - 1; hasQuery && member >= 0; member--)
        {
            float* q = scratch.Queries + ((nint)member * rs);
            float* output = scratch.Output + ((nint)member * _layout.ValueStride);
            bool isLast = member == 0;
            if (!hasKey)
            {
                Sweep<ReadOnly>(sums, null, stride, token, q, output);
                continue;
            }

            // Members of a group read the same state: the last of them leaves it with the token added.
            float score = (_mode, isLast) switch
            {
                (FeatureMode.Logarithmic, true) => Sweep<StepRaised>(sums, updated, stride, token, q, output),
                (FeatureMode.Logarithmic, false) => Sweep<ReadRaised>(sums, null, stride, token, q, output),
                (_, true) => Sweep<StepPlain>(sums, updated, stride, token, q, output),
                _ => Sweep<ReadPlain>(sums, null, stride, token, q, output),
            };
            scratch.Denominator[member] += score;
            SimdBlas<TV>.MultiplyAdd(_layout.ValueStride, score, token.Value, output);
        }

        if (hasKey)
        {
            if (!hasQuery && _mode == FeatureMode.Logarithmic && _problem.Causal)
            {
                Sweep<AppendRaised>(sums, updated, stride, token, null, null);
            }
            else if (!hasQuery && _mode == FeatureMode.Logarithmic)
            {
                Sweep<AppendWeighted>(sums, updated, stride, token, null, null);
            }
            else if (!hasQuery)
            {
                Sweep<AppendPlain>(sums, updated, stride, token, null, null);
            }

            StoreToken(chain, token, updated == target ? null : updated, target);
        }

        if (hasQuery)
        {
            WriteOutput(0, group, scratch.Output, _buffers.Output.Row(batch, 0, head * group), (nint)_buffers.Output.HeadStride, scratch);
        }
    }

    /// <summary>W x' and the row terms of one row of every head.</summary>
    private void Project(PackedForm<TV> form, int n, TensorBuffer tensor, long batch, int firstHead, float* target, float* terms, Scratch scratch)
    {
        // The rows of a token's heads are taken as those of so many tokens.
        TensorBuffer turned = tensor with { TokenStride = tensor.HeadStride, HeadStride = tensor.TokenStride };
        float* x = StoredRows.Read(turned, batch, head: 0, new TokenList(firstHead, n), _layout.InputDimension, scratch.Rows, out nint stride);
        ProjectRows(form, n, x, stride, target, terms, scratch);
    }

    /// <summary>
    /// The key's weight w, what raises the sums to the scale that they are read at, the normalisers at that scale, and what comes of them.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void WeighKey(Token token, int index)
    {
        int width = _layout.FeatureWidth;
        float* key = token.Keys + ((nint)index * _layout.FeatureStride);
        float rowTerm = token.KeyTerms[index];
        TV term = TV.Broadcast(rowTerm);
        if (_mode == FeatureMode.Direct)
        {
            bool hasTerm = _key.HasRowTerm || _key.Form.Offset is not null;
            for (int i = 0; hasTerm && i < width; i += TV.Count)
            {
                TV.Store(TV.Add(TV.Load(key + i), TV.Add(term, TV.Load(_key.Offset + i))), key + i);
            }

            Activate(_key.Form.Activation, _layout.Features, key);
            for (int i = 0; i < width; i += TV.Count)
            {
                TV weight = TV.Load(key + i);
                TV.Store(weight, token.Weight + i);
                TV.Store(TV.Add(TV.Add(weight, default), TV.Load(token.Normalizers + i)), token.Final + i);
            }
        }
        else
        {
            // As a chunk of one key.
            for (int i = 0; i < width; i += TV.Count)
            {
                TV offset = TV.Load(_key.Offset + i);
                TV log = TV.Add(TV.Load(key + i), term);
                TV first = TV.Add(log, offset);
                TV before = TV.Load(token.Scale + i);
                TV scale = TV.MaxOrNaN(before, first);
                TV finite = TV.Finite(scale);
                TV raise = SimdExp.Exp(TV.Subtract(TV.Finite(before), finite));

                // Where direction does not count, it is its chunk's scale: its feature is e^0 there, or NaN.
                TV feature = TV.Add(TV.Broadcast(1), TV.Subtract(log, log));
                TV weight = _problem.Causal
                    ? SimdExp.Exp(TV.Subtract(log, TV.Subtract(finite, offset)))
                    : TV.Multiply(SimdExp.Exp(TV.Subtract(TV.Finite(first), finite)), feature);
                TV normalizer = TV.Multiply(raise, TV.Load(token.Normalizers + i));
                TV.Store(raise, token.Raise + i);
                TV.Store(weight, token.Weight + i);
                TV.Store(normalizer, token.Normalizers + i);
                TV.Store(TV.Add(weight, normalizer), token.Final + i);
                TV.Store(scale, token.Scale + i);
                TV.Store(_problem.Causal ? scale : TV.Add(scale, TV.Subtract(feature, TV.Broadcast(1))), token.FinalScale + i);
            }
        }

        // Beyond the last feature lies the normal form's padding, whose zeros a NaN in the row has spoilt.
        new Span<float>(token.Normalizers + _layout.Features, width - _layout.Features).Clear();
    }

    /// <summary>Hands out z and c, and S where it was swept in a copy.</summary>
    private void StoreToken(nint chain, Token token, float* padded, float* target)
    {
        int r = _layout.Features;
        int dv = _problem.Shape.ValueDimension;
        Copy(token.Final, _buffers.FinalState.Normalizers.HostPointer + (chain * r), r);
        if (_mode == FeatureMode.Logarithmic)
        {
            Copy(token.FinalScale, _buffers.FinalState.LogScale.HostPointer + (chain * r), r);
        }

        for (int row = 0; padded is not null && row < r; row++)
        {
            Copy(padded + ((nint)row * _layout.ValueStride), target + ((nint)row * dv), dv);
        }
    }

    private void Load(MemoryRegion part, nint chain, float* target)
    {
        Copy(part.HostPointer + (chain * _layout.Features), target, _layout.Features);
        new Span<float>(target + _layout.Features, _layout.FeatureWidth - _layout.Features).Clear();
    }

    /// <summary>One pass over a head's sums; returns q·w where it does both, else 0.</summary>
    private float Sweep<TS>(float* sums, float* target, nint stride, in Token token, float* query, float* output)
        where TS : struct, ISweep
    {
        float score = 0;
        for (int column = 0; column < _layout.ValueStride; column += 4 * TV.Count)
        {
            int vectors = Math.Min(4, (_layout.ValueStride - column) / TV.Count);
            float* s = sums + column;
            float* t = target + column;
            float* v = token.Value + column;
            float* o = output + column;
            float sum = vectors switch
            {
                4 => Sweep<TS, N4>(_layout.Features, s, t, stride, in token, query, v, o),
                3 => Sweep<TS, N3>(_layout.Features, s, t, stride, in token, query, v, o),
                2 => Sweep<TS, N2>(_layout.Features, s, t, stride, in token, query, v, o),
                _ => Sweep<TS, N1>(_layout.Features, s, t, stride, in token, query, v, o),
            };
            score = column == 0 ? sum : score;
        }

        return score;
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Sweep<TS, TN>(int r, float* s, float* t, nint stride, in Token token, float* query, float* v, float* o)
        where TS : struct, ISweep
        where TN : struct, IConstant
    {
        TV o0 = default, o1 = default, o2 = default, o3 = default;
        TV v0 = default, v1 = default, v2 = default, v3 = default;
        TV score = default;
        if (TS.Writes)
        {
            v0 = TV.Load(v);
            v1 = TN.Value > 1 ? TV.Load(v + TV.Count) : default;
            v2 = TN.Value > 2 ? TV.Load(v + (2 * TV.Count)) : default;
            v3 = TN.Value > 3 ? TV.Load(v + (3 * TV.Count)) : default;
        }

        for (nint i = 0; i < r; i++)
        {
            float* row = s + (i * stride);
            TV s0 = TV.Load(row);
            TV s1 = TN.Value > 1 ? TV.Load(row + TV.Count) : default;
            TV s2 = TN.Value > 2 ? TV.Load(row + (2 * TV.Count)) : default;
            TV s3 = TN.Value > 3 ? TV.Load(row + (3 * TV.Count)) : default;
            if (TS.Raises)
            {
                TV raise = TV.Broadcast(token.Raise[i]);
                s0 = TV.Multiply(raise, s0);
                s1 = TN.Value > 1 ? TV.Multiply(raise, s1) : default;
                s2 = TN.Value > 2 ? TV.Multiply(raise, s2) : default;
                s3 = TN.Value > 3 ? TV.Multiply(raise, s3) : default;
            }

            if (TS.Reads)
            {
                TV feature = TV.Broadcast(query[i]);
                o0 = TV.MultiplyAdd(feature, s0, o0);
                o1 = TN.Value > 1 ? TV.MultiplyAdd(feature, s1, o1) : default;
                o2 = TN.Value > 2 ? TV.MultiplyAdd(feature, s2, o2) : default;
                o3 = TN.Value > 3 ? TV.MultiplyAdd(feature, s3, o3) : default;
                if (TS.HasKey)
                {
                    score = TV.MultiplyAdd(feature, TV.Broadcast(token.Weight[i]), score);
                }
            }

            if (TS.Writes)
            {
                TV weight = TV.Broadcast(token.Weight[i]);
                float* to = t + (i * stride);
                TV.Store(Add<TS>(weight, v0, s0), to);
                if (TN.Value > 1)
                {
                    TV.Store(Add<TS>(weight, v1, s1), to + TV.Count);
                }

                if (TN.Value > 2)
                {
                    TV.Store(Add<TS>(weight, v2, s2), to + (2 * TV.Count));
                }

                if (TN.Value > 3)
                {
                    TV.Store(Add<TS>(weight, v3, s3), to + (3 * TV.Count));
                }
            }
        }

        if (TS.Reads)
        {
            TV.Store(o0, o);
            if (TN.Value > 1)
            {
                TV.Store(o1, o + TV.Count);
            }

            if (TN.Value > 2)
            {
                TV.Store(o2, o + (2 * TV.Count));
            }

            if (TN.Value > 3)
            {
                TV.Store(o3, o + (3 * TV.Count));
            }
        }

        // Every lane holds the same.
        TV.Store(score, token.Lanes);
        return *token.Lanes;
    }

    // A chunk's sums are rounded before they are added, with weights where they have those.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TV Add<TS>(TV weight, TV value, TV sum)
        where TS : struct, ISweep =>
        TS.Weighs ? TV.MultiplyAdd(weight, value, sum) : TV.Add(TV.MultiplyAdd(weight, value, default), sum);

    /// <summary>A query reads a state.</summary>
    private readonly struct ReadOnly : ISweep
    {
        public static bool Reads => true;

        public static bool Writes => false;

        public static bool Raises => false;

        public static bool Weighs => false;

        public static bool HasKey => false;
    }

    /// <summary>A query reads a state that the token will be added to.</summary>
    private readonly struct ReadPlain : ISweep
    {
        public static bool Reads => true;

        public static bool Writes => false;

        public static bool Raises => false;

        public static bool Weighs => false;

        public static bool HasKey => true;
    }

    /// <summary>The same of exponential features.</summary>
    private readonly struct ReadRaised : ISweep
    {
        public static bool Reads => true;

        public static bool Writes => false;

        public static bool Raises => true;

        public static bool Weighs => false;

        public static bool HasKey => true;
    }

    /// <summary>A query reads, and the token is added.</summary>
    private readonly struct StepPlain : ISweep
    {
        public static bool Reads => true;

        public static bool Writes => true;

        public static bool Raises => false;

        public static bool Weighs => false;

        public static bool HasKey => true;
    }

    /// <summary>The same of exponential features.</summary>
    private readonly struct StepRaised : ISweep
    {
        public static bool Reads => true;

        public static bool Writes => true;

        public static bool Raises => true;

        public static bool Weighs => false;

        public static bool HasKey => true;
    }

    /// <summary>The token is added.</summary>
    private readonly struct AppendPlain : ISweep
    {
        public static bool Reads => false;

        public static bool Writes => true;

        public static bool Raises => false;

        public static bool Weighs => false;

        public static bool HasKey => true;
    }

    /// <summary>The same of exponential features.</summary>
    private readonly struct AppendRaised : ISweep
    {
        public static bool Reads => false;

        public static bool Writes => true;

        public static bool Raises => true;

        public static bool Weighs => false;

        public static bool HasKey => true;
    }

    /// <summary>The same where direction does not count.</summary>
    private readonly struct AppendWeighted : ISweep
    {
        public static bool Reads => false;

        public static bool Writes => true;

        public static bool Raises => true;

        public static bool Weighs => true;

        public static bool HasKey => true;
    }
}
