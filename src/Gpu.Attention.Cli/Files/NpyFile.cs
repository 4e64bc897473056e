using System.Buffers.Binary;
using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Gpu.Attention.Cli.Files;

/// <summary>An array of an <c>.npy</c> file, as float32 whatever was stored.</summary>
internal sealed record NpyArray(int[] Shape, float[] Data);

/// <summary>
/// Reads and writes <c>.npy</c> arrays of floating-point numbers: versions 1.0 to 3.0, float32 and float64, C order, either endianness.
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

    /// <summary>Reads the elements that follow a header.</summary>
    /// <param name="stream">The stream, at the first element.</param>
    /// <param name="name">What to call it in messages.</param>
    /// <param name="header">Its header.</param>
    /// <param name="available">The bytes that are really there; null when that is known only at the end.</param>
    public static NpyArray ReadElements(Stream stream, string name, NpyHeader header, long? available)
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

        int elements = (int)header.Elements;
        float[] data = new float[available is null ? Math.Min(elements, BlockElements) : elements];
        byte[] wide = header.Type == NpyType.Double ? new byte[Math.Min(elements, BlockElements) * sizeof(double)] : [];
        bool swap = header.IsBigEndian == BitConverter.IsLittleEndian;
        for (int done = 0; done < elements;)
        {
            if (done == data.Length)
            {
                Array.Resize(ref data, (int)Math.Min(elements, 2L * data.Length));
            }

            Span<float> block = data.AsSpan(done, Math.Min(BlockElements, data.Length - done));
            if (header.Type == NpyType.Single)
            {
                Fill(stream, MemoryMarshal.AsBytes(block), name, header, done);
                if (swap)
                {
                    Span<int> bits = MemoryMarshal.Cast<float, int>(block);
                    BinaryPrimitives.ReverseEndianness(bits, bits);
                }
            }
            else
            {
                Span<byte> bytes = wide.AsSpan(0, block.Length * sizeof(double));
                Fill(stream, bytes, name, header, done);
                if (swap)
                {
                    Span<long> bits = MemoryMarshal.Cast<byte, long>(bytes);
                    BinaryPrimitives.ReverseEndianness(bits, bits);
                }

                TensorPrimitives.ConvertTruncating<double, float>(MemoryMarshal.Cast<byte, double>(bytes), block);
            }

            done += block.Length;
        }

        return available is null && stream.ReadByte() >= 0
            ? throw new InvalidDataException($"{name}: there is more than the {header.DataBytes} bytes of elements that the header declares.")
            : new NpyArray(header.Shape, data);
    }

    /// <summary>Writes a little-endian float32 array in C order.</summary>
    public static void Write(Stream stream, ReadOnlySpan<int> shape, ReadOnlySpan<float> data, CancellationToken cancellationToken = default)
    {
        stream.Write(NpyHeader.ForSingle(shape));
        int[] swapped = BitConverter.IsLittleEndian ? [] : new int[BlockElements];
        for (int done = 0; done < data.Length; done += BlockElements)
        {
            cancellationToken.ThrowIfCancellationRequested();
            ReadOnlySpan<float> block = data.Slice(done, Math.Min(BlockElements, data.Length - done));
            if (!BitConverter.IsLittleEndian)
            {
                BinaryPrimitives.ReverseEndianness(MemoryMarshal.Cast<float, int>(block), swapped);
                block = MemoryMarshal.Cast<int, float>(swapped)[..block.Length];
            }

            stream.Write(MemoryMarshal.AsBytes(block));
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
}
