using System.Numerics;
using System.Numerics.Tensors;

namespace Gpu.Attention.Samples.Training;

/// <summary>What the right symbol costs, in nats.</summary>
internal static class CrossEntropy
{
    /// <summary>Returns one row's loss, and turns its logits into the gradient times <paramref name="weight"/>.</summary>
    public static T LossAndGradient<T>(Span<T> logits, int target, T weight)
        where T : IFloatingPointIeee754<T>
    {
        T right = logits[target];
        T largest = TensorPrimitives.Max<T>(logits);
        TensorPrimitives.Subtract(logits, largest, logits);
        TensorPrimitives.Exp(logits, logits);
        T sum = TensorPrimitives.Sum<T>(logits);
        TensorPrimitives.Multiply(logits, weight / sum, logits);
        logits[target] -= weight;
        return T.Log(sum) + largest - right;
    }
}
