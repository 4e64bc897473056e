using System.IO.Compression;

namespace Gpu.Attention.Cli.Files;

/// <summary>Reads and writes <c>.npz</c> archives: zip files of <c>.npy</c> arrays, stored or deflated, as numpy's savez makes them.</summary>
internal sealed class NpzFile : IDisposable
{
    private static readonly DateTimeOffset Epoch = new(1980, 1, 1, 0, 0, 0, TimeSpan.Zero);

    private readonly string _path;
    private readonly ZipArchive _archive;
    private readonly Dictionary<string, ZipArchiveEntry> _entries = [];

    /// <exception cref="InvalidDataException">The file is not an archive of arrays.</exception>
    public NpzFile(string path)
    {
        _path = path;
        FileStream stream = File.OpenRead(path);
        try
        {
            _archive = Guard(path, () => new ZipArchive(stream, ZipArchiveMode.Read));
            foreach (ZipArchiveEntry entry in Guard(path, () => _archive.Entries))
            {
                if (!_entries.TryAdd(entry.FullName, entry))
                {
                    throw new InvalidDataException($"{path}: the archive holds '{entry.FullName}' twice.");
                }
            }
        }
        catch
        {
            _archive?.Dispose();
            stream.Dispose();
            throw;
        }
    }

    public bool Contains(string name) => _entries.ContainsKey(name + ".npy");

    /// <summary>Reads one array, of the shape that the caller expects.</summary>
    /// <param name="name">The entry's name without <c>.npy</c>.</param>
    /// <param name="shape">The shape it must have: what bounds the memory that an archive can ask for, however well it compresses.</param>
    /// <exception cref="InvalidDataException">The entry is missing, damaged, or another array than expected.</exception>
    public float[] Read(string name, params int[] shape)
    {
        string label = $"{_path}, {name}.npy";
        if (!_entries.TryGetValue(name + ".npy", out ZipArchiveEntry? entry))
        {
            throw new InvalidDataException($"{_path}: the archive has no entry '{name}.npy'.");
        }

        return Guard(label, () =>
        {
            using Stream content = entry.Open();
            using var stream = new Crc32Stream(content);
            NpyHeader header = NpyHeader.Read(stream, label);
            if (!header.Shape.AsSpan().SequenceEqual(shape))
            {
                throw new InvalidDataException($"{label}: the array is {NpyHeader.Describe(header.Shape)} where {NpyHeader.Describe(shape)} is needed.");
            }

            float[] data = NpyFile.ReadElements(stream, label, header, available: null).Data;
            return stream.Crc == entry.Crc32 ? data : throw new InvalidDataException($"{label}: the entry's checksum does not match its content.");
        });
    }

    /// <summary>Writes arrays, stored, with a fixed time: the same arrays make the same bytes.</summary>
    public static void Write(Stream stream, CancellationToken cancellationToken, params ReadOnlySpan<(string Name, int[] Shape, ReadOnlyMemory<float> Data)> arrays)
    {
        using var archive = new ZipArchive(stream, ZipArchiveMode.Create, leaveOpen: true);
        foreach ((string name, int[] shape, ReadOnlyMemory<float> data) in arrays)
        {
            ZipArchiveEntry entry = archive.CreateEntry(name + ".npy", CompressionLevel.NoCompression);
            entry.LastWriteTime = Epoch;
            using Stream content = entry.Open();
            NpyFile.Write(content, shape, data.Span, cancellationToken);
        }
    }

    public void Dispose() => _archive.Dispose();

    // The zip reader throws whatever it stumbles over; to a user it is all one: the archive is damaged.
    private static T Guard<T>(string name, Func<T> read)
    {
        try
        {
            return read();
        }
        catch (Exception exception) when (exception is not OutOfMemoryException && !IsExplained(exception, name))
        {
            throw new InvalidDataException($"{name}: the archive cannot be read: {exception.Message}", exception);
        }
    }

    private static bool IsExplained(Exception exception, string name) =>
        exception is InvalidDataException && exception.Message.StartsWith(name, StringComparison.Ordinal);
}
