using System.Buffers.Binary;
using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Gpu.Attention.Cli.Files;

/// <summary>An array of an <c>.npy</c> file, as float32 whatever was stored.</summary>
internal sealed record NpyArray(int[] Shape, float[] Data);

/// <summary>
/// Reads and writes <c>.npy</c> arrays: versions 1.0 to 3.0, float16, float32 and float64, masks of bool and uint8, C order, either endianness.
/// </summary>
/// <remarks>
/// A header is not believed. No more is allocated than the file is long, or, where the length cannot be known, than has already arrived.
/// </remarks>
internal static class NpyFile
{
    private const int BlockElements = 1 << 16;

    /// <exception cref="InvalidDataException">The file is not an array that can be read; the message names the file and says why.</exception>
    public static NpyArray Read(string path)
    {
        using FileStream stream = File.OpenRead(path);
        NpyHeader header = NpyHeader.Read(stream, path);
        return ReadElements(stream, path, header, stream.CanSeek ? stream.Length - stream.Position : null);
    }

    /// <summary>Reads a mask, of the shape that the caller expects.</summary>
    /// <param name="path">The file.</param>
    /// <param name="shape">The shape it must have: what bounds the memory that a file can ask for.</param>
    /// <exception cref="InvalidDataException">The file is no mask, or one of another shape; the message names the file and says why.</exception>
    public static bool[] ReadMask(string path, params ReadOnlySpan<int> shape)
    {
        using FileStream stream = File.OpenRead(path);
        NpyHeader header = NpyHeader.Read(stream, path, NpyContent.Mask);
        if (!header.Shape.AsSpan().SequenceEqual(shape))
        {
            throw new InvalidDataException($"{path}: the mask is {NpyHeader.Describe(header.Shape)} where {NpyHeader.Describe(shape)} is needed.");
        }

        RequireLength(path, header, stream.CanSeek ? stream.Length - stream.Position : null);
        bool[] mask = new bool[header.Elements];
        Span<byte> bytes = MemoryMarshal.AsBytes(mask.AsSpan());
        Fill(stream, bytes, path, header, 0);

        // Numbers of segments, or lengths, are no mask, and a bool of another byte than 0 and 1 would be neither true nor false.
        int other = bytes.IndexOfAnyExceptInRange((byte)0, (byte)1);
        return other >= 0 ? throw new InvalidDataException($"{path}: element {other} of the mask is {bytes[other]}; a mask has 0 and 1.")
            : !stream.CanSeek && stream.ReadByte() >= 0 ? throw TooMuch(path, header)
            : mask;
    }

    /// <summary>Reads the elements that follow a header.</summary>
    /// <param name="stream">The stream, at the first element.</param>
    /// <param name="name">What to call it in messages.</param>
    /// <param name="header">Its header.</param>
    /// <param name="available">The bytes that are really there; null when that is known only at the end.</param>
    public static NpyArray ReadElements(Stream stream, string name, NpyHeader header, long? available)
    {
        RequireLength(name, header, available);
        int elements = (int)header.Elements;
        float[] data = new float[available is null ? Math.Min(elements, BlockElements) : elements];
        byte[] stored = header.Type == NpyType.Single ? [] : new byte[Math.Min(elements, BlockElements) * header.ElementBytes];
        bool swap = header.IsBigEndian == BitConverter.IsLittleEndian;
        for (int done = 0; done < elements;)
        {
            if (done == data.Length)
            {
                Array.Resize(ref data, (int)Math.Min(elements, 2L * data.Length));
            }

            Span<float> block = data.AsSpan(done, Math.Min(BlockElements, data.Length - done));
            Span<byte> bytes = header.Type == NpyType.Single ? MemoryMarshal.AsBytes(block) : stored.AsSpan(0, block.Length * header.ElementBytes);
            Fill(stream, bytes, name, header, done);
            if (swap)
            {
                Swap(bytes, header.ElementBytes);
            }

            if (header.Type == NpyType.Double)
            {
                TensorPrimitives.ConvertTruncating<double, float>(MemoryMarshal.Cast<byte, double>(bytes), block);
            }
            else if (header.Type == NpyType.Half)
            {
                TensorPrimitives.ConvertToSingle(MemoryMarshal.Cast<byte, Half>(bytes), block);
            }

            done += block.Length;
        }

        return available is null && stream.ReadByte() >= 0
            ? throw TooMuch(name, header)
            : new NpyArray(header.Shape, data);
    }

    /// <summary>Writes a little-endian float32 array in C order.</summary>
    public static void Write(Stream stream, ReadOnlySpan<int> shape, ReadOnlySpan<float> data, CancellationToken cancellationToken = default)
    {
        stream.Write(NpyHeader.For("<f4", shape));
        WriteElements(stream, data, cancellationToken);
    }

    /// <summary>Writes a little-endian float16 array in C order.</summary>
    public static void Write(Stream stream, ReadOnlySpan<int> shape, ReadOnlySpan<Half> data, CancellationToken cancellationToken = default)
    {
        stream.Write(NpyHeader.For("<f2", shape));
        WriteElements(stream, data, cancellationToken);
    }

    private static void WriteElements<T>(Stream stream, ReadOnlySpan<T> data, CancellationToken cancellationToken)
        where T : unmanaged
    {
        byte[] swapped = BitConverter.IsLittleEndian ? [] : new byte[BlockElements * Unsafe.SizeOf<T>()];
        for (int done = 0; done < data.Length; done += BlockElements)
        {
            cancellationToken.ThrowIfCancellationRequested();
            ReadOnlySpan<byte> bytes = MemoryMarshal.AsBytes(data.Slice(done, Math.Min(BlockElements, data.Length - done)));
            if (!BitConverter.IsLittleEndian)
            {
                bytes.CopyTo(swapped);
                bytes = swapped.AsSpan(0, bytes.Length);
                Swap(swapped.AsSpan(0, bytes.Length), Unsafe.SizeOf<T>());
            }

            stream.Write(bytes);
        }
    }

    private static void Swap(Span<byte> elements, int elementBytes)
    {
        switch (elementBytes)
        {
            case sizeof(short):
                Span<short> shorts = MemoryMarshal.Cast<byte, short>(elements);
                BinaryPrimitives.ReverseEndianness(shorts, shorts);
                break;
            case sizeof(int):
                Span<int> ints = MemoryMarshal.Cast<byte, int>(elements);
                BinaryPrimitives.ReverseEndianness(ints, ints);
                break;
            default:
                Span<long> longs = MemoryMarshal.Cast<byte, long>(elements);
                BinaryPrimitives.ReverseEndianness(longs, longs);
                break;
        }
    }

    private static void RequireLength(string name, NpyHeader header, long? available)
    {
        if (available is not null && available != header.DataBytes)
        {
            throw new InvalidDataException(
                $"{name}: the header declares {NpyHeader.Describe(header.Shape)}, {header.DataBytes} bytes of elements, but the file has {available} bytes of them.");
        }

        if (header.Elements > Array.MaxLength)
        {
            throw new InvalidDataException(
                $"{name}: an array {NpyHeader.Describe(header.Shape)} has more elements than fit in memory at once ({Array.MaxLength}).");
        }
    }

    private static void Fill(Stream stream, Span<byte> destination, string name, NpyHeader header, long done)
    {
        int read = stream.ReadAtLeast(destination, destination.Length, throwOnEndOfStream: false);
        if (read < destination.Length)
        {
            throw new InvalidDataException(
                $"{name}: the header declares {header.DataBytes} bytes of elements, but they end after {(done * header.ElementBytes) + read}.");
        }
    }

    private static InvalidDataException TooMuch(string name, NpyHeader header) =>
        new($"{name}: there is more than the {header.DataBytes} bytes of elements that the header declares.");
}
