using System.Buffers.Binary;
using System.Security.Cryptography;
using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Core.Tests;

public class RandomProjectionFileTests
{
    private const int HeaderBytes = 32;
    private const int ChecksumBytes = 32;

    public static TheoryData<int> Samples => [0, 1, 2, 3];

    [Theory]
    [MemberData(nameof(Samples))]
    public void SaveAndLoad_ReturnTheSameProjection(int sample)
    {
        RandomProjection projection = Sample(sample);
        byte[] file = Save(projection);
        Assert.Equal(HeaderBytes + (4 * projection.Matrix.Length) + ChecksumBytes, file.Length);
        foreach (Stream stream in new Stream[] { new MemoryStream(file), new ForwardStream(file) })
        {
            RandomProjection loaded = RandomProjection.Load(stream);
            Assert.Equal(projection, loaded);
            Assert.Equal((projection.Kind, projection.Seed, projection.RowLength, projection.IsAntithetic), (loaded.Kind, loaded.Seed, loaded.RowLength, loaded.IsAntithetic));
            Assert.Equal(file, Save(loaded));
        }
    }

    [Fact]
    public void SaveAndLoad_ThroughAFile_ReturnTheSameProjection()
    {
        string path = Path.GetTempFileName();
        try
        {
            RandomProjection projection = RandomProjection.Orthogonal(700, 130, seed: 6);
            projection.Save(path);
            Assert.Equal(projection, RandomProjection.Load(path));
            RandomProjection smaller = RandomProjection.Gaussian(2, 2, seed: 6);
            smaller.Save(path);
            Assert.Equal(smaller, RandomProjection.Load(path));
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public void Save_WritesTheDocumentedLayout()
    {
        byte[] file = Save(RandomProjection.FromMatrix(1, 2, [1f, -2f]));
        string expected = "477075417474 6E57 01000000 01000000 02000000 00 00 00 00 0000000000000000 0000803F 000000C0".Replace(" ", "", StringComparison.Ordinal);
        Assert.Equal(expected, Convert.ToHexString(file.AsSpan(0, file.Length - ChecksumBytes)));
        Assert.Equal(SHA256.HashData(file.AsSpan(0, file.Length - ChecksumBytes)), file[^ChecksumBytes..]);
    }

    [Theory]
    [MemberData(nameof(Samples))]
    public void Load_OfAnyPrefix_IsRefused(int sample)
    {
        byte[] file = Save(Sample(sample));
        for (int length = 0; length < file.Length; length++)
        {
            Refuses(file[..length], "ends inside its");
        }
    }

    [Fact]
    public void Load_WithAnyBitAltered_IsRefused()
    {
        byte[] file = Save(Sample(1));
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
        byte[] file = Save(Sample(0));
        for (int i = 0; i < 2000; i++)
        {
            // Half of them with the right beginning, so that noise gets past the first checks.
            byte[] noise = new byte[random.Next(0, 300)];
            for (int b = 0; b < noise.Length; b++)
            {
                noise[b] = (byte)random.NextWord();
            }

            if (random.NextBool())
            {
                file.AsSpan(0, Math.Min(noise.Length, random.Next(8, 24))).CopyTo(noise);
            }

            Refuses(noise, "");
        }
    }

    [Fact]
    public void Load_OfAnotherFile_SaysWhatIsWrong()
    {
        byte[] file = Save(Sample(0));
        Refuses([.. file, 0], "after its end");
        Refuses(Altered(file, 0, 0x50), "does not begin with its mark");
        Refuses(Altered(file, 8, 2), "version 2");
        Refuses(Altered(file, 20, 3), "unknown recipe");
        Refuses(Altered(file, 21, 2), "unknown recipe");
        Refuses(Altered(file, 22, 2), "unknown recipe");
        Refuses(Altered(file, 23, 1), "unknown recipe");
        byte[] altered = [.. file];
        altered[40]++;
        Refuses(altered, "altered");
    }

    [Fact]
    public void Load_OfLiesUnderARightChecksum_SaysWhatIsWrong()
    {
        byte[] file = Save(Sample(0));
        BinaryPrimitives.WriteSingleLittleEndian(file.AsSpan(HeaderBytes + 8), float.PositiveInfinity);
        Refuses(Reseal(file), "column 2");
        Refuses(Altered(Save(Sample(0)), 22, 1), "negated first");
        Refuses(Altered(Save(RandomProjection.Gaussian(4, 4, 1)), 22, 1), "negated first");
        Refuses(Altered(Save(Sample(3)), 24, 1), "unknown recipe");
    }

    [Theory]
    [InlineData(0, 5)]
    [InlineData(5, 0)]
    [InlineData(-1, 5)]
    [InlineData(int.MinValue, int.MinValue)]
    [InlineData(65536, 65536)]
    [InlineData(int.MaxValue, int.MaxValue)]
    public void Load_OfImpossibleSizes_IsRefused(int m, int d) => Refuses(Reseal(WithSizes(m, d)), "impossible sizes");

    [Fact]
    public void Load_OfAHeaderThatLies_AllocatesLittle()
    {
        byte[] file = WithSizes(40_000, 40_000);
        long before = GC.GetAllocatedBytesForCurrentThread();
        Refuses(file, "ends inside its matrix");
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 4 << 20);
    }

    private static RandomProjection Sample(int sample) => sample switch
    {
        0 => RandomProjection.Orthogonal(5, 3, seed: 0x0123_4567_89AB_CDEF),
        1 => RandomProjection.Gaussian(2, 4, seed: 5, RowLength.SqrtDimension),
        2 => RandomProjection.Orthogonal(3, 2, seed: 1).ToAntithetic(),
        _ => RandomProjection.FromMatrix(2, 2, [1, 2, 3, 4]),
    };

    private static byte[] Save(RandomProjection projection)
    {
        var stream = new MemoryStream();
        projection.Save(stream);
        return stream.ToArray();
    }

    private static byte[] WithSizes(int m, int d)
    {
        byte[] file = Save(Sample(0));
        BinaryPrimitives.WriteInt32LittleEndian(file.AsSpan(12), m);
        BinaryPrimitives.WriteInt32LittleEndian(file.AsSpan(16), d);
        return file;
    }

    private static byte[] Altered(byte[] file, int at, byte value)
    {
        byte[] altered = [.. file];
        altered[at] = value;
        return Reseal(altered);
    }

    private static byte[] Reseal(byte[] file)
    {
        SHA256.HashData(file.AsSpan(0, file.Length - ChecksumBytes), file.AsSpan(file.Length - ChecksumBytes));
        return file;
    }

    private static void Refuses(byte[] file, string message)
    {
        foreach (Stream stream in new Stream[] { new MemoryStream(file), new ForwardStream(file) })
        {
            InvalidDataException exception = Assert.Throws<InvalidDataException>(() => RandomProjection.Load(stream));
            Assert.Contains(message, exception.Message, StringComparison.Ordinal);
        }
    }
}
