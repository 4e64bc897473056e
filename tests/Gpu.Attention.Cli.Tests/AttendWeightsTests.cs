using Gpu.Attention.Cli.Files;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

/// <summary><c>attend --weights</c>: the operator's own weights, in a file.</summary>
public sealed class AttendWeightsTests
{
    private static readonly AttentionShape Shape = new(2, 21, 21, 4, 2, 8, 5);

    [Theory]
    [InlineData("favor+", false)]
    [InlineData("favor+", true)]
    [InlineData("elu", true)]
    public void Weights_AreThoseOfTheOperator(string features, bool causal)
    {
        using var problem = new AttendProblem(Shape);
        string[] direction = causal ? ["--causal"] : [];
        CommandRun run = problem.Attend(
            [
                "--features", features, "--num-features", "16", "--key-lengths", "21,13", "--weights-of", "20,3", "--weights", problem.Folder["w.npy"], .. direction,
            ]);
        Assert.Equal(ExitCode.Done, run.ExitCode);
        NpyArray actual = NpyFile.Read(problem.Folder["w.npy"]);
        Assert.Equal([2, 4, 2, 21], actual.Shape);

        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        FeatureMap map = features == "elu" ? FeatureMap.EluPlusOne : FeatureMap.FavorPlus(RandomProjection.Orthogonal(16, 8, 42));
        using var attention = new LinearAttention(device, map, new LinearAttentionOptions { Causal = causal });
        float[] expected = new float[actual.Data.Length];
        attention.Weights(Shape, problem.Query, problem.Key, [20, 3], expected, SequenceLayout.FromKeyLengths([21, 13], 21));
        Assert.Equal(expected, actual.Data);
    }

    [Theory]
    [InlineData("--weights-of 3", "one needs the other")]
    [InlineData("--weights w.npy", "one needs the other")]
    [InlineData("--weights w.npy --weights-of 3 --features softmax", "exact attention (--features softmax) has no such thing")]
    [InlineData("--weights w.npy --weights-of 3 --storage float16", "those of float32 tensors, not of --storage float16")]
    [InlineData("--weights w.npy --weights-of 3 --initial-state s.state", "over the call's own keys")]
    [InlineData("--weights w.npy --final-state w.npy --weights-of 3", "--final-state and --weights name the same file")]
    [InlineData("--weights w.npy --weights-of -1", "--weights-of takes whole numbers from 0")]
    public void Contradictions_AreBadUsage(string options, string message) => Refused(ExitCode.BadUsage, options, message);

    [Fact]
    public void AQueryThatIsNotThere_Fails() => Refused(ExitCode.Failed, "--weights w.npy --weights-of 21", "is 21, where tokens are from 0 to 20");

    private static void Refused(int exitCode, string options, string message)
    {
        using var problem = new AttendProblem(Shape);
        CommandRun run = problem.Attend([.. options.Split(' ').Select(part => part.EndsWith(".npy", StringComparison.Ordinal) ? problem.Folder[part] : part)]);
        Assert.Equal(exitCode, run.ExitCode);
        Assert.Contains(message, run.Error, StringComparison.Ordinal);
        Assert.False(File.Exists(problem.Folder["o.npy"]));
        Assert.False(File.Exists(problem.Folder["w.npy"]));
    }
}
