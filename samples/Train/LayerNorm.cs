using System.Numerics;
using System.Numerics.Tensors;

namespace Gpu.Attention.Samples.Training;

/// <summary>Rows shifted and scaled to mean 0 and variance 1, then scaled and shifted by what is learned.</summary>
internal static class LayerNorm
{
    private const double Epsilon = 1e-5;

    /// <summary>Normalises one row.</summary>
    public static void Forward<T>(ReadOnlySpan<T> x, ReadOnlySpan<T> gain, ReadOnlySpan<T> bias, Span<T> y)
        where T : IFloatingPointIeee754<T>
    {
        T inverse = Normalize(x, y);
        TensorPrimitives.Multiply(y, inverse, y);
        TensorPrimitives.MultiplyAdd(y, gain, bias, y);
    }

    /// <summary>Adds one row's gradients.</summary>
    /// <param name="x">The row.</param>
    /// <param name="gain">The learned factors.</param>
    /// <param name="outputGradient">The loss's gradient with respect to the output.</param>
    /// <param name="inputGradient">The gradient with respect to the row, to which is added.</param>
    /// <param name="gainGradient">The gradient of the factors, to which is added.</param>
    /// <param name="biasGradient">The gradient of the shifts, to which is added.</param>
    /// <param name="scratch">Twice as long as a row.</param>
    public static void Backward<T>(
        ReadOnlySpan<T> x, ReadOnlySpan<T> gain, ReadOnlySpan<T> outputGradient, Span<T> inputGradient, Span<T> gainGradient, Span<T> biasGradient,
        Span<T> scratch)
        where T : IFloatingPointIeee754<T>
    {
        Span<T> normal = scratch[..x.Length];
        Span<T> gradient = scratch.Slice(x.Length, x.Length);
        T inverse = Normalize(x, normal);
        TensorPrimitives.Multiply(normal, inverse, normal);
        TensorPrimitives.MultiplyAdd(outputGradient, normal, gainGradient, gainGradient);
        TensorPrimitives.Add(biasGradient, outputGradient, biasGradient);

        // The row's mean and length have no say in the output: the gradient loses its parts along them.
        TensorPrimitives.Multiply(outputGradient, gain, gradient);
        T length = T.CreateChecked(x.Length);
        T mean = TensorPrimitives.Sum<T>(gradient) / length;
        T along = TensorPrimitives.Dot<T>(gradient, normal) / length;
        TensorPrimitives.Subtract(gradient, mean, gradient);
        TensorPrimitives.MultiplyAdd(normal, -along, gradient, gradient);
        TensorPrimitives.MultiplyAdd(gradient, inverse, inputGradient, inputGradient);
    }

    // Leaves the row less its mean, and returns the factor that makes its variance 1.
    private static T Normalize<T>(ReadOnlySpan<T> x, Span<T> centred)
        where T : IFloatingPointIeee754<T>
    {
        T length = T.CreateChecked(x.Length);
        TensorPrimitives.Subtract(x, TensorPrimitives.Sum(x) / length, centred);
        return T.One / T.Sqrt((TensorPrimitives.SumOfSquares<T>(centred) / length) + T.CreateChecked(Epsilon));
    }
}
