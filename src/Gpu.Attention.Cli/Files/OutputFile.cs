namespace Gpu.Attention.Cli.Files;

/// <summary>A file that a command makes: its path, and what writes its content.</summary>
internal sealed record OutputFile(string Path, Action<Stream, CancellationToken> Write)
{
    /// <summary>Writes files, of which all are complete before any gets its name.</summary>
    public static void WriteAll(IReadOnlyList<OutputFile> files, CancellationToken cancellationToken)
    {
        var written = new List<AtomicFile>();
        try
        {
            foreach (OutputFile file in files)
            {
                var place = new AtomicFile(file.Path);
                written.Add(place);
                file.Write(place.Stream, cancellationToken);
                place.Stream.Flush();
            }

            written.ForEach(file => file.Commit());
        }
        finally
        {
            written.ForEach(file => file.Dispose());
        }
    }
}
