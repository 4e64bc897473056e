using Gpu.Attention.Cli.Files;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

public class AtomicFileTests
{
    [Fact]
    public void Dispose_WithoutCommit_LeavesWhatWasThere()
    {
        using var folder = new TemporaryFolder();
        string path = folder.WriteBytes("o.npy", [1, 2, 3]);
        using (var file = new AtomicFile(path))
        {
            file.Stream.Write([9, 9]);
        }

        Assert.Equal([1, 2, 3], File.ReadAllBytes(path));
        Assert.Equal([path], Directory.GetFiles(folder.Path));
    }

    [Fact]
    public void Commit_ReplacesAndLeavesNothingElse()
    {
        using var folder = new TemporaryFolder();
        string path = folder.WriteBytes("o.npy", [1, 2, 3]);
        using (var file = new AtomicFile(path))
        {
            file.Stream.Write([9, 9]);
            file.Commit();
        }

        Assert.Equal([9, 9], File.ReadAllBytes(path));
        Assert.Equal([path], Directory.GetFiles(folder.Path));
    }

    [Fact]
    public void Commit_ThroughALink_ReplacesTheTarget()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "Making links takes a privilege on Windows.");
        using var folder = new TemporaryFolder();
        string target = folder.WriteBytes("target.npy", [1]);
        File.CreateSymbolicLink(folder["link.npy"], target);
        using (var file = new AtomicFile(folder["link.npy"]))
        {
            file.Stream.Write([9, 9]);
            file.Commit();
        }

        Assert.Equal([9, 9], File.ReadAllBytes(target));
        Assert.NotNull(new FileInfo(folder["link.npy"]).LinkTarget);
    }

    [Fact]
    public void Commit_OfADevice_WritesToItAndKeepsIt()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "/dev is Unix.");
        AtomicFile.RequireWritable("/dev/null");
        using (var file = new AtomicFile("/dev/null"))
        {
            // First, for a move onto the device would be the end of it.
            Assert.Equal("/dev/null", file.Stream.Name);
            file.Stream.Write([9, 9]);
            file.Commit();
        }

        Assert.Empty(File.ReadAllBytes("/dev/null"));
    }
}
