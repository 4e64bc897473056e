namespace Gpu.Attention.TestKit;

/// <summary>Gradients with respect to what attention reads, each laid out as it is; empty where not asked for.</summary>
public sealed record AttentionGradients(float[] Query, float[] Key, float[] Value);

/// <summary>What a plain float32 implementation makes of a problem's gradients: the yardstick for an engine's errors.</summary>
/// <param name="Forward">The gradients when sums run from the first term to the last.</param>
/// <param name="Backward">Those when sums run from the last to the first.</param>
/// <param name="QueryRounding">For each element of the query gradient what rounding alone may amount to, see <see cref="PlainGradients"/>.</param>
/// <param name="KeyRounding">The same of the key gradient.</param>
/// <param name="ValueRounding">The same of the value gradient.</param>
public sealed record PlainGradientResult(
    AttentionGradients Forward, AttentionGradients Backward, double[] QueryRounding, double[] KeyRounding, double[] ValueRounding);

/// <summary>The gradients of attention in its weights form with straightforward float32 loops.</summary>
/// <remarks>
/// <para>A gradient is a sum of <c>a_ijr (g_i·v_j − g_i·o_i) / D_i</c>, in which <c>a_ijr</c> is feature r's part of weight ij, and the difference may cancel all but
/// rounding: all of it where a row sees one key, nearly all where one key has nearly all weight. Then this implementation is exact, or nearly, by luck, and one that sums
/// <c>φ(k)ᵀ[v 1]</c> first and multiplies by <c>[g/D, −(g·o)/D]</c> afterwards cannot be. So the rounding allowed is that of the difference's two terms apart, with u = 2⁻²⁴:</para>
/// <code>
/// own:     e_ijr = u a_ijr/D_i κ_ijr Σ_c |g_ic v_jc|,      κ_ijr = 4 + √r + |l(q_i)_r| + |l(k_j)_r|
/// shared:  s_ijr = a_ijr/D_i · u √Σ_j (Σ_r a_ijr/D_i κ_ijr Σ_c |g_ic v_jc|)²
/// </code>
/// <para>with κ as in <see cref="PlainResult"/>: a product, a sum, a quotient and the result; sums over r features; log features no more exact than their size.</para>
/// <para>Errors add up as they depend on one another. The error of <c>g·o</c> is one for all terms of a query's feature, and adds: <c>Σ_j s_ijr</c>. Everything else, and
/// all that comes to a key or a value from different rows, adds in squares, as do the features of a row behind a projection, whose coefficients are of either sign; in the
/// total that <c>−β|y|²</c> and <c>u·x</c> multiply all are of one sign, and add. Worst cases all along would be many times as much: enough to hide an error of 1e-5, which
/// is what a law is to see.</para>
/// </remarks>
public static class PlainGradients
{
    private const double UnitRoundoff = 1.0 / (1 << 24);

    /// <summary>Runs a problem of float32 arrays laid out as in <see cref="AttentionShape"/>.</summary>
    public static PlainGradientResult Run(
        AttentionProblem problem, float[] query, float[] key, float[] value, float[] outputGradient, byte[]? keyMask = null)
    {
        ArgumentNullException.ThrowIfNull(problem);
        var forward = new Pass(problem, query, key, value, outputGradient, keyMask, reversed: false);
        var backward = new Pass(problem, query, key, value, outputGradient, keyMask, reversed: true);
        return new PlainGradientResult(forward.Gradients, backward.Gradients, forward.QueryRounding, forward.KeyRounding, forward.ValueRounding);
    }

    private sealed class Pass
    {
        private readonly AttentionProblem _problem;
        private readonly bool _reversed;
        private readonly int _features;
        private readonly bool _isLogarithmic;

        public Pass(AttentionProblem problem, float[] query, float[] key, float[] value, float[] outputGradient, byte[]? keyMask, bool reversed)
        {
            (_problem, _reversed) = (problem, reversed);
            AttentionShape s = problem.Shape;
            _isLogarithmic = problem.Features is not { Family: FeatureFamily.Direct };

            // Exact attention has one feature for each pair, and its logarithm is the logit.
            _features = problem.Features?.FeatureDimension ?? 1;
            Gradients = new AttentionGradients(new float[s.QueryElements], new float[s.KeyElements], new float[s.ValueElements]);
            QueryRounding = new double[s.QueryElements];
            KeyRounding = new double[s.KeyElements];
            ValueRounding = new double[s.ValueElements];
            for (int b = 0; b < s.Batch; b++)
            {
                for (int keyHead = 0; keyHead < s.KeyHeads; keyHead++)
                {
                    RunKeyHead(query, key, value, outputGradient, keyMask, b, keyHead);
                }
            }
        }

        public AttentionGradients Gradients { get; }

        public double[] QueryRounding { get; }

        public double[] KeyRounding { get; }

        public double[] ValueRounding { get; }

        private void RunKeyHead(float[] query, float[] key, float[] value, float[] outputGradient, byte[]? keyMask, int b, int keyHead)
        {
            AttentionShape s = _problem.Shape;
            int[] visible = [.. Enumerable.Range(0, s.KeyLength).Where(j => keyMask is null || keyMask[(b * s.KeyLength) + j] != 0)];
            Row[] keys = [.. visible.Select(j => new Row(this, _problem.Features?.Key, key, At(j, s.KeyLength, s.KeyHeads, keyHead), s.KeyDimension))];
            float[][] values = [.. visible.Select(j => value.AsSpan(At(j, s.KeyLength, s.KeyHeads, keyHead) * s.ValueDimension, s.ValueDimension).ToArray())];
            float[][] valueGradients = [.. visible.Select(_ => new float[s.ValueDimension])];
            double[][] valueSquares = [.. visible.Select(_ => new double[s.ValueDimension])];
            int rows = s.QueryLength * s.HeadGroup;
            for (int n = 0; n < rows; n++)
            {
                int row = _reversed ? rows - 1 - n : n;
                int i = row % s.QueryLength;
                int head = (keyHead * s.HeadGroup) + (row / s.QueryLength);
                int at = At(i, s.QueryLength, s.Heads, head);
                int end = _problem.Causal
                    ? (((i / _problem.CausalBlock) + 1) * _problem.CausalBlock) + s.KeyLength - s.QueryLength
                    : s.KeyLength;
                int seen = visible.Count(j => j < end);
                var q = new Row(this, _problem.Features?.Query, query, at, s.KeyDimension);
                AddRow(q, keys.AsSpan(0, seen), values, outputGradient.AsSpan(at * s.ValueDimension, s.ValueDimension), valueGradients, valueSquares);
                q.PullBack(Gradients.Query, QueryRounding, at);
            }

            for (int n = 0; n < visible.Length; n++)
            {
                int at = At(visible[n], s.KeyLength, s.KeyHeads, keyHead);
                keys[n].PullBack(Gradients.Key, KeyRounding, at);
                valueGradients[n].CopyTo(Gradients.Value, at * s.ValueDimension);
                Array.ConvertAll(valueSquares[n], Math.Sqrt).CopyTo(ValueRounding, at * s.ValueDimension);
            }

            int At(int token, int length, int heads, int head) => (((b * length) + token) * heads) + head;
        }

        private void AddRow(
            Row q, ReadOnlySpan<Row> keys, float[][] values, ReadOnlySpan<float> g, float[][] valueGradients, double[][] valueSquares)
        {
            float[][] logarithms = new float[keys.Length][];
            float shift = _isLogarithmic ? float.NegativeInfinity : 0;
            for (int j = 0; j < keys.Length && _isLogarithmic; j++)
            {
                logarithms[j] = new float[_features];
                for (int r = 0; r < _features; r++)
                {
                    logarithms[j][r] = _problem.Features is null
                        ? _problem.Scale * PlainAttention.Dot(q.Input, keys[j].Input, _reversed)
                        : q.Arguments[r] + keys[j].Arguments[r];
                    shift = MathF.Max(shift, logarithms[j][r]);
                }
            }

            if (float.IsNegativeInfinity(shift))
            {
                return;
            }

            // A feature's part of each weight.
            float[][] parts = new float[keys.Length][];
            float[] weights = new float[keys.Length];
            float denominator = 0;
            float[] output = new float[g.Length];
            for (int n = 0; n < keys.Length; n++)
            {
                int j = Ordered(n, keys.Length);
                parts[j] = new float[_features];
                for (int m = 0; m < _features; m++)
                {
                    int r = Ordered(m, _features);
                    parts[j][r] = _isLogarithmic ? MathF.Exp(logarithms[j][r] - shift) : q.Values[r] * keys[j].Values[r];
                    weights[j] += parts[j][r];
                }

                denominator += weights[j];
                for (int c = 0; c < g.Length; c++)
                {
                    output[c] += weights[j] * values[j][c];
                }
            }

            // Exact attention is always normalised.
            bool normalize = _problem.Normalize || _problem.Features is null;
            if (normalize && denominator == 0)
            {
                return;
            }

            float factor = normalize ? 1 / denominator : MathF.Exp(shift) * (_isLogarithmic ? 1 : _problem.Scale);
            float mean = normalize ? PlainAttention.Dot(g, output, _reversed) * factor : 0;
            double meanSquares = 0;
            double denominatorSquares = 0;
            for (int j = 0; j < keys.Length && normalize; j++)
            {
                double e = 0;
                for (int r = 0; r < _features; r++)
                {
                    e += Math.Abs(parts[j][r] * factor) * Roundings(j, r, keys);
                }

                meanSquares += e * e * Size(g, values[j]) * Size(g, values[j]);
                denominatorSquares += e * e;
            }

            double meanRounding = UnitRoundoff * Math.Sqrt(meanSquares);
            double denominatorRounding = UnitRoundoff * Math.Sqrt(denominatorSquares);
            for (int n = 0; n < keys.Length; n++)
            {
                int j = Ordered(n, keys.Length);
                float gradient = factor * (PlainAttention.Dot(g, values[j], _reversed) - mean);
                double size = Size(g, values[j]);
                double weightRounding = Math.Abs(weights[j] * factor) * denominatorRounding;
                for (int r = 0; r < _features; r++)
                {
                    float byQuery = _isLogarithmic ? parts[j][r] : q.Derivatives[r] * keys[j].Values[r];
                    float byKey = _isLogarithmic ? parts[j][r] : q.Values[r] * keys[j].Derivatives[r];
                    double roundings = UnitRoundoff * Roundings(j, r, keys);
                    double own = Math.Abs(factor) * roundings * size;
                    double shared = Math.Abs(factor) * meanRounding;
                    if (_problem.Features is null)
                    {
                        q.AddLogit(gradient * byQuery, own * byQuery, shared * byQuery, keys[j], _problem.Scale);
                        keys[j].AddLogit(gradient * byKey, (own + shared) * byKey, 0, q, _problem.Scale);
                    }
                    else
                    {
                        q.Add(r, gradient * byQuery, own * Math.Abs(byQuery), shared * Math.Abs(byQuery));
                        keys[j].Add(r, gradient * byKey, (own + shared) * Math.Abs(byKey), 0);
                    }

                    weightRounding += Math.Abs(parts[j][r] * factor) * roundings;
                }

                for (int c = 0; c < g.Length; c++)
                {
                    valueGradients[j][c] += weights[j] * factor * g[c];
                    double e = weightRounding * g[c];
                    valueSquares[j][c] += e * e;
                }
            }

            double Roundings(int j, int r, ReadOnlySpan<Row> of) =>
                4 + Math.Sqrt(_problem.Features is null ? 0 : _features) + (!_isLogarithmic || float.IsInfinity(logarithms[j][r]) ? 0
                    : _problem.Features is null ? Math.Abs(logarithms[j][r])
                    : Math.Abs(q.Arguments[r]) + Math.Abs(of[j].Arguments[r]));
        }

        private int Ordered(int n, int count) => _reversed ? count - 1 - n : n;

        private static double Size(ReadOnlySpan<float> g, float[] v)
        {
            double size = 0;
            for (int c = 0; c < v.Length; c++)
            {
                size += Math.Abs((double)g[c] * v[c]);
            }

            return size;
        }

        /// <summary>A query or a key with the gradients that it has been given.</summary>
        private sealed class Row
        {
            private readonly Pass _pass;
            private readonly FeatureForm? _form;
            private readonly float[] _moved;
            private readonly float[] _gradient;
            private readonly double[] _squares;
            private readonly double[] _shared;

            public Row(Pass pass, FeatureForm? form, float[] tensor, int at, int dimension)
            {
                (_pass, _form) = (pass, form);
                Input = tensor.AsSpan(at * dimension, dimension).ToArray();
                int size = form?.FeatureDimension ?? dimension;
                (_gradient, _squares, _shared) = (new float[size], new double[size], new double[size]);
                _moved = form is null ? Input : PlainAttention.Move(form, Input, pass._reversed);
                Arguments = form is null ? [] : PlainAttention.Arguments(form, Input, _moved, pass._reversed);
                Values = [.. Arguments];
                Derivatives = new float[Arguments.Length];
                if (form is { Activation.Family: FeatureFamily.Direct })
                {
                    form.Activation.Apply(Values, Values);
                    Values = Array.ConvertAll(Values, x => x + pass._problem.FeatureEpsilon);
                    Array.Fill(Derivatives, 1);
                    form.Activation.MultiplyDerivative(Arguments, Derivatives);
                }
            }

            public float[] Input { get; }

            /// <summary>Arguments of the activation: log features of the exponential family.</summary>
            public float[] Arguments { get; }

            public float[] Values { get; }

            public float[] Derivatives { get; }

            /// <summary>Adds a term with an error of its own and one that all terms have in common.</summary>
            public void Add(int r, float gradient, double own, double shared)
            {
                _gradient[r] += gradient;
                _squares[r] += own * own;
                _shared[r] += shared;
            }

            /// <summary>Exact attention: the gradient of a logit that is <paramref name="scale"/> times this row by another.</summary>
            public void AddLogit(float gradient, double own, double shared, Row other, float scale)
            {
                for (int i = 0; i < Input.Length; i++)
                {
                    double size = Math.Abs(scale * other.Input[i]);
                    Add(i, gradient * scale * other.Input[i], own * size, shared * size);
                }
            }

            public void PullBack(float[] gradients, double[] roundings, int at)
            {
                double[] rounding = [.. _squares.Zip(_shared, (squares, shared) => Math.Sqrt(squares) + shared)];
                Span<float> gradient = gradients.AsSpan(at * Input.Length, Input.Length);
                Span<double> bound = roundings.AsSpan(at * Input.Length, Input.Length);
                if (_form is null)
                {
                    _gradient.CopyTo(gradient);
                    rounding.CopyTo(bound);
                    return;
                }

                int d = Input.Length;
                float total = PlainAttention.Dot(_gradient, [.. Enumerable.Repeat(1f, _gradient.Length)], _pass._reversed);
                double totalBound = rounding.Sum();
                float[] byMoved = new float[d];
                double[] movedBound = new double[d];
                for (int i = 0; i < d; i++)
                {
                    byMoved[i] = _form.Projection is { } w ? PlainAttention.Dot(Column(w, i, d), _gradient, _pass._reversed) : _gradient[i];
                    byMoved[i] -= 2 * _form.NormCoefficient * _moved[i] * total;
                    movedBound[i] = (_form.Projection is null ? rounding[i] : Spread(Column(_form.Projection, i, d), rounding))
                        + Math.Abs(2 * _form.NormCoefficient * _moved[i] * totalBound);
                }

                for (int i = 0; i < d; i++)
                {
                    float[]? column = _form.PreMatrix is null ? null : Column(_form.PreMatrix, i, d);
                    float linear = _form.Linear?[i] ?? 0;
                    gradient[i] = (column is null ? byMoved[i] : PlainAttention.Dot(column, byMoved, _pass._reversed)) + (linear * total);
                    bound[i] = (column is null ? movedBound[i] : Spread(column, movedBound)) + Math.Abs(linear * totalBound);
                }
            }

            private static float[] Column(float[] matrix, int column, int width) =>
                [.. Enumerable.Range(0, matrix.Length / width).Select(row => matrix[(row * width) + column])];

            private static double Spread(float[] factors, double[] rounding) => Math.Sqrt(factors.Zip(rounding, (f, e) => f * e * f * e).Sum());
        }
    }
}
