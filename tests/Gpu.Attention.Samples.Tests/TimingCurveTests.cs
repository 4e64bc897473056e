using Gpu.Attention.Plotting;
using Xunit;

namespace Gpu.Attention.Samples.Tests;

public sealed class TimingCurveTests
{
    [Fact]
    public void Slope_IsTheExponent()
    {
        List<Timing> square = [.. Enumerable.Range(0, 6).Select(i => Point(4_096 << i, 1e-9 * Math.Pow(4_096 << i, 2)))];

        Assert.Equal(2, new TimingCurve("square", square).Slope()!.Value, 1e-9);
    }

    [Fact]
    public void Crossover_LiesWhereTheCurvesMeet()
    {
        int[] lengths = [1_000, 10_000, 100_000];
        var linear = new TimingCurve("linear", [.. lengths.Select(n => Point(n, n * 2e-6))]);
        var square = new TimingCurve("square", [.. lengths.Select(n => Point(n, 1e-9 * n * n))]);

        Assert.Equal(2_000, linear.FasterThan(square)!.Value, 1e-6);
        Assert.Null(square.FasterThan(linear));
    }

    private static Timing Point(int length, double seconds) => new(length, seconds, seconds, seconds);
}
