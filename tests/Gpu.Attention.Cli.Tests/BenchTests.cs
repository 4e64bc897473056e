using System.Text.Json;
using Gpu.Attention.Cli.Benchmarking;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

public class BenchTests
{
    private static readonly AttentionShape Grouped = new(2, 21, 21, 4, 2, 8, 5);

    public static TheoryData<string, bool> MapsAndDirections() => AttendTests.MapsAndDirections();

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void RowOracle_EveryRow_IsTheReferencesRow(string features, bool causal)
    {
        var problem = new BenchCase(features, Grouped, numFeatures: 24, causal);
        double[] reference = Reference(problem);
        int[] rows = [.. Enumerable.Range(0, Grouped.QueryLength)];
        for (int batch = 0; batch < Grouped.Batch; batch++)
        {
            for (int head = 0; head < Grouped.Heads; head++)
            {
                (double[][] right, double[][] rounding) = RowOracle.Compute<double>(problem, batch, head, rows);
                float[][] plain = RowOracle.Compute<float>(problem, batch, head, rows).Rows;
                foreach (int row in rows)
                {
                    for (int c = 0; c < Grouped.ValueDimension; c++)
                    {
                        double expected = reference[(((((batch * Grouped.QueryLength) + row) * Grouped.Heads) + head) * Grouped.ValueDimension) + c];
                        Assert.Equal(expected, right[row][c], 1e-12);
                        Assert.Equal(expected, plain[row][c], 1e-5);
                        Assert.InRange(rounding[row][c], 0, 1e-5);
                    }
                }
            }
        }
    }

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void GradientOracle_EveryRow_IsTheReferencesRow(string features, bool causal)
    {
        var problem = new BenchCase(features, Grouped, numFeatures: 24, causal);
        float[] output = Array.ConvertAll(Reference(problem), x => (float)x);
        ReferenceGradient reference = Gradients(problem);
        int[] rows = [.. Enumerable.Range(0, Grouped.KeyLength)];
        for (int batch = 0; batch < Grouped.Batch; batch++)
        {
            for (int keyHead = 0; keyHead < Grouped.KeyHeads; keyHead++)
            {
                double[][] normalizers = [GradientOracle.Normalizers(problem, batch, 2 * keyHead), GradientOracle.Normalizers(problem, batch, (2 * keyHead) + 1)];
                (GradientRows<double> right, GradientRows<double> rounding) =
                    GradientOracle.Compute<double>(problem, output, normalizers, batch, keyHead, rows);
                GradientRows<float> plain = GradientOracle.Compute<float>(problem, output, normalizers, batch, keyHead, rows).Rows;
                foreach (int row in rows)
                {
                    int at = (((batch * 21) + row) * 2) + keyHead;
                    AssertRow(reference.Key, at, right.Key[row], plain.Key[row], rounding.Key[row]);
                    AssertRow(reference.Value, at, right.Value[row], plain.Value[row], rounding.Value[row]);
                    for (int h = 0; h < 2; h++)
                    {
                        int n = (h * rows.Length) + row;
                        AssertRow(reference.Query, (2 * at) + h, right.Query[n], plain.Query[n], rounding.Query[n]);
                    }
                }
            }
        }

        // The reference is of the lowered maps, whose projections are rounded to float32 once more.
        static void AssertRow(double[] reference, int row, double[] right, float[] plain, double[] rounding)
        {
            for (int c = 0; c < right.Length; c++)
            {
                double expected = reference[(row * right.Length) + c];
                Assert.Equal(expected, right[c], 2e-6 * (1 + Math.Abs(expected)));
                Assert.Equal(expected, plain[c], 2e-5 * (1 + Math.Abs(expected)));
                Assert.InRange(rounding[c], 0, 2e-5);
            }
        }
    }

    [Fact]
    public void Gate_RightAndWrongGradients_AreToldApart()
    {
        var problem = new BenchCase(FeatureKind.FavorPlus, Grouped, numFeatures: 24, causal: true);
        float[] output = Array.ConvertAll(Reference(problem), x => (float)x);
        ReferenceGradient right = Gradients(problem);
        var gradients = new BenchGradients(
            Array.ConvertAll(right.Query, x => (float)x), Array.ConvertAll(right.Key, x => (float)x), Array.ConvertAll(right.Value, x => (float)x));
        Assert.True(Gate.Check(problem, output, gradients).Result.Passed);
        foreach ((string name, float[] gradient) in new[] { ("query", gradients.Query), ("key", gradients.Key), ("value", gradients.Value) })
        {
            float last = gradient[^1];
            foreach (float wrong in new[] { last + 1e-4f, float.NaN })
            {
                gradient[^1] = wrong;
                (string failed, GateResult result) = Gate.Check(problem, output, gradients);
                Assert.Equal((name, false), (failed, result.Passed));
            }

            gradient[^1] = last;
        }
    }

    [Fact]
    public void Gate_RightAndWrongOutputs_AreToldApart()
    {
        var problem = new BenchCase(FeatureKind.FavorPlus, Grouped, numFeatures: 24, causal: true);
        float[] output = Array.ConvertAll(Reference(problem), x => (float)x);
        Assert.True(Gate.Check(problem, output).Passed);

        // The last element is of the last row of the last head, which is always in the sample.
        output[^1] += 1e-4f;
        GateResult wrong = Gate.Check(problem, output);
        Assert.False(wrong.Passed);
        Assert.Equal(1e-4, wrong.MaxAbsError, 1e-6);
        output[^1] = float.NaN;
        Assert.False(Gate.Check(problem, output).Passed);
    }

    [Fact]
    public void Measurement_OfWhatIsWrong_RefusesToTime()
    {
        var problem = new BenchCase(FeatureKind.Elu, Grouped, numFeatures: 24, causal: false);
        int calls = 0;
        BenchResult result = Measurement.Run(problem, () => calls++, new float[Grouped.OutputElements], repeats: 3, null, CancellationToken.None);
        Assert.Equal(1, calls);
        Assert.False(result.Passed);
        Assert.Contains("RMS ratio 1", result.Refusal);
        Assert.Null(result.Ms);
        Assert.Null(result.Gflops);
    }

    [Fact]
    public void Measurement_OfWrongGradients_RefusesToTime()
    {
        var problem = new BenchCase(FeatureKind.Elu, Grouped, numFeatures: 24, causal: false);
        float[] output = Array.ConvertAll(Reference(problem), x => (float)x);
        var gradients = new BenchGradients(Grouped);
        Array.ConvertAll(Gradients(problem).Value, x => (float)x).CopyTo(gradients.Value, 0);
        Array.ConvertAll(Gradients(problem).Query, x => (float)x).CopyTo(gradients.Query, 0);
        BenchResult result = Measurement.Run(problem, () => { }, output, repeats: 3, (() => { }, gradients), CancellationToken.None);
        Assert.False(result.Passed);
        Assert.Contains("the key gradient is wrong", result.Refusal);
        Assert.InRange(result.RmsRatio!.Value, 0, 1e-6);
        Assert.Equal(1, result.GradientRmsRatio!.Value, 1e-12);
        Assert.Null(result.Ms);
        Assert.Null(result.BothMs);
    }

    [Fact]
    public void Measurement_OfWhatIsRight_TakesTheMedianOfTheRepeats()
    {
        var problem = new BenchCase(FeatureKind.Elu, Grouped, numFeatures: 24, causal: false);
        float[] output = Array.ConvertAll(Reference(problem), x => (float)x);
        BenchResult result = Measurement.Run(problem, () => Thread.Sleep(20), output, repeats: 4, null, CancellationToken.None);
        Assert.Equal((true, 4), (result.Passed, result.Repeats));
        Assert.InRange(result.Ms!.Value, 19, 500);
        Assert.Equal(problem.Flops() / result.Ms.Value / 1e6, result.Gflops!.Value, 1e-9);
    }

    [Theory]
    [InlineData("favor+", false, (2.0 * 8 * 24) + (2 * 24 * 5), (2.0 * 8 * 24) + (2 * 24 * 5))]
    [InlineData("favor+", true, (2.0 * 8 * 24) + (2 * 24 * 5) + (65 * (24 + 5)), (2.0 * 8 * 24) + (2 * 24 * 5))]
    [InlineData("favor+hyperbolic", false, (2.0 * 8 * 24) + (2 * 48 * 5), (2.0 * 8 * 24) + (2 * 48 * 5))]
    [InlineData("elu", true, (2.0 * 8 * 5) + (65 * (8 + 5)), 2.0 * 8 * 5)]
    [InlineData("softmax", false, 2.0 * (8 + 5) * 21, 0)]
    [InlineData("softmax", true, 2.0 * (8 + 5) * 11, 0)]
    public void Flops_AreThoseOfTheFormulas(string features, bool causal, double perQuery, double perKey)
    {
        var problem = new BenchCase(features, Grouped, numFeatures: 24, causal);
        Assert.Equal((2 * 21 * 4 * perQuery) + (2 * 21 * 2 * perKey), problem.Flops(), 1e-6);
    }

    [Theory]
    [InlineData("favor+", false, (4.0 * 8 * 24) + (4 * 24 * 5), (6.0 * 8 * 24) + (6 * 24 * 5))]
    [InlineData("favor+", true, (4.0 * 8 * 24) + (4 * 24 * 5) + (65 * ((3 * 24) + (2 * 5))), (4.0 * 8 * 24) + (6 * 24 * 5))]
    [InlineData("elu", true, (4.0 * 8 * 5) + (65 * ((3 * 8) + (2 * 5))), 6.0 * 8 * 5)]
    [InlineData("softmax", false, ((8.0 * 8) + (6 * 5)) * 21, 0)]
    [InlineData("softmax", true, ((8.0 * 8) + (6 * 5)) * 11, 0)]
    public void BackwardFlops_AreThoseOfTheFormulas(string features, bool causal, double perQuery, double perKey)
    {
        var problem = new BenchCase(features, Grouped, numFeatures: 24, causal);
        Assert.Equal((2 * 21 * 4 * perQuery) + (2 * 21 * 2 * perKey), problem.BackwardFlops(), 1e-6);
    }

    [Theory]
    [InlineData("")]
    [InlineData("--causal")]
    public void Bench_WithTheBackwardPass_ChecksAndTimesBoth(string direction)
    {
        CommandRun run = CommandRun.OfLine(
            $"bench --backward --features favor+,favor+hyperbolic,elu,relu,identity --lengths 5,70 --heads 2 --dim 8 --num-features 16 {direction} " +
            "--compare softmax --repeats 2 --device cpu --json");
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        JsonElement[] lines = run.Json();
        Assert.Equal(12, lines.Length);
        Assert.All(lines, line =>
        {
            Assert.True(line.GetProperty("passed").GetBoolean());
            Assert.Equal(line.GetProperty("deviceId").GetString(), line.GetProperty("backwardDeviceId").GetString());
            double forward = line.GetProperty("ms").GetDouble();
            double backward = line.GetProperty("backwardMs").GetDouble();
            double both = line.GetProperty("bothMs").GetDouble();
            Assert.True(forward > 0 && backward > 0);
            Assert.InRange(line.GetProperty("fastestBothMs").GetDouble(), double.Epsilon, both);
            Assert.Equal((forward + backward) / forward, line.GetProperty("timesForward").GetDouble(), 1e-9);
            Assert.True(line.GetProperty("bothGflops").GetDouble() > 0);
            Assert.True(line.GetProperty("bothPeakShare").GetDouble() > 0);
            Assert.True(line.GetProperty("backwardWorkspaceBytes").GetInt64() > 0);
            Assert.InRange(line.GetProperty("gradientMaxAbsError").GetDouble(), 0, 1e-4);
            Assert.InRange(line.GetProperty("gradientRmsRatio").GetDouble(), 0, 1e-5);
        });
    }

    [Fact]
    public void Bench_WithTheBackwardPass_HasItsColumns()
    {
        CommandRun run = CommandRun.OfLine("bench --backward --features elu --lengths 33 --heads 1 --dim 8 --repeats 1 --device cpu");
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains("ms forward  ms backward  both / forward  GFLOPS", run.Output);
    }

    [Fact]
    public void Bench_AsJson_IsALineForEachCase()
    {
        CommandRun run = CommandRun.OfLine("bench --features favor+,elu --lengths 5,70 --heads 2 --dim 8 --num-features 16 --causal --compare softmax --repeats 2 --device cpu --json");
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        JsonElement[] lines = run.Json();
        Assert.Equal(["favor+", "elu", "softmax", "favor+", "elu", "softmax"], lines.Select(l => l.GetProperty("features").GetString()));
        Assert.Equal([5, 5, 5, 70, 70, 70], lines.Select(l => l.GetProperty("T").GetInt32()));
        Assert.All(lines, line =>
        {
            Assert.StartsWith("Cpu", line.GetProperty("device").GetString());
            Assert.Contains(line.GetProperty("features").GetString()!, line.GetProperty("case").GetString());
            Assert.Equal(
                (1, 2, 8, 8), (line.GetProperty("B").GetInt32(), line.GetProperty("H").GetInt32(), line.GetProperty("D").GetInt32(), line.GetProperty("Dv").GetInt32()));
            Assert.Equal("causal", line.GetProperty("direction").GetString());
            Assert.True(line.GetProperty("passed").GetBoolean());
            Assert.True(line.GetProperty("ms").GetDouble() > 0);
            Assert.InRange(line.GetProperty("fastestMs").GetDouble(), double.Epsilon, line.GetProperty("ms").GetDouble());
            Assert.True(line.GetProperty("gflops").GetDouble() > 0);
            Assert.True(line.GetProperty("peakShare").GetDouble() > 0);
            Assert.True(line.GetProperty("tokensPerSecond").GetDouble() > 0);
            Assert.True(line.GetProperty("workspaceBytes").GetInt64() >= 0);
            Assert.InRange(line.GetProperty("maxAbsError").GetDouble(), 0, 1e-5);
            Assert.InRange(line.GetProperty("rmsRatio").GetDouble(), 0, 1e-5);
            Assert.Equal(JsonValueKind.Null, line.GetProperty("backwardMs").ValueKind);
        });
    }

    [Fact]
    public void Bench_AsText_IsAPlainTable()
    {
        CommandRun run = CommandRun.OfLine("bench --features relu,identity --lengths 33 --heads 1 --dim 8 --num-features 16 --repeats 1 --device cpu");
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        string[] lines = run.Output.TrimEnd().Split('\n');
        Assert.Equal(5, lines.Length);
        Assert.Contains("measured peak", lines[0]);
        Assert.Equal("bidirectional, B 1, H 1, D 8, Dv 8", lines[1]);
        Assert.StartsWith("Features", lines[2]);
        Assert.DoesNotContain('\u001b', run.Output);
    }

    [Fact]
    public void HostPeak_OfOneThread_IsPlausible() => Assert.InRange(HostPeak.MeasureGflops(1), 0.1, 10_000);

    private static ReferenceGradient Gradients(BenchCase problem)
    {
        var options = new ReferenceOptions { Causal = problem.Causal };
        float scale = 1 / MathF.Sqrt(Grouped.KeyDimension);
        if (problem.Features == FeatureKind.Softmax)
        {
            return ReferenceGradients.Softmax(Grouped, scale, problem.Query, problem.Key, problem.Value, problem.OutputGradient, options);
        }

        FeaturePair features = FeatureKind.Create(problem.Features, problem.Projection).Lower(Grouped.KeyDimension, scale);
        return ReferenceGradients.Linear(Grouped, features, problem.Query, problem.Key, problem.Value, problem.OutputGradient, options);
    }

    private static double[] Reference(BenchCase problem)
    {
        var options = new ReferenceOptions { Causal = problem.Causal };
        double scale = 1 / Math.Sqrt(Grouped.KeyDimension);
        float[]? w = problem.Projection?.Matrix.ToArray();
        if (problem.Features == FeatureKind.Softmax)
        {
            return ReferenceAttention.Softmax(Grouped, scale, problem.Query, problem.Key, problem.Value, options);
        }

        ReferenceKernel kernel = problem.Features switch
        {
            FeatureKind.FavorPlus => ReferenceFeatures.FavorPlus(w!, 24, scale),
            FeatureKind.FavorPlusHyperbolic => ReferenceFeatures.FavorPlusHyperbolic(w!, 24, scale),
            FeatureKind.Elu => ReferenceFeatures.EluPlusOne(),
            FeatureKind.Relu => ReferenceFeatures.Relu(w, 24),
            _ => ReferenceFeatures.Identity(),
        };
        return ReferenceAttention.Linear(Grouped, kernel, problem.Query, problem.Key, problem.Value, options);
    }
}
