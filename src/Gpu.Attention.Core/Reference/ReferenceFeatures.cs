namespace Gpu.Attention;

/// <summary>The feature maps as their formulas read, in float64. For tests and verification.</summary>
/// <remarks>
/// Matrices are <c>[m, d]</c> row-major. Kernels of the exponential family yield log features, so that nothing overflows or vanishes.
/// </remarks>
public static class ReferenceFeatures
{
    /// <summary>FAVOR+: <c>φ(x) = m^-½ exp(√scale·W x − scale·|x|²/2)</c>, as logarithms.</summary>
    /// <param name="projection">W.</param>
    /// <param name="numFeatures">m.</param>
    /// <param name="scale">The factor on <c>q·k</c>.</param>
    /// <remarks>Choromanski et al., "Rethinking Attention with Performers" (2020), Lemma 1 and equation 7.</remarks>
    public static ReferenceKernel FavorPlus(float[] projection, int numFeatures, double scale) =>
        PerRow(isLogarithmic: true, x =>
        {
            double[] projected = Project(projection, numFeatures, x);
            double half = scale * SquaredNorm(x) / 2;
            return Array.ConvertAll(projected, a => (Math.Sqrt(scale) * a) - half - (0.5 * Math.Log(numFeatures)));
        });

    /// <summary>
    /// Hyperbolic FAVOR+: <c>φ(x) = (2m)^-½ [exp(√scale·W x − scale·|x|²/2), exp(−√scale·W x − scale·|x|²/2)]</c>, as logarithms.
    /// </summary>
    /// <param name="projection">W.</param>
    /// <param name="numFeatures">m; the map makes 2m features.</param>
    /// <param name="scale">The factor on <c>q·k</c>.</param>
    /// <remarks>Choromanski et al. (2020), Lemma 1.</remarks>
    public static ReferenceKernel FavorPlusHyperbolic(float[] projection, int numFeatures, double scale) =>
        PerRow(isLogarithmic: true, x =>
        {
            double[] projected = Project(projection, numFeatures, x);
            double shift = (scale * SquaredNorm(x) / 2) + (0.5 * Math.Log(2.0 * numFeatures));
            double[] positive = Array.ConvertAll(projected, a => (Math.Sqrt(scale) * a) - shift);
            double[] negative = Array.ConvertAll(projected, a => (-Math.Sqrt(scale) * a) - shift);
            return [.. positive, .. negative];
        });

    /// <summary>elu(x) + 1, element by element.</summary>
    /// <remarks>Katharopoulos et al., "Transformers are RNNs" (2020), equation 7.</remarks>
    public static ReferenceKernel EluPlusOne() => FromFunction(x => x > 0 ? x + 1 : Math.Exp(x));

    /// <summary><c>max(W x, 0) + ε</c>, or <c>max(x, 0) + ε</c> without a projection.</summary>
    /// <param name="projection">W; null for none.</param>
    /// <param name="numFeatures">m; not used without a projection.</param>
    /// <param name="epsilon">ε.</param>
    /// <remarks>Choromanski et al. (2020), section 2.2 and appendix D.3.</remarks>
    public static ReferenceKernel Relu(float[]? projection = null, int numFeatures = 0, double epsilon = 0) =>
        FromFunction(x => Math.Max(x, 0) + epsilon, projection, numFeatures);

    /// <summary>The rows as they are.</summary>
    public static ReferenceKernel Identity() => FromFunction(x => x);

    /// <summary>Any scalar function of each element, or of each projected element.</summary>
    /// <param name="function">The function.</param>
    /// <param name="projection">W; null for none.</param>
    /// <param name="numFeatures">m; not used without a projection.</param>
    public static ReferenceKernel FromFunction(Func<double, double> function, float[]? projection = null, int numFeatures = 0) =>
        PerRow(isLogarithmic: false, x =>
            Array.ConvertAll(projection is null ? x : Project(projection, numFeatures, x), a => function(a)));

    /// <summary>
    /// The normal form that feature maps are lowered to: <c>φ(x) = activation(W x' + b − β|x'|² + u·x)</c>, <c>x' = P x + p</c>.
    /// </summary>
    /// <param name="featureDimension">r.</param>
    /// <param name="preMatrix">P, <c>[d, d]</c>; null for the identity.</param>
    /// <param name="preOffset">p, <c>[d]</c>; null for zero.</param>
    /// <param name="projection">W, <c>[r, d]</c>; null for the identity.</param>
    /// <param name="offset">b, <c>[r]</c>; null for zero.</param>
    /// <param name="normCoefficient">β.</param>
    /// <param name="linear">u, <c>[d]</c>; null for zero.</param>
    /// <param name="activation">The activation; null for exp, of which the logarithm is kept.</param>
    public static ReferenceKernel NormalForm(
        int featureDimension,
        float[]? preMatrix,
        float[]? preOffset,
        float[]? projection,
        float[]? offset,
        double normCoefficient,
        float[]? linear,
        Func<double, double>? activation) =>
        PerRow(isLogarithmic: activation is null, x =>
        {
            double[] moved = preMatrix is null ? [.. x] : Project(preMatrix, x.Length, x);
            for (int i = 0; i < moved.Length; i++)
            {
                moved[i] += preOffset?[i] ?? 0;
            }

            double common = -normCoefficient * SquaredNorm(moved);
            for (int i = 0; i < x.Length; i++)
            {
                common += (linear?[i] ?? 0) * x[i];
            }

            double[] features = projection is null ? moved : Project(projection, featureDimension, moved);
            for (int r = 0; r < features.Length; r++)
            {
                double argument = features[r] + (offset?[r] ?? 0) + common;
                features[r] = activation is null ? argument : activation(argument);
            }

            return features;
        });

    /// <summary>The kernel that maps queries as one kernel does and keys as another does.</summary>
    /// <param name="query">Maps the queries.</param>
    /// <param name="key">Maps the keys.</param>
    /// <exception cref="ArgumentException">One yields logarithms and the other doesn't.</exception>
    public static ReferenceKernel Pair(ReferenceKernel query, ReferenceKernel key)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(key);
        if (query.IsLogarithmic != key.IsLogarithmic)
        {
            throw new ArgumentException("Features and log features do not multiply.", nameof(key));
        }

        return new ReferenceKernel(key.IsLogarithmic, query.MapQueries, key.MapKeys)
        {
            NormalizerGuard = key.NormalizerGuard,
            CausalNormalizerEpsilon = key.CausalNormalizerEpsilon,
        };
    }

    /// <summary>
    /// The softmax features of google-research <c>fast_attention.py</c>: <c>m^-½ (exp(a − scale·|x|²/2 − max a) + ε)</c>, <c>a = √scale·W x</c>; the maximum
    /// over the row for queries and over all keys of the head for keys; a normaliser R moved by <c>2ε</c> where <c>|R| ≤ ε</c>.
    /// </summary>
    /// <param name="projection">W.</param>
    /// <param name="numFeatures">m.</param>
    /// <param name="scale">The factor on <c>q·k</c>; the published code has <c>d^-½</c>.</param>
    /// <param name="epsilon">ε.</param>
    public static ReferenceKernel Jax(float[] projection, int numFeatures, double scale, double epsilon = 1e-6) =>
        Stabilized(projection, numFeatures, scale, epsilon, normalizerGuard: epsilon, causalNormalizerEpsilon: 0);

    /// <summary>
    /// The softmax features of lucidrains <c>performer-pytorch</c>: as <see cref="Jax"/>, without its guard; causal normalisers have 1e-6 added to
    /// every summed key feature.
    /// </summary>
    /// <param name="projection">W.</param>
    /// <param name="numFeatures">m.</param>
    /// <param name="scale">The factor on <c>q·k</c>; the published code has <c>d^-½</c>.</param>
    /// <param name="epsilon">ε.</param>
    public static ReferenceKernel Lucidrains(float[] projection, int numFeatures, double scale, double epsilon = 1e-4) =>
        Stabilized(projection, numFeatures, scale, epsilon, normalizerGuard: 0, causalNormalizerEpsilon: 1e-6);

    /// <summary>The generalised features of google-research <c>fast_attention.py</c>: <c>f(c·W x) + ε</c>, no guard of the normaliser.</summary>
    /// <param name="function">f.</param>
    /// <param name="projection">W; null for none.</param>
    /// <param name="numFeatures">m; not used without a projection.</param>
    /// <param name="dataNormalizer">c; the published default is 1.</param>
    /// <param name="epsilon">ε.</param>
    public static ReferenceKernel JaxGeneralized(
        Func<double, double> function, float[]? projection = null, int numFeatures = 0, double dataNormalizer = 1, double epsilon = 1e-3) =>
        FromFunction(a => function(dataNormalizer * a) + epsilon, projection, numFeatures);

    /// <summary>
    /// The generalised features of lucidrains <c>performer-pytorch</c>: <c>f(c·W x) + ε</c>; causal normalisers have 1e-6 added to every summed key feature.
    /// </summary>
    /// <param name="function">f.</param>
    /// <param name="dataNormalizer">c; the published default is <c>d^-¼</c>.</param>
    /// <param name="projection">W; null for none.</param>
    /// <param name="numFeatures">m; not used without a projection.</param>
    /// <param name="epsilon">ε.</param>
    public static ReferenceKernel LucidrainsGeneralized(
        Func<double, double> function, double dataNormalizer, float[]? projection = null, int numFeatures = 0, double epsilon = 1e-3) =>
        FromFunction(a => function(dataNormalizer * a) + epsilon, projection, numFeatures) with { CausalNormalizerEpsilon = 1e-6 };

    private static ReferenceKernel Stabilized(
        float[] projection, int numFeatures, double scale, double epsilon, double normalizerGuard, double causalNormalizerEpsilon)
    {
        double[][] Queries(double[][] rows) => Array.ConvertAll(rows, x =>
        {
            double[] a = Scaled(x);
            return Features(x, a, a.Max());
        });

        double[][] Keys(double[][] rows)
        {
            double[][] a = Array.ConvertAll(rows, Scaled);
            double max = a.Length == 0 ? 0 : a.Max(row => row.Max());
            return [.. rows.Zip(a, (x, row) => Features(x, row, max))];
        }

        double[] Scaled(double[] x) => Array.ConvertAll(Project(projection, numFeatures, x), a => Math.Sqrt(scale) * a);

        double[] Features(double[] x, double[] a, double stabilizer)
        {
            double diagonal = scale * SquaredNorm(x) / 2;
            return Array.ConvertAll(a, value => (Math.Exp(value - diagonal - stabilizer) + epsilon) / Math.Sqrt(numFeatures));
        }

        return new ReferenceKernel(isLogarithmic: false, Queries, Keys)
        {
            NormalizerGuard = normalizerGuard,
            CausalNormalizerEpsilon = causalNormalizerEpsilon,
        };
    }

    private static ReferenceKernel PerRow(bool isLogarithmic, Func<double[], double[]> map)
    {
        double[][] MapAll(double[][] rows) => Array.ConvertAll(rows, x => map(x));
        return new ReferenceKernel(isLogarithmic, MapAll, MapAll);
    }

    private static double[] Project(float[] matrix, int rows, double[] x)
    {
        if (matrix.LongLength != (long)rows * x.Length)
        {
            throw new ArgumentException($"A matrix of {matrix.Length} elements is not [{rows}, {x.Length}].", nameof(matrix));
        }

        double[] result = new double[rows];
        for (int r = 0; r < rows; r++)
        {
            for (int i = 0; i < x.Length; i++)
            {
                result[r] += matrix[(r * x.Length) + i] * x[i];
            }
        }

        return result;
    }

    private static double SquaredNorm(double[] x)
    {
        double sum = 0;
        foreach (double value in x)
        {
            sum += value * value;
        }

        return sum;
    }
}
