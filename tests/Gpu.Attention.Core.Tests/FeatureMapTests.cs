using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Core.Tests;

public class FeatureMapTests
{
    private const double Roundoff = 1.0 / (1 << 24);

    [Theory]
    [InlineData(false, 1f)]
    [InlineData(false, 0.125f)]
    [InlineData(true, 0.3f)]
    public void FavorPlus_Lowered_IsTheFormulaUpToTheRoundingOfItsConstants(bool hyperbolic, float scale)
    {
        const int Features = 40;
        const int Dimension = 16;
        RandomProjection projection = RandomProjection.Orthogonal(Features, Dimension, seed: 8);
        float[] w = projection.Matrix.ToArray();
        FeatureMap map = hyperbolic ? FeatureMap.FavorPlusHyperbolic(projection) : FeatureMap.FavorPlus(projection);
        ReferenceKernel formula = hyperbolic
            ? ReferenceFeatures.FavorPlusHyperbolic(w, Features, scale)
            : ReferenceFeatures.FavorPlus(w, Features, scale);
        FeaturePair pair = map.Lower(Dimension, scale);
        Assert.Equal(FeatureFamily.Exponential, pair.Family);
        Assert.Equal(hyperbolic ? 2 * Features : Features, pair.FeatureDimension);

        double[][] rows = Rows(count: 20, Dimension);
        var problem = new AttentionProblem { Shape = new AttentionShape(1, 1, 1, Dimension), Features = pair };
        ReferenceKernel lowered = Oracles.Kernel(problem);
        foreach ((double[][] actual, double[][] expected) in new[]
                 {
                     (lowered.MapQueries(rows), formula.MapQueries(rows)), (lowered.MapKeys(rows), formula.MapKeys(rows)),
                 })
        {
            for (int t = 0; t < rows.Length; t++)
            {
                for (int r = 0; r < pair.FeatureDimension; r++)
                {
                    // Entries of √scale·W and the offset are rounded to float32; the rest is exact. The last digits are float64's.
                    double bound = Roundoff * Math.Abs(pair.Key.Offset![r]);
                    for (int i = 0; i < Dimension; i++)
                    {
                        bound += Roundoff * Math.Abs(pair.Key.Projection![(r * Dimension) + i] * rows[t][i]);
                    }

                    Assert.InRange(actual[t][r] - expected[t][r], -1.001 * bound, 1.001 * bound);
                }
            }
        }
    }

    [Fact]
    public void ElementwiseMaps_Lowered_AreTheirFormulas()
    {
        RandomProjection projection = RandomProjection.Gaussian(6, 5, seed: 1);
        float[] w = projection.Matrix.ToArray();
        double[][] rows = Rows(count: 9, dimension: 5);
        (FeatureMap Map, ReferenceKernel Formula)[] maps =
        [
            (FeatureMap.EluPlusOne, ReferenceFeatures.EluPlusOne()),
            (FeatureMap.Identity, ReferenceFeatures.Identity()),
            (FeatureMap.Relu(), ReferenceFeatures.Relu()),
            (FeatureMap.Relu(projection), ReferenceFeatures.Relu(w, 6)),
            (FeatureMap.FromFunction("floor", MathF.Floor, projection), ReferenceFeatures.FromFunction(Math.Floor, w, 6)),
        ];
        foreach ((FeatureMap map, ReferenceKernel formula) in maps)
        {
            var problem = new AttentionProblem { Shape = new AttentionShape(1, 1, 1, 5), Features = map.Lower(5, 1) };
            Assert.Equal(formula.MapKeys(rows), Oracles.Kernel(problem).MapKeys(rows));
            Assert.Equal(formula.MapQueries(rows), Oracles.Kernel(problem).MapQueries(rows));
        }
    }

    [Fact]
    public void Activations_Applied_AreTheirFormulas()
    {
        float[] x = [-200, -1.5f, -1e-8f, -0f, 0, 1e-8f, 1.5f, 80];
        (FeatureActivation Activation, Func<double, double> Formula)[] activations =
        [
            (FeatureActivation.Exp, Math.Exp),
            (FeatureActivation.EluPlusOne, v => v > 0 ? v + 1 : Math.Exp(v)),
            (FeatureActivation.Relu, v => Math.Max(v, 0)),
            (FeatureActivation.Identity, v => v),
            (FeatureActivation.FromFunction("square", v => v * v), v => v * v),
        ];
        foreach ((FeatureActivation activation, Func<double, double> formula) in activations)
        {
            float[] actual = [.. x];
            activation.Apply(actual, actual);
            for (int i = 0; i < x.Length; i++)
            {
                // Four units: the vectorised exponential has two, and the formula's own rounding to float32 half of one.
                double expected = formula(x[i]);
                Assert.InRange(actual[i], expected - (8 * Roundoff * Math.Abs(expected)) - 1e-45, expected + (8 * Roundoff * Math.Abs(expected)) + 1e-45);
            }

            float[] nan = [float.NaN];
            activation.Apply(nan, nan);
            Assert.True(float.IsNaN(nan[0]), $"{activation} hides a NaN");
        }
    }

    [Fact]
    public void Lower_OfAnotherDimensionOrScale_IsRefused()
    {
        RandomProjection projection = RandomProjection.Gaussian(6, 5, seed: 1);
        foreach (FeatureMap map in new[] { FeatureMap.FavorPlus(projection), FeatureMap.FavorPlusHyperbolic(projection), FeatureMap.Relu(projection) })
        {
            Assert.Equal(5, map.InputDimension);
            Assert.Throws<ArgumentException>("dimension", () => map.Lower(4, 1));
        }

        foreach (float scale in new[] { 0, -1, float.NaN, float.PositiveInfinity })
        {
            Assert.Throws<ArgumentOutOfRangeException>("scale", () => FeatureMap.FavorPlus(projection).Lower(5, scale));
        }

        Assert.Throws<ArgumentNullException>("projection", () => FeatureMap.FavorPlus(null!));
        Assert.Throws<ArgumentNullException>("projection", () => FeatureMap.FavorPlusHyperbolic(null!));
        Assert.Null(FeatureMap.EluPlusOne.InputDimension);
        Assert.Equal(0.125f, FeatureMap.EluPlusOne.DefaultScale(64));
    }

    [Theory]
    [InlineData(nameof(FeatureForm.PreMatrix))]
    [InlineData(nameof(FeatureForm.PreOffset))]
    [InlineData(nameof(FeatureForm.Projection))]
    [InlineData(nameof(FeatureForm.Offset))]
    [InlineData(nameof(FeatureForm.Linear))]
    public void FormWithAPartOfAnotherLength_IsRefusedByName(string part)
    {
        FeatureForm right = Form(4, 3, FeatureActivation.Exp);
        right.Validate();
        float[] wrong = new float[5];
        FeatureForm form = part switch
        {
            nameof(FeatureForm.PreMatrix) => right with { PreMatrix = wrong },
            nameof(FeatureForm.PreOffset) => right with { PreOffset = wrong },
            nameof(FeatureForm.Projection) => right with { Projection = wrong },
            nameof(FeatureForm.Offset) => right with { Offset = wrong },
            _ => right with { Linear = wrong },
        };
        ArgumentException exception = Assert.Throws<ArgumentException>(part, form.Validate);
        Assert.Contains($"{part} has 5 elements", exception.Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(part, () => new FeaturePair(right, form));
        Assert.Throws<ArgumentException>(part, () => new FeaturePair(form, right));
    }

    [Fact]
    public void FormWithoutProjection_HasAsManyFeaturesAsInputs()
    {
        FeatureForm form = Form(4, 3, FeatureActivation.Relu) with { Projection = null, Offset = null };
        Assert.Throws<ArgumentException>("FeatureDimension", form.Validate);
        (form with { FeatureDimension = 3 }).Validate();
        Assert.Throws<ArgumentOutOfRangeException>("InputDimension", (form with { InputDimension = 0 }).Validate);
        Assert.Throws<ArgumentOutOfRangeException>("FeatureDimension", (form with { FeatureDimension = -1 }).Validate);
    }

    [Fact]
    public void Pair_OfFormsThatDoNotMultiply_IsRefused()
    {
        FeatureForm form = Form(4, 3, FeatureActivation.Exp);
        Assert.Equal(4, new FeaturePair(form, form).FeatureDimension);
        Assert.Throws<ArgumentException>("key", () => new FeaturePair(form, Form(5, 3, FeatureActivation.Exp)));
        Assert.Throws<ArgumentException>("key", () => new FeaturePair(form, Form(4, 3, FeatureActivation.Relu)));
        Assert.Throws<ArgumentException>("key", () => new FeaturePair(form, Form(4, 2, FeatureActivation.Exp)));
        Assert.Throws<ArgumentNullException>("query", () => new FeaturePair(null!, form));
        Assert.Throws<ArgumentNullException>("key", () => new FeaturePair(form, null!));
    }

    private static FeatureForm Form(int features, int dimension, FeatureActivation activation) => new()
    {
        InputDimension = dimension,
        FeatureDimension = features,
        Activation = activation,
        PreMatrix = new float[dimension * dimension],
        PreOffset = new float[dimension],
        Projection = new float[features * dimension],
        Offset = new float[features],
        Linear = new float[dimension],
    };

    private static double[][] Rows(int count, int dimension) =>
        [.. TestData.Normal(77, count * dimension).Select(x => (double)x).Chunk(dimension)];
}
