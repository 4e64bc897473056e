using Gpu.Attention.Cli.Files;

namespace Gpu.Attention.Cli.Tests;

/// <summary>A folder that goes with the test that made it.</summary>
internal sealed class TemporaryFolder : IDisposable
{
    public string Path { get; } = Directory.CreateTempSubdirectory("gpu-attention-").FullName;

    public string this[string name] => System.IO.Path.Combine(Path, name);

    public string WriteArray(string name, int[] shape, float[] data)
    {
        using FileStream stream = File.Create(this[name]);
        NpyFile.Write(stream, shape, data);
        return this[name];
    }

    public string WriteBytes(string name, byte[] bytes)
    {
        File.WriteAllBytes(this[name], bytes);
        return this[name];
    }

    public void Dispose() => Directory.Delete(Path, recursive: true);
}
