using Gpu.Attention.Cli.Files;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

/// <summary>States in the library's own format, which knows the feature map, and in archives, which do not.</summary>
public sealed class AttendStateTests : IDisposable
{
    private static readonly AttentionShape Shape = new(2, 21, 21, 4, 2, 8, 5);
    private static readonly string[] Favor = ["--causal", "--num-features", "16"];

    private readonly AttendProblem _problem = new(Shape);

    public void Dispose() => _problem.Dispose();

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    public void StateFile_IsWhatTheLibrarySaves(string features)
    {
        RandomProjection? projection = FeatureKind.NeedsProjection(features) ? RandomProjection.Orthogonal(16, 8, 42) : null;
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var attention = new LinearAttention(device, FeatureKind.Create(features, projection), new LinearAttentionOptions { Causal = true });
        float[] expected = new float[Shape.OutputElements];
        AttentionState state = attention.CreateState(2, 2, 5, 8);
        attention.Forward(Shape, _problem.Query, _problem.Key, _problem.Value, expected, null, state);
        using var saved = new MemoryStream();
        state.Save(saved);

        string path = _problem.Folder["s.STATE"];
        string[] how = ["--features", features, "--causal", .. projection is null ? (string[])[] : ["--num-features", "16"]];
        AssertDone([.. how, "--final-state", path]);
        Assert.Equal(saved.ToArray(), File.ReadAllBytes(path));

        attention.Forward(Shape, _problem.Query, _problem.Key, _problem.Value, expected, state, state);
        AssertDone([.. how, "--initial-state", path, "--final-state", path]);
        Assert.Equal(expected, NpyFile.Read(_problem.Folder["o.npy"]).Data);
    }

    [Fact]
    public void StateFile_AndArchive_GoOnAlike()
    {
        AssertDone([.. Favor, "--final-state", _problem.Folder["s.state"]]);
        AssertDone([.. Favor, "--final-state", _problem.Folder["s.npz"]]);
        AssertDone([.. Favor, "--initial-state", _problem.Folder["s.npz"]]);
        byte[] expected = File.ReadAllBytes(_problem.Folder["o.npy"]);
        AssertDone([.. Favor, "--initial-state", _problem.Folder["s.state"]]);
        Assert.Equal(expected, File.ReadAllBytes(_problem.Folder["o.npy"]));
    }

    [Theory]
    [InlineData(".state")]
    [InlineData(".npz")]
    public void State_OfPackedSequences_HasARowForEach(string ending)
    {
        using var packed = new AttendProblem(new AttentionShape(1, 21, 21, 4, 2, 8, 5));
        string[] how = ["--features", "elu", "--causal", "--cu-seqlens", "0,5,5,21"];
        string path = packed.Folder["s" + ending];
        Assert.Equal(0, packed.Attend([.. how, "--final-state", path]).ExitCode);
        Assert.Equal(0, packed.Attend([.. how, "--initial-state", path, "--final-state", path]).ExitCode);

        CommandRun run = packed.Attend("--features", "elu", "--causal", "--cu-seqlens", "0,21", "--initial-state", path);
        Assert.Equal(1, run.ExitCode);
        Assert.Contains("[3, 2, 8, 5] where [1, 2, 8, 5] is needed", run.Error);
    }

    [Theory]
    [InlineData("--num-features 16 --seed 7", "made of other key features")]
    [InlineData("--num-features 16 --scale 0.5", "made of other key features")]
    [InlineData("--num-features 16 --feature-epsilon 0.5", "made of other key features")]
    [InlineData("--num-features 17", "made of other key features")]
    [InlineData("--features elu", "made of other key features")]
    public void StateFile_OfAnotherFeatureMap_IsRefusedWithTheReason(string options, string fragment)
    {
        AssertDone([.. Favor, "--final-state", _problem.Folder["s.state"]]);
        AssertRefused(["--causal", .. options.Split(' ')], fragment);
    }

    [Fact]
    public void StateFile_Damaged_IsRefused()
    {
        string path = _problem.Folder["s.state"];
        AssertDone([.. Favor, "--final-state", path]);
        byte[] bytes = File.ReadAllBytes(path);
        bytes[^100] ^= 1;
        File.WriteAllBytes(path, bytes);
        AssertRefused(Favor, "was altered");
        File.WriteAllBytes(path, bytes[..100]);
        AssertRefused(Favor, "ends inside");

        AssertDone([.. Favor, "--final-state", _problem.Folder["s.npz"]]);
        File.Copy(_problem.Folder["s.npz"], path, overwrite: true);
        AssertRefused(Favor, "no state file");
    }

    [Fact]
    public void StateFile_ThatWouldHoldNaN_IsNotWritten()
    {
        _problem.Value[^1] = float.NaN;
        _problem.Folder.WriteArray("v.npy", [2, 21, 2, 5], _problem.Value);
        CommandRun run = _problem.Attend([.. Favor, "--final-state", _problem.Folder["s.state"]]);
        Assert.Equal(1, run.ExitCode);
        Assert.Contains("NaN", run.Error);
        Assert.False(File.Exists(_problem.Folder["s.state"]) || File.Exists(_problem.Folder["o.npy"]));
    }

    private void AssertDone(string[] options)
    {
        CommandRun run = _problem.Attend(options);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
    }

    private void AssertRefused(string[] options, string fragment)
    {
        File.Delete(_problem.Folder["o.npy"]);
        CommandRun run = _problem.Attend([.. options, "--initial-state", _problem.Folder["s.state"]]);
        Assert.Equal((1, ""), (run.ExitCode, run.Output));
        Assert.Contains(fragment, run.Error);
        Assert.Contains("s.state: ", run.Error);
        Assert.False(File.Exists(_problem.Folder["o.npy"]));
    }
}
