using System.Numerics;
using System.Numerics.Tensors;

namespace Gpu.Attention.Samples.Training;

/// <summary>The smooth step <c>½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))</c>.</summary>
internal static class Gelu
{
    private const double Cubic = 0.044715;

    private static readonly double Slope = Math.Sqrt(2 / Math.PI);

    /// <summary>Applies it to every element.</summary>
    public static void Forward<T>(ReadOnlySpan<T> x, Span<T> y)
        where T : IFloatingPointIeee754<T>
    {
        Tanh(x, y);
        TensorPrimitives.Add(y, T.One, y);
        TensorPrimitives.Multiply(y, x, y);
        TensorPrimitives.Multiply(y, T.CreateChecked(0.5), y);
    }

    /// <summary>Turns the gradient with respect to the output into that with respect to the input, in place.</summary>
    public static void Backward<T>(ReadOnlySpan<T> x, Span<T> gradient, Span<T> scratch)
        where T : IFloatingPointIeee754<T>
    {
        T half = T.CreateChecked(0.5);
        T slope = T.CreateChecked(Slope);
        T cubic = T.CreateChecked(3 * Cubic * Slope);
        Tanh(x, scratch);
        for (int i = 0; i < x.Length; i++)
        {
            T tanh = scratch[i];
            T inner = slope + (cubic * x[i] * x[i]);
            gradient[i] *= half * (T.One + tanh + (x[i] * (T.One - (tanh * tanh)) * inner));
        }
    }

    private static void Tanh<T>(ReadOnlySpan<T> x, Span<T> y)
        where T : IFloatingPointIeee754<T>
    {
        TensorPrimitives.Multiply(x, x, y);
        TensorPrimitives.Multiply(y, T.CreateChecked(Cubic * Slope), y);
        TensorPrimitives.Add(y, T.CreateChecked(Slope), y);
        TensorPrimitives.Multiply(y, x, y);
        TensorPrimitives.Tanh(y, y);
    }
}
