using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace Gpu.Attention.Samples.Training;

/// <summary>A measurement along the way.</summary>
/// <param name="Step">Steps so far.</param>
/// <param name="Seconds">What they took, without measurements.</param>
/// <param name="Loss">The measured loss, in nats a symbol.</param>
internal readonly record struct CurvePoint(int Step, double Seconds, double Loss);

/// <summary>All that training needs to go on as if it had never stopped.</summary>
/// <param name="Settings">What is trained; only the same may go on.</param>
/// <param name="Device">Where attention ran; another gives other bits.</param>
/// <param name="Step">Steps so far.</param>
/// <param name="Seconds">What they took.</param>
/// <param name="RandomState">What decides the next batches.</param>
/// <param name="Draws">Where the schedule of random features stands.</param>
/// <param name="Values">The parameters.</param>
/// <param name="First">AdamW's running means of gradients.</param>
/// <param name="Second">AdamW's running means of their squares.</param>
/// <param name="Curve">The measurements so far.</param>
internal sealed record Checkpoint(
    string Settings, string Device, int Step, double Seconds, ulong RandomState, ProjectionPosition Draws, float[] Values, float[] First, float[] Second,
    IReadOnlyList<CurvePoint> Curve)
{
    private const int Version = 1;

    private static readonly byte[] Magic = "GATRAIN\n"u8.ToArray();

    /// <summary>Writes the file. What stood there before stays whole until the new one is.</summary>
    public void Save(string path)
    {
        using var memory = new MemoryStream();
        using (var writer = new BinaryWriter(memory, Encoding.UTF8, leaveOpen: true))
        {
            writer.Write(Magic);
            writer.Write(Version);
            writer.Write(Settings);
            writer.Write(Device);
            writer.Write(Step);
            writer.Write(Seconds);
            writer.Write(RandomState);
            writer.Write(Draws.Seed);
            writer.Write(Draws.Draw);
            writer.Write(Draws.Steps);
            writer.Write(Values.Length);
            foreach (float[] array in new[] { Values, First, Second })
            {
                foreach (float value in array)
                {
                    writer.Write(value);
                }
            }

            writer.Write(Curve.Count);
            foreach (CurvePoint point in Curve)
            {
                writer.Write(point.Step);
                writer.Write(point.Seconds);
                writer.Write(point.Loss);
            }
        }

        ReadOnlySpan<byte> content = memory.GetBuffer().AsSpan(0, (int)memory.Length);
        string draft = path + ".tmp";
        using (FileStream file = File.Create(draft))
        {
            file.Write(content);
            file.Write(SHA256.HashData(content));
            file.Flush(flushToDisk: true);
        }

        File.Move(draft, path, overwrite: true);
    }

    /// <summary>Reads a file.</summary>
    /// <exception cref="InvalidDataException">It is no checkpoint, of another version, or not as it was written.</exception>
    public static Checkpoint Load(string path)
    {
        byte[] bytes = File.ReadAllBytes(path);
        if (!bytes.AsSpan().StartsWith(Magic) || bytes.Length < Magic.Length + sizeof(int) + SHA256.HashSizeInBytes)
        {
            throw new InvalidDataException($"{path} is not a checkpoint.");
        }

        int version = BinaryPrimitives.ReadInt32LittleEndian(bytes.AsSpan(Magic.Length));
        if (version != Version)
        {
            throw new InvalidDataException($"{path} is a checkpoint of version {version}; this program reads version {Version}.");
        }

        int length = bytes.Length - SHA256.HashSizeInBytes;
        if (!SHA256.HashData(bytes.AsSpan(0, length)).AsSpan().SequenceEqual(bytes.AsSpan(length)))
        {
            throw new InvalidDataException($"{path} is damaged: its checksum does not fit.");
        }

        try
        {
            return Read(path, bytes, length);
        }
        catch (Exception e) when (e is EndOfStreamException or FormatException)
        {
            throw new InvalidDataException($"{path} is damaged: it ends too early.", e);
        }
    }

    private static Checkpoint Read(string path, byte[] bytes, int length)
    {
        using var reader = new BinaryReader(new MemoryStream(bytes, 0, length), Encoding.UTF8);
        reader.BaseStream.Position = Magic.Length + sizeof(int);
        string settings = reader.ReadString();
        string device = reader.ReadString();
        int step = reader.ReadInt32();
        double seconds = reader.ReadDouble();
        ulong random = reader.ReadUInt64();
        var draws = new ProjectionPosition(reader.ReadUInt64(), reader.ReadInt64(), reader.ReadInt64());
        int count = Count(3 * sizeof(float));
        float[][] arrays = new float[3][];
        for (int i = 0; i < arrays.Length; i++)
        {
            arrays[i] = new float[count];
            foreach (ref float value in arrays[i].AsSpan())
            {
                value = reader.ReadSingle();
            }
        }

        var curve = new CurvePoint[Count(sizeof(int) + (2 * sizeof(double)))];
        foreach (ref CurvePoint point in curve.AsSpan())
        {
            point = new CurvePoint(reader.ReadInt32(), reader.ReadDouble(), reader.ReadDouble());
        }

        return new Checkpoint(settings, device, step, seconds, random, draws, arrays[0], arrays[1], arrays[2], curve);

        // Whoever wrote the file wrote its checksum too: what does not fit in it is not made room for.
        int Count(int bytesEach)
        {
            int count = reader.ReadInt32();
            return count >= 0 && count <= (length - reader.BaseStream.Position) / bytesEach
                ? count
                : throw new InvalidDataException($"{path} is damaged: {count} elements do not fit in it.");
        }
    }
}
