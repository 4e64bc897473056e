using System.Buffers.Binary;
using System.Security.Cryptography;
using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Core.Tests;

public class AttentionStateFileTests
{
    private const int HeaderBytes = 64;
    private const int ChecksumBytes = 32;

    private static readonly FeatureIdentity Favor = Identity(FeatureMap.FavorPlus(RandomProjection.Orthogonal(4, 2, seed: 1)));

    public static TheoryData<FeatureFamily, int> Samples =>
        [.. from family in Enum.GetValues<FeatureFamily>() from sequences in new[] { 0, 1, 2 } select (family, sequences)];

    [Theory]
    [MemberData(nameof(Samples))]
    public void SaveAndLoad_ReturnTheSameState(FeatureFamily family, int sequences)
    {
        AttentionState state = Sample(family, sequences);
        byte[] file = Save(state);
        int floats = state.Sums.Length + state.Normalizers.Length + state.LogScale.Length;
        Assert.Equal(HeaderBytes + (4 * floats) + ChecksumBytes, file.Length);
        foreach (Stream stream in new Stream[] { new MemoryStream(file), new ForwardStream(file) })
        {
            AttentionState loaded = AttentionState.Load(stream, Favor);
            Assert.Equal(state.ToString(), loaded.ToString());
            Assert.Equal(state.Features, loaded.Features);
            Assert.Equal(state.LogScale.ToArray(), loaded.LogScale.ToArray());
            Assert.Equal(state.Normalizers.ToArray(), loaded.Normalizers.ToArray());
            Assert.Equal(state.Sums.ToArray(), loaded.Sums.ToArray());
            Assert.Equal(file, Save(loaded));
        }
    }

    [Fact]
    public void Save_WritesTheDocumentedLayout()
    {
        var state = new AttentionState(1, 1, 1, 2, FeatureFamily.Exponential, Favor);
        (state.LogScale[0], state.Normalizers[0], state.Sums[0], state.Sums[1]) = (-1, 2, 1, -2);
        byte[] file = Save(state);
        Assert.Equal("477075417474 6E53 01000000 01000000 01000000 01000000 01000000 02000000".Replace(" ", "", StringComparison.Ordinal), Convert.ToHexString(file.AsSpan(0, 32)));
        Assert.StartsWith(Favor.ToString(), Convert.ToHexStringLower(file.AsSpan(32, 32)), StringComparison.Ordinal);
        Assert.Equal("000080BF 00000040 0000803F 000000C0".Replace(" ", "", StringComparison.Ordinal), Convert.ToHexString(file.AsSpan(HeaderBytes, 16)));
        Assert.Equal(SHA256.HashData(file.AsSpan(0, file.Length - ChecksumBytes)), file[^ChecksumBytes..]);
    }

    [Theory]
    [MemberData(nameof(Samples))]
    public void Load_OfAnyPrefix_IsRefused(FeatureFamily family, int sequences)
    {
        byte[] file = Save(Sample(family, sequences));
        for (int length = 0; length < file.Length; length++)
        {
            Refuses(file[..length], "ends inside its");
        }
    }

    [Fact]
    public void Load_WithAnyBitAltered_IsRefused()
    {
        byte[] file = Save(Sample(FeatureFamily.Exponential, 1));
        for (int bit = 0; bit < file.Length * 8; bit++)
        {
            byte[] altered = [.. file];
            altered[bit / 8] ^= (byte)(1 << (bit % 8));
            Refuses(altered, "");
        }
    }

    [Fact]
    public void Load_OfNoise_IsRefused()
    {
        var random = new SeededRandom(1);
        byte[] file = Save(Sample(FeatureFamily.Exponential, 1));
        for (int i = 0; i < 3000; i++)
        {
            // Half of them with a right beginning, so that noise gets past the first checks; some of those with a right checksum too.
            byte[] noise = new byte[random.Next(0, 300)];
            for (int b = 0; b < noise.Length; b++)
            {
                noise[b] = (byte)random.NextWord();
            }

            if (random.NextBool())
            {
                file.AsSpan(0, Math.Min(noise.Length, random.Next(8, 64))).CopyTo(noise);
            }

            Refuses(noise.Length > ChecksumBytes && random.NextBool() ? Sealed(noise) : noise, "");
        }
    }

    [Fact]
    public void Load_OfAHostileHeader_IsRefusedWithoutItsMemory()
    {
        byte[] file = Save(Sample(FeatureFamily.Exponential, 1));
        foreach (int[] sizes in new int[][]
        {
            [int.MaxValue, int.MaxValue, int.MaxValue, int.MaxValue], [1, 1, int.MaxValue, int.MaxValue], [-1, 1, 1, 1], [1, 0, 1, 1], [1, 1, -1, 1],
            [1, 1, 1, 0], [65536, 65536, 1, 1], [int.MaxValue, 2, 1, 1], [0, int.MaxValue, int.MaxValue, int.MaxValue], [1, 1, 1 << 30, 1],
            [1, 1, 1, 1 << 30], [1, 1024, 1024, 1024],
        })
        {
            byte[] hostile = [.. file];
            for (int i = 0; i < 4; i++)
            {
                BinaryPrimitives.WriteInt32LittleEndian(hostile.AsSpan(16 + (4 * i)), sizes[i]);
            }

            foreach (bool canSeek in new[] { true, false })
            {
                long before = GC.GetAllocatedBytesForCurrentThread();
                Assert.Throws<InvalidDataException>(() => AttentionState.Load(canSeek ? new MemoryStream(hostile) : new ForwardStream(hostile), Favor));
                Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 4 << 20);
            }
        }
    }

    [Fact]
    public void Load_OfAnotherFile_SaysWhatIsWrong()
    {
        byte[] file = Save(Sample(FeatureFamily.Exponential, 1));
        Refuses([.. file, 0], "after its end");
        Refuses(Altered(file, 0, 0x50), "does not begin with its mark");
        Refuses(Altered(file, 8, 2), "version 2");
        Refuses(Altered(file, 12, 2), "unknown family 2");
        Refuses(Altered(file, 24, 0), "impossible sizes [1, 2, 0, 3]");
        Refuses(Altered(file, 70, 1), "altered");
        FeatureIdentity other = Identity(FeatureMap.FavorPlus(RandomProjection.Orthogonal(4, 2, seed: 2)));
        string message = Assert.Throws<InvalidDataException>(() => AttentionState.Load(new MemoryStream(file), other)).Message;
        Assert.Contains(Favor.ToString(), message, StringComparison.Ordinal);
        Assert.Contains(other.ToString(), message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>("features", () => AttentionState.Load(new MemoryStream(file), default));
        Assert.Throws<ArgumentNullException>("stream", () => AttentionState.Load(null!, Favor));
    }

    // c, z and S of [1, 2, 4, 3]: 8, 8 and 24 floats.
    [Theory]
    [InlineData(3, float.NaN, "element 3 of c is NaN")]
    [InlineData(3, float.PositiveInfinity, "element 3 of c is")]
    [InlineData(9, float.NaN, "element 1 of z is NaN")]
    [InlineData(9, float.NegativeInfinity, "element 1 of z is")]
    [InlineData(16, float.PositiveInfinity, "element 0 of S is")]
    public void WhatIsNotANumber_IsNeitherSavedNorLoaded(int at, float value, string reason)
    {
        byte[] file = Save(Sample(FeatureFamily.Exponential, 1));
        BinaryPrimitives.WriteSingleLittleEndian(file.AsSpan(HeaderBytes + (4 * at)), value);
        Refuses(Sealed(file), reason);

        AttentionState state = Sample(FeatureFamily.Exponential, 1);
        (at < 8 ? state.LogScale[at..] : at < 16 ? state.Normalizers[(at - 8)..] : state.Sums[(at - 16)..])[0] = value;
        using var stream = new MemoryStream();
        Assert.Contains(reason, Assert.Throws<InvalidOperationException>(() => state.Save(stream)).Message, StringComparison.Ordinal);
        Assert.Equal(0, stream.Length);
    }

    [Fact]
    public void Save_OfAStateOfUnknownFeatures_IsRefused()
    {
        using var stream = new MemoryStream();
        Assert.Contains("of what features", Assert.Throws<InvalidOperationException>(() => new AttentionState(1, 1, 1, 1, FeatureFamily.Direct).Save(stream)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Identity_IsThatOfEveryPartOfTheKeyFormAndOfNothingElse()
    {
        var form = new FeatureForm { InputDimension = 2, FeatureDimension = 2, Activation = FeatureActivation.Exp };
        FeatureForm[] forms =
        [
            form,
            form with { Activation = FeatureActivation.Relu },
            form with { Activation = FeatureActivation.FromFunction("mine", x => x) },
            form with { Activation = FeatureActivation.FromFunction("yours", x => x) },
            form with { PreMatrix = [1, 0, 0, 1] },
            form with { Projection = [1, 0, 0, 1] },
            form with { Projection = [1, 0, 0, -1] },
            form with { PreOffset = [1, 0] },
            form with { Offset = [1, 0] },
            form with { Linear = [1, 0] },
            form with { NormCoefficient = 0.5f },
            form with { InputDimension = 3, FeatureDimension = 3 },
        ];
        FeatureIdentity[] identities = [.. forms.Select(f => FeatureIdentity.Of(f)), FeatureIdentity.Of(form, 1e-3f)];
        Assert.Equal(identities.Length, identities.Distinct().Count());
        Assert.All(identities, identity => Assert.True(identity.IsKnown));
        Assert.False(default(FeatureIdentity).IsKnown);
        Assert.Equal(FeatureIdentity.Of(form with { Offset = [1, 0] }), identities[8]);
        Assert.NotEqual(Favor, FeatureIdentity.Of(FeatureMap.FavorPlus(RandomProjection.Orthogonal(4, 2, seed: 1)).Lower(2, 0.5f).Key));

        // The same on every machine, or files do not travel.
        Assert.Equal("80c44dd2b1cb8df7", identities[0].ToString());
    }

    private static FeatureIdentity Identity(FeatureMap map) => FeatureIdentity.Of(map.Lower(2, 1).Key);

    private static AttentionState Sample(FeatureFamily family, int sequences)
    {
        var state = new AttentionState(sequences, 2, 4, 3, family, Favor);
        TestData.Normal(1, state.Sums.Length).CopyTo(state.Sums);
        TestData.Normal(2, state.Normalizers.Length).CopyTo(state.Normalizers);
        TestData.Normal(3, state.LogScale.Length).CopyTo(state.LogScale);
        if (state.LogScale.Length > 0)
        {
            state.LogScale[0] = float.NegativeInfinity;
        }

        return state;
    }

    private static byte[] Save(AttentionState state)
    {
        using var stream = new MemoryStream();
        state.Save(stream);
        return stream.ToArray();
    }

    private static byte[] Altered(byte[] file, int at, byte value)
    {
        byte[] altered = [.. file];
        altered[at] = altered[at] == value ? (byte)~value : value;
        return altered;
    }

    /// <summary>The content with the checksum that fits it.</summary>
    private static byte[] Sealed(byte[] file)
    {
        byte[] result = [.. file];
        SHA256.HashData(result.AsSpan(0, result.Length - ChecksumBytes)).CopyTo(result.AsSpan(result.Length - ChecksumBytes));
        return result;
    }

    private static void Refuses(byte[] file, string reason)
    {
        foreach (Stream stream in new Stream[] { new MemoryStream(file), new ForwardStream(file) })
        {
            Assert.Contains(reason, Assert.Throws<InvalidDataException>(() => AttentionState.Load(stream, Favor)).Message, StringComparison.Ordinal);
        }
    }
}
