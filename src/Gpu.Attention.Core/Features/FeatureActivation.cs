using System.Numerics.Tensors;

namespace Gpu.Attention;

/// <summary>The scalar function at the end of a feature map's normal form.</summary>
/// <remarks>Engines have their own code for the instances of this class that it offers; any other runs through <see cref="Apply"/>.</remarks>
public abstract class FeatureActivation
{
    /// <summary>Creates an activation.</summary>
    /// <param name="name">A short name for messages and files.</param>
    /// <param name="family">How engines keep its results.</param>
    private protected FeatureActivation(string name, FeatureFamily family) => (Name, Family) = (name, family);

    /// <summary><c>exp(x)</c>, kept as its logarithm.</summary>
    public static FeatureActivation Exp { get; } = new ExpActivation();

    /// <summary><c>x + 1</c> for positive x, else <c>exp(x)</c>: elu(x) + 1 without the cancellation.</summary>
    public static FeatureActivation EluPlusOne { get; } = new EluPlusOneActivation();

    /// <summary><c>max(x, 0)</c>.</summary>
    public static FeatureActivation Relu { get; } = new ReluActivation();

    /// <summary><c>x</c>. The caller answers for the sign of the products.</summary>
    public static FeatureActivation Identity { get; } = new IdentityActivation();

    /// <summary>A short name for messages and files.</summary>
    public string Name { get; }

    /// <summary>How engines keep the results.</summary>
    public FeatureFamily Family { get; }

    /// <summary>A caller's own function, taken to be non-negative.</summary>
    /// <param name="name">A short name for messages and files.</param>
    /// <param name="function">The function; called from several threads at once.</param>
    /// <param name="derivative">Its derivative, needed for training only.</param>
    public static FeatureActivation FromFunction(string name, Func<float, float> function, Func<float, float>? derivative = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(name);
        ArgumentNullException.ThrowIfNull(function);
        return new FunctionActivation(name, function, derivative);
    }

    /// <summary>Applies the function to every element.</summary>
    /// <param name="source">The arguments.</param>
    /// <param name="destination">Receives the values; may be <paramref name="source"/>.</param>
    public abstract void Apply(ReadOnlySpan<float> source, Span<float> destination);

    /// <summary>Multiplies gradients with respect to values by the function's derivative: gradients with respect to arguments.</summary>
    /// <param name="source">The arguments.</param>
    /// <param name="gradient">The gradients, changed in place.</param>
    /// <exception cref="NotSupportedException">The function is a caller's own, without a derivative.</exception>
    internal abstract void MultiplyDerivative(ReadOnlySpan<float> source, Span<float> gradient);

    /// <summary>True when there is a derivative to train with.</summary>
    internal virtual bool HasDerivative => true;

    /// <inheritdoc/>
    public override string ToString() => Name;

    private sealed class ExpActivation() : FeatureActivation("exp", FeatureFamily.Exponential)
    {
        public override void Apply(ReadOnlySpan<float> source, Span<float> destination) => TensorPrimitives.Exp(source, destination);

        internal override void MultiplyDerivative(ReadOnlySpan<float> source, Span<float> gradient)
        {
            for (int i = 0; i < source.Length; i++)
            {
                gradient[i] *= MathF.Exp(source[i]);
            }
        }
    }

    private sealed class EluPlusOneActivation() : FeatureActivation("elu+1", FeatureFamily.Direct)
    {
        public override void Apply(ReadOnlySpan<float> source, Span<float> destination)
        {
            for (int i = 0; i < source.Length; i++)
            {
                destination[i] = source[i] > 0 ? source[i] + 1 : MathF.Exp(source[i]);
            }
        }

        internal override void MultiplyDerivative(ReadOnlySpan<float> source, Span<float> gradient)
        {
            for (int i = 0; i < source.Length; i++)
            {
                gradient[i] *= source[i] > 0 ? 1 : MathF.Exp(source[i]);
            }
        }
    }

    private sealed class ReluActivation() : FeatureActivation("relu", FeatureFamily.Direct)
    {
        public override void Apply(ReadOnlySpan<float> source, Span<float> destination) => TensorPrimitives.Max(source, 0, destination);

        internal override void MultiplyDerivative(ReadOnlySpan<float> source, Span<float> gradient)
        {
            for (int i = 0; i < source.Length; i++)
            {
                gradient[i] = source[i] > 0 ? gradient[i] : 0;
            }
        }
    }

    private sealed class IdentityActivation() : FeatureActivation("identity", FeatureFamily.Direct)
    {
        public override void Apply(ReadOnlySpan<float> source, Span<float> destination) => source.CopyTo(destination);

        internal override void MultiplyDerivative(ReadOnlySpan<float> source, Span<float> gradient)
        {
        }
    }

    private sealed class FunctionActivation(string name, Func<float, float> function, Func<float, float>? derivative)
        : FeatureActivation(name, FeatureFamily.Direct)
    {
        internal override bool HasDerivative => derivative is not null;

        public override void Apply(ReadOnlySpan<float> source, Span<float> destination)
        {
            for (int i = 0; i < source.Length; i++)
            {
                destination[i] = function(source[i]);
            }
        }

        internal override void MultiplyDerivative(ReadOnlySpan<float> source, Span<float> gradient)
        {
            if (derivative is null)
            {
                throw new NotSupportedException($"The function {Name} has no derivative; name one when making it.");
            }

            for (int i = 0; i < source.Length; i++)
            {
                gradient[i] *= derivative(source[i]);
            }
        }
    }
}
