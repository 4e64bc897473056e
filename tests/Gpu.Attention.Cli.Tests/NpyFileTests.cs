using System.Text;
using Gpu.Attention.Cli.Files;
using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

public class NpyFileTests
{
    private const string Header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    private static readonly float[] Six = [1, -2, 3.5f, float.NaN, float.PositiveInfinity, -0f];

    [Theory]
    [InlineData(new int[0])]
    [InlineData(new[] { 0 })]
    [InlineData(new[] { 7 })]
    [InlineData(new[] { 2, 3, 4, 5 })]
    [InlineData(new[] { 3, 0, 2, 1 })]
    [InlineData(new[] { 70_000, 3 })]
    public void Read_WhatWasWritten_IsTheSame(int[] shape)
    {
        using var folder = new TemporaryFolder();
        float[] data = TestData.Normal(1, shape.Aggregate(1, (a, b) => a * b));
        NpyArray array = NpyFile.Read(folder.WriteArray("a.npy", shape, data));
        Assert.Equal(shape, array.Shape);
        Assert.Equal(data, array.Data);
    }

    [Fact]
    public void Write_SmallArray_HasTheBytesThatNumpyWrites()
    {
        using var stream = new MemoryStream();
        NpyFile.Write(stream, [2, 3], Six);
        string header = Header.PadRight(117) + "\n";
        Assert.Equal([0x93, .. "NUMPY"u8, 1, 0, 118, 0, .. Encoding.ASCII.GetBytes(header), .. NpyBytes.Of(Six)], stream.ToArray());
    }

    [Theory]
    [InlineData(Header, 1)]
    [InlineData(Header, 2)]
    [InlineData(Header, 3)]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", 1)]
    [InlineData("  {\"shape\":(2,3,),\"fortran_order\":False,\"descr\":\"<f4\"}   ", 1)]
    [InlineData("{'shape': (2L, 3L), 'fortran_order': False, 'descr': '=f4', }", 1)]
    public void Read_HeadersOfOtherWriters_AreUnderstood(string header, int major)
    {
        NpyArray array = Read(NpyBytes.Make(header, NpyBytes.Of(Six), major));
        Assert.Equal([2, 3], array.Shape);
        Assert.Equal(Six, array.Data);
    }

    [Fact]
    public void Read_Float64AndBigEndian_AreConverted()
    {
        byte[] wide = NpyBytes.Of(Array.ConvertAll(Six, x => (double)x));
        Assert.Equal(Six, Read(NpyBytes.Make(Header.Replace("<f4", "<f8"), wide)).Data);
        Assert.Equal(Six, Read(NpyBytes.Make(Header.Replace("<f4", ">f8"), NpyBytes.Reversed(wide, 8))).Data);
        Assert.Equal(Six, Read(NpyBytes.Make(Header.Replace("<f4", ">f4"), NpyBytes.Reversed(NpyBytes.Of(Six), 4))).Data);
    }

    [Fact]
    public void Read_Float16_IsWidened()
    {
        byte[] narrow = NpyBytes.Of(Array.ConvertAll(Six, x => (Half)x));
        Assert.Equal(Six, Read(NpyBytes.Make(Header.Replace("<f4", "<f2"), narrow)).Data);
        Assert.Equal(Six, Read(NpyBytes.Make(Header.Replace("<f4", ">f2"), NpyBytes.Reversed(narrow, 2))).Data);
    }

    [Fact]
    public void Write_Float16_HasTheBytesThatNumpyWrites()
    {
        Half[] narrow = Array.ConvertAll(Six, x => (Half)x);
        using var stream = new MemoryStream();
        NpyFile.Write(stream, [2, 3], narrow);
        string header = Header.Replace("<f4", "<f2").PadRight(117) + "\n";
        Assert.Equal([0x93, .. "NUMPY"u8, 1, 0, 118, 0, .. Encoding.ASCII.GetBytes(header), .. NpyBytes.Of(narrow)], stream.ToArray());
    }

    [Theory]
    [InlineData("|b1")]
    [InlineData("|u1")]
    [InlineData("<u1")]
    public void ReadMask_BoolAndUint8_AreTheSame(string descriptor) =>
        Assert.Equal([true, false, true, true, false, false], ReadMask(descriptor, [1, 0, 1, 1, 0, 0]));

    [Theory]
    [InlineData("<f4", "float32 ('<f4'); a mask has bool")]
    [InlineData("<i8", "int64")]
    [InlineData("|i1", "int8")]
    public void ReadMask_OtherElements_AreRefused(string descriptor, string fragment) =>
        Assert.Contains(fragment, Assert.Throws<InvalidDataException>(() => ReadMask(descriptor, [1, 0, 1, 1, 0, 0])).Message);

    [Theory]
    [InlineData(new byte[] { 1, 0, 1, 1, 0, 2 }, "element 5 of the mask is 2")]
    [InlineData(new byte[] { 1, 255, 1, 1, 0, 0 }, "element 1 of the mask is 255")]
    [InlineData(new byte[] { 1, 0, 1, 1, 0 }, "6 bytes of elements, but the file has 5")]
    [InlineData(new byte[] { 1, 0, 1, 1, 0, 0, 0 }, "6 bytes of elements, but the file has 7")]
    public void ReadMask_OtherContent_IsRefused(byte[] content, string fragment) =>
        Assert.Contains(fragment, Assert.Throws<InvalidDataException>(() => ReadMask("|b1", content)).Message);

    [Fact]
    public void ReadMask_OfAnotherShape_IsRefusedAndAllocatesLittle()
    {
        using var folder = new TemporaryFolder();
        string path = folder.WriteBytes("a.npy", NpyBytes.Make("{'descr': '|b1', 'fortran_order': False, 'shape': (50000, 40000), }", [1, 1]));
        long before = GC.GetAllocatedBytesForCurrentThread();
        Assert.Contains("[50000, 40000] where [2, 3] is needed", Assert.Throws<InvalidDataException>(() => NpyFile.ReadMask(path, 2, 3)).Message);
        Assert.Throws<InvalidDataException>(() => NpyFile.ReadMask(path, 50_000, 40_000));
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 1 << 20);
    }

    [Fact]
    public void ReadMask_MutatedFiles_AreReadOrRefusedAndAllocateLittle()
    {
        using var folder = new TemporaryFolder();
        byte[] original = NpyBytes.Make(Header.Replace("<f4", "|b1"), [1, 0, 1, 1, 0, 0]);
        Law.ForAll(1000, seed: 2, random => Mutation.Apply(random, original), bytes =>
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            try
            {
                Assert.Equal(6, NpyFile.ReadMask(folder.WriteBytes("a.npy", bytes), 2, 3).Length);
            }
            catch (InvalidDataException exception)
            {
                Assert.StartsWith(folder["a.npy"], exception.Message);
            }

            Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 1 << 20);
        });
    }

    [Theory]
    [InlineData("{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3), }", "int64")]
    [InlineData("{'descr': '|b1', 'fortran_order': False, 'shape': (2, 3), }", "bool")]
    [InlineData("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }", "Python objects")]
    [InlineData("{'descr': '<f16', 'fortran_order': False, 'shape': (2, 3), }", "float32 ('<f4') and float64")]
    [InlineData("{'descr': '<<f4', 'fortran_order': False, 'shape': (2, 3), }", "float32 ('<f4') and float64")]
    [InlineData("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3), }", "records")]
    [InlineData("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", "Fortran order")]
    [InlineData("{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3), }", "neither True nor False")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3), }", "sizes from 0 up")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (6), }", "lacks a ','")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': [2, 3], }", "lacks a '('")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 03), }", "sizes from 0 up")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3.0), }", "lacks a ','")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 99999999999999999999), }", "2147483647")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2147483647, 2147483647, 2147483647, 2147483647), }", "more elements")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }", "32 bytes of elements, but the file has 24")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }", "16 bytes of elements, but the file has 24")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, }", "lacks 'shape'")]
    [InlineData("{'descr': '<f4', 'shape': (2, 3), }", "lacks 'fortran_order'")]
    [InlineData("{'fortran_order': False, 'shape': (2, 3), }", "lacks 'descr'")]
    [InlineData("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", "twice")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'x': 1}", "another key")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } + {}", "goes on")]
    [InlineData("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), ", "not a Python dictionary")]
    [InlineData("{'descr': '<f4, 'fortran_order': False, 'shape': (2, 3), }", "lacks a")]
    [InlineData("{'descr': '<f4", "without an end")]
    [InlineData("{'descr': '\\x3cf4', 'fortran_order': False, 'shape': (2, 3), }", "plain characters")]
    [InlineData("__import__('os').system('true')", "lacks a '{'")]
    [InlineData("", "lacks a '{'")]
    public void Read_MalformedHeader_SaysWhatIsWrong(string header, string fragment)
    {
        InvalidDataException exception = Assert.Throws<InvalidDataException>(() => Read(NpyBytes.Make(header, NpyBytes.Of(Six))));
        Assert.Contains(fragment, exception.Message);
        Assert.Contains("a.npy", exception.Message);
    }

    [Fact]
    public void Read_ManyDimensions_IsRefused() =>
        Assert.Contains("dimensions", Assert.Throws<InvalidDataException>(() => Read(NpyBytes.Make(
            Header.Replace("(2, 3)", $"({string.Concat(Enumerable.Repeat("1, ", 33))})"), [0, 0, 0, 0]))).Message);

    [Theory]
    [InlineData(0, "inside the .npy header")]
    [InlineData(5, "inside the .npy header")]
    [InlineData(9, "inside the .npy header")]
    [InlineData(40, "inside the .npy header")]
    [InlineData(90, "bytes of elements")]
    public void Read_TruncatedFile_SaysWhere(int length, string fragment) =>
        Assert.Contains(fragment, Assert.Throws<InvalidDataException>(() => Read(NpyBytes.Make(Header, NpyBytes.Of(Six))[..length])).Message);

    [Fact]
    public void Read_OtherFiles_AreRefused()
    {
        Assert.Contains("not an .npy file", Assert.Throws<InvalidDataException>(() => Read("PK\u0003\u0004 and so on"u8.ToArray())).Message);
        byte[] future = NpyBytes.Make(Header, NpyBytes.Of(Six));
        future[6] = 4;
        Assert.Contains("version 4.0", Assert.Throws<InvalidDataException>(() => Read(future)).Message);
    }

    [Theory]
    [InlineData("(2000000000,)")]
    [InlineData("(1, 500000, 32, 128)")]
    [InlineData("(1073741824, 1073741824)")]
    public void Read_HugeShapeInASmallFile_AllocatesLittle(string shape)
    {
        byte[] bytes = NpyBytes.Make(Header.Replace("(2, 3)", shape), NpyBytes.Of(Six));
        using var folder = new TemporaryFolder();
        string path = folder.WriteBytes("a.npy", bytes);
        long before = GC.GetAllocatedBytesForCurrentThread();
        Assert.Throws<InvalidDataException>(() => NpyFile.Read(path));
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 1 << 20);
    }

    [Fact]
    public void Read_HugeHeaderLength_AllocatesLittle()
    {
        byte[] bytes = NpyBytes.Make(Header, NpyBytes.Of(Six), major: 2);
        bytes.AsSpan(8, 4).Fill(0x7f);
        long before = GC.GetAllocatedBytesForCurrentThread();
        Assert.Contains("header", Assert.Throws<InvalidDataException>(() => Read(bytes)).Message);
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 1 << 20);
    }

    [Fact]
    public void ReadElements_LengthUnknownAndDeclarationHuge_AllocatesWhatArrives()
    {
        using var stream = new MemoryStream(new byte[1000]);
        var header = new NpyHeader(NpyType.Single, IsBigEndian: false, [2_000_000_000], 2_000_000_000);
        long before = GC.GetAllocatedBytesForCurrentThread();
        Assert.Contains("end after 1000", Assert.Throws<InvalidDataException>(() => NpyFile.ReadElements(stream, "pipe", header, available: null)).Message);
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 1 << 20);
    }

    [Fact]
    public void ReadElements_LengthUnknownAndMoreToCome_IsRefused()
    {
        using var stream = new MemoryStream(new byte[12]);
        var header = new NpyHeader(NpyType.Single, IsBigEndian: false, [2], 2);
        Assert.Contains("more than", Assert.Throws<InvalidDataException>(() => NpyFile.ReadElements(stream, "pipe", header, available: null)).Message);
    }

    [Fact]
    public void Read_MutatedFiles_AreReadOrRefusedAndAllocateLittle()
    {
        using var folder = new TemporaryFolder();
        byte[][] seeds =
        [
            NpyBytes.Make(Header, NpyBytes.Of(Six)),
            NpyBytes.Make(Header, NpyBytes.Of(Six), major: 2),
            NpyBytes.Make(Header, NpyBytes.Of(Six), major: 3),
            NpyBytes.OfDouble([1, 2, 3, 1], Six),
            NpyBytes.Make(Header.Replace("<f4", "<f2"), NpyBytes.Of(Array.ConvertAll(Six, x => (Half)x))),
        ];
        Law.ForAll(2000, seed: 1, random => Mutation.Apply(random, random.Choose(seeds)), bytes =>
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            try
            {
                NpyArray array = NpyFile.Read(folder.WriteBytes("a.npy", bytes));
                Assert.Equal(array.Shape.Aggregate(1L, (a, b) => a * b), array.Data.LongLength);
            }
            catch (InvalidDataException exception)
            {
                Assert.StartsWith(folder["a.npy"], exception.Message);
            }

            Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 1 << 20);
        });
    }

    private static NpyArray Read(byte[] bytes)
    {
        using var folder = new TemporaryFolder();
        return NpyFile.Read(folder.WriteBytes("a.npy", bytes));
    }

    private static bool[] ReadMask(string descriptor, byte[] content)
    {
        using var folder = new TemporaryFolder();
        return NpyFile.ReadMask(folder.WriteBytes("a.npy", NpyBytes.Make(Header.Replace("<f4", descriptor), content)), 2, 3);
    }
}
