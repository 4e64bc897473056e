using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>The published conventions, epsilon and all, against their formulas in float64.</summary>
public sealed class ConventionTests
{
    public static TheoryData<ReferenceConvention, bool, bool, bool> Matrix =>
        [.. from convention in new[] { ReferenceConvention.Jax, ReferenceConvention.Lucidrains }
            from causal in new[] { false, true }
            from relu in new[] { false, true }
            from normalize in new[] { false, true }
            select (convention, causal, relu, normalize)];

    [Theory]
    [MemberData(nameof(Matrix))]
    public void Agrees_with_the_published_formulas(ReferenceConvention convention, bool causal, bool relu, bool normalize)
    {
        const int D = 16;
        var shape = new AttentionShape(2, 130, 130, 4, 2, D, 12); // More than one chunk, as there are more features than a chunk is long.
        RandomProjection projection = RandomProjection.Orthogonal(100, D, seed: 5);
        float[] w = projection.Matrix.ToArray();
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 9);
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var attention = new LinearAttention(
            device,
            relu ? FeatureMap.Relu(projection) : FeatureMap.FavorPlus(projection),
            new LinearAttentionOptions { Causal = causal, Compatibility = convention, Normalize = normalize, Scale = relu ? 1 : null });
        float[] actual = new float[shape.OutputElements];
        attention.Forward(shape, q, k, v, actual);

        double scale = 1 / Math.Sqrt(D);
        ReferenceKernel kernel = (convention, relu) switch
        {
            (ReferenceConvention.Jax, false) => ReferenceFeatures.Jax(w, 100, scale),
            (ReferenceConvention.Jax, true) => ReferenceFeatures.JaxGeneralized(x => Math.Max(x, 0), w, 100),
            (_, false) => ReferenceFeatures.Lucidrains(w, 100, scale),
            (_, true) => ReferenceFeatures.LucidrainsGeneralized(x => Math.Max(x, 0), Math.Pow(D, -0.25), w, 100),
        };
        double[] expected = ReferenceAttention.Linear(shape, kernel, q, k, v, new ReferenceOptions { Causal = causal, Normalize = normalize });
        double worst = 0;
        double size = expected.Max(Math.Abs);
        for (int i = 0; i < expected.Length; i++)
        {
            worst = Math.Max(worst, Math.Abs(expected[i] - actual[i]));
        }

        Assert.True(worst <= 5e-6 * size, $"largest error {worst:g3} of values up to {size:g3}");
    }

    // Every feature is the epsilon alone, and a normaliser of 4e-6 far below it.
    [Fact]
    public void The_generalised_features_of_jax_have_no_guard()
    {
        var shape = new AttentionShape(1, 1, 1, 4);
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var attention = new LinearAttention(device, FeatureMap.Relu(), new LinearAttentionOptions { Compatibility = ReferenceConvention.Jax });
        float[] actual = new float[4];
        attention.Forward(shape, [-1, -1, -1, -1], [-1, -1, -1, -1], [1, 2, 3, 4], actual);
        Assert.All(Enumerable.Range(0, 4), i => Assert.Equal(i + 1, actual[i], 1e-5f));
    }

    [Theory]
    [InlineData(1e-6f, true)]
    [InlineData(1e-3f, true)]
    [InlineData(1e-3f, false)]
    public void An_epsilon_without_a_convention_is_added_to_every_feature(float epsilon, bool normalize)
    {
        const int D = 16;
        var shape = new AttentionShape(1, 90, 2, D);
        RandomProjection projection = RandomProjection.Orthogonal(40, D, seed: 6);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 10);
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        foreach (bool causal in new[] { false, true })
        {
            using var attention = new LinearAttention(
                device, FeatureMap.FavorPlus(projection), new LinearAttentionOptions { Causal = causal, FeatureEpsilon = epsilon, Normalize = normalize });
            float[] actual = new float[shape.OutputElements];
            attention.Forward(shape, q, k, v, actual);
            double[] expected = Expected(shape, projection, epsilon, causal, normalize, q, k, v);
            double size = normalize ? 1 : expected.Max(Math.Abs);
            Assert.All(Enumerable.Range(0, actual.Length), i => Assert.Equal(expected[i], actual[i], 2e-5 * size));
        }
    }

    // Written out here, because it is nobody's published formula: φ = m^-½ (exp(w·x − |x|²/2) + ε).
    private static double[] Expected(AttentionShape s, RandomProjection projection, double epsilon, bool causal, bool normalize, float[] q, float[] k, float[] v)
    {
        double root = Math.Pow(s.KeyDimension, -0.25);
        double[] output = new double[s.OutputElements];
        for (int h = 0; h < s.Heads; h++)
        {
            double[][] queries = [.. Enumerable.Range(0, s.QueryLength).Select(t => Features(q, t, h))];
            double[][] keys = [.. Enumerable.Range(0, s.KeyLength).Select(t => Features(k, t, h))];
            for (int i = 0; i < s.QueryLength; i++)
            {
                int seen = causal ? i + 1 : s.KeyLength;
                double[] weights = [.. Enumerable.Range(0, seen).Select(j => queries[i].Zip(keys[j], (x, y) => x * y).Sum())];
                for (int c = 0; c < s.ValueDimension; c++)
                {
                    output[(((i * s.Heads) + h) * s.ValueDimension) + c] =
                        Enumerable.Range(0, seen).Sum(j => weights[j] * v[(((j * s.Heads) + h) * s.ValueDimension) + c]) / (normalize ? weights.Sum() : projection.NumFeatures);
                }
            }
        }

        return output;

        double[] Features(float[] x, int token, int head)
        {
            double[] row = [.. x.AsSpan(((token * s.Heads) + head) * s.KeyDimension, s.KeyDimension).ToArray().Select(value => value * root)];
            double half = row.Sum(value => value * value) / 2;
            return [.. Enumerable.Range(0, projection.NumFeatures).Select(f =>
                Math.Exp(Enumerable.Range(0, s.KeyDimension).Sum(i => projection.Matrix[(f * s.KeyDimension) + i] * row[i]) - half) + epsilon)];
        }
    }
}
