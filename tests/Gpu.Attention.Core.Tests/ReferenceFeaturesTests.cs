using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Core.Tests;

public class ReferenceFeaturesTests
{
    [Fact]
    public void FavorPlus_WorkedByHand()
    {
        // √4 · (1·1 + 2·(−1)) − 4·(1 + 1)/2 = −6 and √4 · (0 − 3) − 4 = −10.
        double[] logs = ReferenceFeatures.FavorPlus([1, 2, 0, 3], 2, scale: 4).MapKeys([[1, -1]])[0];
        ReferenceAttentionTests.RequireClose([-6 - (0.5 * Math.Log(2)), -10 - (0.5 * Math.Log(2))], logs, 1e-15);
        double[] pairs = ReferenceFeatures.FavorPlusHyperbolic([1, 2, 0, 3], 2, scale: 4).MapQueries([[1, -1]])[0];
        ReferenceAttentionTests.RequireClose([-6 - Math.Log(2), -10 - Math.Log(2), -2 - Math.Log(2), 2 - Math.Log(2)], pairs, 1e-15);
    }

    [Fact]
    public void NormalForm_WorkedByHand()
    {
        // x = (1, 2): P x + p = (0·1 + 1·2 + 1, 1·1 + 0·2 + 0) = (3, 1); W x' = 3 − 1 = 2; b = 10; β|x'|² = 0.5·10 = 5; u·x = 1·1 + 2·2 = 5.
        ReferenceKernel square = ReferenceFeatures.NormalForm(1, [0, 1, 1, 0], [1, 0], [1, -1], [10], 0.5, [1, 2], x => x * x);
        Assert.False(square.IsLogarithmic);
        Assert.Equal(144, Assert.Single(square.MapQueries([[1, 2]])[0]));
        ReferenceKernel exponential = ReferenceFeatures.NormalForm(1, [0, 1, 1, 0], [1, 0], [1, -1], [10], 0.5, [1, 2], null);
        Assert.True(exponential.IsLogarithmic);
        Assert.Equal(12, Assert.Single(exponential.MapKeys([[1, 2]])[0]));
        double[] row = [1, 2];
        Assert.Equal([1, 2], ReferenceFeatures.NormalForm(2, null, null, null, null, 0, null, x => x).MapKeys([row])[0]);
        Assert.Equal([1, 2], row);
    }

    [Fact]
    public void Jax_WorkedByHand()
    {
        const double Epsilon = 1e-6;
        ReferenceKernel kernel = ReferenceFeatures.Jax([1], 1, scale: 1, Epsilon);

        // Keys 0 and 1: a = 0 and 1, |k|²/2 = 0 and ½, the maximum of a over both is 1.
        double[][] keys = kernel.MapKeys([[0], [1]]);
        Assert.Equal(Math.Exp(-1) + Epsilon, keys[0][0], 1e-15);
        Assert.Equal(Math.Exp(-0.5) + Epsilon, keys[1][0], 1e-15);

        // Each query has its own maximum.
        double[][] queries = kernel.MapQueries([[0], [1]]);
        Assert.Equal(1 + Epsilon, queries[0][0], 1e-15);
        Assert.Equal(Math.Exp(-0.5) + Epsilon, queries[1][0], 1e-15);

        // m^-½ multiplies the epsilon too.
        Assert.Equal((1 + Epsilon) / 2, ReferenceFeatures.Jax([1, 1, 1, 1], 4, 1, Epsilon).MapQueries([[0]])[0][3], 1e-15);
    }

    [Fact]
    public void Jax_NormaliserNearZero_IsMovedByTwiceEpsilon()
    {
        // Features e^{−50} vanish beside ε, so that the only weight is ε² and its normaliser ε² + 2ε.
        var shape = new AttentionShape(1, 1, 1, 1);
        double[] output = ReferenceAttention.Linear(shape, ReferenceFeatures.Jax([1], 1, 1), [10], [10], [1]);
        Assert.Equal(1e-12 / (1e-12 + 2e-6), Assert.Single(output), 1e-18);
    }

    [Fact]
    public void Lucidrains_CausalNormaliser_HasAnEpsilonPerFeature()
    {
        var shape = new AttentionShape(1, 1, 1, 1);
        ReferenceKernel kernel = ReferenceFeatures.Lucidrains([1], 1, 1);
        double feature = 1 + 1e-4;
        Assert.Equal(feature, kernel.MapQueries([[0]])[0][0], 1e-15);
        double causal = ReferenceAttention.Linear(shape, kernel, [0], [0], [1], new ReferenceOptions { Causal = true })[0];
        Assert.Equal(feature / (feature + 1e-6), causal, 1e-15);
        Assert.Equal(1, ReferenceAttention.Linear(shape, kernel, [0], [0], [1])[0], 1e-15);

        ReferenceKernel relu = ReferenceFeatures.LucidrainsGeneralized(x => Math.Max(x, 0), dataNormalizer: 2);
        Assert.Equal([4.001, 0.001], relu.MapKeys([[2, -2]])[0]);
        double generalised = ReferenceAttention.Linear(shape, relu, [2], [2], [1], new ReferenceOptions { Causal = true })[0];
        Assert.Equal(4.001 / (4.001 + 1e-6), generalised, 1e-15);
    }

    [Fact]
    public void JaxGeneralized_AddsItsEpsilonAndHasNoGuard()
    {
        ReferenceKernel kernel = ReferenceFeatures.JaxGeneralized(x => Math.Max(x, 0), [1, 1, 1, -1], 2);
        Assert.Equal([3.001, 0.001], kernel.MapKeys([[1, 2]])[0]);
        Assert.Equal((0, 0), (kernel.NormalizerGuard, kernel.CausalNormalizerEpsilon));
    }

    /// <summary>Without their epsilon the published features differ from the exact ones by factors that cancel; with it the future reaches the past.</summary>
    [Fact]
    public void Jax_WithoutEpsilon_IsExact_AndWithItLeaksTheFuture()
    {
        var shape = new AttentionShape(1, 8, 1, 8);
        float[] w = RandomProjection.Orthogonal(32, 8, seed: 1).Matrix.ToArray();
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, seed: 12);
        var causal = new ReferenceOptions { Causal = true };
        double[] exact = ReferenceAttention.Linear(shape, ReferenceFeatures.FavorPlus(w, 32, 0.35), q, k, v, causal);
        foreach (ReferenceKernel kernel in new[] { ReferenceFeatures.Jax(w, 32, 0.35, 0), ReferenceFeatures.Lucidrains(w, 32, 0.35, 0) with { CausalNormalizerEpsilon = 0 } })
        {
            ReferenceAttentionTests.RequireClose(exact, ReferenceAttention.Linear(shape, kernel, q, k, v, causal), 1e-12);
        }

        float[] later = [.. k];
        for (int i = 7 * 8; i < 8 * 8; i++)
        {
            later[i] *= 3;
        }

        double Change(ReferenceKernel kernel)
        {
            double[] before = ReferenceAttention.Linear(shape, kernel, q, k, v, causal);
            double[] after = ReferenceAttention.Linear(shape, kernel, q, later, v, causal);
            return Enumerable.Range(0, 7 * 8).Max(i => Math.Abs(before[i] - after[i]));
        }

        Assert.Equal(0, Change(ReferenceFeatures.FavorPlus(w, 32, 0.35)));
        Assert.True(Change(ReferenceFeatures.Lucidrains(w, 32, 0.35)) > 1e-3);
    }

    [Fact]
    public void Pair_TakesEachSideFromItsKernel()
    {
        ReferenceKernel pair = ReferenceFeatures.Pair(ReferenceFeatures.Identity(), ReferenceFeatures.Relu());
        Assert.Equal([-1, 2], pair.MapQueries([[-1, 2]])[0]);
        Assert.Equal([0, 2], pair.MapKeys([[-1, 2]])[0]);
        Assert.Throws<ArgumentException>("key", () => ReferenceFeatures.Pair(ReferenceFeatures.Relu(), ReferenceFeatures.FavorPlus([1], 1, 1)));
        Assert.Throws<ArgumentException>("matrix", () => ReferenceFeatures.FavorPlus([1, 2, 3], 2, 1).MapKeys([[1, 2]]));
    }
}
