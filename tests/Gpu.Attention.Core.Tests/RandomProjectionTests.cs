using System.Runtime.InteropServices;
using System.Security.Cryptography;
using Xunit;

namespace Gpu.Attention.Core.Tests;

public class RandomProjectionTests
{
    public static TheoryData<int, int> Sizes => new()
    {
        { 1, 1 }, { 7, 1 }, { 1, 5 }, { 3, 5 }, { 5, 5 }, { 13, 5 }, { 64, 64 }, { 100, 33 }, { 256, 64 },
    };

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Orthogonal_RowsOfABlock_AreOrthogonal(int m, int d)
    {
        RandomProjection projection = RandomProjection.Orthogonal(m, d, seed: 3, RowLength.SqrtDimension);
        for (int i = 0; i < m; i++)
        {
            // √d · √d is the length of a row squared; 1e-6 is what float32 storage leaves of the cosine.
            Assert.InRange(Dot(projection, i, i) / d, 1 - 1e-6, 1 + 1e-6);
            for (int j = i / d * d; j < i; j++)
            {
                Assert.InRange(Dot(projection, i, j) / d, -1e-6, 1e-6);
            }
        }
    }

    [Fact]
    public void Orthogonal_RowsOfDifferentBlocks_AreNot()
    {
        RandomProjection projection = RandomProjection.Orthogonal(16, 8, seed: 3, RowLength.SqrtDimension);
        Assert.Contains(Enumerable.Range(0, 8), i => Math.Abs(Dot(projection, i, 8 + i)) > 0.5);
    }

    [Theory]
    [InlineData(ProjectionKind.Gaussian)]
    [InlineData(ProjectionKind.Orthogonal)]
    public void RowLength_Chi_IsThatOfANormalVector(ProjectionKind kind)
    {
        const int Features = 20_000;
        const int Dimension = 8;
        RandomProjection projection = Draw(kind, Features, Dimension, seed: 17, RowLength.Chi);
        double[] squares = [.. Enumerable.Range(0, Features).Select(i => Dot(projection, i, i))];

        // χ² with d degrees has mean d and variance 2d; the variance of a sample variance needs its fourth moment, 12d(d + 4).
        double mean = squares.Average();
        double variance = squares.Average(s => (s - Dimension) * (s - Dimension));
        double meanError = Math.Sqrt(2.0 * Dimension / Features);
        double varianceError = Math.Sqrt(((12.0 * Dimension * (Dimension + 4)) - (4.0 * Dimension * Dimension)) / Features);
        Assert.InRange(mean, Dimension - (5 * meanError), Dimension + (5 * meanError));
        Assert.InRange(variance, (2 * Dimension) - (5 * varianceError), (2 * Dimension) + (5 * varianceError));
    }

    [Theory]
    [InlineData(ProjectionKind.Gaussian)]
    [InlineData(ProjectionKind.Orthogonal)]
    public void RowLength_SqrtDimension_IsExact(ProjectionKind kind)
    {
        RandomProjection projection = Draw(kind, 50, 24, seed: 5, RowLength.SqrtDimension);
        for (int i = 0; i < 50; i++)
        {
            Assert.InRange(Math.Sqrt(Dot(projection, i, i) / 24), 1 - 1e-7, 1 + 1e-7);
        }
    }

    /// <summary>Q of a Householder QR has a first entry of one sign (LAPACK's is −1 on average, and Haar's 0) unless R's signs are folded in.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(16)]
    [InlineData(32)]
    public void Orthogonal_SignsOfCoordinates_AverageToZero(int d)
    {
        const int Blocks = 400;
        RandomProjection projection = RandomProjection.Orthogonal(Blocks * d, d, seed: 23);
        foreach (int row in new[] { 0, d / 2, d - 1 })
        {
            foreach (int column in new[] { 0, d / 2, d - 1 })
            {
                double mean = Enumerable.Range(0, Blocks).Average(block => Math.Sign(projection.Matrix[(((block * d) + row) * d) + column]));
                Assert.InRange(mean, -4 / Math.Sqrt(Blocks), 4 / Math.Sqrt(Blocks));
            }
        }
    }

    /// <summary>Every entry of a Haar matrix has variance 1/d, wherever it stands, and so every entry of W variance 1.</summary>
    [Fact]
    public void Orthogonal_EntriesEverywhere_HaveUnitVariance()
    {
        const int Blocks = 4000;
        const int Dimension = 5;
        RandomProjection projection = RandomProjection.Orthogonal(Blocks * Dimension, Dimension, seed: 29);
        double error = Math.Sqrt(2.0 / Blocks);
        for (int entry = 0; entry < Dimension * Dimension; entry++)
        {
            double variance = Enumerable.Range(0, Blocks)
                .Average(block => Math.Pow(projection.Matrix[(block * Dimension * Dimension) + entry], 2));
            Assert.InRange(variance, 1 - (5 * error), 1 + (5 * error));
        }
    }

    /// <summary>The bits that every platform has to make. A change of them makes saved seeds mean another model.</summary>
    [Theory]
    [InlineData(ProjectionKind.Orthogonal, RowLength.Chi, 256, 64, 42UL, "6c2a8221bfc3e4bde2bf02bc19204357257fc3cc3637fe117b6876609c15e336")]
    [InlineData(ProjectionKind.Orthogonal, RowLength.SqrtDimension, 50, 33, 7UL, "9f02897ae60a24e2f950473af029704f6bd95bfaef53e1eeefaafad81bb2c6a3")]
    [InlineData(ProjectionKind.Gaussian, RowLength.Chi, 300, 17, 0UL, "03139341dcbb69a7e4084457a296a51368321047a9fe5f051d4afd1fb0f53927")]
    [InlineData(ProjectionKind.Gaussian, RowLength.SqrtDimension, 16, 128, ulong.MaxValue, "912bcb3565502fd589291b464aa7f0cc56506d72cfe679e1b825bb38383c7fc3")]
    public void Matrix_OfASeed_HasTheseBits(ProjectionKind kind, RowLength rowLength, int m, int d, ulong seed, string sha256)
    {
        RandomProjection projection = Draw(kind, m, d, seed, rowLength);
        Assert.Equal(sha256, Convert.ToHexStringLower(SHA256.HashData(MemoryMarshal.AsBytes(projection.Matrix))));
    }

    [Theory]
    [InlineData(ProjectionKind.Gaussian)]
    [InlineData(ProjectionKind.Orthogonal)]
    public void Matrix_OfMoreFeatures_StartsWithThatOfFewer(ProjectionKind kind)
    {
        RandomProjection large = Draw(kind, 100, 32, seed: 1, RowLength.Chi);
        foreach (int m in new[] { 1, 20, 32, 33, 64, 99 })
        {
            RandomProjection small = Draw(kind, m, 32, seed: 1, RowLength.Chi);
            Assert.True(small.Matrix.SequenceEqual(large.Matrix[..(m * 32)]));
        }
    }

    [Fact]
    public void Matrix_OfAnotherSeedOrKind_IsAnother()
    {
        RandomProjection[] projections =
        [
            RandomProjection.Orthogonal(8, 8, 1),
            RandomProjection.Orthogonal(8, 8, 2),
            RandomProjection.Orthogonal(8, 8, 1UL << 32),
            RandomProjection.Orthogonal(8, 8, 1, RowLength.SqrtDimension),
            RandomProjection.Gaussian(8, 8, 1),
            RandomProjection.Orthogonal(8, 8, 1).ToAntithetic(),
        ];
        Assert.Equal(projections.Length, projections.Distinct().Count());
    }

    [Fact]
    public void Recipe_IsKept()
    {
        RandomProjection projection = RandomProjection.Orthogonal(12, 4, seed: 9, RowLength.SqrtDimension);
        Assert.Equal((12, 4, ProjectionKind.Orthogonal), (projection.NumFeatures, projection.Dimension, projection.Kind));
        Assert.Equal(9UL, projection.Seed);
        Assert.Equal(RowLength.SqrtDimension, projection.RowLength);
        Assert.False(projection.IsAntithetic);
        Assert.Equal("projection [12, 4] (Orthogonal, SqrtDimension rows, seed 9)", projection.ToString());
    }

    [Fact]
    public void ToAntithetic_IsTheMatrixAndItsNegation()
    {
        RandomProjection half = RandomProjection.Gaussian(6, 3, seed: 4);
        RandomProjection whole = half.ToAntithetic();
        Assert.Equal((12, 3, true), (whole.NumFeatures, whole.Dimension, whole.IsAntithetic));
        Assert.True(whole.Matrix[..18].SequenceEqual(half.Matrix));
        for (int i = 0; i < 18; i++)
        {
            Assert.Equal(-half.Matrix[i], whole.Matrix[18 + i]);
        }

        Assert.Same(whole, whole.ToAntithetic());
    }

    [Fact]
    public void Redraw_KeepsTheRecipe()
    {
        RandomProjection[] originals =
        [
            RandomProjection.Orthogonal(12, 5, 1, RowLength.SqrtDimension), RandomProjection.Gaussian(12, 5, 1), RandomProjection.Orthogonal(6, 5, 1).ToAntithetic(),
        ];
        RandomProjection[] wanted =
        [
            RandomProjection.Orthogonal(12, 5, 2, RowLength.SqrtDimension), RandomProjection.Gaussian(12, 5, 2), RandomProjection.Orthogonal(6, 5, 2).ToAntithetic(),
        ];
        for (int i = 0; i < originals.Length; i++)
        {
            Assert.Equal(wanted[i], originals[i].Redraw(2));
            Assert.Equal(originals[i], originals[i].Redraw(2).Redraw(1));
            Assert.Equal(wanted[i].ToString(), originals[i].Redraw(2).ToString());
        }
    }

    [Fact]
    public void FromMatrix_CopiesAndHasNoRecipe()
    {
        float[] matrix = [1, 2, 3, 4, 5, 6];
        RandomProjection projection = RandomProjection.FromMatrix(3, 2, matrix);
        matrix[0] = 100;
        Assert.Equal(1, projection.Matrix[0]);
        Assert.Null(projection.Seed);
        Assert.Null(projection.RowLength);
        Assert.Throws<InvalidOperationException>(() => projection.Redraw(1));
        Assert.Throws<InvalidOperationException>(() => projection.ToAntithetic().Redraw(1));
    }

    [Fact]
    public void Equals_ComparesContent()
    {
        RandomProjection drawn = RandomProjection.Orthogonal(6, 3, seed: 4);
        RandomProjection given = RandomProjection.FromMatrix(6, 3, drawn.Matrix);
        RandomProjection reshaped = RandomProjection.FromMatrix(3, 6, drawn.Matrix);
        Assert.Equal(drawn, RandomProjection.Orthogonal(6, 3, seed: 4));
        Assert.Equal(drawn, given);
        Assert.Equal(drawn.GetHashCode(), given.GetHashCode());
        Assert.NotEqual(drawn, reshaped);
        Assert.False(drawn.Equals(null));
        Assert.False(drawn.Equals((object)"projection"));
    }

    [Theory]
    [InlineData(0, 4, "numFeatures")]
    [InlineData(-1, 4, "numFeatures")]
    [InlineData(4, 0, "dimension")]
    [InlineData(4, -4, "dimension")]
    [InlineData(65536, 65536, "numFeatures")]
    [InlineData(int.MaxValue, int.MaxValue, "numFeatures")]
    public void Sizes_OutOfRange_AreRefusedByName(int m, int d, string parameter)
    {
        Assert.Throws<ArgumentOutOfRangeException>(parameter, () => RandomProjection.Orthogonal(m, d, 1));
        Assert.Throws<ArgumentOutOfRangeException>(parameter, () => RandomProjection.Gaussian(m, d, 1));
        Assert.Throws<ArgumentOutOfRangeException>(parameter, () => RandomProjection.FromMatrix(m, d, []));
    }

    [Fact]
    public void Arguments_OutOfRange_AreRefusedByName()
    {
        Assert.Throws<ArgumentOutOfRangeException>("rowLength", () => RandomProjection.Orthogonal(2, 2, 1, (RowLength)7));
        Assert.Throws<ArgumentOutOfRangeException>("rowLength", () => RandomProjection.Gaussian(2, 2, 1, (RowLength)(-1)));
        Assert.Throws<ArgumentException>("matrix", () => RandomProjection.FromMatrix(2, 2, new float[5]));
        ArgumentException exception = Assert.Throws<ArgumentException>("matrix", () => RandomProjection.FromMatrix(2, 2, [0, 0, 0, float.NaN]));
        Assert.Contains("Row 1, column 1", exception.Message, StringComparison.Ordinal);
    }

    internal static RandomProjection Draw(ProjectionKind kind, int m, int d, ulong seed, RowLength rowLength) =>
        kind == ProjectionKind.Gaussian ? RandomProjection.Gaussian(m, d, seed, rowLength) : RandomProjection.Orthogonal(m, d, seed, rowLength);

    private static double Dot(RandomProjection projection, int i, int j)
    {
        double sum = 0;
        for (int c = 0; c < projection.Dimension; c++)
        {
            sum += (double)projection.Matrix[(i * projection.Dimension) + c] * projection.Matrix[(j * projection.Dimension) + c];
        }

        return sum;
    }
}
