using System.Numerics;
using System.Numerics.Tensors;

namespace Gpu.Attention.Cli.Benchmarking;

/// <summary>The feature maps, each as its formula reads; for exact attention the row itself, queries scaled.</summary>
internal sealed class RowMap<T>
    where T : IBinaryFloatingPointIeee754<T>
{
    private readonly string _features;
    private readonly T[] _projection;
    private readonly int _rows;
    private readonly T _scale;

    public RowMap(BenchCase problem)
    {
        _features = problem.Features;
        _rows = problem.Projection?.NumFeatures ?? 0;
        _projection = new T[_rows * problem.Shape.KeyDimension];
        _scale = T.One / T.Sqrt(T.CreateTruncating(problem.Shape.KeyDimension));
        if (problem.Projection is { } projection)
        {
            TensorPrimitives.ConvertTruncating<float, T>(projection.Matrix, _projection);
        }
    }

    /// <summary>The largest sum of terms that an exponential was taken of.</summary>
    public T LargestLogarithm { get; set; } = T.Zero;

    public T[] Query(T[] row)
    {
        if (_features == FeatureKind.Softmax)
        {
            TensorPrimitives.Multiply(row, _scale, row);
            return row;
        }

        return Key(row);
    }

    public T[] Key(T[] row)
    {
        switch (_features)
        {
            case FeatureKind.FavorPlus or FeatureKind.FavorPlusHyperbolic:
                // x = d^-¼ row; m^-½ is the same in every feature and cancels.
                T half = _scale * RowOracle.Dot<T>(row, row) / (T.One + T.One);
                T[] projected = Project(row);
                TensorPrimitives.Multiply(projected, T.Sqrt(_scale), projected);

                // A weight has such a term from its query and one from its key.
                T largest = T.Abs(TensorPrimitives.MaxMagnitude<T>(projected)) + half;
                LargestLogarithm = T.Max(LargestLogarithm, largest + largest);
                return _features == FeatureKind.FavorPlus
                    ? Array.ConvertAll(projected, a => T.Exp(a - half))
                    : [.. projected.Select(a => T.Exp(a - half)), .. projected.Select(a => T.Exp(-a - half))];
            case FeatureKind.Elu:
                return Array.ConvertAll(row, a => a > T.Zero ? a + T.One : T.Exp(a));
            case FeatureKind.Relu:
                return Array.ConvertAll(_rows == 0 ? row : Project(row), a => T.Max(a, T.Zero));
            default:
                return row;
        }
    }

    /// <summary>The derivatives of the features of a query or a key with respect to what their function, an exponential or another, is taken of.</summary>
    public T[] Derivatives(T[] row, T[] features) => _features switch
    {
        FeatureKind.FavorPlus or FeatureKind.FavorPlusHyperbolic => features,
        FeatureKind.Elu => Array.ConvertAll(row, a => a > T.Zero ? T.One : T.Exp(a)),
        FeatureKind.Relu => Array.ConvertAll(_rows == 0 ? row : Project(row), a => a > T.Zero ? T.One : T.Zero),
        _ => [.. features.Select(_ => T.One)],
    };

    /// <summary>From the gradient of those arguments to that of the row.</summary>
    public T[] PullBack(T[] row, T[] gradient, bool isQuery)
    {
        if (_features == FeatureKind.Softmax && isQuery)
        {
            return Array.ConvertAll(gradient, g => g * _scale);
        }

        if (_rows == 0)
        {
            return gradient;
        }

        bool isExponential = FeatureKind.NeedsProjection(_features);
        T[] result = new T[row.Length];
        T factor = isExponential ? T.Sqrt(_scale) : T.One;
        for (int r = 0; r < _rows; r++)
        {
            T ofProduct = gradient.Length == _rows ? gradient[r] : gradient[r] - gradient[_rows + r];
            TensorPrimitives.MultiplyAdd(_projection.AsSpan(r * row.Length, row.Length), factor * ofProduct, result, result);
        }

        if (isExponential)
        {
            T total = T.Zero;
            Array.ForEach(gradient, g => total += g);
            TensorPrimitives.MultiplyAdd(row, -_scale * total, result, result);
        }

        return result;
    }

    /// <summary>What errors of those gradients come to in the row's: in squares where the projection gives them either sign.</summary>
    public T[] PullBackErrors(T[] row, T[] errors, bool isQuery)
    {
        if (_rows == 0)
        {
            return PullBack(row, errors, isQuery);
        }

        bool isExponential = FeatureKind.NeedsProjection(_features);
        T[] squares = new T[row.Length];
        T[] term = new T[row.Length];
        for (int r = 0; r < errors.Length; r++)
        {
            TensorPrimitives.Multiply(_projection.AsSpan(r % _rows * row.Length, row.Length), isExponential ? T.Sqrt(_scale) * errors[r] : errors[r], term);
            TensorPrimitives.MultiplyAdd<T>(term, term, squares, squares);
        }

        TensorPrimitives.Sqrt(squares, squares);
        if (isExponential)
        {
            T total = TensorPrimitives.Sum<T>(errors);
            TensorPrimitives.Abs(row, term);
            TensorPrimitives.MultiplyAdd(term, _scale * total, squares, squares);
        }

        return squares;
    }

    private T[] Project(T[] row)
    {
        T[] projected = new T[_rows];
        for (int r = 0; r < _rows; r++)
        {
            projected[r] = RowOracle.Dot<T>(_projection.AsSpan(r * row.Length, row.Length), row);
        }

        return projected;
    }
}
