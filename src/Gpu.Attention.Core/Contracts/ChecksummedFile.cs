using System.Buffers.Binary;
using System.Security.Cryptography;

namespace Gpu.Attention;

/// <summary>Writes a file of this library: little-endian, and at the end the SHA-256 of all before.</summary>
internal sealed class ChecksummedWriter(Stream stream) : IDisposable
{
    private readonly IncrementalHash _hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
    private readonly byte[] _block = new byte[ChecksummedReader.BlockElements * sizeof(float)];

    public void Write(ReadOnlySpan<byte> bytes)
    {
        _hash.AppendData(bytes);
        stream.Write(bytes);
    }

    public void Write(ReadOnlySpan<float> values)
    {
        while (values.Length > 0)
        {
            int count = Math.Min(ChecksummedReader.BlockElements, values.Length);
            for (int i = 0; i < count; i++)
            {
                BinaryPrimitives.WriteSingleLittleEndian(_block.AsSpan(i * sizeof(float)), values[i]);
            }

            Write(_block.AsSpan(0, count * sizeof(float)));
            values = values[count..];
        }
    }

    /// <summary>Writes the checksum.</summary>
    public void End() => stream.Write(_hash.GetHashAndReset());

    public void Dispose() => _hash.Dispose();
}

/// <summary>Reads a file of this library, from a stream's position to its end.</summary>
/// <param name="stream">The stream, taken for untrusted.</param>
/// <param name="kind">What it should hold, for messages: "projection file".</param>
internal sealed class ChecksummedReader(Stream stream, string kind) : IDisposable
{
    /// <summary>Numbers that are read at a time.</summary>
    public const int BlockElements = 1 << 16;

    private readonly IncrementalHash _hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);

    /// <summary>Reads bytes.</summary>
    /// <exception cref="InvalidDataException">The stream ends before.</exception>
    public void Read(Span<byte> destination, string part)
    {
        Fill(destination, part);
        _hash.AppendData(destination);
    }

    /// <summary>Reads and checks the mark and the version that a file begins with; 12 bytes.</summary>
    /// <exception cref="InvalidDataException">They are others.</exception>
    public void ReadMark(ReadOnlySpan<byte> mark, int version)
    {
        Span<byte> bytes = stackalloc byte[12];
        Read(bytes, "header");
        if (!bytes[..8].SequenceEqual(mark))
        {
            throw new InvalidDataException($"This is no {kind}: it does not begin with its mark.");
        }

        int actual = BinaryPrimitives.ReadInt32LittleEndian(bytes[8..]);
        if (actual != version)
        {
            throw new InvalidDataException($"The {kind} has version {actual}; only version {version} is known.");
        }
    }

    /// <summary>Reads float32 numbers. Takes memory as the stream delivers, and never for what a header merely claims.</summary>
    /// <exception cref="InvalidDataException">The stream ends before.</exception>
    public float[] ReadFloats(int count, string part)
    {
        if (stream.CanSeek && stream.Length - stream.Position < (long)count * sizeof(float))
        {
            throw Truncated(part);
        }

        // A stream that can't tell its length gets memory as it delivers, at most twice as much as it has delivered.
        float[] values = new float[stream.CanSeek ? count : Math.Min(count, BlockElements)];
        byte[] block = new byte[Math.Min(BlockElements, count) * sizeof(float)];
        for (int done = 0; done < count;)
        {
            if (done == values.Length)
            {
                Array.Resize(ref values, (int)Math.Min(count, 2L * done));
            }

            int next = Math.Min(BlockElements, values.Length - done);
            Span<byte> bytes = block.AsSpan(0, next * sizeof(float));
            Read(bytes, part);
            for (int i = 0; i < next; i++)
            {
                values[done + i] = BinaryPrimitives.ReadSingleLittleEndian(bytes[(i * sizeof(float))..]);
            }

            done += next;
        }

        return values;
    }

    /// <summary>Reads and checks the checksum, and that nothing follows it.</summary>
    /// <exception cref="InvalidDataException">The content was altered, or the file goes on.</exception>
    public void End()
    {
        Span<byte> checksum = stackalloc byte[SHA256.HashSizeInBytes];
        Fill(checksum, "checksum");
        if (!_hash.GetHashAndReset().AsSpan().SequenceEqual(checksum))
        {
            throw new InvalidDataException($"The {kind} was altered: its checksum does not fit its content.");
        }

        if (stream.ReadByte() >= 0)
        {
            throw new InvalidDataException($"The {kind} goes on after its end.");
        }
    }

    public void Dispose() => _hash.Dispose();

    private void Fill(Span<byte> destination, string part)
    {
        if (stream.ReadAtLeast(destination, destination.Length, throwOnEndOfStream: false) < destination.Length)
        {
            throw Truncated(part);
        }
    }

    private InvalidDataException Truncated(string part) => new($"The {kind} ends inside its {part}.");
}
