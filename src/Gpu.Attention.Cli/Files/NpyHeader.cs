using System.Buffers.Binary;
using System.Globalization;
using System.Text;

namespace Gpu.Attention.Cli.Files;

/// <summary>The element types that are read.</summary>
internal enum NpyType
{
    Half,
    Single,
    Double,

    /// <summary>A byte that is 0 or 1, of bool or uint8.</summary>
    Flag,
}

/// <summary>What an array is read for, which decides the element types that it may have.</summary>
internal enum NpyContent
{
    Numbers,
    Mask,
}

/// <summary>What the header of an <c>.npy</c> stream declares.</summary>
internal sealed record NpyHeader(NpyType Type, bool IsBigEndian, int[] Shape, long Elements)
{
    private const int MaxHeaderLength = 1 << 16;
    private const int MaxRank = 32;

    public int ElementBytes => Type switch
    {
        NpyType.Flag => 1,
        NpyType.Half => 2,
        NpyType.Single => sizeof(float),
        _ => sizeof(double),
    };

    public long DataBytes => Elements * ElementBytes;

    private static ReadOnlySpan<byte> Magic => [0x93, (byte)'N', (byte)'U', (byte)'M', (byte)'P', (byte)'Y'];

    /// <summary>Reads the header and leaves the stream at the first element.</summary>
    /// <exception cref="InvalidDataException">The stream does not start with a header of such an array.</exception>
    public static NpyHeader Read(Stream stream, string name, NpyContent content = NpyContent.Numbers)
    {
        Span<byte> prefix = stackalloc byte[8];
        Fill(stream, prefix, name);
        if (!prefix[..6].SequenceEqual(Magic))
        {
            throw new InvalidDataException($"{name}: not an .npy file (the first bytes are not \\x93NUMPY).");
        }

        int major = prefix[6];
        if (major is < 1 or > 3 || prefix[7] != 0)
        {
            throw new InvalidDataException($"{name}: .npy version {major}.{prefix[7]} is not known; 1.0, 2.0 and 3.0 are.");
        }

        Span<byte> lengthBytes = stackalloc byte[4];
        lengthBytes.Clear();
        Fill(stream, lengthBytes[..(major == 1 ? 2 : 4)], name);
        uint length = BinaryPrimitives.ReadUInt32LittleEndian(lengthBytes);
        if (length > MaxHeaderLength)
        {
            throw new InvalidDataException($"{name}: the header declares a length of {length} bytes; at most {MaxHeaderLength} are read.");
        }

        byte[] text = new byte[length];
        Fill(stream, text, name);
        return Parse((major == 3 ? Encoding.UTF8 : Encoding.Latin1).GetString(text), name, content);
    }

    /// <summary>A version 1.0 header, padded so that the elements start at a multiple of 64.</summary>
    public static byte[] For(string descriptor, ReadOnlySpan<int> shape)
    {
        const int PrefixLength = 10;
        const int Alignment = 64;
        var tuple = new StringBuilder("(");
        foreach (int size in shape)
        {
            tuple.Append(CultureInfo.InvariantCulture, $"{size}, ");
        }

        if (shape.Length > 0)
        {
            tuple.Length -= shape.Length == 1 ? 1 : 2;
        }

        string text = $"{{'descr': '{descriptor}', 'fortran_order': False, 'shape': {tuple}), }}";
        int total = (PrefixLength + text.Length + 1 + Alignment - 1) / Alignment * Alignment;
        byte[] header = new byte[total];
        Magic.CopyTo(header);
        header[6] = 1;
        BinaryPrimitives.WriteUInt16LittleEndian(header.AsSpan(8), (ushort)(total - PrefixLength));
        Encoding.ASCII.GetBytes(text.PadRight(total - PrefixLength - 1) + "\n", header.AsSpan(PrefixLength));
        return header;
    }

    public static string Describe(ReadOnlySpan<int> shape) => $"[{string.Join(", ", shape.ToArray())}]";

    private static NpyHeader Parse(string text, string name, NpyContent content)
    {
        var parser = new NpyHeaderParser(text, name);
        (string descriptor, bool fortranOrder, int[] shape) = parser.Parse();
        (NpyType type, bool isBigEndian) = ParseType(descriptor, name, content);
        if (fortranOrder)
        {
            throw new InvalidDataException($"{name}: the array is in Fortran order; save it in C order (numpy.ascontiguousarray).");
        }

        if (shape.Length > MaxRank)
        {
            throw new InvalidDataException($"{name}: the array has {shape.Length} dimensions; at most {MaxRank} are read.");
        }

        Int128 elements = 1;
        foreach (int size in shape)
        {
            // Each factor is below 2^31 and the product is cut at 2^64, so 128 bits never overflow; a later zero still makes it zero.
            elements = Int128.Min(elements * size, (Int128)1 << 64);
        }

        return elements > 1L << 60
            ? throw new InvalidDataException($"{name}: the shape {Describe(shape)} has more elements than can be addressed.")
            : new NpyHeader(type, isBigEndian, shape, (long)elements);
    }

    private static (NpyType Type, bool IsBigEndian) ParseType(string descriptor, string name, NpyContent content)
    {
        bool isBigEndian = descriptor.StartsWith('>');
        string kind = descriptor.TrimStart('<', '>', '=', '|');
        return descriptor.Length - kind.Length > 1
            ? throw UnknownType(descriptor, name, content)
            : (content, kind) switch
            {
                (NpyContent.Numbers, "f2") => (NpyType.Half, isBigEndian),
                (NpyContent.Numbers, "f4") => (NpyType.Single, isBigEndian),
                (NpyContent.Numbers, "f8") => (NpyType.Double, isBigEndian),
                (NpyContent.Mask, "b1" or "u1") => (NpyType.Flag, isBigEndian),
                _ => throw UnknownType(descriptor, name, content),
            };
    }

    private static InvalidDataException UnknownType(string descriptor, string name, NpyContent content)
    {
        string known = descriptor.TrimStart('<', '>', '=', '|') switch
        {
            "f2" => "float16 ",
            "f4" => "float32 ",
            "f8" => "float64 ",
            "c8" => "complex64 ",
            "c16" => "complex128 ",
            "i1" => "int8 ",
            "i2" => "int16 ",
            "i4" => "int32 ",
            "i8" => "int64 ",
            "u1" => "uint8 ",
            "u2" => "uint16 ",
            "u4" => "uint32 ",
            "u8" => "uint64 ",
            "b1" => "bool ",
            "O" => "Python objects ",
            _ => "",
        };
        string accepted = content == NpyContent.Mask
            ? "a mask has bool ('|b1') or uint8 ('|u1')" : "float16 ('<f2'), float32 ('<f4') and float64 ('<f8') are accepted";
        return new InvalidDataException($"{name}: the elements are {known}('{Shorten(descriptor)}'); {accepted}.");
    }

    private static string Shorten(string text) => text.Length <= 32 ? text : text[..32] + "…";

    private static void Fill(Stream stream, Span<byte> destination, string name)
    {
        if (stream.ReadAtLeast(destination, destination.Length, throwOnEndOfStream: false) < destination.Length)
        {
            throw new InvalidDataException($"{name}: the file ends inside the .npy header.");
        }
    }
}
