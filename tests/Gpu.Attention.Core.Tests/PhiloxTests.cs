using Xunit;

namespace Gpu.Attention.Core.Tests;

public class PhiloxTests
{
    /// <summary>The known answers that come with Random123, the generator's first implementation.</summary>
    [Theory]
    [InlineData(0x00000000_00000000, 0x00000000, 0x00000000, 0x00000000, 0x00000000, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8)]
    [InlineData(0xffffffff_ffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd)]
    [InlineData(0x299f31d0_a4093822, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1)]
    public void Words_KnownCounters_KnownAnswers(ulong key, uint c0, uint c1, uint c2, uint c3, uint x0, uint x1, uint x2, uint x3) =>
        Assert.Equal((x0, x1, x2, x3), Philox.Words(key, c0, c1, c2, c3));

    [Fact]
    public void Log_OverItsRange_AgreesWithThePlatforms()
    {
        for (int i = 1; i < 200_000; i++)
        {
            double x = i / 200_000.0;
            Assert.InRange(Philox.Log(x) / Math.Log(x), 1 - 1e-15, 1 + 1e-15);
            double tiny = x * 1e-32;
            Assert.InRange(Philox.Log(tiny) / Math.Log(tiny), 1 - 1e-15, 1 + 1e-15);
        }

        Assert.Equal(0, Philox.Log(1));
    }

    [Fact]
    public void Normal_LongerRow_StartsWithTheShorter()
    {
        double[] five = new double[5];
        double[] eight = new double[8];
        Philox.Normal(7, 1, 2, five);
        Philox.Normal(7, 1, 2, eight);
        Assert.Equal(five, eight.AsSpan(0, 5).ToArray());
    }

    [Fact]
    public void Normal_ManyNumbers_HaveTheMomentsOfTheDistribution()
    {
        const int Count = 400_000;
        double[] x = new double[Count];
        Philox.Normal(11, 1, 0, x);

        // Variances of xᵏ: 1, 2, 15, 96 for k = 1..4. Five standard errors.
        (int Power, double Mean, double Variance)[] moments = [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)];
        foreach ((int power, double mean, double variance) in moments)
        {
            double error = x.Average(v => Math.Pow(v, power)) - mean;
            Assert.InRange(error, -5 * Math.Sqrt(variance / Count), 5 * Math.Sqrt(variance / Count));
        }

        // Neighbours, which come of one pair, are independent.
        double product = Enumerable.Range(0, Count / 2).Average(i => x[2 * i] * x[(2 * i) + 1]);
        Assert.InRange(product, -5 / Math.Sqrt(Count / 2), 5 / Math.Sqrt(Count / 2));
    }

    [Fact]
    public void Normal_DifferentSeedsStreamsAndRows_AreDifferentNumbers()
    {
        double[][] rows = [.. new (ulong Seed, uint Stream, uint Row)[] { (0, 0, 0), (1, 0, 0), (1UL << 32, 0, 0), (0, 1, 0), (0, 0, 1) }
            .Select(k =>
            {
                double[] row = new double[4];
                Philox.Normal(k.Seed, k.Stream, k.Row, row);
                return row;
            })];
        Assert.Equal(rows.Length * 4, rows.SelectMany(r => r).Distinct().Count());
    }
}
