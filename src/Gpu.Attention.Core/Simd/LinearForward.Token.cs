using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;
using Token = Gpu.Attention.LinearLayout.Token;

namespace Gpu.Attention;

// One token against a caller's state: every element of S is read once and written once, where it lies. The arithmetic is that of a chunk of
// one token, step for step, so the bits are too; "One token" in README.md says why.
internal unsafe partial class LinearForward<TV>
{
    /// <summary>How far ahead of a sweep rows of the state are asked for, into what the next head's sweep begins with.</summary>
    private const int RowsAhead = 16;

    /// <summary>What a sweep over a state does.</summary>
    private interface ISweep
    {
        /// <summary>Sums up what a query sees before the token.</summary>
        static abstract bool Reads { get; }

        /// <summary>Adds the token's key and value.</summary>
        static abstract bool Writes { get; }

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
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void RunToken(long item, int slot)
    {
        AttentionShape shape = _problem.Shape;
        int pieces = LinearLayout.Pieces(shape.KeyHeads, _layout.TokenHeads);
        long batch = item / pieces;
        int firstHead = (int)(item % pieces) * _layout.TokenHeads;
        int heads = Math.Min(_layout.TokenHeads, shape.KeyHeads - firstHead);
        Scratch scratch = ScratchAt(slot);
        var token = new Token(_keys + (slot * _layout.KeysFloats), _layout.TokenHeads, _layout.FeatureStride, _layout.ValueStride);
        bool hasKey = shape.KeyLength > 0;
        bool hasQuery = shape.QueryLength > 0;
        if (hasKey)
        {
            LinesAhead ahead = SumsAhead(batch, firstHead, firstHead + heads);
            Project(_key, heads, _buffers.Key, batch, firstHead, token.Keys, token.KeyTerms, scratch, &ahead);
        }

        if (hasQuery)
        {
            LinesAhead ahead = SumsAhead(batch, hasKey ? firstHead + 1 : firstHead, firstHead + heads);
            Project(
                _query, heads * shape.HeadGroup, _buffers.Query, batch, firstHead * shape.HeadGroup, scratch.Queries, scratch.RowTerm, scratch, &ahead);
        }

        // All but the sums first: the sweeps then follow each other through memory as the heads do, and memory waits for no exponentials in between.
        ulong rising = 0;
        for (int head = 0; head < heads; head++)
        {
            bool rises = Weigh(batch, firstHead + head, head, token, scratch, hasKey, hasQuery);
            rising |= rises ? 1UL << head : 0;
        }

        State copy = StateAt(slot);
        for (int head = 0; head < heads; head++)
        {
            SweepHead(batch, firstHead + head, head, token, scratch, copy, hasKey, hasQuery, (rising >> head & 1) != 0);
        }
    }

    /// <summary>
    /// What a head's token weighs, its query's features, and the state's normalisers and scales before it and with it: all but the sums. True when any feature rises.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private bool Weigh(long batch, int head, int index, in Token token, in Scratch scratch, bool hasKey, bool hasQuery)
    {
        AttentionShape shape = _problem.Shape;
        int r = _layout.Features;
        nint first = (nint)((batch * shape.KeyHeads) + head) * r;
        bool isWhole = r == _layout.FeatureWidth;
        bool isLogarithmic = _mode == FeatureMode.Logarithmic;
        float* normalizers = _buffers.InitialState.Normalizers.HostPointer + first;
        float* scale = isLogarithmic ? _buffers.InitialState.LogScale.HostPointer + first : null;
        if (!isWhole)
        {
            // A row that ends inside a vector is worked on in a copy that has room for whole ones.
            normalizers = Pad(normalizers, token.Normalizers);
            scale = isLogarithmic ? Pad(scale, token.Scale) : null;
        }

        bool rises = false;
        if (hasKey)
        {
            float* value = token.Values + ((nint)index * _layout.ValueStride);
            StoredRows.Copy(_buffers.Value, batch, head, new TokenList(0, 1), shape.ValueDimension, value, _layout.ValueStride);
            for (int i = 0; i < _layout.ValueStride; i += TV.Count)
            {
                // A sum is never −0.
                TV.Store(TV.Add(TV.Load(value + i), default), value + i);
            }

            float* key = token.Keys + ((nint)index * _layout.FeatureStride);
            if (isLogarithmic)
            {
                float* final = _buffers.FinalState.Normalizers.HostPointer + first;
                float* finalScale = _buffers.FinalState.LogScale.HostPointer + first;
                rises = WeighKey(token, index, key, normalizers, scale, isWhole ? final : token.Final, isWhole ? finalScale : token.FinalScale);
                normalizers = token.Normalizers;
                scale = token.Scale;
                if (!isWhole)
                {
                    Copy(token.Final, final, r);
                    Copy(token.FinalScale, finalScale, r);
                }
            }
            else
            {
                // Functions of the caller's may throw: until the last of them is back nothing of the state is written.
                AddTerms(_key, token.KeyTerms[index], key);
                Activate(_key.Form.Activation, r, key);
            }
        }

        if (hasQuery)
        {
            ActivateQueries(index * shape.HeadGroup, shape.HeadGroup, scratch, scale, normalizers);
        }

        return rises;
    }

    /// <summary>One pass over a head's sums for each query head that reads them; the last of them leaves the token added.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void SweepHead(
        long batch, int head, int index, in Token token, in Scratch scratch, in State copy, bool hasKey, bool hasQuery, bool rises)
    {
        AttentionShape shape = _problem.Shape;
        (int r, int rs, int dv, int width, int group) = (_layout.Features, _layout.FeatureStride, shape.ValueDimension, _layout.ValueStride, shape.HeadGroup);
        nint first = (nint)((batch * shape.KeyHeads) + head) * r * dv;
        float* sums = _buffers.InitialState.Sums.HostPointer + first;
        float* target = hasKey ? _buffers.FinalState.Sums.HostPointer + first : null;
        float* updated = target;
        if (dv != width)
        {
            // Rows that end inside a vector are swept in a copy that has room for whole ones.
            SimdBlas<TV>.CopyRows(r, dv, sums, dv, copy.Sums, width);
            sums = updated = copy.Sums;
        }

        if (rises)
        {
            // Rows are raised where they will be written, never where another state keeps them.
            if (sums != updated)
            {
                Copy(sums, updated, (long)r * width);
                sums = updated;
            }

            RaiseRows(r, width, token.Raise + ((nint)index * rs), sums);
        }

        float* weights = token.Keys + ((nint)index * rs);
        float* value = token.Values + ((nint)index * width);
        int firstRow = index * group;
        if (hasKey && _mode == FeatureMode.Direct)
        {
            AddToNormalizers((nint)((batch * shape.KeyHeads) + head) * r, weights, token);
        }

        for (int member = group - 1; hasQuery && member >= 0; member--)
        {
            float* q = scratch.Queries + ((nint)(firstRow + member) * rs);
            float* output = scratch.Output + ((nint)member * width);
            if (!hasKey)
            {
                Sweep<ReadOnly>(sums, null, token, weights, value, q, output);
                continue;
            }

            // Members of a group read the same state: the last of them leaves it with the token added.
            float score = member == 0 ? Sweep<ReadAndAdd>(sums, updated, token, weights, value, q, output)
                : Sweep<ReadBefore>(sums, null, token, weights, value, q, output);
            scratch.Denominator[firstRow + member] += score;
            SimdBlas<TV>.MultiplyAdd(width, score, value, output);
        }

        if (hasKey && !hasQuery && _mode == FeatureMode.Logarithmic)
        {
            Sweep<AddWeighted>(sums, updated, token, weights, value, null, null);
        }
        else if (hasKey && !hasQuery)
        {
            Sweep<AddOnly>(sums, updated, token, weights, value, null, null);
        }

        for (int row = 0; hasKey && updated != target && row < r; row++)
        {
            Copy(updated + ((nint)row * width), target + ((nint)row * dv), dv);
        }

        if (hasQuery)
        {
            WriteOutput(firstRow, group, scratch.Output, _buffers.Output.Row(batch, 0, head * group), (nint)_buffers.Output.HeadStride, scratch);
        }
    }

    /// <summary>W x' and the row terms of one row of every head.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void Project(
        PackedForm<TV> form, int n, TensorBuffer tensor, long batch, int firstHead, float* target, float* terms, in Scratch scratch, LinesAhead* ahead)
    {
        // The rows of a token's heads are taken as those of so many tokens.
        TensorBuffer turned = tensor with { TokenStride = tensor.HeadStride, HeadStride = tensor.TokenStride };
        float* x = StoredRows.Read(turned, batch, head: 0, new TokenList(firstHead, n), _layout.InputDimension, scratch.Rows, out nint stride);
        ProjectRows(form, n, x, stride, target, terms, scratch, ahead);
    }

    /// <summary>A head's sums, which are on their way while rows are projected, if it is among those up to an end: another thread writes what lies beyond.</summary>
    private LinesAhead SumsAhead(long batch, int head, int end)
    {
        AttentionShape shape = _problem.Shape;
        LinesAhead ahead = default;
        if (head < end)
        {
            long floats = (long)_layout.Features * shape.ValueDimension;
            ahead.AddStretch(_buffers.InitialState.Sums.HostPointer + (((batch * shape.KeyHeads) + head) * floats), floats);
        }

        return ahead;
    }

    /// <summary>z ← z + w.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void AddToNormalizers(nint first, float* weights, in Token token)
    {
        int r = _layout.Features;
        float* before = _buffers.InitialState.Normalizers.HostPointer + first;
        float* target = _buffers.FinalState.Normalizers.HostPointer + first;
        bool isWhole = r == _layout.FeatureWidth;
        before = isWhole ? before : Pad(before, token.Normalizers);
        float* final = isWhole ? target : token.Final;
        for (int i = 0; i < r; i += TV.Count)
        {
            // A chunk's sum of one key, never −0.
            TV.Store(TV.Add(TV.Add(TV.Load(weights + i), default), TV.Load(before + i)), final + i);
        }

        if (!isWhole)
        {
            Copy(final, target, r);
        }
    }

    /// <summary>
    /// The weight w of a key of exponential features where its projection lay, what raises the sums to the scale that they are read at, that scale and the normalisers at it, and what comes
    /// of both, perhaps where they came from. True when any feature rises.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private bool WeighKey(in Token token, int index, float* key, float* normalizers, float* scales, float* final, float* finalScale)
    {
        int width = _layout.FeatureWidth;

        // As a chunk of one key.
        bool rises = false;
        bool causal = _problem.Causal;
        TV term = TV.Broadcast(token.KeyTerms[index]);
        float* raises = token.Raise + ((nint)index * _layout.FeatureStride);
        for (int i = 0; i < width; i += TV.Count)
        {
            TV offset = TV.Load(_key.Offset + i);
            TV log = TV.Add(TV.Load(key + i), term);
            TV first = TV.Add(log, offset);
            TV before = TV.Load(scales + i);
            TV normalizer = TV.Load(normalizers + i);
            TV scale = TV.MaxOrNaN(before, first);
            TV finite = TV.Finite(scale);
            TV raise = TV.Broadcast(1);
            if (!TV.AreEqual(before, scale))
            {
                rises = true;
                raise = SimdExp.Exp(TV.Subtract(TV.Finite(before), finite));
                normalizer = TV.Multiply(raise, normalizer);
            }

            TV.Store(raise, raises + i);
            TV.Store(scale, token.Scale + i);
            TV.Store(normalizer, token.Normalizers + i);
            if (causal)
            {
                TV.Store(scale, finalScale + i);
                TV.Store(TV.Subtract(log, TV.Subtract(finite, offset)), key + i);
            }
            else
            {
                // Where direction does not count, it is its chunk's scale: its feature is e^0 there, or NaN.
                TV notNumber = TV.Subtract(log, log);
                TV.Store(notNumber, token.NotNumber + i);
                TV.Store(TV.Add(scale, notNumber), finalScale + i);
                TV.Store(TV.Subtract(TV.Finite(first), finite), key + i);
            }
        }

        Exponentiate(width, key);
        for (int i = 0; i < width; i += TV.Count)
        {
            TV weight = TV.Load(key + i);
            if (!causal)
            {
                weight = TV.Multiply(weight, TV.Add(TV.Broadcast(1), TV.Load(token.NotNumber + i)));
                TV.Store(weight, key + i);
            }

            TV.Store(TV.Add(weight, TV.Load(token.Normalizers + i)), final + i);
        }

        ClearPadding(token.Normalizers);
        return rises;
    }

    /// <summary>Beyond the last feature lies the normal form's padding, whose zeros a NaN in the row has spoilt.</summary>
    private void ClearPadding(float* row) => new Span<float>(row + _layout.Features, _layout.FeatureWidth - _layout.Features).Clear();

    /// <summary>x ← e^x over whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Exponentiate(int n, float* x)
    {
        int i = 0;
        for (; i <= n - (4 * TV.Count); i += 4 * TV.Count)
        {
            TV x0 = TV.Load(x + i);
            TV x1 = TV.Load(x + i + TV.Count);
            TV x2 = TV.Load(x + i + (2 * TV.Count));
            TV x3 = TV.Load(x + i + (3 * TV.Count));
            SimdExp.Exp(ref x0, ref x1, ref x2, ref x3);
            TV.Store(x0, x + i);
            TV.Store(x1, x + i + TV.Count);
            TV.Store(x2, x + i + (2 * TV.Count));
            TV.Store(x3, x + i + (3 * TV.Count));
        }

        for (; i < n; i += TV.Count)
        {
            TV.Store(SimdExp.Exp(TV.Load(x + i)), x + i);
        }
    }

    /// <summary>A row of features in a copy of whole vectors.</summary>
    private float* Pad(float* row, float* target)
    {
        Copy(row, target, _layout.Features);
        ClearPadding(target);
        return target;
    }

    /// <summary>Rows of a head's sums times what brings them to the scale that they are read at; nearly always nearly all of them are at it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void RaiseRows(int r, int width, float* raise, float* sums)
    {
        for (int row = 0; row < r; row++)
        {
            if (raise[row] != 1)
            {
                SimdBlas<TV>.Scale(width, raise[row], sums, sums);
            }

            sums += width;
        }
    }

    /// <summary>One pass over a head's sums; returns q·w where it does both, else 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private float Sweep<TS>(float* sums, float* target, in Token token, float* weights, float* value, float* query, float* output)
        where TS : struct, ISweep
    {
        float score = 0;
        int width = _layout.ValueStride;
        for (int column = 0, vectors; column < width; column += vectors * TV.Count)
        {
            vectors = (width - column) / TV.Count;
            vectors = vectors >= 8 ? 8 : vectors >= 4 ? 4 : vectors >= 2 ? 2 : 1;
            float* s = sums + column;
            float* t = target + column;
            float* v = value + column;
            float* o = output + column;
            float sum = vectors switch
            {
                8 => Sweep<TS, N8>(_layout.Features, s, t, width, token.Lanes, weights, query, v, o),
                4 => Sweep<TS, N4>(_layout.Features, s, t, width, token.Lanes, weights, query, v, o),
                2 => Sweep<TS, N2>(_layout.Features, s, t, width, token.Lanes, weights, query, v, o),
                _ => Sweep<TS, N1>(_layout.Features, s, t, width, token.Lanes, weights, query, v, o),
            };
            score = column == 0 ? sum : score;
        }

        return score;
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Sweep<TS, TN>(int r, float* s, float* t, nint stride, float* lanes, float* weights, float* query, float* v, float* o)
        where TS : struct, ISweep
        where TN : struct, IConstant
    {
        TV o0 = default, o1 = default, o2 = default, o3 = default, o4 = default, o5 = default, o6 = default, o7 = default;
        TV score = default;
        float* next = s + (RowsAhead * stride);
        for (nint i = 0; i < r; i++)
        {
            if (Sse.IsSupported)
            {
                Sse.Prefetch0(next);
                if (TN.Value * TV.Count > LinearLayout.LineFloats)
                {
                    Sse.Prefetch0(next + LinearLayout.LineFloats);
                }

                if (TN.Value * TV.Count > 2 * LinearLayout.LineFloats)
                {
                    Sse.Prefetch0(next + (2 * LinearLayout.LineFloats));
                    Sse.Prefetch0(next + (3 * LinearLayout.LineFloats));
                }

                if (TN.Value * TV.Count > 4 * LinearLayout.LineFloats)
                {
                    Sse.Prefetch0(next + (4 * LinearLayout.LineFloats));
                    Sse.Prefetch0(next + (5 * LinearLayout.LineFloats));
                    Sse.Prefetch0(next + (6 * LinearLayout.LineFloats));
                    Sse.Prefetch0(next + (7 * LinearLayout.LineFloats));
                }

                next += stride;
            }

            TV feature = TS.Reads ? TV.Broadcast(query[i]) : default;
            TV weight = TS.HasKey ? TV.Broadcast(weights[i]) : default;
            if (TS.Reads && TS.HasKey)
            {
                TV.AddProduct(feature, weight, ref score);
            }

            Sweep<TS>(s, t, v, 0, feature, weight, ref o0);
            if (TN.Value > 1)
            {
                Sweep<TS>(s, t, v, TV.Count, feature, weight, ref o1);
            }

            if (TN.Value > 2)
            {
                Sweep<TS>(s, t, v, 2 * TV.Count, feature, weight, ref o2);
                Sweep<TS>(s, t, v, 3 * TV.Count, feature, weight, ref o3);
            }

            if (TN.Value > 4)
            {
                Sweep<TS>(s, t, v, 4 * TV.Count, feature, weight, ref o4);
                Sweep<TS>(s, t, v, 5 * TV.Count, feature, weight, ref o5);
                Sweep<TS>(s, t, v, 6 * TV.Count, feature, weight, ref o6);
                Sweep<TS>(s, t, v, 7 * TV.Count, feature, weight, ref o7);
            }

            s += stride;
            t += stride;
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
                TV.Store(o3, o + (3 * TV.Count));
            }

            if (TN.Value > 4)
            {
                TV.Store(o4, o + (4 * TV.Count));
                TV.Store(o5, o + (5 * TV.Count));
                TV.Store(o6, o + (6 * TV.Count));
                TV.Store(o7, o + (7 * TV.Count));
            }
        }

        // Every lane holds the same.
        TV.Store(score, lanes);
        return *lanes;
    }

    /// <summary>A vector of a row. A chunk's sums are rounded before they are added, with weights where they have those.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Sweep<TS>(float* s, float* t, float* v, int at, TV feature, TV weight, ref TV output)
        where TS : struct, ISweep
    {
        TV sum = TV.Load(s + at);
        if (TS.Reads)
        {
            TV.AddProduct(feature, sum, ref output);
        }

        if (TS.Writes)
        {
            TV added = TS.Weighs ? sum : default;
            TV.AddProduct(weight, TV.Load(v + at), ref added);
            TV.Store(TS.Weighs ? added : TV.Add(added, sum), t + at);
        }
    }

    /// <summary>A query reads a state.</summary>
    private readonly struct ReadOnly : ISweep
    {
        public static bool Reads => true;

        public static bool Writes => false;

        public static bool Weighs => false;

        public static bool HasKey => false;
    }

    /// <summary>A query reads a state that the token will be added to.</summary>
    private readonly struct ReadBefore : ISweep
    {
        public static bool Reads => true;

        public static bool Writes => false;

        public static bool Weighs => false;

        public static bool HasKey => true;
    }

    /// <summary>A query reads, and the token is added.</summary>
    private readonly struct ReadAndAdd : ISweep
    {
        public static bool Reads => true;

        public static bool Writes => true;

        public static bool Weighs => false;

        public static bool HasKey => true;
    }

    /// <summary>The token is added.</summary>
    private readonly struct AddOnly : ISweep
    {
        public static bool Reads => false;

        public static bool Writes => true;

        public static bool Weighs => false;

        public static bool HasKey => true;
    }

    /// <summary>The same of exponential features: without a query direction does not count.</summary>
    private readonly struct AddWeighted : ISweep
    {
        public static bool Reads => false;

        public static bool Writes => true;

        public static bool Weighs => true;

        public static bool HasKey => true;
    }
}
