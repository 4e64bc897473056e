using Gpu.Attention.TestKit;
using Gpu.Attention.Tests;
using Xunit;

namespace Gpu.Attention.Core.Tests;

public class ReferenceGradientsTests
{
    // Inputs are multiples of the step, so that float32 holds what is evaluated on either side of them.
    private const float Step = 1f / (1 << 14);

    public enum Loss
    {
        EveryRow,
        RowOfSmallestNormalizer,
    }

    public static TheoryData<string, bool, bool, Loss> Cases =>
        [.. from map in Maps.Names.Append("softmax")
            from causal in new[] { false, true }
            from normalize in new[] { false, true }
            from loss in Enum.GetValues<Loss>()
            select (map, causal, normalize, loss)];

    public static TheoryData<string, bool> MapsAndDirections =>
        [.. from map in Maps.Names from causal in new[] { false, true } select (map, causal)];

    [Theory]
    [MemberData(nameof(Cases))]
    public void Gradients_AreFiniteDifferences(string map, bool causal, bool normalize, Loss loss)
    {
        foreach ((AttentionShape shape, ReferenceOptions any) in new[]
        {
            (new AttentionShape(2, 3, 3, 4, 2, 3, 2), new ReferenceOptions()),
            (new AttentionShape(1, 4, 7, 2, 1, 2, 3), new ReferenceOptions { CausalBlock = 2, KeyMask = [1, 0, 1, 1, 0, 1, 1] }),
            (new AttentionShape(1, 6, 4, 1, 1, 1, 1), new ReferenceOptions { KeyMask = [0, 1, 1, 1] }),
        })
        {
            AttentionProblem problem = Problem(map, shape, causal);
            ReferenceOptions options = any with { Causal = causal, Normalize = normalize, Factor = 0.7 };
            (float[] q, float[] k, float[] v) = Inputs(map, problem, seed: 1);
            float[] g = TestData.Normal(9, shape.OutputElements);
            if (loss == Loss.RowOfSmallestNormalizer)
            {
                LeaveOneRow(problem, options, q, k, g);
            }

            ReferenceGradient actual = map == "softmax"
                ? ReferenceGradients.Softmax(shape, problem.Scale, q, k, v, g, options)
                : ReferenceGradients.Linear(shape, problem.Features!, q, k, v, g, options);
            double Value() => Dot(g, map == "softmax"
                ? ReferenceAttention.Softmax(shape, problem.Scale, q, k, v, options)
                : ReferenceAttention.Linear(shape, Kernel(map, problem), q, k, v, options));
            RequireDifferences(map, Value, q, actual.Query);
            RequireDifferences(map, Value, k, actual.Key);
            RequireDifferences(map, Value, v, actual.Value);
        }
    }

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void GradientsOfStates_AreFiniteDifferences(string map, bool causal)
    {
        foreach (bool normalize in new[] { false, true })
        {
            var shape = new AttentionShape(2, 4, 5, 2, 1, 3, 2);
            AttentionProblem problem = Problem(map, shape, causal);
            ReferenceKernel kernel = Kernel(map, problem);
            var options = new ReferenceOptions { Causal = causal, Normalize = normalize, Factor = 0.7, KeyMask = [1, 1, 0, 1, 1, 0, 0, 1, 1, 0] };
            (float[] q, float[] k, float[] v) = Inputs(map, problem, seed: 2);
            (float[] q0, float[] k0, float[] v0) = Inputs(map, problem, seed: 3);
            ReferenceState initial = ReferenceAttention.Recurrent(shape, kernel, q0, k0, v0).State;
            float[] g = TestData.Normal(9, shape.OutputElements);

            // At a scale that is not the final state's own, as an engine's is not either.
            ReferenceState gradient = ReferenceAttention.Recurrent(shape, kernel, q, k, v, options, initial).State;
            TestData.Normal(10, gradient.Sums.Length).Select(x => (double)x).ToArray().CopyTo(gradient.Sums, 0);
            TestData.Normal(11, gradient.Normalizers.Length).Select(x => (double)x).ToArray().CopyTo(gradient.Normalizers, 0);
            for (int row = 0; row < gradient.LogScale.Length && kernel.IsLogarithmic; row++)
            {
                gradient.LogScale[row] += 0.1 * (row % 3);
            }

            ReferenceGradient actual = ReferenceGradients.Linear(
                shape, problem.Features!, q, k, v, g, options, initial: initial, finalGradient: gradient);
            double Value()
            {
                ReferenceResult result = ReferenceAttention.Recurrent(shape, kernel, q, k, v, options, initial);
                double sum = Dot(g, result.Output);
                for (int row = 0; row < gradient.LogScale.Length; row++)
                {
                    double raised = Math.Exp(result.State.LogScale[row] - gradient.LogScale[row]);
                    sum += raised * gradient.Normalizers[row] * result.State.Normalizers[row];
                    sum += raised * gradient.Sums[row * 2] * result.State.Sums[row * 2];
                    sum += raised * gradient.Sums[(row * 2) + 1] * result.State.Sums[(row * 2) + 1];
                }

                return sum;
            }

            RequireDifferences(map, Value, q, actual.Query);
            RequireDifferences(map, Value, k, actual.Key);
            RequireDifferences(map, Value, v, actual.Value);
            Assert.Equal(initial.LogScale, actual.Initial!.LogScale);
            RequireDifferences(map, Value, initial.Sums, actual.Initial.Sums);
            RequireDifferences(map, Value, initial.Normalizers, actual.Initial.Normalizers);
        }
    }

    /// <summary>An output does not change with the size of its query's features, nor with that of all keys' features together.</summary>
    [Theory]
    [InlineData("favor+")]
    [InlineData("favor+hyperbolic")]
    [InlineData("general exponential")]
    public void LogFeatureGradients_SumToZero(string map) => Law.ForAll(
        20, seed: 1,
        random => (Shape: Shapes.Next(random, causal: true, maxLength: 20, maxDimension: 8), Causal: random.NextBool(), Seed: random.NextWord()),
        sample =>
        {
            AttentionShape shape = sample.Shape;
            AttentionProblem problem = Problem(map, shape, sample.Causal);
            (float[] q, float[] k, float[] v) = Inputs(map, problem, sample.Seed);
            ReferenceGradient actual = Oracles.Gradients(problem, q, k, v, TestData.Normal(sample.Seed, shape.OutputElements));

            // Where each row sees one key all are zero, and what is left is rounding.
            double size = Math.Max(0.1, actual.QueryArguments.Concat(actual.KeyArguments).Select(Math.Abs).DefaultIfEmpty(0).Max());
            foreach (double[] row in actual.QueryArguments.Chunk(problem.Features!.FeatureDimension))
            {
                Assert.InRange(row.Sum(), -1e-12 * size, 1e-12 * size);
            }

            Assert.InRange(actual.KeyArguments.Sum(), -1e-11 * size, 1e-11 * size);
        });

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void ValueGradients_AreOutputGradientsWeighted(string map, bool causal)
    {
        var shape = new AttentionShape(2, 9, 9, 4, 2, 5, 3);
        AttentionProblem problem = Problem(map, shape, causal);
        ReferenceOptions options = Oracles.Options(problem, TestData.Mask(3, 18, 0.7));
        (float[] q, float[] k, float[] v) = Inputs(map, problem, seed: 4);
        float[] g = TestData.Normal(5, shape.OutputElements);
        double[] expected = new double[shape.ValueElements];
        for (int row = 0; row < 2 * 4; row++)
        {
            (int batch, int head) = (row / 4, row % 4);
            double[][] weights = ReferenceAttention.LinearWeights(shape, Kernel(map, problem), q, k, batch, head, options);
            for (int i = 0; i < 9; i++)
            {
                for (int at = 0; at < 9 * 3; at++)
                {
                    expected[(((((batch * 9) + (at / 3)) * 2) + (head / 2)) * 3) + (at % 3)] +=
                        weights[i][at / 3] * g[(((((batch * 9) + i) * 4) + head) * 3) + (at % 3)];
                }
            }
        }

        ReferenceGradient actual = ReferenceGradients.Linear(shape, problem.Features!, q, k, v, g, options);
        ReferenceAttentionTests.RequireClose(expected, actual.Value, map == "softplus" ? 1e-6 : 1e-13);
    }

    [Fact]
    public void AMaskedKeyThatIsNoNumber_ReachesNothing()
    {
        var shape = new AttentionShape(1, 3, 3, 1, 1, 2, 2);
        byte[] mask = [1, 0, 1];
        foreach (string map in new[] { "favor+", "elu", "softmax" })
        {
            AttentionProblem problem = Problem(map, shape, causal: false);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 6);
            ReferenceGradient expected = Oracles.Gradients(problem, q, k, v, q, mask);
            k.AsSpan(2, 2).Fill(float.NaN);
            v.AsSpan(2, 2).Fill(float.NaN);
            ReferenceGradient actual = Oracles.Gradients(problem, q, k, v, q, mask);
            Assert.Equal(expected.Query, actual.Query);
            Assert.Equal(expected.Key, actual.Key);
            Assert.Equal(expected.Value, actual.Value);
            Assert.Equal([0, 0], actual.Key[2..4]);
        }
    }

    [Fact]
    public void AQueryThatIsNoNumber_DoesNotReachMaskedKeys()
    {
        var shape = new AttentionShape(1, 3, 3, 1, 1, 2, 2);
        byte[] mask = [1, 0, 1];
        foreach (string map in new[] { "favor+", "elu", "softmax" })
        {
            AttentionProblem problem = Problem(map, shape, causal: false);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 6);
            q.AsSpan(2, 2).Fill(float.NaN);
            ReferenceGradient actual = Oracles.Gradients(problem, q, k, v, v, mask);
            Assert.All(new[] { actual.Query[2], actual.Key[0], actual.Value[0] }, gradient => Assert.True(double.IsNaN(gradient), $"{map}: {gradient}"));
            Assert.False(double.IsNaN(actual.Query[0]));
            Assert.Equal([0, 0], actual.Key[2..4]);
            Assert.Equal([0, 0], actual.Value[2..4]);
        }
    }

    [Fact]
    public void ArraysThatDoNotFit_AreRefusedByName()
    {
        var shape = new AttentionShape(1, 2, 3, 1, 1, 5, 2);
        FeaturePair features = FeatureMap.EluPlusOne.Lower(5, 1);
        float[] q = new float[10], k = new float[15], v = new float[6], g = new float[4];
        Assert.Throws<ArgumentException>("query", () => ReferenceGradients.Linear(shape, features, k, k, v, g));
        Assert.Throws<ArgumentException>("outputGradient", () => ReferenceGradients.Linear(shape, features, q, k, v, q));
        Assert.Throws<ArgumentException>("outputGradient", () => ReferenceGradients.Softmax(shape, 1, q, k, v, q));
        Assert.Throws<ArgumentException>(
            "initial", () => ReferenceGradients.Linear(shape, features, q, k, v, g, initial: new ReferenceState(4, 2, isLogarithmic: false)));
        Assert.Throws<ArgumentException>(
            "finalGradient", () => ReferenceGradients.Linear(shape, features, q, k, v, g, finalGradient: new ReferenceState(5, 3, isLogarithmic: false)));
    }

    private static AttentionProblem Problem(string map, AttentionShape shape, bool causal) => map == "softmax"
        ? new AttentionProblem { Shape = shape, Causal = causal, Scale = 0.6f }
        : Maps.Problem(map, shape, causal);

    /// <summary>A caller's own function is known to the oracles in float32 only, which differences would drown in.</summary>
    private static ReferenceKernel Kernel(string map, AttentionProblem problem) =>
        map == "softplus" ? ReferenceFeatures.FromFunction(x => Math.Log(1 + Math.Exp(x))) : Oracles.Kernel(problem);

    private static (float[] Query, float[] Key, float[] Value) Inputs(string map, AttentionProblem problem, ulong seed)
    {
        for (; ; seed += 1000)
        {
            float[][] rows = [.. new[] { TestData.Inputs(problem.Shape, seed, 0.8) }.SelectMany(x => new[] { x.Query, x.Key, x.Value })
                .Select(row => Array.ConvertAll(row, x => MathF.Round((map == "identity" ? MathF.Abs(x) + 0.1f : x) / Step) * Step))];

            // A difference across a kink is none.
            if (!Oracles.IsNearKink(problem, rows[0], rows[1], 20 * Step) && (map != "elu" || rows[0].Concat(rows[1]).All(x => MathF.Abs(x) > 20 * Step)))
            {
                return (rows[0], rows[1], rows[2]);
            }
        }
    }

    private static void LeaveOneRow(AttentionProblem problem, ReferenceOptions options, float[] q, float[] k, float[] g)
    {
        AttentionShape shape = problem.Shape;
        ReferenceOptions bare = options with { Normalize = false };
        double[][] weights = problem.Features is null
            ? [.. Enumerable.Range(0, shape.QueryLength).Select(i => new double[] { i + 1 })]
            : ReferenceAttention.LinearWeights(shape, Oracles.Kernel(problem), q, k, 0, 0, bare);
        int row = Enumerable.Range(0, shape.QueryLength).Where(i => weights[i].Sum() > 0).OrderBy(i => weights[i].Sum()).First();
        float[] kept = g[(row * shape.Heads * shape.ValueDimension)..(((row * shape.Heads) + 1) * shape.ValueDimension)];
        Array.Clear(g);
        kept.CopyTo(g, row * shape.Heads * shape.ValueDimension);
    }

    private static double Dot(float[] g, double[] output) => g.Zip(output, (a, b) => a * b).Sum();

    private static void RequireDifferences<T>(string map, Func<double> loss, T[] inputs, double[] gradient)
        where T : System.Numerics.INumber<T>
    {
        Assert.Equal(inputs.Length, gradient.Length);
        double[] differences = new double[inputs.Length];
        for (int i = 0; i < inputs.Length; i++)
        {
            T x = inputs[i];

            // Central differences of fourth order: what they leave out is of the size of the step's fourth power.
            differences[i] = ((8 * (At(1) - At(-1))) - (At(2) - At(-2))) / (12 * Step);
            inputs[i] = x;

            double At(int steps)
            {
                inputs[i] = x + T.CreateChecked(steps * Step);
                return loss();
            }
        }

        // Rounding of the loss is divided by the step, and is all that is left where the gradient is zero.
        double size = Math.Max(1e-3 * (1 + Math.Abs(loss())), gradient.Select(Math.Abs).DefaultIfEmpty(0).Max());
        double tolerance = map == "softplus" ? 2e-6 : 1e-8;
        for (int i = 0; i < gradient.Length; i++)
        {
            Assert.InRange(gradient[i] - differences[i], -tolerance * size, tolerance * size);
        }
    }
}
