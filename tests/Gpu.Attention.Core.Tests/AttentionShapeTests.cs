using Xunit;

namespace Gpu.Attention.Core.Tests;

public class AttentionShapeTests
{
    [Fact]
    public void Sizes_AreKeptAndCounted()
    {
        var shape = new AttentionShape(2, 3, 5, 8, 4, 16, 7);
        Assert.Equal(
            (2, 3, 5, 8, 4, 16, 7),
            (shape.Batch, shape.QueryLength, shape.KeyLength, shape.Heads, shape.KeyHeads, shape.KeyDimension, shape.ValueDimension));
        Assert.Equal(2, shape.HeadGroup);
        Assert.Equal(
            (2L * 3 * 8 * 16, 2L * 5 * 4 * 16, 2L * 5 * 4 * 7, 2L * 3 * 8 * 7),
            (shape.QueryElements, shape.KeyElements, shape.ValueElements, shape.OutputElements));
        Assert.Equal("query [2, 3, 8, 16], key [2, 5, 4, 16], value [2, 5, 4, 7]", shape.ToString());
        Assert.Equal(new AttentionShape(1, 9, 9, 2, 2, 4, 4), new AttentionShape(1, 9, 2, 4));
    }

    [Theory]
    [InlineData(0, 3, 3)]
    [InlineData(2, 0, 3)]
    [InlineData(2, 3, 0)]
    public void EmptySequences_AreAllowed(int batch, int queries, int keys)
    {
        var shape = new AttentionShape(batch, queries, keys, 1, 1, 4, 4);
        Assert.Equal((long)batch * queries * 4, shape.OutputElements);
        Assert.Equal((long)batch * keys * 4, shape.KeyElements);
    }

    [Theory]
    [InlineData(0, "batch")]
    [InlineData(1, "queryLength")]
    [InlineData(2, "keyLength")]
    [InlineData(3, "heads")]
    [InlineData(4, "keyHeads")]
    [InlineData(5, "keyDimension")]
    [InlineData(6, "valueDimension")]
    public void NegativeSize_IsRefusedByName(int which, string parameter)
    {
        int[] s = [1, 1, 1, 1, 1, 1, 1];
        s[which] = -1;
        Assert.Throws<ArgumentOutOfRangeException>(parameter, () => new AttentionShape(s[0], s[1], s[2], s[3], s[4], s[5], s[6]));
        if (which >= 3)
        {
            s[which] = 0;
            Assert.Throws<ArgumentOutOfRangeException>(parameter, () => new AttentionShape(s[0], s[1], s[2], s[3], s[4], s[5], s[6]));
        }
    }

    [Theory]
    [InlineData(6, 4)]
    [InlineData(2, 4)]
    public void KeyHeads_ThatDoNotDivide_AreRefusedWithBothNumbers(int heads, int keyHeads)
    {
        ArgumentException exception = Assert.Throws<ArgumentException>(nameof(keyHeads), () => new AttentionShape(1, 1, 1, heads, keyHeads, 1, 1));
        Assert.Contains($"{heads} query heads cannot share {keyHeads} key heads", exception.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(1, int.MaxValue, 1, 1, int.MaxValue, "query")]
    [InlineData(int.MaxValue, 1, int.MaxValue, 1, 1, "key")]
    public void ProductsBeyondMemory_AreRefusedByTensor(int batch, int queries, int keys, int heads, int dimension, string tensor)
    {
        ArgumentException exception =
            Assert.Throws<ArgumentException>(tensor, () => new AttentionShape(batch, queries, keys, heads, 1, dimension, 1));
        Assert.Contains($"The {tensor} tensor [", exception.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void LargestFactors_DoNotOverflowTheCheck() =>
        Assert.Throws<ArgumentException>(() => new AttentionShape(
            int.MaxValue, int.MaxValue, int.MaxValue, int.MaxValue, int.MaxValue, int.MaxValue, int.MaxValue));
}
