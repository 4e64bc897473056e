using System.Buffers.Binary;
using System.IO.Compression;

namespace Gpu.Attention.Samples.Weights;

/// <summary>A colour, 8 bits each.</summary>
internal readonly record struct Color(byte Red, byte Green, byte Blue);

/// <summary>A picture of 24 bits a pixel that can be saved as PNG (RFC 2083).</summary>
internal sealed class Bitmap
{
    private readonly byte[] _pixels;

    public Bitmap(int width, int height, Color background)
    {
        (Width, Height) = (width, height);
        _pixels = new byte[checked(3 * width * height)];
        Fill(0, 0, width, height, background);
    }

    public int Width { get; }

    public int Height { get; }

    /// <summary>Fills a rectangle.</summary>
    public void Fill(int left, int top, int width, int height, Color color)
    {
        for (int y = top; y < top + height; y++)
        {
            for (int x = left; x < left + width; x++)
            {
                int at = 3 * ((y * Width) + x);
                (_pixels[at], _pixels[at + 1], _pixels[at + 2]) = (color.Red, color.Green, color.Blue);
            }
        }
    }

    public void Save(Stream stream)
    {
        stream.Write([0x89, (byte)'P', (byte)'N', (byte)'G', 0x0D, 0x0A, 0x1A, 0x0A]);

        byte[] header = new byte[13];
        BinaryPrimitives.WriteInt32BigEndian(header, Width);
        BinaryPrimitives.WriteInt32BigEndian(header.AsSpan(4), Height);
        (header[8], header[9]) = (8, 2); // bits a sample; red, green and blue
        WriteChunk(stream, "IHDR"u8, header);

        using var data = new MemoryStream();
        using (var zlib = new ZLibStream(data, CompressionLevel.Optimal, leaveOpen: true))
        {
            for (int y = 0; y < Height; y++)
            {
                zlib.WriteByte(0); // rows are stored as they are
                zlib.Write(_pixels, 3 * y * Width, 3 * Width);
            }
        }

        WriteChunk(stream, "IDAT"u8, data.ToArray());
        WriteChunk(stream, "IEND"u8, []);
    }

    /// <summary>CRC-32 as PNG and zip have it, of several parts in a row.</summary>
    public static uint Crc32(params ReadOnlySpan<byte[]> parts)
    {
        uint crc = uint.MaxValue;
        foreach (byte[] part in parts)
        {
            foreach (byte value in part)
            {
                crc ^= value;
                for (int bit = 0; bit < 8; bit++)
                {
                    crc = (crc >> 1) ^ (0xEDB88320 & (0 - (crc & 1)));
                }
            }
        }

        return ~crc;
    }

    private static void WriteChunk(Stream stream, ReadOnlySpan<byte> type, byte[] data)
    {
        Span<byte> number = stackalloc byte[4];
        BinaryPrimitives.WriteInt32BigEndian(number, data.Length);
        stream.Write(number);
        stream.Write(type);
        stream.Write(data);
        BinaryPrimitives.WriteUInt32BigEndian(number, Crc32(type.ToArray(), data));
        stream.Write(number);
    }
}
