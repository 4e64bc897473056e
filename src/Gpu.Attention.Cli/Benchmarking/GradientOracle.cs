using System.Numerics;
using System.Numerics.Tensors;

namespace Gpu.Attention.Cli.Benchmarking;

/// <summary>Rows of the gradients of one key head, and of the query heads that read it one after the other.</summary>
internal sealed record GradientRows<T>(T[][] Query, T[][] Key, T[][] Value);

/// <summary>
/// Single rows of an attention problem's gradients straight from the chain rule, in any precision, as <see cref="RowOracle"/> has those of its output:
/// <c>∂L/∂w_ij = (g_i·v_j − g_i·o_i) / D_i</c>, <c>∂L/∂v_j = Σ_i w_ij g_i / D_i</c>.
/// </summary>
/// <remarks>
/// The output is the one that backward passes are given: it has been checked. The normalisers D_i are float64's, for plain float32 too, since a key's gradient
/// needs those of all queries: exact attention makes them in <c>O(T·S)</c>, all else in <c>O(T + S)</c>.
/// </remarks>
internal static class GradientOracle
{
    /// <summary>The normalisers of all queries of a head; of exact attention their logarithms.</summary>
    public static double[] Normalizers(BenchCase problem, int batch, int head)
    {
        AttentionShape shape = problem.Shape;
        int keyHead = head / shape.HeadGroup;
        double[] normalizers = new double[shape.QueryLength];
        if (problem.Features == FeatureKind.Softmax)
        {
            double[][] keys = [.. Enumerable.Range(0, shape.KeyLength).Select(j => KeyRow<double>(problem, batch, j, keyHead))];
            Parallel.For(0, shape.QueryLength, i =>
            {
                double[] query = new RowMap<double>(problem).Query(QueryRow<double>(problem, batch, i, head));
                double[] logits = new double[problem.Causal ? i + 1 : keys.Length];
                for (int j = 0; j < logits.Length; j++)
                {
                    logits[j] = TensorPrimitives.Dot<double>(query, keys[j]);
                }

                double max = TensorPrimitives.Max<double>(logits);
                normalizers[i] = max + Math.Log(logits.Sum(logit => Math.Exp(logit - max)));
            });
            return normalizers;
        }

        var map = new RowMap<double>(problem);
        double[] sums = new double[problem.FeatureDimension];
        int added = 0;
        for (int i = 0; i < normalizers.Length; i++)
        {
            for (; added < (problem.Causal ? i + 1 : shape.KeyLength); added++)
            {
                TensorPrimitives.Add(sums, map.Key(KeyRow<double>(problem, batch, added, keyHead)), sums);
            }

            normalizers[i] = TensorPrimitives.Dot<double>(map.Query(QueryRow<double>(problem, batch, i, head)), sums);
        }

        return normalizers;
    }

    /// <summary>Rows of the gradients of one key head and the query heads that read it.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="output">Its output.</param>
    /// <param name="normalizers">Those of each of the query heads.</param>
    /// <param name="batch">The sequence.</param>
    /// <param name="keyHead">The key head.</param>
    /// <param name="rows">The tokens.</param>
    /// <returns>
    /// The rows, and what rounding alone may amount to in each element: of a term <c>u w_ij/D_i κ Σ_c |g_ic v_jc|</c>, u = 2⁻²⁴, κ = 4 + √r + |l|, with the
    /// terms' errors added up in squares, but for that of <c>g_i·o_i</c>, which all terms of a query's gradient share.
    /// </returns>
    public static (GradientRows<T> Rows, GradientRows<T> Rounding) Compute<T>(
        BenchCase problem, float[] output, double[][] normalizers, int batch, int keyHead, int[] rows)
        where T : IBinaryFloatingPointIeee754<T>
    {
        AttentionShape shape = problem.Shape;
        var map = new RowMap<T>(problem);
        int[] heads = [.. Enumerable.Range(keyHead * shape.HeadGroup, shape.HeadGroup)];
        var pass = new Pass<T>(problem, map, output, batch, keyHead);
        Term<T>[] keys = [.. rows.Select(j => pass.Key(j))];
        var queries = new List<Term<T>>();
        for (int h = 0; h < heads.Length; h++)
        {
            Term<T>[] sampled = [.. rows.Select(i => pass.Query(i, heads[h], normalizers[h][i]))];
            for (int j = 0; j < shape.KeyLength; j++)
            {
                Term<T> key = pass.Key(j);
                foreach (Term<T> query in sampled.Where(query => pass.Sees(query, key)))
                {
                    pass.Add(query, key, ofQuery: true);
                }
            }

            for (int i = 0; i < shape.QueryLength; i++)
            {
                Term<T> query = pass.Query(i, heads[h], normalizers[h][i]);
                foreach (Term<T> key in keys.Where(key => pass.Sees(query, key)))
                {
                    pass.Add(query, key, ofQuery: false);
                }
            }

            queries.AddRange(sampled);
        }

        return (
            new GradientRows<T>(
                [.. queries.Select(q => pass.Gradient(q, true))], [.. keys.Select(k => pass.Gradient(k, false))], [.. keys.Select(k => k.ValueGradient)]),
            new GradientRows<T>(
                [.. queries.Select(q => pass.Rounding(q, true))], [.. keys.Select(k => pass.Rounding(k, false))],
                [.. keys.Select(k => Array.ConvertAll(k.ValueSquares, T.Sqrt))]));
    }

    private static T[] QueryRow<T>(BenchCase problem, int batch, int token, int head)
        where T : IBinaryFloatingPointIeee754<T> =>
        RowOracle.Row<T>(problem.Query, problem.Shape.QueryLength, problem.Shape.Heads, problem.Shape.KeyDimension, batch, token, head);

    private static T[] KeyRow<T>(BenchCase problem, int batch, int token, int keyHead)
        where T : IBinaryFloatingPointIeee754<T> =>
        RowOracle.Row<T>(problem.Key, problem.Shape.KeyLength, problem.Shape.KeyHeads, problem.Shape.KeyDimension, batch, token, keyHead);

    /// <summary>A query or a key: its row, its features, and what has been added to its gradient.</summary>
    private sealed class Term<T>(int token, T[] row, T[] features, T[] vector, T normalizer, T mean, T meanSize)
        where T : IBinaryFloatingPointIeee754<T>
    {
        public int Token => token;

        public T[] Row => row;

        public T[] Features => features;

        /// <summary>The output's gradient g of a query, the value v of a key.</summary>
        public T[] Vector => vector;

        public T Normalizer => normalizer;

        /// <summary>g·o, and the sum of its terms' sizes.</summary>
        public (T Value, T Size) Mean => (mean, meanSize);

        public T[] FeatureGradient { get; } = new T[features.Length];

        public T[] Squares { get; } = new T[features.Length];

        public T[] Shared { get; } = new T[features.Length];

        public T[] ValueGradient { get; } = new T[vector.Length];

        public T[] ValueSquares { get; } = new T[vector.Length];
    }

    private sealed class Pass<T>(BenchCase problem, RowMap<T> map, float[] output, int batch, int keyHead)
        where T : IBinaryFloatingPointIeee754<T>
    {
        private readonly bool _isExact = problem.Features == FeatureKind.Softmax;
        private readonly T[] _products = new T[problem.Shape.ValueDimension];
        private readonly T[] _errors = new T[Math.Max(problem.Shape.ValueDimension, problem.Shape.KeyDimension + problem.FeatureDimension)];

        public Term<T> Query(int token, int head, double normalizer)
        {
            AttentionShape s = problem.Shape;
            T[] gradient = RowOracle.Row<T>(problem.OutputGradient, s.QueryLength, s.Heads, s.ValueDimension, batch, token, head);
            T[] row = RowOracle.Row<T>(output, s.QueryLength, s.Heads, s.ValueDimension, batch, token, head);
            return new Term<T>(
                token, QueryRow<T>(problem, batch, token, head), map.Query(QueryRow<T>(problem, batch, token, head)), gradient, T.CreateChecked(normalizer),
                RowOracle.Dot<T>(gradient, row), Size(gradient, row));
        }

        public Term<T> Key(int token)
        {
            AttentionShape s = problem.Shape;
            T[] value = RowOracle.Row<T>(problem.Value, s.KeyLength, s.KeyHeads, s.ValueDimension, batch, token, keyHead);
            return new Term<T>(
                token, KeyRow<T>(problem, batch, token, keyHead), map.Key(KeyRow<T>(problem, batch, token, keyHead)), value, T.One, T.Zero, T.Zero);
        }

        public bool Sees(Term<T> query, Term<T> key) => !problem.Causal || key.Token <= query.Token;

        /// <summary>Adds one pair's part to the gradient of its query, or to those of its key and value.</summary>
        public void Add(Term<T> query, Term<T> key, bool ofQuery)
        {
            T product = _isExact || !ofQuery ? RowOracle.Dot<T>(query.Features, key.Features) : T.Zero;
            if (_isExact)
            {
                map.LargestLogarithm = T.Max(map.LargestLogarithm, T.Abs(product));
            }
            else if (query.Normalizer == T.Zero)
            {
                return;
            }

            T weight = _isExact ? T.Exp(product - query.Normalizer) : product / query.Normalizer;
            T factor = _isExact ? weight : T.One / query.Normalizer;
            T gradient = factor * (RowOracle.Dot<T>(query.Vector, key.Vector) - query.Mean.Value);
            T roundoff = T.CreateChecked(RowOracle.UnitRoundoff);
            T own = T.Abs(factor) * roundoff * Kappa() * Size(query.Vector, key.Vector);
            T shared = T.Abs(factor) * roundoff * query.Mean.Size;
            (Term<T> target, T[] by) = ofQuery ? (query, key.Features) : (key, query.Features);
            TensorPrimitives.MultiplyAdd(by, gradient, target.FeatureGradient, target.FeatureGradient);
            AddSquares(by, ofQuery ? own : own + shared, target.Squares);
            if (ofQuery)
            {
                Span<T> errors = _errors.AsSpan(0, by.Length);
                TensorPrimitives.Abs(by, errors);
                TensorPrimitives.MultiplyAdd(errors, shared, target.Shared, target.Shared);
            }
            else
            {
                TensorPrimitives.MultiplyAdd(query.Vector, weight, key.ValueGradient, key.ValueGradient);
                AddSquares(query.Vector, weight * roundoff * Kappa(), key.ValueSquares);
            }
        }

        public T[] Gradient(Term<T> term, bool isQuery)
        {
            T[] arguments = map.Derivatives(term.Row, term.Features);
            return map.PullBack(term.Row, [.. arguments.Zip(term.FeatureGradient, (a, b) => a * b)], isQuery);
        }

        public T[] Rounding(Term<T> term, bool isQuery)
        {
            T[] errors = map.Derivatives(term.Row, term.Features);
            return map.PullBackErrors(term.Row, [.. errors.Select((e, r) => T.Abs(e) * (T.Sqrt(term.Squares[r]) + term.Shared[r]))], isQuery);
        }

        private T Kappa() => T.CreateChecked(4) + (_isExact ? T.Zero : T.Sqrt(T.CreateChecked(problem.FeatureDimension))) + map.LargestLogarithm;

        private void AddSquares(T[] factors, T error, T[] squares)
        {
            Span<T> errors = _errors.AsSpan(0, factors.Length);
            TensorPrimitives.Multiply(factors, error, errors);
            TensorPrimitives.MultiplyAdd(errors, errors, squares, squares);
        }

        private T Size(T[] a, T[] b)
        {
            TensorPrimitives.Multiply(a, b, _products);
            return TensorPrimitives.SumOfMagnitudes<T>(_products);
        }
    }
}
