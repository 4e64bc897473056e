using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Gpu.Attention;

// Which keys a query attends to. Linear attention never makes the matrix of weights, but any row and any column sum of it is there for the asking.
public sealed unsafe partial class LinearAttention
{
    /// <summary>Columns of the matrix that <c>ReceivedMass</c> sums at once.</summary>
    private const int MassColumns = 64;

    /// <summary>Values and outputs that it holds at once, if one column's are not more: 256 MB.</summary>
    private const long MaxMassFloats = 1 << 26;

    /// <summary>The weights of chosen rows: how much of each key's value goes into a query's output.</summary>
    /// <remarks>
    /// <para><c>w_ij = φ(q_i)·φ(k_j) / Σ_j φ(q_i)·φ(k_j)</c> over the keys j that query i sees, so that <c>Forward</c> gives <c>o_i = Σ_j w_ij v_j</c>: weights of the
    /// feature map, and not of the softmax that it may estimate. A row sums to 1, or is 0 where the query sees no key or its weights sum to zero; keys that it
    /// does not see have exactly 0. Where <see cref="LinearAttentionOptions.Normalize"/> is false nothing is divided by, and direct maps have the factor
    /// <see cref="LinearAttentionOptions.Scale"/>: a weight is always what multiplies the value.</para>
    /// <para>Computed on the host, in <c>O(S·(D·m + n·r))</c> a head for n rows and r features of m projected ones, and <c>n·(r + S / 32)</c> numbers of scratch
    /// memory a head and <c>T + S</c> a sequence. Nothing grows with T·S unless all rows are asked for.</para>
    /// </remarks>
    /// <param name="shape">The sizes; Dv is not looked at.</param>
    /// <param name="query">Queries, <c>B·T·H·D</c> elements.</param>
    /// <param name="key">Keys, <c>B·S·Hk·D</c> elements.</param>
    /// <param name="queryTokens">The n rows, by token from 0 to T − 1, in any order; the same for every sequence and head.</param>
    /// <param name="weights">Receives the weights <c>[B, H, n, S]</c>; may not overlap an input.</param>
    /// <param name="layout">
    /// Which tokens belong to which sequence and which keys take part; null when sequences fill their tensors. When packed, tokens count over all sequences.
    /// </param>
    /// <exception cref="ArgumentException">A length or a token is wrong, the layout does not fit, or the weights overlap an input.</exception>
    /// <exception cref="NotSupportedException">A published convention has no weights of this kind, or the problem is ill-posed; the message says why.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Weights(
        AttentionShape shape, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<int> queryTokens, Span<float> weights,
        SequenceLayout? layout = null)
    {
        TensorArguments.RequireLengths(shape, query.Length, key.Length);
        TensorArguments.RequireLength(nameof(weights), weights.Length, shape, queryTokens.Length, "[B, H, n, S]", shape.KeyLength);
        fixed (float* q = query)
        fixed (float* k = key)
        fixed (float* w = weights)
        {
            Weights(shape, q, k, queryTokens, w, layout);
        }
    }

    /// <summary>The weights of chosen rows, of tensors: see the other overload.</summary>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="queryTokens">The n rows, by token from 0 to T − 1, in any order; the same for every sequence and head.</param>
    /// <param name="weights">Receives the weights <c>[B, H, n, S]</c>; may not overlap an input.</param>
    /// <param name="layout">
    /// Which tokens belong to which sequence and which keys take part; null when sequences fill their tensors. When packed, tokens count over all sequences.
    /// </param>
    /// <exception cref="ArgumentException">A rank, size, stride or token is wrong, the layout does not fit, or the weights overlap an input.</exception>
    /// <exception cref="NotSupportedException">A published convention has no weights of this kind, or the problem is ill-posed; the message says why.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Weights(
        in ReadOnlyTensorSpan<float> query, in ReadOnlyTensorSpan<float> key, ReadOnlySpan<int> queryTokens, in TensorSpan<float> weights,
        SequenceLayout? layout = null)
    {
        AttentionShape shape = TensorArguments.WeightsShape(query, key);
        TensorArguments.RequireSizes(
            nameof(weights), weights.Lengths, weights.IsDense, "[B, H, n, S]", shape.Batch, shape.Heads, queryTokens.Length, shape.KeyLength);
        fixed (float* q = &TensorMarshal.GetReference(query))
        fixed (float* k = &TensorMarshal.GetReference(key))
        fixed (float* w = &TensorMarshal.GetReference(weights))
        {
            Weights(shape, q, k, queryTokens, w, layout);
        }
    }

    /// <summary>The keys of the largest weights of chosen rows: what a query attends to most.</summary>
    /// <remarks>
    /// The weights are those of <c>Weights</c>, at its cost and <c>S·log k</c> a row; rows are kept no longer than it takes to choose, 32 MB of them or one
    /// of each head.
    /// </remarks>
    /// <param name="shape">The sizes; Dv is not looked at.</param>
    /// <param name="query">Queries, <c>B·T·H·D</c> elements.</param>
    /// <param name="key">Keys, <c>B·S·Hk·D</c> elements.</param>
    /// <param name="queryTokens">The n rows, by token from 0 to T − 1, in any order; the same for every sequence and head.</param>
    /// <param name="tokens">
    /// Receives the keys' tokens <c>[B, H, n, k]</c>, the largest weight first and of equal ones the lower token; −1 where a row sees fewer than k. Its length
    /// says k.
    /// </param>
    /// <param name="weights">Receives their weights <c>[B, H, n, k]</c>, 0 where there is no key.</param>
    /// <param name="layout">
    /// Which tokens belong to which sequence and which keys take part; null when sequences fill their tensors. When packed, tokens count over all sequences.
    /// </param>
    /// <exception cref="ArgumentException">A length or a token is wrong, the layout does not fit, or the weights overlap an input.</exception>
    /// <exception cref="NotSupportedException">A published convention has no weights of this kind, or the problem is ill-posed; the message says why.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void TopKeys(
        AttentionShape shape, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<int> queryTokens, Span<int> tokens, Span<float> weights,
        SequenceLayout? layout = null)
    {
        TensorArguments.RequireLengths(shape, query.Length, key.Length);
        Int128 rows = (Int128)shape.Batch * shape.Heads * queryTokens.Length;
        int count = rows == 0 ? 0 : (int)(tokens.Length / rows);
        TensorArguments.RequireLength(nameof(tokens), tokens.Length, shape, queryTokens.Length, $"[B, H, n, k = {count}]", count);
        TensorArguments.RequireLength(nameof(weights), weights.Length, shape, queryTokens.Length, $"[B, H, n, k = {count}]", count);
        fixed (float* q = query)
        fixed (float* k = key)
        fixed (int* t = tokens)
        fixed (float* w = weights)
        {
            TensorArguments.RequireDisjoint(shape, q, k, nameof(weights), w, weights.Length);
            AttentionProblem problem = RowsProblem(shape, queryTokens, layout);
            FeatureWeights.TopKeys(problem, q, k, queryTokens, count, t, w, Device.Options.MaxDegreeOfParallelism);
        }
    }

    /// <summary>The keys of the largest weights of chosen rows, of tensors: see the other overload.</summary>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="queryTokens">The n rows, by token from 0 to T − 1, in any order; the same for every sequence and head.</param>
    /// <param name="tokens">
    /// Receives the keys' tokens <c>[B, H, n, k]</c>, the largest weight first and of equal ones the lower token; −1 where a row sees fewer than k. Its length
    /// says k.
    /// </param>
    /// <param name="weights">Receives their weights <c>[B, H, n, k]</c>, 0 where there is no key.</param>
    /// <param name="layout">
    /// Which tokens belong to which sequence and which keys take part; null when sequences fill their tensors. When packed, tokens count over all sequences.
    /// </param>
    /// <exception cref="ArgumentException">A rank, size, stride or token is wrong, the layout does not fit, or the weights overlap an input.</exception>
    /// <exception cref="NotSupportedException">A published convention has no weights of this kind, or the problem is ill-posed; the message says why.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void TopKeys(
        in ReadOnlyTensorSpan<float> query, in ReadOnlyTensorSpan<float> key, ReadOnlySpan<int> queryTokens, in TensorSpan<int> tokens,
        in TensorSpan<float> weights, SequenceLayout? layout = null)
    {
        AttentionShape shape = TensorArguments.WeightsShape(query, key);
        nint count = tokens.Rank == 4 ? tokens.Lengths[3] : 0;
        ReadOnlySpan<nint> sizes = [shape.Batch, shape.Heads, queryTokens.Length, count];
        TensorArguments.RequireSizes(nameof(tokens), tokens.Lengths, tokens.IsDense, "[B, H, n, k]", sizes);
        TensorArguments.RequireSizes(nameof(weights), weights.Lengths, weights.IsDense, "[B, H, n, k]", sizes);
        fixed (float* q = &TensorMarshal.GetReference(query))
        fixed (float* k = &TensorMarshal.GetReference(key))
        fixed (int* t = &TensorMarshal.GetReference(tokens))
        fixed (float* w = &TensorMarshal.GetReference(weights))
        {
            TensorArguments.RequireDisjoint(shape, q, k, nameof(weights), w, weights.FlattenedLength);
            AttentionProblem problem = RowsProblem(shape, queryTokens, layout);
            FeatureWeights.TopKeys(problem, q, k, queryTokens, checked((int)count), t, w, Device.Options.MaxDegreeOfParallelism);
        }
    }

    /// <summary>How much weight chosen keys received from all queries together: column sums of the matrix of weights.</summary>
    /// <remarks>
    /// <c>mass_j = Σ_i w_ij</c> over the queries i that see key j, with the weights that <c>Forward</c> applies, whatever the convention: it is a forward pass on the
    /// operator's device, of values that are 1 at a chosen key and 0 elsewhere, for up to 64 keys at a time, summed over queries in their order in float64.
    /// <c>O((T + S)·r)</c> a head and chosen key, and projections once for each 64. Scratch memory is at most 256 MB, or <c>B·(T·H + S·Hk)</c> numbers if they are
    /// more, beside what such a call takes. The masses of all keys of a normalised operator sum to the number of queries that see a key.
    /// </remarks>
    /// <param name="shape">The sizes; Dv is not looked at.</param>
    /// <param name="query">Queries, <c>B·T·H·D</c> elements.</param>
    /// <param name="key">Keys, <c>B·S·Hk·D</c> elements.</param>
    /// <param name="keyTokens">The n keys, by token from 0 to S − 1, in any order; the same for every sequence and head of the batch.</param>
    /// <param name="mass">Receives the sums <c>[B, H, n]</c>; may not overlap an input.</param>
    /// <param name="layout">
    /// Which tokens belong to which sequence and which keys take part; null when sequences fill their tensors. When packed, tokens count over all sequences.
    /// </param>
    /// <exception cref="ArgumentException">A length or a token is wrong, the layout does not fit, or the mass overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void ReceivedMass(
        AttentionShape shape, ReadOnlySpan<float> query, ReadOnlySpan<float> key, ReadOnlySpan<int> keyTokens, Span<float> mass, SequenceLayout? layout = null)
    {
        TensorArguments.RequireLengths(shape, query.Length, key.Length);
        TensorArguments.RequireLength(nameof(mass), mass.Length, shape, keyTokens.Length, "[B, H, n]");
        fixed (float* q = query)
        fixed (float* k = key)
        fixed (float* m = mass)
        {
            ReceivedMass(shape, q, k, keyTokens, m, layout);
        }
    }

    /// <summary>How much weight chosen keys received from all queries together, of tensors: see the other overload.</summary>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="keyTokens">The n keys, by token from 0 to S − 1, in any order; the same for every sequence and head of the batch.</param>
    /// <param name="mass">Receives the sums <c>[B, H, n]</c>; may not overlap an input.</param>
    /// <param name="layout">
    /// Which tokens belong to which sequence and which keys take part; null when sequences fill their tensors. When packed, tokens count over all sequences.
    /// </param>
    /// <exception cref="ArgumentException">A rank, size, stride or token is wrong, the layout does not fit, or the mass overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem; the message says why.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory, and no other may take over.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void ReceivedMass(
        in ReadOnlyTensorSpan<float> query, in ReadOnlyTensorSpan<float> key, ReadOnlySpan<int> keyTokens, in TensorSpan<float> mass,
        SequenceLayout? layout = null)
    {
        AttentionShape shape = TensorArguments.WeightsShape(query, key);
        TensorArguments.RequireSizes(nameof(mass), mass.Lengths, mass.IsDense, "[B, H, n]", shape.Batch, shape.Heads, keyTokens.Length);
        fixed (float* q = &TensorMarshal.GetReference(query))
        fixed (float* k = &TensorMarshal.GetReference(key))
        fixed (float* m = &TensorMarshal.GetReference(mass))
        {
            ReceivedMass(shape, q, k, keyTokens, m, layout);
        }
    }

    private void Weights(AttentionShape shape, float* query, float* key, ReadOnlySpan<int> queryTokens, float* weights, SequenceLayout? layout)
    {
        long elements = (long)shape.Batch * shape.Heads * queryTokens.Length * shape.KeyLength;
        TensorArguments.RequireDisjoint(shape, query, key, nameof(weights), weights, elements);
        AttentionProblem problem = RowsProblem(shape, queryTokens, layout);
        FeatureWeights.Rows(problem, query, key, queryTokens, weights, Device.Options.MaxDegreeOfParallelism);
    }

    private void ReceivedMass(AttentionShape shape, float* query, float* key, ReadOnlySpan<int> keyTokens, float* mass, SequenceLayout? layout)
    {
        _executor.ThrowIfDisposed();
        TensorArguments.RequireTokens(nameof(keyTokens), keyTokens, shape.KeyLength, shape);
        TensorArguments.RequireDisjoint(shape, query, key, nameof(mass), mass, (long)shape.Batch * shape.Heads * keyTokens.Length);
        long rows = (long)shape.Batch * shape.QueryLength * shape.Heads;
        long keys = (long)shape.Batch * shape.KeyLength * shape.KeyHeads;
        int width = (int)Math.Clamp(MaxMassFloats / Math.Max(1, rows + keys), 1, MassColumns);
        for (int first = 0; first < keyTokens.Length; first += width)
        {
            ReadOnlySpan<int> chosen = keyTokens.Slice(first, Math.Min(width, keyTokens.Length - first));
            AttentionProblem problem = WeightsProblem(shape, chosen.Length, layout);
            float* value = (float*)NativeMemory.AllocZeroed(checked((nuint)(keys * chosen.Length)), sizeof(float));
            float* output = null;
            try
            {
                output = (float*)NativeMemory.Alloc(checked((nuint)(rows * chosen.Length)), sizeof(float));
                Mark(shape, chosen, value);
                Run(problem, DenseBuffers.Of(problem.Shape, ElementType.Single, query, key, value, output), null, null);
                SumOverQueries(shape, chosen.Length, output, mass + first, keyTokens.Length);
            }
            finally
            {
                NativeMemory.Free(value);
                NativeMemory.Free(output);
            }
        }
    }

    /// <summary>Values <c>[B, S, Hk, n]</c>, all 0: column i becomes 1 at the i-th chosen key.</summary>
    private static void Mark(AttentionShape shape, ReadOnlySpan<int> chosen, float* value)
    {
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            for (int column = 0; column < chosen.Length; column++)
            {
                long token = ((long)batch * shape.KeyLength) + chosen[column];
                for (int head = 0; head < shape.KeyHeads; head++)
                {
                    value[(((token * shape.KeyHeads) + head) * chosen.Length) + column] = 1;
                }
            }
        }
    }

    /// <summary>Sums outputs <c>[B, T, H, columns]</c> over queries, to <c>[B, H, columns]</c> whose heads stand <paramref name="stride"/> apart.</summary>
    private static void SumOverQueries(AttentionShape shape, int columns, float* output, float* mass, int stride)
    {
        double[] sums = new double[(long)shape.Heads * columns];
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            Array.Clear(sums);
            float* rows = output + ((long)batch * shape.QueryLength * sums.Length);
            for (int query = 0; query < shape.QueryLength; query++)
            {
                for (int i = 0; i < sums.Length; i++)
                {
                    sums[i] += rows[((long)query * sums.Length) + i];
                }
            }

            for (int i = 0; i < sums.Length; i++)
            {
                mass[((((long)batch * shape.Heads) + (i / columns)) * stride) + (i % columns)] = (float)sums[i];
            }
        }
    }

    private AttentionProblem RowsProblem(AttentionShape shape, ReadOnlySpan<int> queryTokens, SequenceLayout? layout)
    {
        _executor.ThrowIfDisposed();
        TensorArguments.RequireTokens(nameof(queryTokens), queryTokens, shape.QueryLength, shape);
        AttentionProblem problem = WeightsProblem(shape, 1, layout);
        if ((problem.WhyIllPosed() ?? FeatureWeights.WhyNot(problem)) is { } reason)
        {
            throw new NotSupportedException($"There are no weights to show: {reason}.");
        }

        return problem;
    }

    private AttentionProblem WeightsProblem(AttentionShape shape, int valueDimension, SequenceLayout? layout)
    {
        shape = new AttentionShape(
            shape.Batch, shape.QueryLength, shape.KeyLength, shape.Heads, shape.KeyHeads, shape.KeyDimension, valueDimension);
        return Problem(Call.Weights, shape, ElementType.Single, Options.Causal, hasInitialState: false, wantsFinalState: false, layout);
    }
}
