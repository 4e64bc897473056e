namespace Gpu.Attention;

/// <summary>
/// Attention as its definitions read, in float64: slow, obvious and frozen. For tests and verification; <c>O(T·S)</c> but for <see cref="Recurrent"/>.
/// </summary>
/// <remarks>
/// Inputs are row-major and dense as in <see cref="AttentionShape"/>; query head i reads key head <c>i / (H / Hk)</c>. A row whose weights sum
/// to zero, as one that sees no key does, is 0.
/// </remarks>
public static class ReferenceAttention
{
    /// <summary>The weights form of linear attention: <c>o_i = Σ_j w_ij v_j / Σ_j w_ij</c>, <c>w_ij = φ(q_i)·φ(k_j)</c>.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="kernel">φ.</param>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">Values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="options">How to attend; null for bidirectional and normalised.</param>
    /// <returns>The output, <c>[B, T, H, Dv]</c>.</returns>
    /// <exception cref="ArgumentException">An array does not fit the shape.</exception>
    /// <remarks>Choromanski et al., "Rethinking Attention with Performers" (2020), equation 4, before its products are reordered.</remarks>
    public static double[] Linear(
        AttentionShape shape, ReferenceKernel kernel, float[] query, float[] key, float[] value, ReferenceOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(kernel);
        options ??= new ReferenceOptions();
        RequireFit(shape, query, key, value, options);
        return ForEachHead(shape, value, (batch, head) => LinearRows(shape, kernel, query, key, options, batch, head));
    }

    /// <summary>The weights that <see cref="Linear"/> gives the keys, for one head of one sequence.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="kernel">φ.</param>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="batch">The sequence.</param>
    /// <param name="head">The query head.</param>
    /// <param name="options">How to attend; null for bidirectional and normalised.</param>
    /// <returns>A row <c>[S]</c> for each query; it sums to 1 when normalised without guards, or is 0.</returns>
    public static double[][] LinearWeights(
        AttentionShape shape, ReferenceKernel kernel, float[] query, float[] key, int batch, int head, ReferenceOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(kernel);
        options ??= new ReferenceOptions();
        RequireFit(shape, query, key, value: null, options);
        return LinearRows(shape, kernel, query, key, options, batch, head);
    }

    /// <summary>Exact softmax attention: the weights are <c>exp(scale·q_i·k_j)</c>.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="scale">The factor on <c>q·k</c>.</param>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">Values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="options">How to attend; null for bidirectional and normalised.</param>
    /// <returns>The output, <c>[B, T, H, Dv]</c>.</returns>
    /// <exception cref="ArgumentException">An array does not fit the shape.</exception>
    public static double[] Softmax(
        AttentionShape shape, double scale, float[] query, float[] key, float[] value, ReferenceOptions? options = null)
    {
        options ??= new ReferenceOptions();
        RequireFit(shape, query, key, value, options);
        return ForEachHead(shape, value, (batch, head) =>
        {
            double[][] queries = QueryRows(shape, query, batch, head);
            double[]?[] keys = KeyRows(shape, key, batch, head / shape.HeadGroup, options);
            return [.. queries.Select((q, i) => FromLogarithms([.. keys.Select((k, j) =>
                IsVisible(shape, k, i, j, options) ? scale * Dot(q, k!) : double.NegativeInfinity)], options))];
        });
    }

    /// <summary>
    /// The recurrent form of linear attention: <c>S_i = S_{i−1} + φ(k_i)ᵀ v_i</c>, <c>z_i = z_{i−1} + φ(k_i)</c>, <c>o_i = φ(q_i) S_i / φ(q_i)·z_i</c>; when not
    /// causal, every query reads the last state.
    /// </summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="kernel">φ.</param>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">Values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="options">How to attend; null for bidirectional and normalised.</param>
    /// <param name="initial">The state before the first key; null for none. It is not changed.</param>
    /// <returns>The output and the final state.</returns>
    /// <exception cref="ArgumentException">
    /// An array or the initial state does not fit the shape.
    /// </exception>
    /// <remarks>
    /// Katharopoulos et al., "Transformers are RNNs" (2020), equations 16 to 20. Of log features the state keeps a running maximum per
    /// feature, as online softmax does, and nothing under- or overflows.
    /// </remarks>
    public static ReferenceResult Recurrent(
        AttentionShape shape,
        ReferenceKernel kernel,
        float[] query,
        float[] key,
        float[] value,
        ReferenceOptions? options = null,
        ReferenceState? initial = null)
    {
        ArgumentNullException.ThrowIfNull(kernel);
        options ??= new ReferenceOptions();
        RequireFit(shape, query, key, value, options);
        int valueDimension = shape.ValueDimension;
        double[] output = new double[shape.OutputElements];

        // Only a feature map itself tells how many features it makes.
        int features = kernel.MapKeys([new double[shape.KeyDimension]])[0].Length;
        int stateRows = shape.Batch * shape.KeyHeads * features;
        if (initial is not null && (initial.Normalizers.Length != stateRows || initial.Sums.Length != stateRows * valueDimension))
        {
            throw new ArgumentException($"The state does not fit {shape} with {features} features.", nameof(initial));
        }

        ReferenceState state = initial?.Copy() ?? new ReferenceState(stateRows, valueDimension, kernel.IsLogarithmic);
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            for (int keyHead = 0; keyHead < shape.KeyHeads; keyHead++)
            {
                double[]?[] keys = MapKeys(kernel, KeyRows(shape, key, batch, keyHead, options));
                double[][][] queries = [.. Enumerable.Range(keyHead * shape.HeadGroup, shape.HeadGroup)
                    .Select(head => kernel.MapQueries(QueryRows(shape, query, batch, head)))];
                int row = ((batch * shape.KeyHeads) + keyHead) * features;

                int seen = 0;
                for (int i = 0; i < shape.QueryLength; i++)
                {
                    for (int upTo = VisibleKeys(shape, i, options); seen < upTo; seen++)
                    {
                        Append(kernel, state, row, keys[seen], Row(value, shape.KeyLength, shape.KeyHeads, valueDimension, batch, seen, keyHead));
                    }

                    for (int member = 0; member < shape.HeadGroup; member++)
                    {
                        int head = (keyHead * shape.HeadGroup) + member;
                        double[] o = Read(kernel, state, row, queries[member][i], valueDimension, options);
                        o.CopyTo(output, RowIndex(shape.QueryLength, shape.Heads, valueDimension, batch, i, head));
                    }
                }

                for (; seen < shape.KeyLength; seen++)
                {
                    Append(kernel, state, row, keys[seen], Row(value, shape.KeyLength, shape.KeyHeads, valueDimension, batch, seen, keyHead));
                }
            }
        }

        return new ReferenceResult(output, state);
    }

    private static void Append(ReferenceKernel kernel, ReferenceState state, int row, double[]? key, double[] value)
    {
        if (key is null)
        {
            return;
        }

        for (int r = 0; r < key.Length; r++)
        {
            double feature = key[r];
            if (kernel.IsLogarithmic)
            {
                double scale = Math.Max(state.LogScale[row + r], key[r]);
                if (double.IsNegativeInfinity(scale))
                {
                    continue;
                }

                double shrink = Math.Exp(state.LogScale[row + r] - scale);
                state.LogScale[row + r] = scale;
                state.Normalizers[row + r] *= shrink;
                for (int i = 0; i < value.Length; i++)
                {
                    state.Sums[((row + r) * value.Length) + i] *= shrink;
                }

                feature = Math.Exp(key[r] - scale);
            }

            state.Normalizers[row + r] += feature;
            for (int i = 0; i < value.Length; i++)
            {
                state.Sums[((row + r) * value.Length) + i] += feature * value[i];
            }
        }
    }

    private static double[] Read(
        ReferenceKernel kernel, ReferenceState state, int row, double[] query, int valueDimension, ReferenceOptions options)
    {
        double[] output = new double[valueDimension];
        double[] features = query;
        double shift = 0;
        if (kernel.IsLogarithmic)
        {
            double[] logarithms = [.. query.Select((l, r) => l + state.LogScale[row + r])];
            shift = logarithms.Aggregate(double.NegativeInfinity, Math.Max);
            if (double.IsNegativeInfinity(shift))
            {
                return output;
            }

            features = Array.ConvertAll(logarithms, l => Math.Exp(l - shift));
        }

        double denominator = 0;
        for (int r = 0; r < features.Length; r++)
        {
            denominator += features[r] * state.Normalizers[row + r];
            for (int i = 0; i < valueDimension; i++)
            {
                output[i] += features[r] * state.Sums[((row + r) * valueDimension) + i];
            }
        }

        double factor = RowFactor(kernel, features, denominator, shift, options);
        return Array.ConvertAll(output, o => o * factor);
    }

    private static double[][] LinearRows(
        AttentionShape shape, ReferenceKernel kernel, float[] query, float[] key, ReferenceOptions options, int batch, int head)
    {
        double[][] queries = kernel.MapQueries(QueryRows(shape, query, batch, head));
        double[]?[] keys = MapKeys(kernel, KeyRows(shape, key, batch, head / shape.HeadGroup, options));
        return [.. queries.Select((q, i) =>
        {
            if (kernel.IsLogarithmic)
            {
                return FromLogarithms(
                    [.. keys.Select((k, j) => IsVisible(shape, k, i, j, options) ? LogDot(q, k!) : double.NegativeInfinity)], options);
            }

            double[] weights = [.. keys.Select((k, j) => IsVisible(shape, k, i, j, options) ? Dot(q, k!) : 0)];
            double factor = RowFactor(kernel, q, weights.Sum(), 0, options);
            return Array.ConvertAll(weights, w => w * factor);
        })];
    }

    /// <summary>Weights from their logarithms, −∞ where a key is not seen: such a key has none, even where others are no number.</summary>
    internal static double[] FromLogarithms(double[] logarithms, ReferenceOptions options)
    {
        // Unlike LINQ's, this maximum keeps a NaN.
        double shift = logarithms.Aggregate(double.NegativeInfinity, Math.Max);
        if (double.IsNegativeInfinity(shift))
        {
            return new double[logarithms.Length];
        }

        double[] weights = Array.ConvertAll(logarithms, l => double.IsNegativeInfinity(l) ? 0 : Math.Exp(l - shift));
        double factor = options.Normalize ? 1 / weights.Sum() : options.Factor * Math.Exp(shift);
        return Array.ConvertAll(weights, w => w == 0 ? 0 : w * factor);
    }

    /// <summary>What a row's weighted sum is multiplied by, its weights having been divided by <c>e^shift</c>.</summary>
    private static double RowFactor(ReferenceKernel kernel, double[] queryFeatures, double denominator, double shift, ReferenceOptions options)
    {
        if (!options.Normalize)
        {
            return options.Factor * Math.Exp(shift);
        }

        if (options.Causal)
        {
            denominator += kernel.CausalNormalizerEpsilon * queryFeatures.Sum();
        }

        if (Math.Abs(denominator) <= kernel.NormalizerGuard)
        {
            denominator += 2 * kernel.NormalizerGuard;
        }

        return denominator == 0 ? 0 : 1 / denominator;
    }

    private static double[] ForEachHead(AttentionShape shape, float[] value, Func<int, int, double[][]> weightsOf)
    {
        double[] output = new double[shape.OutputElements];
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            for (int head = 0; head < shape.Heads; head++)
            {
                double[][] weights = weightsOf(batch, head);
                for (int i = 0; i < shape.QueryLength; i++)
                {
                    int at = RowIndex(shape.QueryLength, shape.Heads, shape.ValueDimension, batch, i, head);
                    for (int j = 0; j < shape.KeyLength; j++)
                    {
                        // A key that isn't seen may have a value that is no number.
                        if (weights[i][j] == 0)
                        {
                            continue;
                        }

                        double[] v = Row(value, shape.KeyLength, shape.KeyHeads, shape.ValueDimension, batch, j, head / shape.HeadGroup);
                        for (int c = 0; c < v.Length; c++)
                        {
                            output[at + c] += weights[i][j] * v[c];
                        }
                    }
                }
            }
        }

        return output;
    }

    private static bool IsVisible(AttentionShape shape, double[]? key, int i, int j, ReferenceOptions options) =>
        key is not null && j < VisibleKeys(shape, i, options);

    /// <summary>How many keys a query sees, those that are masked included.</summary>
    internal static int VisibleKeys(AttentionShape shape, int i, ReferenceOptions options) => options.Causal
        ? Math.Clamp((((i / options.CausalBlock) + 1) * options.CausalBlock) + shape.KeyLength - shape.QueryLength, 0, shape.KeyLength)
        : shape.KeyLength;

    internal static double[][] QueryRows(AttentionShape shape, float[] query, int batch, int head) =>
        [.. Enumerable.Range(0, shape.QueryLength)
            .Select(i => Row(query, shape.QueryLength, shape.Heads, shape.KeyDimension, batch, i, head))];

    /// <summary>The keys of one head; null where a key is masked.</summary>
    internal static double[]?[] KeyRows(AttentionShape shape, float[] key, int batch, int keyHead, ReferenceOptions options) =>
        [.. Enumerable.Range(0, shape.KeyLength)
            .Select(j => options.KeyMask is { } mask && mask[(batch * shape.KeyLength) + j] == 0
                ? null
                : Row(key, shape.KeyLength, shape.KeyHeads, shape.KeyDimension, batch, j, keyHead))];

    private static double[]?[] MapKeys(ReferenceKernel kernel, double[]?[] keys)
    {
        double[][] features = kernel.MapKeys([.. keys.OfType<double[]>()]);
        int next = 0;
        return Array.ConvertAll(keys, k => k is null ? null : features[next++]);
    }

    internal static double[] Row(float[] tensor, int length, int heads, int dimension, int batch, int token, int head) =>
        Array.ConvertAll(tensor.AsSpan(RowIndex(length, heads, dimension, batch, token, head), dimension).ToArray(), x => (double)x);

    private static int RowIndex(int length, int heads, int dimension, int batch, int token, int head) =>
        ((((batch * length) + token) * heads) + head) * dimension;

    internal static double Dot(double[] a, double[] b)
    {
        double sum = 0;
        for (int i = 0; i < a.Length; i++)
        {
            sum += a[i] * b[i];
        }

        return sum;
    }

    /// <summary><c>log Σ_r exp(a_r + b_r)</c>.</summary>
    private static double LogDot(double[] a, double[] b)
    {
        double max = double.NegativeInfinity;
        for (int r = 0; r < a.Length; r++)
        {
            max = Math.Max(max, a[r] + b[r]);
        }

        if (double.IsNegativeInfinity(max))
        {
            return max;
        }

        double sum = 0;
        for (int r = 0; r < a.Length; r++)
        {
            sum += Math.Exp(a[r] + b[r] - max);
        }

        return max + Math.Log(sum);
    }

    internal static void RequireFit(AttentionShape shape, float[] query, float[] key, float[]? value, ReferenceOptions options)
    {
        Require(query, shape.QueryElements, nameof(query));
        Require(key, shape.KeyElements, nameof(key));
        if (value is not null)
        {
            Require(value, shape.ValueElements, nameof(value));
        }

        if (options.KeyMask is { } mask && mask.Length != shape.Batch * shape.KeyLength)
        {
            throw new ArgumentException($"A key mask of {mask.Length} elements is not [{shape.Batch}, {shape.KeyLength}].", nameof(options));
        }

        void Require(float[] tensor, long elements, string name)
        {
            if (tensor.LongLength != elements)
            {
                throw new ArgumentException($"{tensor.Length} elements do not fit {shape}.", name);
            }
        }
    }
}
