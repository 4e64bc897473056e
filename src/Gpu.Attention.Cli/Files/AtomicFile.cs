namespace Gpu.Attention.Cli.Files;

/// <summary>A file that appears under its name complete or not at all: written beside its place and moved there at the end.</summary>
internal sealed class AtomicFile : IDisposable
{
    private readonly string _path;
    private readonly string? _temporary;

    public AtomicFile(string path)
    {
        _path = Resolve(path);
        if (IsDevice(path))
        {
            Stream = new FileStream(path, FileMode.Open, FileAccess.Write);
            return;
        }

        _temporary = Path.Combine(Path.GetDirectoryName(_path)!, $".{Path.GetFileName(_path)}.{Guid.NewGuid():N}.tmp");
        Stream = new FileStream(_temporary, FileMode.CreateNew, FileAccess.ReadWrite);
    }

    public FileStream Stream { get; }

    /// <summary>Whether a path is of a device, which cannot be replaced, and must not be: it is written to.</summary>
    public static bool IsDevice(string path) => !OperatingSystem.IsWindows() && Path.GetFullPath(path).StartsWith("/dev/", StringComparison.Ordinal);

    /// <summary>Refuses a path that could not be written, before anything is computed.</summary>
    public static void RequireWritable(string path)
    {
        string target = Resolve(path);
        if (IsDevice(path))
        {
            return;
        }

        if (Directory.Exists(target))
        {
            throw new IOException($"{path}: is a directory.");
        }

        if (!Directory.Exists(Path.GetDirectoryName(target)))
        {
            throw new DirectoryNotFoundException($"{path}: there is no directory {Path.GetDirectoryName(target)}.");
        }
    }

    public void Commit()
    {
        Stream.Dispose();
        if (_temporary is not null)
        {
            File.Move(_temporary, _path, overwrite: true);
        }
    }

    public void Dispose()
    {
        Stream.Dispose();
        if (_temporary is not null)
        {
            File.Delete(_temporary);
        }
    }

    private static string Resolve(string path)
    {
        string full = Path.GetFullPath(path);
        var file = new FileInfo(full);
        return file.LinkTarget is null ? full : file.ResolveLinkTarget(returnFinalTarget: true)!.FullName;
    }
}
