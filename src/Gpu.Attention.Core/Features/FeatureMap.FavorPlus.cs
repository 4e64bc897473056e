namespace Gpu.Attention;

public abstract partial class FeatureMap
{
    /// <summary>
    /// FAVOR+, positive random features: <c>φ(x) = m^-½ exp(W x − |x|²/2)</c> of <c>x = √scale · q</c>, which estimates
    /// <c>exp(scale · q·k)</c> without bias when the rows of W are standard normal.
    /// </summary>
    /// <param name="projection">W, <c>m × d</c>.</param>
    /// <remarks>Choromanski et al., "Rethinking Attention with Performers" (2020), Lemma 1 and equation 7.</remarks>
    public static FeatureMap FavorPlus(RandomProjection projection) => new FavorPlusMap("favor+", projection);

    /// <summary>
    /// FAVOR+ with antithetic pairs, <c>φ(x) = (2m)^-½ [exp(W x − |x|²/2), exp(−W x − |x|²/2)]</c>: twice the features of
    /// <see cref="FavorPlus"/> and at most half its variance.
    /// </summary>
    /// <param name="projection">W, <c>m × d</c>; the map makes 2m features.</param>
    /// <remarks>Choromanski et al., "Rethinking Attention with Performers" (2020), Lemma 1 (hyperbolic).</remarks>
    public static FeatureMap FavorPlusHyperbolic(RandomProjection projection)
    {
        ArgumentNullException.ThrowIfNull(projection);
        return new FavorPlusMap("favor+hyperbolic", projection.ToAntithetic());
    }

    private sealed class FavorPlusMap : FeatureMap
    {
        private readonly RandomProjection _projection;

        public FavorPlusMap(string name, RandomProjection projection)
            : base(name)
        {
            ArgumentNullException.ThrowIfNull(projection);
            _projection = projection;
        }

        public override int? InputDimension => _projection.Dimension;

        public override FeaturePair Lower(int dimension, float scale)
        {
            if (dimension != _projection.Dimension)
            {
                throw new ArgumentException(
                    $"The projection [{_projection.NumFeatures}, {_projection.Dimension}] does not take rows of dimension {dimension}.", nameof(dimension));
            }

            if (!(scale > 0) || float.IsInfinity(scale))
            {
                throw new ArgumentOutOfRangeException(nameof(scale), scale, "Random features of exp(scale·q·k) need a finite scale above zero.");
            }

            double root = Math.Sqrt(scale);
            float[] weights = Array.ConvertAll(_projection.Matrix.ToArray(), w => (float)(w * root));
            float[] offset = new float[_projection.NumFeatures];
            Array.Fill(offset, (float)(-0.5 * Math.Log(_projection.NumFeatures)));
            var form = new FeatureForm
            {
                InputDimension = dimension,
                FeatureDimension = _projection.NumFeatures,
                Activation = FeatureActivation.Exp,
                Projection = weights,
                Offset = offset,
                NormCoefficient = scale / 2,
            };
            return new FeaturePair(form, form);
        }
    }
}
