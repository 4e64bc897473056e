namespace Gpu.Attention.TestKit;

/// <summary>What a plain float32 implementation makes of a problem: the yardstick for an engine's errors.</summary>
/// <param name="Forward">The output when sums run from the first term to the last.</param>
/// <param name="Backward">
/// The output when they run from the last to the first. Both, because one order is sometimes right by luck, above all in small problems.
/// </param>
/// <param name="Rounding">
/// For each output what rounding alone may amount to: <c>u Σ_j w_ij |v_j| (4 + √r + |l_ij|)</c>, u = 2⁻²⁴. Four roundings are those of a product, a sum, a quotient
/// and the result. A factored form sums over r features in the numerator and in the normaliser apart, each sum erring like a random walk of r steps, where
/// this implementation's weights cancel exactly if there is one key. And a log weight made of log features of size <c>|l_ij| = |l(q_i)| + |l(k_j)|</c> can't be held
/// more exactly than <c>u |l_ij|</c>.
/// </param>
public sealed record PlainResult(float[] Forward, float[] Backward, double[] Rounding);

/// <summary>
/// Attention in its weights form with straightforward float32 loops; log weights are stabilised by their row's maximum. No more
/// careful than anyone would write it, and no less.
/// </summary>
public static class PlainAttention
{
    private const double UnitRoundoff = 1.0 / (1 << 24);

    /// <summary>Runs a problem of float32 arrays laid out as in <see cref="AttentionShape"/>.</summary>
    public static PlainResult Run(AttentionProblem problem, float[] query, float[] key, float[] value, byte[]? keyMask = null)
    {
        ArgumentNullException.ThrowIfNull(problem);
        double[] rounding = new double[problem.Shape.OutputElements];
        float[] forward = Run(problem, query, key, value, keyMask, reversed: false, rounding);
        float[] backward = Run(problem, query, key, value, keyMask, reversed: true, rounding);
        return new PlainResult(forward, backward, rounding);
    }

    private static float[] Run(
        AttentionProblem problem, float[] query, float[] key, float[] value, byte[]? keyMask, bool reversed, double[] rounding)
    {
        AttentionShape shape = problem.Shape;
        float[] output = new float[shape.OutputElements];
        for (int b = 0; b < shape.Batch; b++)
        {
            for (int h = 0; h < shape.Heads; h++)
            {
                int keyHead = h / shape.HeadGroup;
                bool[] visible = [.. Enumerable.Range(0, shape.KeyLength).Select(j => keyMask is null || keyMask[(b * shape.KeyLength) + j] != 0)];
                float[][] queries = Rows(query, shape.QueryLength, shape.Heads, shape.KeyDimension, b, h);
                float[][] keys = Rows(key, shape.KeyLength, shape.KeyHeads, shape.KeyDimension, b, keyHead);
                float[][] values = Rows(value, shape.KeyLength, shape.KeyHeads, shape.ValueDimension, b, keyHead);
                if (problem.Features is { } features)
                {
                    queries = Features(problem, features.Query, queries, [], reversed);
                    keys = Features(problem, features.Key, keys, visible, reversed);
                }

                for (int i = 0; i < shape.QueryLength; i++)
                {
                    int at = ((((b * shape.QueryLength) + i) * shape.Heads) + h) * shape.ValueDimension;
                    int seen = problem.Causal
                        ? Math.Clamp((((i / problem.CausalBlock) + 1) * problem.CausalBlock) + shape.KeyLength - shape.QueryLength, 0, shape.KeyLength)
                        : shape.KeyLength;
                    Attend(
                        problem,
                        queries[i],
                        keys.AsSpan(0, seen),
                        values,
                        visible,
                        reversed,
                        output.AsSpan(at, shape.ValueDimension),
                        rounding.AsSpan(at, shape.ValueDimension));
                }
            }
        }

        return output;
    }

    private static void Attend(
        AttentionProblem problem,
        float[] query,
        ReadOnlySpan<float[]> keys,
        float[][] values,
        bool[] visible,
        bool reversed,
        Span<float> output,
        Span<double> rounding)
    {
        bool logarithmic = IsLogarithmic(problem);
        float[] weights = new float[keys.Length];
        float[] magnitudes = new float[keys.Length];
        float shift = logarithmic ? float.NegativeInfinity : 0;
        for (int j = 0; j < keys.Length; j++)
        {
            if (!visible[j])
            {
                weights[j] = logarithmic ? float.NegativeInfinity : 0;
                continue;
            }

            if (problem.Features is null)
            {
                weights[j] = problem.Scale * Dot(query, keys[j], reversed);
                magnitudes[j] = MathF.Abs(weights[j]);
            }
            else
            {
                weights[j] = logarithmic ? LogDot(query, keys[j], reversed, out magnitudes[j]) : Dot(query, keys[j], reversed);
            }

            shift = logarithmic ? MathF.Max(shift, weights[j]) : 0;
        }

        if (float.IsNegativeInfinity(shift))
        {
            return;
        }

        float denominator = 0;
        for (int n = 0; n < keys.Length; n++)
        {
            int j = reversed ? keys.Length - 1 - n : n;
            weights[j] = logarithmic ? MathF.Exp(weights[j] - shift) : weights[j];
            denominator += weights[j];
        }

        float factor = RowFactor(problem, query, denominator, shift);
        double roundings = 4 + Math.Sqrt(problem.Features?.FeatureDimension ?? 0);
        for (int i = 0; i < output.Length; i++)
        {
            float sum = 0;
            double terms = 0;
            for (int n = 0; n < keys.Length; n++)
            {
                int j = reversed ? keys.Length - 1 - n : n;
                if (visible[j])
                {
                    sum += weights[j] * values[j][i];
                    terms += Math.Abs((double)weights[j] * values[j][i]) * (roundings + magnitudes[j]);
                }
            }

            output[i] = sum * factor;
            rounding[i] = Math.Max(rounding[i], UnitRoundoff * terms * Math.Abs(factor));
        }
    }

    private static float RowFactor(AttentionProblem problem, float[] query, float denominator, float shift)
    {
        if (!problem.Normalize)
        {
            float factor = problem.Features is { Family: FeatureFamily.Direct } ? problem.Scale : 1;
            return factor * MathF.Exp(shift);
        }

        // The guards of the published conventions.
        if (problem.Convention == ReferenceConvention.Lucidrains && problem.Causal)
        {
            denominator += 1e-6f * query.Sum();
        }

        if (problem.Convention == ReferenceConvention.Jax && problem.Features is { Family: FeatureFamily.Exponential } &&
            MathF.Abs(denominator) <= problem.FeatureEpsilon)
        {
            denominator += 2 * problem.FeatureEpsilon;
        }

        return denominator == 0 ? 0 : 1 / denominator;
    }

    private static bool IsLogarithmic(AttentionProblem problem) =>
        problem.Features is null ||
        (problem.Features.Family == FeatureFamily.Exponential && problem.Convention == ReferenceConvention.None);

    /// <summary>Features, or log features, of all rows; <paramref name="visible"/> is empty for queries, whose stabiliser is their row's own.</summary>
    private static float[][] Features(AttentionProblem problem, FeatureForm form, float[][] rows, bool[] visible, bool reversed)
    {
        bool stabilized = form.Activation.Family == FeatureFamily.Exponential && problem.Convention != ReferenceConvention.None;
        float[][] projected = new float[rows.Length][];
        float[] common = new float[rows.Length];
        for (int t = 0; t < rows.Length; t++)
        {
            float[] x = rows[t];
            float[] moved = Move(form, x, reversed);
            common[t] = Common(form, x, moved, reversed);
            projected[t] = form.Projection is null ? moved : Project(form.Projection, form.FeatureDimension, moved, reversed);
        }

        float shared = float.NegativeInfinity;
        for (int t = 0; t < visible.Length; t++)
        {
            shared = stabilized && visible[t] ? MathF.Max(shared, projected[t].Max()) : shared;
        }

        for (int t = 0; t < rows.Length; t++)
        {
            float stabilizer = !stabilized ? 0 : visible.Length > 0 ? shared : projected[t].Max();
            for (int r = 0; r < form.FeatureDimension; r++)
            {
                float offset = form.Offset?[r] ?? 0;
                if (stabilized)
                {
                    projected[t][r] = MathF.Exp(offset) * (MathF.Exp(projected[t][r] + common[t] - stabilizer) + problem.FeatureEpsilon);
                }
                else
                {
                    projected[t][r] = projected[t][r] + offset + common[t];
                }
            }

            if (form.Activation.Family == FeatureFamily.Direct)
            {
                form.Activation.Apply(projected[t], projected[t]);
                for (int r = 0; r < form.FeatureDimension; r++)
                {
                    projected[t][r] += problem.FeatureEpsilon;
                }
            }
        }

        return projected;
    }

    /// <summary><c>P x + p</c>.</summary>
    internal static float[] Move(FeatureForm form, float[] x, bool reversed)
    {
        float[] moved = form.PreMatrix is null ? [.. x] : Project(form.PreMatrix, x.Length, x, reversed);
        for (int i = 0; i < moved.Length; i++)
        {
            moved[i] += form.PreOffset?[i] ?? 0;
        }

        return moved;
    }

    /// <summary>The activation's arguments, given what <see cref="Move"/> makes of a row.</summary>
    internal static float[] Arguments(FeatureForm form, float[] x, float[] moved, bool reversed)
    {
        float common = Common(form, x, moved, reversed);
        float[] projected = form.Projection is null ? [.. moved] : Project(form.Projection, form.FeatureDimension, moved, reversed);
        for (int r = 0; r < projected.Length; r++)
        {
            projected[r] = projected[r] + (form.Offset?[r] ?? 0) + common;
        }

        return projected;
    }

    /// <summary>What all arguments of a row have in common.</summary>
    private static float Common(FeatureForm form, float[] x, float[] moved, bool reversed) =>
        (form.Linear is null ? 0 : Dot(form.Linear, x, reversed)) - (form.NormCoefficient * Dot(moved, moved, reversed));

    private static float[] Project(float[] matrix, int rows, float[] x, bool reversed)
    {
        float[] result = new float[rows];
        for (int r = 0; r < rows; r++)
        {
            result[r] = Dot(matrix.AsSpan(r * x.Length, x.Length), x, reversed);
        }

        return result;
    }

    internal static float Dot(ReadOnlySpan<float> a, ReadOnlySpan<float> b, bool reversed)
    {
        float sum = 0;
        for (int n = 0; n < a.Length; n++)
        {
            int i = reversed ? a.Length - 1 - n : n;
            sum += a[i] * b[i];
        }

        return sum;
    }

    /// <summary><c>log Σ_r exp(a_r + b_r)</c>, and <c>|a_r| + |b_r|</c> of its largest term.</summary>
    private static float LogDot(float[] a, float[] b, bool reversed, out float magnitude)
    {
        float max = float.NegativeInfinity;
        magnitude = 0;
        for (int r = 0; r < a.Length; r++)
        {
            if (a[r] + b[r] > max)
            {
                max = a[r] + b[r];
                magnitude = MathF.Abs(a[r]) + MathF.Abs(b[r]);
            }
        }

        if (float.IsNegativeInfinity(max))
        {
            return max;
        }

        float sum = 0;
        for (int n = 0; n < a.Length; n++)
        {
            int r = reversed ? a.Length - 1 - n : n;
            sum += MathF.Exp(a[r] + b[r] - max);
        }

        return max + MathF.Log(sum);
    }

    private static float[][] Rows(float[] tensor, int length, int heads, int dimension, int batch, int head) =>
        [.. Enumerable.Range(0, length)
            .Select(t => tensor.AsSpan(((((batch * length) + t) * heads) + head) * dimension, dimension).ToArray())];
}
