using System.IO.Compression;
using Gpu.Attention.Cli.Files;
using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

public class NpzFileTests
{
    [Theory]
    [InlineData(CompressionLevel.NoCompression)]
    [InlineData(CompressionLevel.Optimal)]
    public void Read_StoredAndDeflated_AreTheSame(CompressionLevel level)
    {
        using var folder = new TemporaryFolder();
        float[] data = TestData.Normal(1, 24);
        string path = Zip(folder, level, ("S.npy", NpyBytes.OfDouble([2, 3, 4], data)), ("z.npy", NpyBytes.OfDouble([24], data)));
        using var file = new NpzFile(path);
        Assert.True(file.Contains("S"));
        Assert.False(file.Contains("c"));
        Assert.Equal(data, file.Read("S", 2, 3, 4));
        Assert.Equal(data, file.Read("z", 24));
    }

    [Theory]
    [InlineData(FeatureFamily.Exponential)]
    [InlineData(FeatureFamily.Direct)]
    public void State_WrittenAndRead_IsTheSameAndStored(FeatureFamily family)
    {
        using var folder = new TemporaryFolder();
        var state = new AttentionState(2, 3, 5, 7, family);
        TestData.Normal(1, state.Sums.Length).CopyTo(state.Sums);
        TestData.Normal(2, state.Normalizers.Length).CopyTo(state.Normalizers);
        TestData.Normal(3, state.LogScale.Length).CopyTo(state.LogScale);
        using (FileStream stream = File.Create(folder["s.npz"]))
        {
            StateFile.Write(stream, state, CancellationToken.None);
        }

        var read = new AttentionState(2, 3, 5, 7, family);
        StateFile.Read(folder["s.npz"], read);
        Assert.Equal(state.Sums, read.Sums);
        Assert.Equal(state.Normalizers, read.Normalizers);
        Assert.Equal(state.LogScale, read.LogScale);
        using ZipArchive archive = ZipFile.OpenRead(folder["s.npz"]);
        Assert.Equal(family == FeatureFamily.Exponential ? ["S.npy", "z.npy", "c.npy"] : ["S.npy", "z.npy"], archive.Entries.Select(e => e.FullName));
        Assert.All(archive.Entries, e => Assert.Equal(e.Length, e.CompressedLength));
    }

    [Fact]
    public void Read_StateOfAnotherFamilyOrSize_SaysSo()
    {
        using var folder = new TemporaryFolder();
        using (FileStream stream = File.Create(folder["s.npz"]))
        {
            StateFile.Write(stream, new AttentionState(1, 2, 3, 4, FeatureFamily.Direct), CancellationToken.None);
        }

        Assert.Contains("no 'c'", Assert.Throws<InvalidDataException>(
            () => StateFile.Read(folder["s.npz"], new AttentionState(1, 2, 3, 4, FeatureFamily.Exponential))).Message);
        Assert.Contains("[1, 2, 3, 4] where [1, 2, 3, 5] is needed", Assert.Throws<InvalidDataException>(
            () => StateFile.Read(folder["s.npz"], new AttentionState(1, 2, 3, 5, FeatureFamily.Direct))).Message);
    }

    [Fact]
    public void Read_MissingEntry_NamesIt()
    {
        using var folder = new TemporaryFolder();
        using var file = new NpzFile(Zip(folder, CompressionLevel.Optimal, ("z.npy", NpyBytes.OfDouble([1], [1]))));
        Assert.Contains("'S.npy'", Assert.Throws<InvalidDataException>(() => file.Read("S", 1)).Message);
    }

    [Fact]
    public void Open_SameEntryTwice_IsRefused()
    {
        using var folder = new TemporaryFolder();
        byte[] array = NpyBytes.OfDouble([1], [1]);
        string path = Zip(folder, CompressionLevel.Optimal, ("S.npy", array), ("S.npy", array));
        Assert.Contains("twice", Assert.Throws<InvalidDataException>(() => new NpzFile(path)).Message);
    }

    [Fact]
    public void Read_FlippedBitInTheData_IsNoticed()
    {
        using var folder = new TemporaryFolder();
        string path = Zip(folder, CompressionLevel.NoCompression, ("S.npy", NpyBytes.OfDouble([4], [1, 2, 3, 4])));
        byte[] bytes = File.ReadAllBytes(path);
        int data = bytes.AsSpan().IndexOf("}\n"u8) + 2;
        bytes[data + 5] ^= 1;
        File.WriteAllBytes(path, bytes);
        using var file = new NpzFile(path);
        Assert.Contains("checksum", Assert.Throws<InvalidDataException>(() => file.Read("S", 4)).Message);
    }

    [Fact]
    public void Read_ArchiveThatUnpacksToMuch_AllocatesLittle()
    {
        using var folder = new TemporaryFolder();
        byte[] zeros = new byte[64 << 20];
        string huge = Zip(folder, CompressionLevel.SmallestSize, ("S.npy", NpyBytes.Make("{'descr': '<f4', 'fortran_order': False, 'shape': (16777216,), }", zeros)));
        Assert.InRange(new FileInfo(huge).Length, 0, 1 << 20);
        AssertSmallFailure(huge, "[16777216] where [4] is needed");

        string lying = Zip(folder, CompressionLevel.SmallestSize, ("S.npy", NpyBytes.Make("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", zeros)));
        AssertSmallFailure(lying, "more than the 16 bytes");

        static void AssertSmallFailure(string path, string fragment)
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            using var file = new NpzFile(path);
            Assert.Contains(fragment, Assert.Throws<InvalidDataException>(() => file.Read("S", 4)).Message);
            Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 1 << 20);
        }
    }

    [Theory]
    [InlineData(CompressionLevel.NoCompression)]
    [InlineData(CompressionLevel.Optimal)]
    public void Read_MutatedArchives_AreReadOrRefused(CompressionLevel level)
    {
        using var folder = new TemporaryFolder();
        float[] data = TestData.Normal(1, 24);
        byte[] original = File.ReadAllBytes(Zip(folder, level, ("S.npy", NpyBytes.OfDouble([2, 3, 4], data)), ("z.npy", NpyBytes.OfDouble([24], data))));
        Law.ForAll(1000, seed: 1, random => Mutation.Apply(random, original), bytes =>
        {
            try
            {
                using var file = new NpzFile(folder.WriteBytes("m.npz", bytes));
                Assert.Equal(data, file.Read("S", 2, 3, 4));
                Assert.Equal(data, file.Read("z", 24));
            }
            catch (InvalidDataException exception)
            {
                Assert.StartsWith(folder["m.npz"], exception.Message);
            }
        });
    }

    private static string Zip(TemporaryFolder folder, CompressionLevel level, params (string Name, byte[] Content)[] entries)
    {
        string path = folder["a.npz"];
        using FileStream stream = File.Create(path);
        using var archive = new ZipArchive(stream, ZipArchiveMode.Create);
        foreach ((string name, byte[] content) in entries)
        {
            using Stream entry = archive.CreateEntry(name, level).Open();
            entry.Write(content);
        }

        return path;
    }
}
