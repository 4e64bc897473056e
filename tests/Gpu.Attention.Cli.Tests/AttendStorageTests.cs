using System.Runtime.InteropServices;
using Gpu.Attention.Cli.Files;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

/// <summary>Tensors of 16 bits: what the operator makes of the rounded numbers, and files of them.</summary>
public sealed class AttendStorageTests : IDisposable
{
    private static readonly AttentionShape Shape = new(2, 21, 21, 4, 2, 8, 5);

    private readonly AttendProblem _problem = new(Shape);

    public void Dispose() => _problem.Dispose();

    [Theory]
    [InlineData("elu")]
    [InlineData("softmax")]
    public void Float16_IsWhatTheOperatorMakesOfHalves(string features)
    {
        Half[] expected = Direct(features, x => (Half)x);
        AssertDone(features, "--storage", "float16");
        byte[] file = File.ReadAllBytes(_problem.Folder["o.npy"]);
        Assert.True(file.AsSpan().IndexOf("'descr': '<f2'"u8) > 0);
        Assert.Equal(expected, MemoryMarshal.Cast<byte, Half>(file.AsSpan(128)));
        Assert.Equal(Array.ConvertAll(expected, x => (float)x), NpyFile.Read(_problem.Folder["o.npy"]).Data);
    }

    [Theory]
    [InlineData("elu")]
    [InlineData("softmax")]
    public void BFloat16_IsWhatTheOperatorMakesOfThemWidened(string features)
    {
        BFloat16[] expected = Direct(features, x => (BFloat16)x);
        AssertDone(features, "--storage", "bfloat16");
        Assert.True(File.ReadAllBytes(_problem.Folder["o.npy"]).AsSpan().IndexOf("'descr': '<f4'"u8) > 0);
        Assert.Equal(Array.ConvertAll(expected, x => (float)x), NpyFile.Read(_problem.Folder["o.npy"]).Data);
    }

    [Fact]
    public void Float16Files_AreReadWhateverTheStorage()
    {
        AssertDone("elu", "--storage", "float16");
        byte[] halves = File.ReadAllBytes(_problem.Folder["o.npy"]);
        WriteHalves("q.npy", [2, 21, 4, 8], _problem.Query);
        WriteHalves("k.npy", [2, 21, 2, 8], _problem.Key);
        WriteHalves("v.npy", [2, 21, 2, 5], _problem.Value);
        AssertDone("elu", "--storage", "float16");
        Assert.Equal(halves, File.ReadAllBytes(_problem.Folder["o.npy"]));

        float[] rounded = Direct("elu", x => (float)(Half)x);
        AssertDone("elu", "--storage", "float32");
        Assert.Equal(rounded, NpyFile.Read(_problem.Folder["o.npy"]).Data);
        AssertDone("elu");
        Assert.Equal(rounded, NpyFile.Read(_problem.Folder["o.npy"]).Data);
    }

    private void WriteHalves(string name, int[] shape, float[] values)
    {
        using FileStream stream = File.Create(_problem.Folder[name]);
        NpyFile.Write(stream, shape, Array.ConvertAll(values, x => (Half)x));
    }

    private T[] Direct<T>(string features, Converter<float, T> store)
        where T : unmanaged
    {
        T[] query = Array.ConvertAll(_problem.Query, store);
        T[] key = Array.ConvertAll(_problem.Key, store);
        T[] value = Array.ConvertAll(_problem.Value, store);
        var output = new T[Shape.OutputElements];
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        if (features == FeatureKind.Softmax)
        {
            using var exact = new SoftmaxAttention(device);
            exact.Forward<T>(Shape, query, key, value, output);
        }
        else
        {
            using var linear = new LinearAttention(device, FeatureKind.Create(features, null));
            linear.Forward<T>(Shape, query, key, value, output);
        }

        return output;
    }

    private void AssertDone(string features, params string[] options)
    {
        CommandRun run = _problem.Attend(["--features", features, .. options]);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
    }
}
