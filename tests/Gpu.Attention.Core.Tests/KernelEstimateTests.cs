using Xunit;

namespace Gpu.Attention.Core.Tests;

/// <summary>
/// What random features estimate, against closed forms: Choromanski et al., "Rethinking Attention with Performers" (2020). With <c>s = |x + y|²</c> and
/// a standard normal w, one FAVOR+ product over the kernel is <c>exp(w·(x + y) − s/2)</c>, log-normal with mean 1.
/// </summary>
/// <remarks>
/// Seeds are fixed, and every bound is a number of standard errors, exact where the distribution's moments are known. <c>s</c> stays
/// at 1.5 and below, beyond which the sample means themselves have too heavy tails to be tested.
/// </remarks>
public class KernelEstimateTests
{
    private const double Errors = 4.5;

    [Theory]
    [InlineData(0.3)]
    [InlineData(1.0)]
    [InlineData(1.5)]
    public void FavorPlus_Gaussian_IsUnbiasedWithTheVarianceOfLemma2(double s)
    {
        double[] products = Products(RandomProjection.Gaussian(100_000, 8, seed: 31), s);

        // E exp(kw·z) = exp(k²s/2) gives every moment of the log-normal.
        double variance = Math.Exp(s) - 1;
        double fourth = Math.Exp(6 * s) - (4 * Math.Exp(3 * s)) + (6 * Math.Exp(s)) - 3;
        RequireMoments(products, 1, variance, fourth);
    }

    [Theory]
    [InlineData(0.3)]
    [InlineData(1.0)]
    [InlineData(1.5)]
    public void Hyperbolic_Gaussian_IsUnbiasedWithTheVarianceOfLemma2(double s)
    {
        double[] products = Products(RandomProjection.Gaussian(100_000, 8, seed: 37).ToAntithetic(), s);
        int half = products.Length / 2;
        double[] pairs = [.. Enumerable.Range(0, half).Select(i => (products[i] + products[half + i]) / 2)];

        // A pair is e^{−s/2} cosh(w·z).
        double variance = 0.5 * (1 - Math.Exp(-s)) * (Math.Exp(s) - 1);
        double third = Math.Exp(-1.5 * s) * ((3 * Math.Exp(s / 2)) + Math.Exp(4.5 * s)) / 4;
        double raw = Math.Exp(-2 * s) * (3 + (4 * Math.Exp(2 * s)) + Math.Exp(8 * s)) / 8;
        double fourth = raw - (4 * third) + (6 * (variance + 1)) - 3;
        RequireMoments(pairs, 1, variance, fourth);
    }

    /// <summary>The variance of a mean of m products falls as 1/m: rows of one projection are independent.</summary>
    [Fact]
    public void FavorPlus_GaussianMean_HasTheVarianceOverM()
    {
        const int Features = 16;
        const double S = 1;
        double[] means = [.. Enumerable.Range(0, 4000).Select(seed => Products(RandomProjection.Gaussian(Features, 4, (ulong)seed), S).Average())];
        double single = Math.Exp(S) - 1;
        double variance = single / Features;
        double singleFourth = Math.Exp(6 * S) - (4 * Math.Exp(3 * S)) + (6 * Math.Exp(S)) - 3;
        double fourth = ((singleFourth - (3 * single * single)) / Math.Pow(Features, 3)) + (3 * variance * variance);
        RequireMoments(means, 1, variance, fourth);
    }

    /// <summary>
    /// Two orthogonal rows add up to a vector of uniform direction and χ²(2d) squared length, so the products of two rows have mean
    /// <c>e^{−s} ₁F₁(d; d/2; s/2)</c>, below 1, and a mean of m ≤ d rows has the relative variance <c>(e^s − 1)/m + (1 − 1/m)(e^{−s} ₁F₁ − 1)</c>.
    /// It keeps the bound of theorem 2, <c>(e^s − 1)/m − 2(m − 1)/(m(d + 2)) · (1 − e^{−s/2})²</c>.
    /// </summary>
    [Theory]
    [InlineData(8, 8, 1.0)]
    [InlineData(4, 8, 1.0)]
    [InlineData(4, 4, 1.5)]
    [InlineData(2, 2, 1.5)]
    public void FavorPlus_Orthogonal_IsUnbiasedWithItsSmallerVariance(int m, int d, double s)
    {
        double[][] draws = [.. Enumerable.Range(0, 10_000).Select(seed => Products(RandomProjection.Orthogonal(m, d, (ulong)seed), s))];
        double[] means = Array.ConvertAll(draws, p => p.Average());
        double independent = (Math.Exp(s) - 1) / m;
        double term = 1;
        double series = 1;
        for (int n = 1; n < 60; n++)
        {
            term *= (d + n - 1) / ((d / 2.0) + n - 1) * (s / 2) / n;
            series += term;
        }

        double orthogonal = independent + ((1 - (1.0 / m)) * ((Math.Exp(-s) * series) - 1));
        double bound = independent - (2.0 * (m - 1) / (m * (d + 2)) * Math.Pow(1 - Math.Exp(-s / 2), 2));
        Assert.InRange(orthogonal, 0, bound);
        RequireMean(means, 1);
        RequireMean([.. means.Select(e => (e - 1) * (e - 1))], orthogonal);

        // The mean over all pairs of rows would be 1 if they were independent.
        double[] pairs = Array.ConvertAll(draws, p => ((p.Sum() * p.Sum()) - p.Sum(x => x * x)) / (m * (m - 1)));
        RequireMean(pairs, Math.Exp(-s) * series);
        (double mean, double error) = MeanAndError(pairs);
        Assert.InRange(mean, 0, 1 - (Errors * error));
    }

    /// <summary>Without the sign of R's diagonal the expectation along +e0 is 0.3 of the kernel for m = 1: the first entry is never positive.</summary>
    [Theory]
    [InlineData(1, 16)]
    [InlineData(4, 4)]
    [InlineData(16, 16)]
    public void FavorPlus_OrthogonalAlongTheFirstAxis_IsUnbiased(int m, int d)
    {
        const int Draws = 2000;
        const double S = 1;
        double mean = 0;
        for (ulong seed = 0; seed < Draws; seed++)
        {
            // x = y = ½ e0.
            RandomProjection projection = RandomProjection.Orthogonal(m, d, seed);
            for (int row = 0; row < m; row++)
            {
                mean += Math.Exp(projection.Matrix[row * d] - (S / 2)) / (m * Draws);
            }
        }

        // The error of independent rows; orthogonal ones have no larger.
        double error = Math.Sqrt((Math.Exp(S) - 1) / (m * Draws));
        Assert.InRange(mean, 1 - (Errors * error), 1 + (Errors * error));
    }

    /// <summary>
    /// Rows of length √d estimate the regularised kernel, <c>e^{−(|x|² + |y|²)/2} ₀F₁(; d/2; d|x + y|²/4)</c>: appendix F.3, equations 29 and 30.
    /// </summary>
    [Theory]
    [InlineData(ProjectionKind.Gaussian, 4)]
    [InlineData(ProjectionKind.Orthogonal, 4)]
    [InlineData(ProjectionKind.Orthogonal, 16)]
    public void FavorPlus_RowsOfLengthSqrtDimension_EstimateTheRegularisedKernel(ProjectionKind kind, int d)
    {
        const double S = 1.5;
        double term = 1;
        double series = 1;
        for (int n = 1; n < 60; n++)
        {
            term *= d * S / 4 / (n * ((d / 2.0) + n - 1));
            series += term;
        }

        double ratio = Math.Exp(-S / 2) * series;
        Assert.InRange(ratio, 1 - (2 * Math.Pow(d, -1.0 / 3)), 1);
        double[] products = Products(RandomProjectionTests.Draw(kind, 3_000 * d, d, seed: 41, RowLength.SqrtDimension), S);
        double[] blocks = [.. products.Chunk(d).Select(block => block.Average())];
        RequireMean(blocks, ratio);
    }

    /// <summary>For every row w: φ(x)φ(y) m / SM(x, y), with an x + y of squared norm s that favours no axis.</summary>
    private static double[] Products(RandomProjection projection, double s)
    {
        int d = projection.Dimension;
        double[] sum = [.. Enumerable.Range(0, d).Select(i => Math.Sin(i + 1.0))];
        double norm = Math.Sqrt(sum.Sum(v => v * v));
        sum = Array.ConvertAll(sum, v => v * Math.Sqrt(s) / norm);
        double[] products = new double[projection.NumFeatures];
        for (int row = 0; row < products.Length; row++)
        {
            double dot = 0;
            for (int i = 0; i < d; i++)
            {
                dot += projection.Matrix[(row * d) + i] * sum[i];
            }

            products[row] = Math.Exp(dot - (s / 2));
        }

        return products;
    }

    private static void RequireMoments(double[] sample, double mean, double variance, double fourth)
    {
        double meanError = Math.Sqrt(variance / sample.Length);
        Assert.InRange(sample.Average(), mean - (Errors * meanError), mean + (Errors * meanError));
        double varianceError = Math.Sqrt((fourth - (variance * variance)) / sample.Length);
        double sampleVariance = sample.Average(v => (v - mean) * (v - mean));
        Assert.InRange(sampleVariance, variance - (Errors * varianceError), variance + (Errors * varianceError));
    }

    private static void RequireMean(double[] sample, double expected)
    {
        (double mean, double error) = MeanAndError(sample);
        Assert.InRange(mean, expected - (Errors * error), expected + (Errors * error));
    }

    private static (double Mean, double Error) MeanAndError(double[] sample)
    {
        double mean = sample.Average();
        return (mean, Math.Sqrt(sample.Average(v => (v - mean) * (v - mean)) / sample.Length));
    }
}
