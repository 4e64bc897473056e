using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Core.Tests;

/// <summary>A judge that lets everything pass is worse than none.</summary>
public class TestKitTests
{
    private static readonly AttentionShape Shape = new(1, 24, 24, 2, 1, 8, 6);

    [Theory]
    [InlineData(false, true, false)]
    [InlineData(true, true, false)]
    [InlineData(true, false, false)]
    [InlineData(true, true, true)]
    public void Tolerance_AcceptsPlainFloat32_AndAnotherOrderOfSums(bool causal, bool normalize, bool masked)
    {
        byte[]? mask = masked ? TestData.Mask(3, Shape.KeyLength, share: 0.6) : null;
        foreach (AttentionProblem problem in Problems(causal, normalize))
        {
            (float[] q, float[] k, float[] v) = TestData.Inputs(Shape, seed: 1);
            PlainResult plain = PlainAttention.Run(problem, q, k, v, mask);
            Tolerance.Require(problem, q, k, v, plain.Forward, mask);
            Tolerance.Require(problem, q, k, v, plain.Backward, mask);
            float[] rounded = Array.ConvertAll(Oracles.Output(problem, q, k, v, mask), o => (float)o);
            Tolerance.Require(problem, q, k, v, rounded, mask);
        }
    }

    [Fact]
    public void Tolerance_RefusesSmallErrors()
    {
        foreach (AttentionProblem problem in Problems(causal: true, normalize: true))
        {
            (float[] q, float[] k, float[] v) = TestData.Inputs(Shape, seed: 1);
            float[] right = PlainAttention.Run(problem, q, k, v).Forward;

            // A systematic error of 1e-5, an outlier, a NaN, a swapped pair of heads, results of half precision.
            Refuses(problem, Array.ConvertAll(right, o => o * (1 + 1e-5f)));
            Refuses(problem, With(right, 17, right[17] + 2e-5f));
            Refuses(problem, With(right, 0, float.NaN));
            Refuses(problem, With(right, right.Length - 1, float.PositiveInfinity));
            Refuses(problem, [.. right.Chunk(6).Chunk(2).SelectMany(heads => heads.Reverse()).SelectMany(row => row)]);
            Refuses(problem, Array.ConvertAll(right, o => (float)(Half)o));
            Refuses(problem, right[1..]);
        }
    }

    [Fact]
    public void Tolerance_HoldsTheMeanAndTheLargestErrorEach()
    {
        double[] oracle = new double[10_000];
        float[] everywhere = new float[oracle.Length];
        Array.Fill(everywhere, 1);
        float[] once = With(new float[oracle.Length], 3, 100);
        double[] rounding = new double[oracle.Length];
        void Check(float[] actual, float[] plain) => Tolerance.Require(actual, oracle, plain, plain, rounding, Tolerance.Outputs);

        Check(Array.ConvertAll(everywhere, e => 2 * e), everywhere);
        Assert.Throws<VerificationException>(() => Check(With(new float[oracle.Length], 9, 2.1f), everywhere));
        Assert.Throws<VerificationException>(() => Check(Array.ConvertAll(everywhere, e => 2.1f * e), once));

        // The oracle's own infinities and NaN are right answers.
        oracle[0] = double.NaN;
        oracle[1] = double.PositiveInfinity;
        float[] same = With(With(new float[oracle.Length], 0, float.NaN), 1, float.PositiveInfinity);
        Check(same, same);
        Assert.Throws<VerificationException>(() => Check(With(same, 0, 0), same));
        Assert.Throws<VerificationException>(() => Check(With(same, 1, float.NegativeInfinity), same));
    }

    [Theory]
    [InlineData(false, true, false)]
    [InlineData(true, true, false)]
    [InlineData(true, false, false)]
    [InlineData(true, true, true)]
    public void ToleranceOfGradients_AcceptsPlainFloat32_AndTheOracleRounded(bool causal, bool normalize, bool masked)
    {
        byte[]? mask = masked ? TestData.Mask(3, Shape.KeyLength, share: 0.6) : null;
        foreach (AttentionProblem problem in Problems(causal, normalize))
        {
            (float[] q, float[] k, float[] v) = TestData.Inputs(Shape, seed: 1);
            float[] g = TestData.Normal(7, Shape.OutputElements);
            PlainGradientResult plain = PlainGradients.Run(problem, q, k, v, g, mask);
            Tolerance.RequireGradients(problem, q, k, v, g, plain.Forward, mask);
            Tolerance.RequireGradients(problem, q, k, v, g, plain.Backward, mask);
            Tolerance.RequireGradients(problem, q, k, v, g, Rounded(Oracles.Gradients(problem, q, k, v, g, mask)), mask);

            // What rounding is given is no more than a few times what plain float32 errs.
            double error = Rms(plain.Forward.Key.Zip(Oracles.Gradients(problem, q, k, v, g, mask).Key, (a, b) => a - b));
            Assert.InRange(Rms(plain.KeyRounding), 0, 20 * error);
        }
    }

    // Every gradient by itself is judged, and none is so loosely that a wrong term hides.
    [Fact]
    public void ToleranceOfGradients_RefusesSmallErrors()
    {
        foreach (AttentionProblem problem in Problems(causal: true, normalize: true))
        {
            (float[] q, float[] k, float[] v) = TestData.Inputs(Shape, seed: 1);
            float[] g = TestData.Normal(7, Shape.OutputElements);
            AttentionGradients right = Rounded(Oracles.Gradients(problem, q, k, v, g));
            foreach (Func<float[], float[]> wrong in new Func<float[], float[]>[]
            {
                x => Array.ConvertAll(x, e => e * (1 + 1e-5f)),
                x => With(x, 17, x[17] + (2e-5f * x.Max(MathF.Abs))),
                x => With(x, 0, float.NaN),
                x => Array.ConvertAll(x, e => (float)(Half)e),
                x => x[1..],
            })
            {
                Refuses(right with { Query = wrong(right.Query) }, "query");
                Refuses(right with { Key = wrong(right.Key) }, "key");
                Refuses(right with { Value = wrong(right.Value) }, "value");
            }

            void Refuses(AttentionGradients gradients, string name) => Assert.StartsWith(
                $"The {name} gradient: ",
                Assert.Throws<VerificationException>(() => Tolerance.RequireGradients(problem, q, k, v, g, gradients)).Message, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void Tolerance_Message_HasBothErrors()
    {
        AttentionProblem problem = Problems(causal: true, normalize: true)[0];
        (float[] q, float[] k, float[] v) = TestData.Inputs(Shape, seed: 1);
        float[] wrong = With(PlainAttention.Run(problem, q, k, v).Forward, 5, 7);
        VerificationException exception = Assert.Throws<VerificationException>(() => Tolerance.Require(problem, q, k, v, wrong));
        Assert.Contains("RMS error", exception.Message, StringComparison.Ordinal);
        Assert.Contains("at element 5 of 288 (7 for", exception.Message, StringComparison.Ordinal);
    }

    /// <summary>The plain implementation knows the conventions as well, or engines couldn't be held to it.</summary>
    [Theory]
    [InlineData(ReferenceConvention.Jax, 1e-6f)]
    [InlineData(ReferenceConvention.Lucidrains, 1e-4f)]
    public void PlainAttention_OfAConvention_IsTheOracles(ReferenceConvention convention, float epsilon)
    {
        RandomProjection projection = RandomProjection.Orthogonal(24, 8, seed: 4);
        float scale = 0.25f;
        float[] w = projection.Matrix.ToArray();
        (float[] q, float[] k, float[] v) = TestData.Inputs(Shape, seed: 2);
        foreach (bool causal in new[] { false, true })
        {
            var problem = new AttentionProblem
            {
                Shape = Shape, Features = FeatureMap.FavorPlus(projection).Lower(8, scale), Causal = causal, Convention = convention, FeatureEpsilon = epsilon,
            };
            ReferenceKernel kernel = convention == ReferenceConvention.Jax
                ? ReferenceFeatures.Jax(w, 24, scale, epsilon)
                : ReferenceFeatures.Lucidrains(w, 24, scale, epsilon);
            double[] expected = ReferenceAttention.Linear(Shape, kernel, q, k, v, Oracles.Options(problem));
            PlainResult plain = PlainAttention.Run(problem, q, k, v);
            Assert.All(plain.Forward.Zip(expected), pair => Assert.Equal(pair.Second, pair.First, 1e-5));
            Assert.Throws<NotSupportedException>(() => Oracles.Kernel(problem));
        }
    }

    [Fact]
    public void PoisonedBuffer_ShowsWhatWasWrittenWhere()
    {
        using var buffer = new PoisonedBuffer(10, misalignment: 3);
        Assert.Equal(12, (buffer.Region.Address + 64) % 64);
        Assert.All(buffer.Span.ToArray(), x => Assert.True(float.IsNaN(x)));
        Assert.Contains("Element 0", Assert.Throws<VerificationException>(buffer.RequireFullyWritten).Message, StringComparison.Ordinal);
        buffer.Span.Fill(float.NaN);
        buffer.RequireFullyWritten();
        Poke(buffer, 10);
        Assert.Contains("1 elements past", Assert.Throws<VerificationException>(buffer.RequireGuardsIntact).Message, StringComparison.Ordinal);
        using var other = new PoisonedBuffer([1, 2, 3]);
        other.RequireFullyWritten();
        Assert.Equal([1, 2, 3], other.Span.ToArray());
        Poke(other, -2);
        Assert.Contains("2 elements before", Assert.Throws<VerificationException>(other.RequireFullyWritten).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Law_ThatFails_NamesTheSeed()
    {
        VerificationException exception = Assert.Throws<VerificationException>(() =>
            Law.ForAll(10, seed: 5, random => Shapes.Next(random, causal: true), shape => Assert.Equal(-1, shape.Batch)));
        Assert.StartsWith("The law fails for seed 5, query [", exception.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Shapes_ReachTheEdges()
    {
        AttentionShape[] shapes = [.. Enumerable.Range(0, 500).Select(seed => Shapes.Next(new SeededRandom((ulong)seed), causal: seed % 2 == 0))];
        Assert.Contains(shapes, s => s.QueryLength == 0);
        Assert.Contains(shapes, s => s.KeyLength == 0 && s.QueryLength > 0);
        Assert.Contains(shapes, s => s.HeadGroup > 1 && s.KeyHeads > 1);
        Assert.Contains(shapes, s => s.ValueDimension == 1 && s.KeyDimension > 1);
        Assert.Contains(shapes, s => s.QueryLength == 129);
        Assert.All(shapes.Where((_, seed) => seed % 2 == 0), s => Assert.Equal(s.QueryLength, s.KeyLength));
    }

    private static AttentionGradients Rounded(ReferenceGradient gradient) => new(
        Array.ConvertAll(gradient.Query, x => (float)x), Array.ConvertAll(gradient.Key, x => (float)x), Array.ConvertAll(gradient.Value, x => (float)x));

    private static double Rms(IEnumerable<double> errors) => Math.Sqrt(errors.Average(e => e * e));

    private static unsafe void Poke(PoisonedBuffer buffer, int at) => buffer.Address[at] = 1;

    private static void Refuses(AttentionProblem problem, float[] output)
    {
        (float[] q, float[] k, float[] v) = TestData.Inputs(Shape, seed: 1);
        Assert.Throws<VerificationException>(() => Tolerance.Require(problem, q, k, v, output));
    }

    private static float[] With(float[] values, int at, float value)
    {
        float[] changed = [.. values];
        changed[at] = value;
        return changed;
    }

    private static AttentionProblem[] Problems(bool causal, bool normalize) =>
    [
        .. new FeaturePair?[]
        {
            FeatureMap.FavorPlus(RandomProjection.Orthogonal(32, 8, seed: 4)).Lower(8, 0.35f), FeatureMap.EluPlusOne.Lower(8, 0.35f),
            FeatureMap.Relu(RandomProjection.Gaussian(20, 8, seed: 4)).Lower(8, 0.35f), null,
        }.Select(features => new AttentionProblem { Shape = Shape, Features = features, Causal = causal, Normalize = normalize, Scale = 0.35f }),
    ];
}
