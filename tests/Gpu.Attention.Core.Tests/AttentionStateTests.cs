using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Core.Tests;

public class AttentionStateTests
{
    public static TheoryData<FeatureFamily> Families => [FeatureFamily.Direct, FeatureFamily.Exponential];

    [Theory]
    [MemberData(nameof(Families))]
    public void NewState_HasSeenNothing(FeatureFamily family)
    {
        var state = new AttentionState(2, 3, 4, 5, family);
        Assert.Equal((2, 3, 4, 5, family), (state.Sequences, state.Heads, state.FeatureDimension, state.ValueDimension, state.Family));
        Assert.Equal(new float[120], state.Sums.ToArray());
        Assert.Equal(new float[24], state.Normalizers.ToArray());
        Assert.Equal(family == FeatureFamily.Exponential ? 24 : 0, state.LogScale.Length);
        Assert.All(state.LogScale.ToArray(), c => Assert.Equal(float.NegativeInfinity, c));
        Assert.Equal($"state [2, 3, 4, 5] ({family})", state.ToString());
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Merge_EitherWay_GivesTheSameBits(FeatureFamily family)
    {
        AttentionState ab = Seen(family, seed: 1, from: 0, to: 10);
        AttentionState ba = Seen(family, seed: 1, from: 10, to: 17);
        AttentionState a = ab.Fork();
        ab.Merge(ba);
        ba.Merge(a);
        RequireSameBits(ab, ba);
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Merge_WithTheEmptyState_ChangesNoBit(FeatureFamily family)
    {
        AttentionState state = Seen(family, seed: 2, from: 0, to: 9);
        AttentionState merged = state.Fork();
        merged.Merge(Empty(family));
        RequireSameBits(state, merged);
        AttentionState empty = Empty(family);
        empty.Merge(state);
        RequireSameBits(state, empty);
        AttentionState nothing = Empty(family);
        nothing.Merge(Empty(family));
        RequireSameBits(Empty(family), nothing);
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Merge_OfDisjointParts_IsTheStateOfTheWhole(FeatureFamily family)
    {
        AttentionState whole = Seen(family, seed: 3, from: 0, to: 20);
        AttentionState merged = Seen(family, seed: 3, from: 0, to: 7);
        merged.Merge(Seen(family, seed: 3, from: 7, to: 12));
        merged.Merge(Seen(family, seed: 3, from: 12, to: 20));

        // The parts are exact sums, rounded once. Merging rescales (exp and product, a rounding each and one more in exp's argument, at most
        // about 8 here) and adds: under 16 units, of the sum of magnitudes.
        const double Tolerance = 16 * 1.0 / (1 << 24);
        Assert.Equal(whole.LogScale.ToArray(), merged.LogScale.ToArray());
        for (int row = 0; row < whole.Normalizers.Length; row++)
        {
            double z = whole.Normalizers[row];
            Assert.InRange(merged.Normalizers[row], z * (1 - Tolerance), z * (1 + Tolerance));
            for (int i = row * whole.ValueDimension; i < (row + 1) * whole.ValueDimension; i++)
            {
                // Values stay within 4.
                Assert.InRange(merged.Sums[i] - whole.Sums[i], -Tolerance * 4 * z, Tolerance * 4 * z);
            }
        }
    }

    [Fact]
    public void Merge_OfFarApartScales_NeitherOverflowsNorVanishes()
    {
        AttentionState high = OneRow(scale: 200, sum: 3, normalizer: 2);
        AttentionState low = OneRow(scale: -200, sum: 5, normalizer: 1);
        low.Merge(high);
        RequireSameBits(high, low);
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Fork_SharesNothing(FeatureFamily family)
    {
        AttentionState state = Seen(family, seed: 4, from: 0, to: 5);
        AttentionState fork = state.Fork();
        RequireSameBits(state, fork);
        fork.Merge(Seen(family, seed: 4, from: 5, to: 9));
        RequireSameBits(state, Seen(family, seed: 4, from: 0, to: 5));
        Assert.False(state.Normalizers.SequenceEqual(fork.Normalizers));
    }

    [Fact]
    public void DifferentSizes_AreRefusedWithBoth()
    {
        var state = new AttentionState(2, 3, 4, 5, FeatureFamily.Direct);
        AttentionState[] others =
        [
            new(1, 3, 4, 5, FeatureFamily.Direct), new(2, 2, 4, 5, FeatureFamily.Direct), new(2, 3, 5, 5, FeatureFamily.Direct),
            new(2, 3, 4, 4, FeatureFamily.Direct), new(2, 3, 4, 5, FeatureFamily.Exponential),
        ];
        foreach (AttentionState other in others)
        {
            Assert.Equal($"{other} does not fit {state}. (Parameter 'other')", Assert.Throws<ArgumentException>("other", () => state.Merge(other)).Message);
            Assert.Throws<ArgumentException>("destination", () => state.CopyTo(other));
        }

        Assert.Throws<ArgumentNullException>("other", () => state.Merge(null!));
    }

    [Fact]
    public void Sizes_OutOfRange_AreRefused()
    {
        Assert.Throws<ArgumentOutOfRangeException>("sequences", () => new AttentionState(-1, 1, 1, 1, FeatureFamily.Direct));
        Assert.Throws<ArgumentOutOfRangeException>("heads", () => new AttentionState(1, 0, 1, 1, FeatureFamily.Direct));
        Assert.Throws<ArgumentOutOfRangeException>("featureDimension", () => new AttentionState(1, 1, 0, 1, FeatureFamily.Direct));
        Assert.Throws<ArgumentOutOfRangeException>("valueDimension", () => new AttentionState(1, 1, 1, 0, FeatureFamily.Direct));
        Assert.Throws<ArgumentException>("sequences", () => new AttentionState(1 << 20, 1 << 20, 1 << 20, 1 << 20, FeatureFamily.Direct));
        Assert.Empty(new AttentionState(0, 1, 1, 1, FeatureFamily.Direct).Sums.ToArray());
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Rows_AreSelectedReorderedRepeatedAndDropped(FeatureFamily family)
    {
        AttentionState state = Seen(family, seed: 5, from: 0, to: 9);
        RequireSameBits(state, state.Select(0, 1));
        AttentionState selected = state.Select(1, 0, 1);
        Assert.Equal(3, selected.Sequences);
        RequireSameBits(state.Select(1), selected.Select(0));
        RequireSameBits(state.Select(0), selected.Select(1));
        RequireSameBits(state.Select(1), selected.Select(2));
        selected.Reset(0);
        RequireSameBits(Seen(family, seed: 5, from: 0, to: 9), state);
        Assert.Equal(0, state.Select().Sequences);
        Assert.Equal(0, state.Select().Select().Sequences);
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Rows_AreAddedMovedAndStartedAnew(FeatureFamily family)
    {
        AttentionState first = Seen(family, seed: 6, from: 0, to: 5);
        AttentionState second = Seen(family, seed: 6, from: 5, to: 9);
        AttentionState whole = AttentionState.Concat(first, second.Select(1), second.Select());
        Assert.Equal(3, whole.Sequences);
        RequireSameBits(first, whole.Select(0, 1));
        RequireSameBits(second.Select(1), whole.Select(2));

        second.CopyTo(0, whole, 1);
        RequireSameBits(second.Select(0), whole.Select(1));
        whole.CopyTo(2, whole, 0);
        RequireSameBits(second.Select(1, 0, 1), whole);
        whole.CopyTo(1, whole, 1);
        RequireSameBits(second.Select(1, 0, 1), whole);

        whole.Reset(1);
        RequireSameBits(Empty(family).Select(0), whole.Select(1));
        RequireSameBits(second.Select(1, 1), whole.Select(0, 2));
    }

    [Fact]
    public void Rows_ThatAreNotThere_AreRefused()
    {
        var state = new AttentionState(2, 3, 4, 5, FeatureFamily.Direct);
        var other = new AttentionState(1, 3, 4, 6, FeatureFamily.Direct);
        Assert.Throws<ArgumentOutOfRangeException>("sequence", () => state.Reset(2));
        Assert.Throws<ArgumentOutOfRangeException>("sequence", () => state.Reset(-1));
        Assert.Throws<ArgumentOutOfRangeException>("sequences", () => state.Select(0, 2));
        Assert.Throws<ArgumentOutOfRangeException>("sequence", () => state.CopyTo(2, state, 0));
        Assert.Throws<ArgumentOutOfRangeException>("destinationSequence", () => state.CopyTo(0, state, 2));
        Assert.Equal($"{other} does not fit {state}. (Parameter 'destination')", Assert.Throws<ArgumentException>("destination", () => state.CopyTo(0, other, 0)).Message);
        Assert.Throws<ArgumentNullException>("destination", () => state.CopyTo(0, null!, 0));
        Assert.Throws<ArgumentException>("states", () => AttentionState.Concat());
        Assert.Throws<ArgumentException>("states", () => AttentionState.Concat(state, other));
        Assert.Throws<ArgumentNullException>("states", () => AttentionState.Concat(state, null!));
        Assert.Contains("has no sequence 2", Assert.Throws<ArgumentOutOfRangeException>(() => state.Reset(2)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void States_OfOtherFeatures_AreRefused()
    {
        FeatureIdentity one = FeatureIdentity.Of(FeatureMap.EluPlusOne.Lower(4, 1).Key);
        FeatureIdentity two = FeatureIdentity.Of(FeatureMap.Relu().Lower(4, 1).Key);
        var state = new AttentionState(2, 3, 4, 5, FeatureFamily.Direct, one);
        var other = new AttentionState(2, 3, 4, 5, FeatureFamily.Direct, two);
        var unknown = new AttentionState(2, 3, 4, 5, FeatureFamily.Direct);
        Assert.Contains("other key features", Assert.Throws<ArgumentException>("other", () => state.Merge(other)).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>("destination", () => state.CopyTo(other));
        Assert.Throws<ArgumentException>("destination", () => state.CopyTo(0, other, 0));
        Assert.Throws<ArgumentException>("states", () => AttentionState.Concat(state, other));
        state.Merge(unknown);
        Assert.Equal(one, state.Fork().Features);
        Assert.Equal(one, state.Select(0).Features);
    }

    private static AttentionState Empty(FeatureFamily family) => new(2, 2, 6, 3, family);

    /// <summary>The state of the keys and values <c>[from, to)</c>, summed in float64 and rounded.</summary>
    private static AttentionState Seen(FeatureFamily family, ulong seed, int from, int to)
    {
        const int Tokens = 20;
        AttentionState state = Empty(family);
        float[] logs = TestData.Normal(seed, Tokens * 24, std: 2);
        float[] values = [.. TestData.Normal(seed + 100, Tokens * 24 * 3).Select(v => Math.Clamp(v, -4, 4))];
        for (int row = 0; row < 24; row++)
        {
            float scale = family == FeatureFamily.Direct ? 0 : Enumerable.Range(from, to - from).Max(t => logs[(t * 24) + row]);
            double[] sums = new double[4];
            for (int t = from; t < to; t++)
            {
                double feature = Math.Exp((double)logs[(t * 24) + row] - scale);
                sums[3] += feature;
                for (int i = 0; i < 3; i++)
                {
                    sums[i] += feature * values[(((t * 24) + row) * 3) + i];
                }
            }

            for (int i = 0; i < 3; i++)
            {
                state.Sums[(row * 3) + i] = (float)sums[i];
            }

            state.Normalizers[row] = (float)sums[3];
            if (family == FeatureFamily.Exponential)
            {
                state.LogScale[row] = scale;
            }
        }

        return state;
    }

    private static AttentionState OneRow(float scale, float sum, float normalizer)
    {
        var state = new AttentionState(1, 1, 1, 1, FeatureFamily.Exponential);
        (state.LogScale[0], state.Sums[0], state.Normalizers[0]) = (scale, sum, normalizer);
        return state;
    }

    private static void RequireSameBits(AttentionState expected, AttentionState actual)
    {
        Assert.Equal(expected.LogScale.ToArray(), actual.LogScale.ToArray());
        Assert.Equal(expected.Normalizers.ToArray(), actual.Normalizers.ToArray());
        Assert.Equal(expected.Sums.ToArray(), actual.Sums.ToArray());
    }
}
