namespace Gpu.Attention;

/// <summary>
/// The gradients of <see cref="ReferenceAttention"/> as the chain rule writes them, in float64: slow, obvious and frozen. For tests and verification; <c>O(T·S·r)</c>.
/// </summary>
/// <remarks>
/// With weights <c>w_ij</c>, normaliser <c>D_i = Σ_j w_ij</c>, output <c>o_i</c> and its gradient <c>g_i</c>: <c>∂L/∂w_ij = (g_i·v_j − g_i·o_i) / D_i</c> and
/// <c>∂L/∂v_j = Σ_i w_ij g_i / D_i</c>; without normalisation <c>D_i</c> is one over the factor and <c>g_i·o_i</c> falls away. A row whose weights sum to zero is 0 whatever
/// its inputs are, and gives no gradient. Gradients of a key or value head are sums over the query heads that read it.
/// </remarks>
public static class ReferenceGradients
{
    /// <summary>The gradients of linear attention, of a state before the first key and of one after the last included.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="features">φ, lowered. A caller's own function is known in float32 only, and so is its derivative.</param>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">Values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="outputGradient">The loss's gradient with respect to the output, <c>[B, T, H, Dv]</c>.</param>
    /// <param name="options">How to attend; null for bidirectional and normalised.</param>
    /// <param name="featureEpsilon">What is added to every direct feature.</param>
    /// <param name="initial">The state before the first key; null for none.</param>
    /// <param name="finalGradient">
    /// The loss's gradient with respect to S and z of the final state, at the scale c that it has here, which is taken for a constant; null for none.
    /// </param>
    /// <exception cref="ArgumentException">An array does not fit the shape.</exception>
    public static ReferenceGradient Linear(
        AttentionShape shape,
        FeaturePair features,
        float[] query,
        float[] key,
        float[] value,
        float[] outputGradient,
        ReferenceOptions? options = null,
        double featureEpsilon = 0,
        ReferenceState? initial = null,
        ReferenceState? finalGradient = null)
    {
        ArgumentNullException.ThrowIfNull(features);
        ArgumentNullException.ThrowIfNull(outputGradient);
        options ??= new ReferenceOptions();
        ReferenceAttention.RequireFit(shape, query, key, value, options);
        RequireFit(shape, outputGradient);
        int count = features.FeatureDimension;
        bool isLogarithmic = features.Family == FeatureFamily.Exponential;
        int stateRows = shape.Batch * shape.KeyHeads * count;
        RequireFit(initial, stateRows, shape.ValueDimension, nameof(initial));
        RequireFit(finalGradient, stateRows, shape.ValueDimension, nameof(finalGradient));
        var result = new ReferenceGradient(shape, count, initial is null ? null : new ReferenceState(stateRows, shape.ValueDimension, isLogarithmic));
        initial?.LogScale.CopyTo(result.Initial!.LogScale, 0);
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            for (int keyHead = 0; keyHead < shape.KeyHeads; keyHead++)
            {
                double[]?[] keyRows = ReferenceAttention.KeyRows(shape, key, batch, keyHead, options);
                Feature[]?[] keys = Array.ConvertAll(keyRows, k => k is null ? null : MapRow(features.Key, k, featureEpsilon));
                double[]?[] values = Values(shape, value, batch, keyHead, keys);
                double[][] keyGradients = [.. keys.Select(_ => new double[count])];
                double[][] valueGradients = [.. keys.Select(_ => new double[shape.ValueDimension])];
                int stateRow = ((batch * shape.KeyHeads) + keyHead) * count;
                for (int head = keyHead * shape.HeadGroup; head < (keyHead + 1) * shape.HeadGroup; head++)
                {
                    double[][] queryRows = ReferenceAttention.QueryRows(shape, query, batch, head);
                    for (int i = 0; i < shape.QueryLength; i++)
                    {
                        double[] g = ReferenceAttention.Row(outputGradient, shape.QueryLength, shape.Heads, shape.ValueDimension, batch, i, head);
                        int seen = ReferenceAttention.VisibleKeys(shape, i, options);
                        double[] queryGradient = new double[count];
                        AddRow(
                            isLogarithmic, options, MapRow(features.Query, queryRows[i], featureEpsilon), keys[..seen], values, g, queryGradient, keyGradients,
                            valueGradients, initial, result.Initial, stateRow);
                        int row = (((batch * shape.QueryLength) + i) * shape.Heads) + head;
                        queryGradient.CopyTo(result.QueryArguments, row * count);
                        PullBack(features.Query, queryRows[i], queryGradient).CopyTo(result.Query, row * shape.KeyDimension);
                    }
                }

                if (finalGradient is not null)
                {
                    AddFinalState(isLogarithmic, keys, values, keyGradients, valueGradients, finalGradient, result.Initial, stateRow, count);
                }

                for (int j = 0; j < shape.KeyLength; j++)
                {
                    int row = (((batch * shape.KeyLength) + j) * shape.KeyHeads) + keyHead;
                    keyGradients[j].CopyTo(result.KeyArguments, row * count);
                    valueGradients[j].CopyTo(result.Value, row * shape.ValueDimension);
                    if (keyRows[j] is { } x)
                    {
                        PullBack(features.Key, x, keyGradients[j]).CopyTo(result.Key, row * shape.KeyDimension);
                    }
                }
            }
        }

        return result;
    }

    /// <summary>The gradients of exact softmax attention.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="scale">The factor on <c>q·k</c>.</param>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="value">Values <c>[B, S, Hk, Dv]</c>.</param>
    /// <param name="outputGradient">The loss's gradient with respect to the output, <c>[B, T, H, Dv]</c>.</param>
    /// <param name="options">How to attend; null for bidirectional and normalised.</param>
    /// <exception cref="ArgumentException">An array does not fit the shape.</exception>
    public static ReferenceGradient Softmax(
        AttentionShape shape, double scale, float[] query, float[] key, float[] value, float[] outputGradient, ReferenceOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(outputGradient);
        options ??= new ReferenceOptions();
        ReferenceAttention.RequireFit(shape, query, key, value, options);
        RequireFit(shape, outputGradient);
        var result = new ReferenceGradient(shape, features: 0, initial: null);
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            for (int head = 0; head < shape.Heads; head++)
            {
                int keyHead = head / shape.HeadGroup;
                double[][] queries = ReferenceAttention.QueryRows(shape, query, batch, head);
                double[]?[] keys = ReferenceAttention.KeyRows(shape, key, batch, keyHead, options);
                double[]?[] values = Values(shape, value, batch, keyHead, keys);
                for (int i = 0; i < shape.QueryLength; i++)
                {
                    double[] g = ReferenceAttention.Row(outputGradient, shape.QueryLength, shape.Heads, shape.ValueDimension, batch, i, head);
                    int row = (((batch * shape.QueryLength) + i) * shape.Heads) + head;
                    int seen = ReferenceAttention.VisibleKeys(shape, i, options);
                    double[] weights = ReferenceAttention.FromLogarithms(
                        [.. keys[..seen].Select(k => k is null ? double.NegativeInfinity : scale * ReferenceAttention.Dot(queries[i], k))], options);
                    double mean = 0;
                    for (int j = 0; j < seen && options.Normalize; j++)
                    {
                        mean += weights[j] == 0 ? 0 : weights[j] * ReferenceAttention.Dot(g, values[j]!);
                    }

                    for (int j = 0; j < seen; j++)
                    {
                        // A key without weight may be no number.
                        if (weights[j] == 0)
                        {
                            continue;
                        }

                        double logit = weights[j] * (ReferenceAttention.Dot(g, values[j]!) - mean) * scale;
                        int keyRow = (((batch * shape.KeyLength) + j) * shape.KeyHeads) + keyHead;
                        Add(logit, keys[j]!, result.Query, row * shape.KeyDimension);
                        Add(logit, queries[i], result.Key, keyRow * shape.KeyDimension);
                        Add(weights[j], g, result.Value, keyRow * shape.ValueDimension);
                    }
                }
            }
        }

        return result;
    }

    /// <summary>What one query row adds to the gradients. Those of queries and keys are with respect to the arguments of the activation, or log features.</summary>
    private static void AddRow(
        bool isLogarithmic,
        ReferenceOptions options,
        Feature[] query,
        Feature[]?[] keys,
        double[]?[] values,
        double[] g,
        double[] queryGradient,
        double[][] keyGradients,
        double[][] valueGradients,
        ReferenceState? initial,
        ReferenceState? initialGradient,
        int stateRow)
    {
        // Log features are taken relative to the row's largest sum of two, which the quotient is free of.
        double shift = isLogarithmic ? double.NegativeInfinity : 0;
        for (int r = 0; isLogarithmic && r < query.Length; r++)
        {
            foreach (Feature[]? key in keys)
            {
                shift = key is null ? shift : Math.Max(shift, query[r].Argument + key[r].Argument);
            }

            shift = initial is null ? shift : Math.Max(shift, query[r].Argument + initial.LogScale[stateRow + r]);
        }

        if (double.IsNegativeInfinity(shift))
        {
            return;
        }

        double denominator = 0;
        double[] output = new double[g.Length];
        for (int r = 0; r < query.Length; r++)
        {
            for (int j = 0; j < keys.Length; j++)
            {
                if (keys[j] is { } key)
                {
                    double w = Product(key[r], r).Weight;
                    denominator += w;
                    Add(w, values[j]!, output, 0);
                }
            }

            if (initial is not null)
            {
                double w = OfState(r).Weight;
                denominator += w * initial.Normalizers[stateRow + r];
                Add(w, Sums(initial, stateRow + r, g.Length), output, 0);
            }
        }

        if (options.Normalize && denominator == 0)
        {
            return;
        }

        double factor = options.Normalize ? 1 / denominator : options.Factor * Math.Exp(shift);
        double mean = options.Normalize ? ReferenceAttention.Dot(g, output) / denominator : 0;
        for (int r = 0; r < query.Length; r++)
        {
            for (int j = 0; j < keys.Length; j++)
            {
                if (keys[j] is { } key)
                {
                    (double weight, double byQuery, double byKey) = Product(key[r], r);
                    double gradient = factor * (ReferenceAttention.Dot(g, values[j]!) - mean);
                    queryGradient[r] += gradient * byQuery;
                    keyGradients[j][r] += gradient * byKey;
                    Add(factor * weight, g, valueGradients[j], 0);
                }
            }

            if (initial is not null)
            {
                (double weight, double byQuery) = OfState(r);
                double z = initial.Normalizers[stateRow + r];
                queryGradient[r] += factor * (ReferenceAttention.Dot(g, Sums(initial, stateRow + r, g.Length)) - (mean * z)) * byQuery;
                initialGradient!.Normalizers[stateRow + r] -= factor * weight * mean;
                Add(factor * weight, g, initialGradient.Sums, (stateRow + r) * g.Length);
            }
        }

        // A feature's part of a weight, and its derivatives with respect to the two arguments.
        (double Weight, double ByQuery, double ByKey) Product(Feature key, int r)
        {
            if (isLogarithmic)
            {
                double weight = Math.Exp(query[r].Argument + key.Argument - shift);
                return (weight, weight, weight);
            }

            return (query[r].Value * key.Value, query[r].Derivative * key.Value, query[r].Value * key.Derivative);
        }

        (double Weight, double ByQuery) OfState(int r)
        {
            double weight = isLogarithmic ? Math.Exp(query[r].Argument + initial!.LogScale[stateRow + r] - shift) : query[r].Value;
            return (weight, isLogarithmic ? weight : query[r].Derivative);
        }
    }

    /// <summary>What the final state's gradient adds: <c>S = Σ_j e^{l_j − c} v_j + e^{c₀ − c} S₀</c>, and z likewise.</summary>
    private static void AddFinalState(
        bool isLogarithmic,
        Feature[]?[] keys,
        double[]?[] values,
        double[][] keyGradients,
        double[][] valueGradients,
        ReferenceState finalGradient,
        ReferenceState? initialGradient,
        int stateRow,
        int count)
    {
        int valueDimension = finalGradient.Sums.Length / finalGradient.Normalizers.Length;
        for (int row = stateRow; row < stateRow + count; row++)
        {
            double[] sums = Sums(finalGradient, row, valueDimension);
            double scale = finalGradient.LogScale[row];
            for (int j = 0; j < keys.Length; j++)
            {
                if (keys[j]?[row - stateRow] is { } key)
                {
                    double weight = isLogarithmic ? Exp(key.Argument, scale) : key.Value;
                    keyGradients[j][row - stateRow] +=
                        (isLogarithmic ? weight : key.Derivative) * (ReferenceAttention.Dot(sums, values[j]!) + finalGradient.Normalizers[row]);
                    Add(weight, sums, valueGradients[j], 0);
                }
            }

            if (initialGradient is not null)
            {
                double weight = Exp(initialGradient.LogScale[row], scale);
                initialGradient.Normalizers[row] += weight * finalGradient.Normalizers[row];
                Add(weight, sums, initialGradient.Sums, row * valueDimension);
            }
        }

        // The scale of what has seen nothing is −∞ too.
        static double Exp(double logarithm, double scale) => double.IsNegativeInfinity(logarithm) ? 0 : Math.Exp(logarithm - scale);
    }

    /// <summary>From gradients with respect to <c>l = W y + b − β|y|² + u·x</c>, <c>y = P x + p</c>, to the gradient with respect to x.</summary>
    private static double[] PullBack(FeatureForm form, double[] x, double[] gradient)
    {
        int d = x.Length;
        double total = gradient.Sum();
        double[] moved = form.PreMatrix is null ? [.. x] : new double[d];
        for (int i = 0; i < d; i++)
        {
            for (int k = 0; k < d && form.PreMatrix is not null; k++)
            {
                moved[i] += form.PreMatrix[(i * d) + k] * x[k];
            }

            moved[i] += form.PreOffset?[i] ?? 0;
        }

        double[] byMoved = new double[d];
        for (int i = 0; i < d; i++)
        {
            byMoved[i] = -2 * form.NormCoefficient * moved[i] * total;
            for (int r = 0; r < gradient.Length; r++)
            {
                byMoved[i] += form.Projection is null ? (r == i ? gradient[r] : 0) : form.Projection[(r * d) + i] * gradient[r];
            }
        }

        double[] byInput = form.PreMatrix is null ? [.. byMoved] : new double[d];
        for (int k = 0; k < d; k++)
        {
            for (int i = 0; i < d && form.PreMatrix is not null; i++)
            {
                byInput[k] += form.PreMatrix[(i * d) + k] * byMoved[i];
            }

            byInput[k] += (form.Linear?[k] ?? 0) * total;
        }

        return byInput;
    }

    private static Feature[] MapRow(FeatureForm form, double[] x, double epsilon)
    {
        // The normal form with an activation of exp is kept as its logarithm: the arguments of any other.
        ReferenceKernel arguments = ReferenceFeatures.NormalForm(
            form.FeatureDimension, form.PreMatrix, form.PreOffset, form.Projection, form.Offset, form.NormCoefficient, form.Linear, activation: null);
        return Array.ConvertAll(arguments.MapKeys([x])[0], argument => Apply(form.Activation, argument, epsilon));
    }

    private static Feature Apply(FeatureActivation activation, double x, double epsilon)
    {
        if (activation == FeatureActivation.Exp)
        {
            return new Feature(x, double.NaN, double.NaN);
        }

        if (activation == FeatureActivation.EluPlusOne)
        {
            return new Feature(x, (x > 0 ? x + 1 : Math.Exp(x)) + epsilon, x > 0 ? 1 : Math.Exp(x));
        }

        if (activation == FeatureActivation.Relu)
        {
            return new Feature(x, Math.Max(x, 0) + epsilon, x > 0 ? 1 : 0);
        }

        if (activation == FeatureActivation.Identity)
        {
            return new Feature(x, x + epsilon, 1);
        }

        float[] value = [(float)x];
        float[] derivative = [1];
        activation.MultiplyDerivative(value, derivative);
        activation.Apply(value, value);
        return new Feature(x, value[0] + epsilon, derivative[0]);
    }

    /// <summary>Values of the keys that take part; others may be no numbers.</summary>
    private static double[]?[] Values<T>(AttentionShape shape, float[] value, int batch, int keyHead, T?[] keys)
        where T : class =>
        [.. keys.Select((k, j) => k is null ? null : ReferenceAttention.Row(value, shape.KeyLength, shape.KeyHeads, shape.ValueDimension, batch, j, keyHead))];

    private static double[] Sums(ReferenceState state, int row, int valueDimension) => state.Sums.AsSpan(row * valueDimension, valueDimension).ToArray();

    private static void Add(double factor, double[] source, double[] target, int at)
    {
        for (int i = 0; i < source.Length; i++)
        {
            target[at + i] += factor * source[i];
        }
    }

    private static void RequireFit(AttentionShape shape, float[] outputGradient)
    {
        if (outputGradient.LongLength != shape.OutputElements)
        {
            throw new ArgumentException($"{outputGradient.Length} elements do not fit {shape}.", nameof(outputGradient));
        }
    }

    private static void RequireFit(ReferenceState? state, int rows, int valueDimension, string name)
    {
        if (state is not null && (state.Normalizers.Length != rows || state.Sums.Length != rows * valueDimension))
        {
            throw new ArgumentException($"A state of {state.Normalizers.Length} rows is not one of {rows} by {valueDimension}.", name);
        }
    }

    /// <summary>A feature: the argument of its activation and, but for exponentials, its value and derivative there.</summary>
    private readonly record struct Feature(double Argument, double Value, double Derivative);
}

/// <summary>The gradients of a loss with respect to all that attention reads.</summary>
public sealed class ReferenceGradient
{
    internal ReferenceGradient(AttentionShape shape, int features, ReferenceState? initial)
    {
        Query = new double[shape.QueryElements];
        Key = new double[shape.KeyElements];
        Value = new double[shape.ValueElements];
        QueryArguments = new double[shape.QueryElements / shape.KeyDimension * features];
        KeyArguments = new double[shape.KeyElements / shape.KeyDimension * features];
        Initial = initial;
    }

    /// <summary>The query gradient <c>[B, T, H, D]</c>.</summary>
    public double[] Query { get; }

    /// <summary>The key gradient <c>[B, S, Hk, D]</c>; 0 where a key is masked.</summary>
    public double[] Key { get; }

    /// <summary>The value gradient <c>[B, S, Hk, Dv]</c>; 0 where a key is masked.</summary>
    public double[] Value { get; }

    /// <summary>Linear: the gradient with respect to the arguments of the queries' activation, <c>[B, T, H, r]</c>. Of exponential features these are their logarithms.</summary>
    public double[] QueryArguments { get; }

    /// <summary>Linear: the same of the keys, <c>[B, S, Hk, r]</c>.</summary>
    public double[] KeyArguments { get; }

    /// <summary>The gradient of the initial state's sums and normalisers, at that state's scale; null without one.</summary>
    public ReferenceState? Initial { get; }
}
