namespace Gpu.Attention;

public abstract partial class FeatureMap
{
    /// <summary>elu(x) + 1, element by element: <c>x + 1</c> above zero, <c>exp(x)</c> below.</summary>
    /// <remarks>Katharopoulos et al., "Transformers are RNNs" (2020), equation 7.</remarks>
    public static FeatureMap EluPlusOne { get; } = new ElementwiseMap("elu", FeatureActivation.EluPlusOne, null);

    /// <summary>The rows as they are. The caller answers for products that must not be negative.</summary>
    public static FeatureMap Identity { get; } = new ElementwiseMap("identity", FeatureActivation.Identity, null);

    /// <summary>ReLU features, <c>max(W x, 0)</c> (generalised attention), or <c>max(x, 0)</c> without a projection.</summary>
    /// <param name="projection">W, <c>m × d</c>; null for none.</param>
    /// <remarks>Choromanski et al., "Rethinking Attention with Performers" (2020), section 2.2 and appendix D.3.</remarks>
    public static FeatureMap Relu(RandomProjection? projection = null) => new ElementwiseMap("relu", FeatureActivation.Relu, projection);

    /// <summary>A caller's own non-negative scalar function of each element, or of each projected element.</summary>
    /// <param name="name">The name in messages, reports and files.</param>
    /// <param name="function">The function; called from several threads at once.</param>
    /// <param name="projection">W, <c>m × d</c>; null for none.</param>
    /// <param name="derivative">The function's derivative, needed for training only.</param>
    public static FeatureMap FromFunction(
        string name, Func<float, float> function, RandomProjection? projection = null, Func<float, float>? derivative = null) =>
        new ElementwiseMap(name, FeatureActivation.FromFunction(name, function, derivative), projection);

    private sealed class ElementwiseMap(string name, FeatureActivation activation, RandomProjection? projection) : FeatureMap(name)
    {
        public override int? InputDimension => projection?.Dimension;

        public override FeaturePair Lower(int dimension, float scale)
        {
            if (projection is not null && projection.Dimension != dimension)
            {
                throw new ArgumentException(
                    $"The projection [{projection.NumFeatures}, {projection.Dimension}] does not take rows of dimension {dimension}.", nameof(dimension));
            }

            var form = new FeatureForm
            {
                InputDimension = dimension,
                FeatureDimension = projection?.NumFeatures ?? dimension,
                Activation = activation,
                Projection = projection?.Matrix.ToArray(),
            };
            return new FeaturePair(form, form);
        }
    }
}
