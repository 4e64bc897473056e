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
        BenchResult result = Measurement.Run(problem, () => calls++, new float[Grouped.OutputElements], repeats: 3, CancellationToken.None);
        Assert.Equal(1, calls);
        Assert.False(result.Passed);
        Assert.Contains("RMS ratio 1", result.Refusal);
        Assert.Null(result.Ms);
        Assert.Null(result.Gflops);
    }

    [Fact]
    public void Measurement_OfWhatIsRight_TakesTheMedianOfTheRepeats()
    {
        var problem = new BenchCase(FeatureKind.Elu, Grouped, numFeatures: 24, causal: false);
        float[] output = Array.ConvertAll(Reference(problem), x => (float)x);
        BenchResult result = Measurement.Run(problem, () => Thread.Sleep(20), output, repeats: 4, CancellationToken.None);
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
