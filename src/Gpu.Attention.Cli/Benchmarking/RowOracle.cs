using System.Numerics;
using System.Numerics.Tensors;

namespace Gpu.Attention.Cli.Benchmarking;

/// <summary>
/// Single rows of an attention problem straight from the definition, <c>o_i = Σ_j w_ij v_j / Σ_j w_ij</c>, in any precision: in float64 what is right, in
/// float32 what a plain implementation would make of it. <c>O(S)</c> a row.
/// </summary>
/// <remarks>Features are computed from the projection as it was drawn, not from the form that engines are given.</remarks>
internal static class RowOracle
{
    public const double UnitRoundoff = 1.0 / (1 << 24);

    /// <summary>Output rows of one head.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="batch">The sequence.</param>
    /// <param name="head">The query head.</param>
    /// <param name="rows">The queries.</param>
    /// <returns>
    /// A row of <c>Dv</c> for each of <paramref name="rows"/>, and what rounding alone may amount to in each element: <c>u Σ_j w_ij |v_j| (4 + |l|)</c>,
    /// u = 2⁻²⁴. Four roundings are those of a product, a sum, a quotient and the result; a weight that is the exponential of a sum of
    /// terms up to <c>|l|</c> cannot be held more exactly than <c>u |l|</c>.
    /// </returns>
    public static (T[][] Rows, T[][] Rounding) Compute<T>(BenchCase problem, int batch, int head, int[] rows)
        where T : IBinaryFloatingPointIeee754<T>
    {
        AttentionShape shape = problem.Shape;
        int keyHead = head / shape.HeadGroup;
        var map = new RowMap<T>(problem);
        T[][] queries = [.. rows.Select(row => map.Query(Row<T>(problem.Query, shape.QueryLength, shape.Heads, shape.KeyDimension, batch, row, head)))];
        T[][] sums = [.. rows.Select(_ => new T[shape.ValueDimension])];
        T[][] magnitudes = [.. rows.Select(_ => new T[shape.ValueDimension])];
        T[] normalizers = new T[rows.Length];
        T[] maxima = new T[rows.Length];
        Array.Fill(maxima, T.NegativeInfinity);
        T[] absolute = new T[shape.ValueDimension];
        for (int j = 0; j < shape.KeyLength; j++)
        {
            T[] features = map.Key(Row<T>(problem.Key, shape.KeyLength, shape.KeyHeads, shape.KeyDimension, batch, j, keyHead));
            T[] value = Row<T>(problem.Value, shape.KeyLength, shape.KeyHeads, shape.ValueDimension, batch, j, keyHead);
            for (int i = 0; i < rows.Length; i++)
            {
                if (problem.Causal && j > rows[i])
                {
                    continue;
                }

                T weight = Dot<T>(queries[i], features);
                if (problem.Features == FeatureKind.Softmax)
                {
                    T max = T.Max(maxima[i], weight);
                    T shrink = T.Exp(maxima[i] - max);
                    map.LargestLogarithm = T.Max(map.LargestLogarithm, T.Abs(weight));
                    TensorPrimitives.Multiply(sums[i], shrink, sums[i]);
                    TensorPrimitives.Multiply(magnitudes[i], shrink, magnitudes[i]);
                    normalizers[i] *= shrink;
                    weight = T.Exp(weight - max);
                    maxima[i] = max;
                }

                TensorPrimitives.MultiplyAdd(value, weight, sums[i], sums[i]);
                TensorPrimitives.Abs(value, absolute);
                TensorPrimitives.MultiplyAdd(absolute, weight, magnitudes[i], magnitudes[i]);
                normalizers[i] += weight;
            }
        }

        T roundoff = T.CreateChecked(UnitRoundoff) * (T.CreateChecked(4) + map.LargestLogarithm);
        for (int i = 0; i < rows.Length; i++)
        {
            T factor = normalizers[i] == T.Zero ? T.Zero : T.One / normalizers[i];
            TensorPrimitives.Multiply(sums[i], factor, sums[i]);
            TensorPrimitives.Multiply(magnitudes[i], factor * roundoff, magnitudes[i]);
        }

        return (sums, magnitudes);
    }

    /// <summary>A row of a tensor.</summary>
    public static T[] Row<T>(float[] tensor, int length, int heads, int dimension, int batch, int token, int head)
        where T : IBinaryFloatingPointIeee754<T>
    {
        long start = ((((long)batch * length) + token) * heads + head) * dimension;
        T[] row = new T[dimension];
        TensorPrimitives.ConvertTruncating<float, T>(tensor.AsSpan((int)start, dimension), row);
        return row;
    }

    /// <summary>A sum of products: in float32 one after the other, as the plain implementation has it.</summary>
    public static T Dot<T>(ReadOnlySpan<T> a, ReadOnlySpan<T> b)
        where T : IBinaryFloatingPointIeee754<T>
    {
        if (typeof(T) == typeof(double))
        {
            return TensorPrimitives.Dot(a, b);
        }

        T sum = T.Zero;
        for (int i = 0; i < a.Length; i++)
        {
            sum += a[i] * b[i];
        }

        return sum;
    }
}
