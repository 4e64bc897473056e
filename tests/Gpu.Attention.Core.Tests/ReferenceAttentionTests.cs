using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Core.Tests;

public class ReferenceAttentionTests
{
    private const int Dimension = 5;
    private static readonly float[] Projection = RandomProjection.Orthogonal(12, Dimension, seed: 2).Matrix.ToArray();

    public static TheoryData<string> Kernels => ["favor+", "hyperbolic", "elu", "relu", "relu-projected", "jax", "lucidrains", "jax-relu", "lucidrains-relu"];

    [Theory]
    [MemberData(nameof(Kernels))]
    public void Recurrent_IsTheWeightsForm(string name) => Law.ForAll(
        cases: 40,
        seed: 1,
        random =>
        {
            bool causal = random.NextBool();
            AttentionShape any = Shapes.Next(random, causal && random.NextBool(), maxLength: 20, maxDimension: 6);
            var shape = new AttentionShape(any.Batch, any.QueryLength, any.KeyLength, any.Heads, any.KeyHeads, Dimension, any.ValueDimension);
            byte[]? mask = random.NextBool() ? TestData.Mask(random.NextWord(), any.Batch * any.KeyLength, share: 0.7) : null;
            return (shape, options: new ReferenceOptions { Causal = causal, CausalBlock = random.Next(1, 5), Normalize = random.NextBool(), Factor = 0.5, KeyMask = mask }, seed: random.NextWord());
        },
        sample =>
        {
            ReferenceKernel kernel = Kernel(name);
            (float[] q, float[] k, float[] v) = TestData.Inputs(sample.shape, sample.seed);
            double[] expected = ReferenceAttention.Linear(sample.shape, kernel, q, k, v, sample.options);
            double[] actual = ReferenceAttention.Recurrent(sample.shape, kernel, q, k, v, sample.options).Output;
            RequireClose(expected, actual, 1e-12);
        });

    [Theory]
    [MemberData(nameof(Kernels))]
    public void Linear_OfConstantValues_IsConstant(string name)
    {
        // A guard that adds to the normaliser and not to the weights bends this law; then it is tested beside it.
        ReferenceKernel kernel = Kernel(name) with { CausalNormalizerEpsilon = 0, NormalizerGuard = 0 };
        var shape = new AttentionShape(2, 9, 9, 4, 2, Dimension, 3);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, seed: 3);
        Array.Fill(v, 1);
        foreach (bool causal in new[] { false, true })
        {
            double[] output = ReferenceAttention.Linear(shape, kernel, q, k, v, new ReferenceOptions { Causal = causal });

            // ReLU features of a row may all be zero.
            Assert.All(output, o => Assert.True(o == 0 || Math.Abs(o - 1) < 1e-14));
            Assert.True(output.Count(o => o == 0) < output.Length / 2);
        }
    }

    [Theory]
    [MemberData(nameof(Kernels))]
    public void Linear_OfOneHotValues_IsTheWeights(string name)
    {
        const int Length = 7;
        var shape = new AttentionShape(1, Length, Length, 2, 1, Dimension, Length);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, seed: 4);
        for (int j = 0; j < Length; j++)
        {
            v.AsSpan(j * Length, Length).Clear();
            v[(j * Length) + j] = 1;
        }

        foreach (bool causal in new[] { false, true })
        {
            var options = new ReferenceOptions { Causal = causal };
            ReferenceKernel kernel = Kernel(name) with { CausalNormalizerEpsilon = 0, NormalizerGuard = 0 };
            double[] output = ReferenceAttention.Linear(shape, kernel, q, k, v, options);
            for (int head = 0; head < 2; head++)
            {
                double[][] weights = ReferenceAttention.LinearWeights(shape, kernel, q, k, batch: 0, head, options);
                for (int i = 0; i < Length; i++)
                {
                    Assert.Equal(weights[i], output.AsSpan(((i * 2) + head) * Length, Length).ToArray());
                    Assert.All(weights[i], w => Assert.True(w >= 0));
                    Assert.True(weights[i].All(w => w == 0) || Math.Abs(weights[i].Sum() - 1) < 1e-14);
                    Assert.All(weights[i].Skip(causal ? i + 1 : Length), w => Assert.Equal(0, w));
                }
            }
        }
    }

    /// <summary>The example that published implementations test themselves with.</summary>
    [Fact]
    public void Causal_EqualQueriesAndKeys_AverageThePrefix()
    {
        var shape = new AttentionShape(1, 3, 1, 1);
        float[] ones = [1, 1, 1];
        float[] v = [1, 0, 0];
        var causal = new ReferenceOptions { Causal = true };
        float[] w = RandomProjection.Gaussian(16, 1, seed: 1).Matrix.ToArray();
        double[] expected = [1, 1.0 / 2, 1.0 / 3];
        foreach (ReferenceKernel kernel in new[]
                 {
                     ReferenceFeatures.FavorPlus(w, 16, 1), ReferenceFeatures.FavorPlusHyperbolic(w, 16, 1), ReferenceFeatures.EluPlusOne(),
                     ReferenceFeatures.Relu(), ReferenceFeatures.Identity(), ReferenceFeatures.Jax(w, 16, 1),
                 })
        {
            RequireClose(expected, ReferenceAttention.Linear(shape, kernel, ones, ones, v, causal), 1e-14);
            RequireClose(expected, ReferenceAttention.Recurrent(shape, kernel, ones, ones, v, causal).Output, 1e-14);
        }

        RequireClose(expected, ReferenceAttention.Softmax(shape, 1, ones, ones, v, causal), 1e-14);
    }

    [Fact]
    public void Softmax_OfAKnownExample_IsRight()
    {
        // Logits 0 and ln 3 for the first query, 0 and 2 ln 3 for the second: weights 1/4, 3/4 and 1/10, 9/10.
        float ln3 = (float)Math.Log(3);
        var shape = new AttentionShape(1, 2, 2, 1, 1, 1, 2);
        double[] output = ReferenceAttention.Softmax(shape, 0.5, [2, 4], [0, ln3], [1, 0, 0, 1]);
        RequireClose([0.25, 0.75, 0.1, 0.9], output, 1e-7);
        RequireClose([1, 0, 0.1, 0.9], ReferenceAttention.Softmax(shape, 0.5, [2, 4], [0, ln3], [1, 0, 0, 1], new ReferenceOptions { Causal = true }), 1e-7);
        RequireClose(
            [8, 24], ReferenceAttention.Softmax(new AttentionShape(1, 1, 2, 1, 1, 1, 2), 0.5, [2], [0, ln3], [1, 0, 0, 1], new ReferenceOptions { Normalize = false, Factor = 8 }), 1e-6);
    }

    /// <summary>
    /// To first order <c>o_i − softmax_i</c> is a mean over m rows w of <c>Σ_j p_ij (e^{w·z_ij − |z_ij|²/2} − 1)(v_j − o_i)</c>, <c>z_ij = x_i + y_j</c>, with the variance
    /// <c>(1/m) Σ_jl p_ij p_il (v_j − o_i)(v_l − o_i)(e^{z_ij·z_il} − 1)</c>.
    /// </summary>
    [Fact]
    public void FavorPlus_OfManyFeatures_ConvergesToSoftmaxWithThePredictedVariance()
    {
        const int Features = 4096;
        const int Length = 6;
        const int D = 4;
        const int Seeds = 60;
        const double Scale = 0.5;
        var shape = new AttentionShape(1, Length, Length, 1, 1, D, 1);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, seed: 5, std: 0.6);
        double[] exact = ReferenceAttention.Softmax(shape, Scale, q, k, v);
        double[] variance = Enumerable.Range(0, Length).Select(i =>
        {
            double[][] z = [.. Enumerable.Range(0, Length).Select(j => Enumerable.Range(0, D).Select(c => Math.Sqrt(Scale) * (q[(i * D) + c] + (double)k[(j * D) + c])).ToArray())];
            double[] w = [.. Enumerable.Range(0, Length).Select(j => Math.Exp(Scale * Enumerable.Range(0, D).Sum(c => q[(i * D) + c] * (double)k[(j * D) + c])))];
            double sum = 0;
            for (int j = 0; j < Length; j++)
            {
                for (int l = 0; l < Length; l++)
                {
                    double product = z[j].Zip(z[l], (a, b) => a * b).Sum();
                    sum += w[j] * w[l] / Math.Pow(w.Sum(), 2) * (v[j] - exact[i]) * (v[l] - exact[i]) * (Math.Exp(product) - 1);
                }
            }

            return sum / Features;
        }).ToArray();

        // The mean over rows of squared standardised errors, one number a seed: the seeds are independent, the rows are not.
        double[] standardised = [.. Enumerable.Range(0, Seeds).Select(seed =>
        {
            float[] projection = RandomProjection.Gaussian(Features, D, (ulong)seed).Matrix.ToArray();
            double[] output = ReferenceAttention.Linear(shape, ReferenceFeatures.FavorPlus(projection, Features, Scale), q, k, v);
            return Enumerable.Range(0, Length).Average(i => Math.Pow(output[i] - exact[i], 2) / variance[i]);
        })];
        double mean = standardised.Average();
        double error = Math.Sqrt(standardised.Average(s => Math.Pow(s - mean, 2)) / Seeds);
        Assert.InRange(mean, 1 - (4 * error), 1 + (4 * error));
        Assert.True(error < 0.3, $"{error} is too large to tell anything");
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    public void Recurrent_OverPartsWithTheStateBetween_IsTheWhole(string name)
    {
        ReferenceKernel kernel = Kernel(name);
        var causal = new ReferenceOptions { Causal = true };
        var whole = new AttentionShape(1, 11, 11, 4, 2, Dimension, 3);
        (float[] q, float[] k, float[] v) = TestData.Inputs(whole, seed: 6);
        ReferenceResult expected = ReferenceAttention.Recurrent(whole, kernel, q, k, v, causal);
        var first = new AttentionShape(1, 4, 4, 4, 2, Dimension, 3);
        var second = new AttentionShape(1, 7, 7, 4, 2, Dimension, 3);
        ReferenceResult before = ReferenceAttention.Recurrent(
            first, kernel, q[..(int)first.QueryElements], k[..(int)first.KeyElements], v[..(int)first.ValueElements], causal);
        double[] stateBefore = [.. before.State.Sums];
        ReferenceResult after = ReferenceAttention.Recurrent(
            second, kernel, q[(int)first.QueryElements..], k[(int)first.KeyElements..], v[(int)first.ValueElements..], causal, before.State);
        Assert.Equal(expected.Output, (double[])[.. before.Output, .. after.Output]);
        Assert.Equal(expected.State.Sums, after.State.Sums);
        Assert.Equal(expected.State.Normalizers, after.State.Normalizers);
        Assert.Equal(expected.State.LogScale, after.State.LogScale);
        Assert.Equal(stateBefore, before.State.Sums);

        ArgumentException exception = Assert.Throws<ArgumentException>("initial", () =>
            ReferenceAttention.Recurrent(new AttentionShape(1, 1, 1, Dimension), kernel, new float[5], new float[5], new float[5], initial: before.State));
        Assert.Contains("does not fit", exception.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("relu-projected")]
    public void Recurrent_FinalState_IsTheSumOverKeys(string name)
    {
        var shape = new AttentionShape(2, 0, 6, 2, 2, Dimension, 2);
        ReferenceKernel kernel = Kernel(name);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, seed: 7);
        ReferenceState state = ReferenceAttention.Recurrent(shape, kernel, q, k, v).State;
        for (int sequenceAndHead = 0; sequenceAndHead < 4; sequenceAndHead++)
        {
            (int batch, int head) = (sequenceAndHead / 2, sequenceAndHead % 2);
            double[][] keys = [.. Enumerable.Range(0, 6)
                .Select(j => Enumerable.Range(0, Dimension).Select(c => (double)k[(((((batch * 6) + j) * 2) + head) * Dimension) + c]).ToArray())];
            double[][] features = kernel.MapKeys(keys);
            for (int r = 0; r < 12; r++)
            {
                int row = (sequenceAndHead * 12) + r;
                double Feature(int j) => kernel.IsLogarithmic ? Math.Exp(features[j][r]) : features[j][r];
                double scale = Math.Exp(state.LogScale[row]);
                Assert.Equal(Enumerable.Range(0, 6).Sum(Feature), scale * state.Normalizers[row], 1e-12);
                for (int i = 0; i < 2; i++)
                {
                    Assert.Equal(Enumerable.Range(0, 6).Sum(j => Feature(j) * v[(((((batch * 6) + j) * 2) + head) * 2) + i]), scale * state.Sums[(row * 2) + i], 1e-12);
                }

                Assert.Equal(kernel.IsLogarithmic ? features.Max(f => f[r]) : 0, state.LogScale[row]);
            }
        }
    }

    /// <summary>Rows of squared norm in the thousands, where <c>exp(−|x|²/2)</c> is no number of float64 any more.</summary>
    [Fact]
    public void FavorPlus_OfHugeRows_NeitherOverflowsNorVanishes()
    {
        var shape = new AttentionShape(1, 8, 8, 1, 1, Dimension, 2);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, seed: 8, std: 30);
        foreach (bool causal in new[] { false, true })
        {
            var options = new ReferenceOptions { Causal = causal };
            double[] weights = ReferenceAttention.Linear(shape, Kernel("favor+"), q, k, v, options);
            double[] recurrent = ReferenceAttention.Recurrent(shape, Kernel("favor+"), q, k, v, options).Output;
            Assert.All(weights, o => Assert.InRange(o, v.Min(), v.Max()));

            // Log features near 5000 are held to 1e-12 of themselves only.
            RequireClose(weights, recurrent, 1e-10);
        }
    }

    [Fact]
    public void RowThatSeesNothing_IsZero()
    {
        var shape = new AttentionShape(1, 3, 3, 1, 1, Dimension, 2);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, seed: 9);
        k.AsSpan(0, Dimension).Fill(float.NaN);
        v.AsSpan(0, 2).Fill(float.NaN);
        var options = new ReferenceOptions { Causal = true, KeyMask = [0, 1, 1] };
        foreach (string name in new[] { "favor+", "elu", "jax" })
        {
            double[][] outputs =
            [
                ReferenceAttention.Linear(shape, Kernel(name), q, k, v, options),
                ReferenceAttention.Recurrent(shape, Kernel(name), q, k, v, options).Output,
                ReferenceAttention.Softmax(shape, 1, q, k, v, options),
            ];
            foreach (double[] output in outputs)
            {
                Assert.Equal([0, 0], output[..2]);
                Assert.All(output, o => Assert.True(double.IsFinite(o)));
                RequireClose([v[2], v[3]], output[2..4], 1e-6);
            }
        }

        var empty = new AttentionShape(1, 3, 0, 1, 1, Dimension, 2);
        Assert.Equal(new double[6], ReferenceAttention.Linear(empty, Kernel("favor+"), q, [], []));
        Assert.Equal(new double[6], ReferenceAttention.Recurrent(empty, Kernel("elu"), q, [], []).Output);
    }

    [Fact]
    public void Heads_ReadTheKeyHeadOfTheirGroup()
    {
        var grouped = new AttentionShape(1, 4, 5, 4, 2, Dimension, 3);
        (float[] q, float[] k, float[] v) = TestData.Inputs(grouped, seed: 10);
        float[] Repeat(float[] rows, int dimension) => [.. rows.Chunk(dimension).SelectMany(row => row.Concat(row))];
        var full = new AttentionShape(1, 4, 5, 4, 4, Dimension, 3);
        Assert.Equal(
            ReferenceAttention.Linear(full, Kernel("favor+"), q, Repeat(k, Dimension), Repeat(v, 3)),
            ReferenceAttention.Linear(grouped, Kernel("favor+"), q, k, v));
    }

    [Fact]
    public void ArraysThatDoNotFit_AreRefusedByName()
    {
        var shape = new AttentionShape(1, 2, 3, 1, 1, Dimension, 2);
        float[] q = new float[10], k = new float[15], v = new float[6];
        Assert.Throws<ArgumentException>("query", () => ReferenceAttention.Linear(shape, Kernel("elu"), k, k, v));
        Assert.Throws<ArgumentException>("key", () => ReferenceAttention.Softmax(shape, 1, q, q, v));
        Assert.Throws<ArgumentException>("value", () => ReferenceAttention.Recurrent(shape, Kernel("elu"), q, k, q));
        Assert.Throws<ArgumentException>("options", () => ReferenceAttention.Linear(shape, Kernel("elu"), q, k, v, new ReferenceOptions { KeyMask = new byte[2] }));
    }

    private static ReferenceKernel Kernel(string name) => name switch
    {
        "favor+" => ReferenceFeatures.FavorPlus(Projection, 12, 0.4),
        "hyperbolic" => ReferenceFeatures.FavorPlusHyperbolic(Projection, 12, 0.4),
        "elu" => ReferenceFeatures.EluPlusOne(),
        "relu" => ReferenceFeatures.Relu(),
        "relu-projected" => ReferenceFeatures.Relu(Projection, 12),
        "jax" => ReferenceFeatures.Jax(Projection, 12, 0.4),
        "lucidrains" => ReferenceFeatures.Lucidrains(Projection, 12, 0.4),
        "jax-relu" => ReferenceFeatures.JaxGeneralized(x => Math.Max(x, 0), Projection, 12),
        _ => ReferenceFeatures.LucidrainsGeneralized(x => Math.Max(x, 0), 0.6, Projection, 12),
    };

    internal static void RequireClose(double[] expected, double[] actual, double tolerance)
    {
        Assert.Equal(expected.Length, actual.Length);
        double size = expected.Select(Math.Abs).DefaultIfEmpty(0).Max();
        for (int i = 0; i < expected.Length; i++)
        {
            Assert.InRange(actual[i] - expected[i], -tolerance * size, tolerance * size);
        }
    }
}
