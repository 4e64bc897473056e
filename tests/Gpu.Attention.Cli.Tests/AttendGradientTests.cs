using System.Text.Json;
using Gpu.Attention.Cli.Files;
using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

/// <summary><c>attend --output-gradient</c>: gradients against the float64 reference, those of states through files, and what is refused.</summary>
public sealed class AttendGradientTests
{
    private const int Features = 16;
    private static readonly AttentionShape Shape = new(2, 21, 21, 4, 2, 8, 5);
    private static readonly AttentionShape Cross = new(2, 9, 21, 4, 2, 8, 5);
    private static readonly AttentionShape Packed = new(1, 21, 21, 4, 2, 8, 5);

    public static TheoryData<string, bool> MapsAndDirections() => AttendTests.MapsAndDirections();

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void Gradients_OfEveryMap_AgreeWithTheOracle(string features, bool causal) => AssertAgrees(causal ? Shape : Cross, features, causal);

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("softmax")]
    public void Gradients_OfMasksAndCausalBlocks_AgreeWithTheOracle(string features)
    {
        AssertAgrees(Shape, features, false, "1111111111111" + "00000000" + "000000000000000000000", "--key-lengths", "13,0");
        AssertAgrees(Shape, features, true, new string('1', 42), "--causal-block", "4");
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("softmax")]
    public void Gradients_OfPackedSequences_AreThoseOfTheOperator(string features) =>
        AssertSame<float>(Packed, features, x => x, SequenceLayout.FromCuSeqlens([0, 5, 5, 21]), "--cu-seqlens", "0,5,5,21");

    [Theory]
    [InlineData("favor+")]
    [InlineData("softmax")]
    public void Gradients_OfTensorsOf16Bits_AreThoseOfTheOperator(string features)
    {
        AssertSame(Shape, features, x => (Half)x, null, "--storage", "float16");
        AssertSame(Shape, features, x => (BFloat16)x, null, "--storage", "bfloat16");
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("favor+hyperbolic")]
    [InlineData("elu")]
    public void Gradients_OfTwoPieces_AreThoseOfTheWhole(string features)
    {
        const int Split = 8;
        using var problem = new AttendProblem(Packed);
        float[] g = TestData.Normal(9, Packed.OutputElements);
        string[] how = ["--features", features, "--causal", .. features == "elu" ? (string[])[] : ["--num-features", $"{Features}"]];
        float[][] whole = Gradients(problem, g, how);

        // Forward over both pieces, then the gradients of the second, whose state's gradient those of the first start from.
        using AttendProblem first = Piece(0, Split);
        using AttendProblem second = Piece(Split, 21);
        string state = first.Folder["s.state"];
        string stateGradient = first.Folder["ds.npz"];
        float[] g1 = g[..(Split * 4 * 5)];
        AssertDone(first, [.. how, "--final-state", state]);
        float[][] later = Gradients(second, g[g1.Length..], [.. how, "--initial-state", state, "--initial-state-gradient", stateGradient]);
        float[][] earlier = Gradients(first, g1, [.. how, "--final-state-gradient", stateGradient]);
        for (int i = 0; i < 3; i++)
        {
            float[] joined = [.. earlier[i], .. later[i]];
            float largest = whole[i].Max(MathF.Abs);
            Assert.All(whole[i].Zip(joined), pair => Assert.InRange(pair.Second - pair.First, -2e-5f * largest, 2e-5f * largest));
        }

        // The gradient is of that state's scale; another's would mean something else.
        if (features != "elu")
        {
            CommandRun run = first.Attend([.. how, "--seed", "5", .. Wanted(first, g1), "--final-state-gradient", stateGradient]);
            Assert.Equal((1, ""), (run.ExitCode, run.Output));
            Assert.Contains("ds.npz: the gradient is that of another state: element 0 of c is ", run.Error);
        }

        AttendProblem Piece(int from, int to)
        {
            var shape = new AttentionShape(1, to - from, to - from, 4, 2, 8, 5);
            return new AttendProblem(
                shape, problem.Query[(from * 4 * 8)..(to * 4 * 8)], problem.Key[(from * 2 * 8)..(to * 2 * 8)], problem.Value[(from * 2 * 5)..(to * 2 * 5)]);
        }
    }

    [Theory]
    [InlineData("elu", "favor+", "of a state of an exponential feature map, unlike this one")]
    [InlineData("favor+", "elu", "not of a state of an exponential feature map such as this one")]
    public void StateGradients_OfAnotherFamily_AreRefused(string features, string other, string fragment)
    {
        using var problem = new AttendProblem(Shape);
        string path = problem.Folder["ds.npz"];
        string[] wanted = Wanted(problem, TestData.Normal(9, Shape.OutputElements));
        AssertDone(problem, "--features", other, "--final-state", problem.Folder["s.state"]);
        AssertDone(problem, ["--features", other, "--initial-state", problem.Folder["s.state"], "--initial-state-gradient", path, .. wanted]);
        AssertFails(problem, ["--features", features, "--final-state-gradient", path, .. wanted], fragment);
    }

    [Fact]
    public void StateGradients_OfOtherSizes_AreRefused()
    {
        using var problem = new AttendProblem(Shape);
        string path = problem.Folder["ds.npz"];
        string[] wanted = Wanted(problem, TestData.Normal(9, Shape.OutputElements));
        AssertDone(problem, "--num-features", "16", "--final-state", problem.Folder["s.npz"]);
        AssertDone(problem, ["--num-features", "16", "--initial-state", problem.Folder["s.npz"], "--initial-state-gradient", path, .. wanted]);
        AssertFails(
            problem, ["--num-features", "17", "--final-state-gradient", path, .. wanted], "dS.npy: the array is [2, 2, 16, 5] where [2, 2, 17, 5] is needed");
        AssertFails(problem, ["--final-state-gradient", problem.Folder["s.npz"], "--num-features", "16", .. wanted], "the archive has no entry 'dS.npy'");
    }

    [Fact]
    public void AGradientThatIsNotWanted_IsNotWrittenAndChangesNoOther()
    {
        using var problem = new AttendProblem(Shape);
        float[][] all = Gradients(problem, TestData.Normal(9, Shape.OutputElements), ["--features", "elu"]);
        File.Delete(problem.Folder["dq.npy"]);
        File.Delete(problem.Folder["dk.npy"]);
        AssertDone(problem, "--features", "elu", "--output-gradient", problem.Folder["do.npy"], "--value-gradient", problem.Folder["dv.npy"]);
        Assert.Equal(all[2], NpyFile.Read(problem.Folder["dv.npy"]).Data);
        Assert.False(File.Exists(problem.Folder["dq.npy"]) || File.Exists(problem.Folder["dk.npy"]));
    }

    [Fact]
    public void AsJson_TheBackwardPassIsAnObject()
    {
        using var problem = new AttendProblem(Shape);
        string[] wanted = Wanted(problem, TestData.Normal(9, Shape.OutputElements));
        JsonElement root = Assert.Single(problem.Attend([.. wanted, "--json"]).Json());
        JsonElement backward = root.GetProperty("backward");
        Assert.StartsWith("Cpu", backward.GetProperty("device").GetString());
        Assert.True(backward.GetProperty("ms").GetDouble() > 0);
        Assert.True(backward.GetProperty("workspaceBytes").GetInt64() > 0);
        Assert.Equal(problem.Folder["dk.npy"], backward.GetProperty("keyGradient").GetString());
        Assert.Equal(JsonValueKind.Null, backward.GetProperty("initialStateGradient").ValueKind);
        Assert.Equal(JsonValueKind.Null, Assert.Single(problem.Attend("--json").Json()).GetProperty("backward").ValueKind);
        CommandRun text = problem.Attend(wanted);
        Assert.Contains("; gradients on Cpu", text.Output);
        Assert.Single(text.Output.TrimEnd().Split('\n'));
    }

    [Theory]
    [InlineData("--query-gradient dq.npy", "--query-gradient needs --output-gradient, which is not given")]
    [InlineData("--final-state-gradient ds.npz", "--final-state-gradient needs --output-gradient, which is not given")]
    [InlineData("--output-gradient do.npy", "no gradient is asked for: --query-gradient, --key-gradient, --value-gradient, --initial-state-gradient")]
    [InlineData("--output-gradient do.npy --initial-state-gradient ds.npz", "--initial-state-gradient is that of --initial-state, which is not given")]
    [InlineData(
        "--output-gradient do.npy --initial-state s.state --initial-state-gradient ds.state", "ds.state: a .state file is a state and would be taken for one")]
    [InlineData("--output-gradient do.npy --key-gradient dk.npy --final-state-gradient ds.state", "gradients of states are .npz files")]
    [InlineData("--output-gradient do.npy --key-gradient d.npy --value-gradient d.npy", "--key-gradient and --value-gradient name the same file")]
    [InlineData("--output-gradient do.npy --key-gradient o.npy", "--output and --key-gradient name the same file")]
    [InlineData("--output-gradient do.npy --key-gradient dk.npy --final-state-gradient ds.npz --features softmax", "--final-state-gradient: exact attention")]
    [InlineData("--output-gradient do.npy --initial-state-gradient ds.npz --features softmax", "--initial-state-gradient: exact attention")]
    public void Contradictions_AreBadUsage(string options, string fragment)
    {
        using var problem = new AttendProblem(Shape);
        CommandRun run = problem.Attend([.. options.Split(' ').Select(part => Path.HasExtension(part) ? problem.Folder[part] : part)]);
        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.Contains(fragment, run.Error);
        Assert.False(File.Exists(problem.Folder["o.npy"]));
    }

    [Theory]
    [InlineData(new[] { 2, 20, 4, 5 }, "--output-gradient ", " is [2, 20, 4, 5], and the output [2, 21, 4, 5]")]
    [InlineData(new[] { 2, 21, 4, 8 }, "--output-gradient ", " is [2, 21, 4, 8], and the output [2, 21, 4, 5]")]
    [InlineData(new[] { 840 }, "--output-gradient ", " is [840], and the output [2, 21, 4, 5]")]
    public void AnOutputGradientOfAnotherShape_IsRefusedWithBothShapes(int[] shape, string option, string shapes)
    {
        using var problem = new AttendProblem(Shape);
        string path = problem.Folder.WriteArray("do.npy", shape, new float[shape.Aggregate(1, (a, b) => a * b)]);
        AssertFails(problem, ["--output-gradient", path, "--query-gradient", problem.Folder["dq.npy"]], option + path + shapes);
    }

    [Fact]
    public void FilesThatAreNotThereOrCannotBe_ExitWith1()
    {
        using var problem = new AttendProblem(Shape);
        AssertFails(problem, ["--output-gradient", problem.Folder["do.npy"], "--key-gradient", problem.Folder["dk.npy"]], "do.npy");
        string[] wanted = Wanted(problem, TestData.Normal(9, Shape.OutputElements));
        AssertFails(problem, [.. wanted, "--final-state-gradient", problem.Folder["ds.npz"]], "ds.npz");
        AssertFails(problem, [.. wanted[..2], "--key-gradient", Path.Combine(problem.Folder["nowhere"], "dk.npy")], "no directory");
    }

    private static void AssertAgrees(AttentionShape shape, string features, bool causal, string? mask = null, params string[] options)
    {
        // Sums of weights of either sign come close to zero, and dividing by them tells nothing.
        bool normalize = features != FeatureKind.Identity;
        using var input = new AttendProblem(shape);
        float[] g = TestData.Normal(9, shape.OutputElements);
        bool drawn = FeatureKind.NeedsProjection(features);
        float[][] gradients = Gradients(
            input, g,
            [
                "--features", features, .. causal ? (string[])["--causal"] : [], .. drawn ? (string[])["--num-features", $"{Features}"] : [],
                .. normalize ? (string[])[] : ["--no-normalize"], .. options,
            ]);
        float scale = 1 / MathF.Sqrt(shape.KeyDimension);
        FeatureMap? map = features == FeatureKind.Softmax ? null : Map(features);
        var problem = new AttentionProblem
        {
            Shape = shape,
            Features = map?.Lower(shape.KeyDimension, scale),
            Causal = causal,
            CausalBlock = options is ["--causal-block", var block] ? int.Parse(block) : 1,
            Scale = map is null || !normalize ? scale : 1,
            Normalize = normalize,
        };
        byte[]? bytes = mask is null ? null : [.. mask.Select(c => (byte)(c - '0'))];
        Tolerance.RequireGradients(problem, input.Query, input.Key, input.Value, g, new AttentionGradients(gradients[0], gradients[1], gradients[2]), bytes);
    }

    private static void AssertSame<T>(AttentionShape shape, string features, Converter<float, T> store, SequenceLayout? layout, params string[] options)
        where T : unmanaged
    {
        using var problem = new AttendProblem(shape);
        float[] gradient = TestData.Normal(9, shape.OutputElements);
        T[] q = Array.ConvertAll(problem.Query, store), k = Array.ConvertAll(problem.Key, store), v = Array.ConvertAll(problem.Value, store);
        T[] g = Array.ConvertAll(gradient, store), o = new T[g.Length];
        T[] dq = new T[q.Length], dk = new T[k.Length], dv = new T[v.Length];
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        if (features == FeatureKind.Softmax)
        {
            using var attention = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = true });
            attention.Forward<T>(shape, q, k, v, o, layout);
            attention.Backward<T>(shape, q, k, v, o, g, dq, dk, dv, layout);
        }
        else
        {
            using var attention = new LinearAttention(device, Map(features), new LinearAttentionOptions { Causal = true });
            attention.Forward<T>(shape, q, k, v, o, null, null, layout);
            attention.Backward<T>(shape, q, k, v, o, g, dq, dk, dv, default, layout);
        }

        string[] drawn = FeatureKind.NeedsProjection(features) ? ["--num-features", $"{Features}"] : [];
        float[][] actual = Gradients(problem, gradient, ["--features", features, "--causal", .. drawn, .. options]);
        Assert.Equal([dq, dk, dv], actual.Select(array => Array.ConvertAll(array, store)));
    }

    private static FeatureMap Map(string features) =>
        FeatureKind.Create(features, FeatureKind.NeedsProjection(features) ? RandomProjection.Orthogonal(Features, Shape.KeyDimension, 42) : null);

    private static float[][] Gradients(AttendProblem problem, float[] outputGradient, string[] options)
    {
        AssertDone(problem, [.. options, .. Wanted(problem, outputGradient)]);
        AttentionShape s = problem.Shape;
        NpyArray[] arrays = [.. new[] { "dq.npy", "dk.npy", "dv.npy" }.Select(name => NpyFile.Read(problem.Folder[name]))];
        Assert.Equal([s.Batch, s.QueryLength, s.Heads, s.KeyDimension], arrays[0].Shape);
        Assert.Equal([s.Batch, s.KeyLength, s.KeyHeads, s.KeyDimension], arrays[1].Shape);
        Assert.Equal([s.Batch, s.KeyLength, s.KeyHeads, s.ValueDimension], arrays[2].Shape);
        return [.. arrays.Select(array => array.Data)];
    }

    private static string[] Wanted(AttendProblem problem, float[] outputGradient)
    {
        AttentionShape s = problem.Shape;
        return
        [
            "--output-gradient", problem.Folder.WriteArray("do.npy", [s.Batch, s.QueryLength, s.Heads, s.ValueDimension], outputGradient),
            "--query-gradient", problem.Folder["dq.npy"], "--key-gradient", problem.Folder["dk.npy"], "--value-gradient", problem.Folder["dv.npy"],
        ];
    }

    private static void AssertDone(AttendProblem problem, params string[] options)
    {
        CommandRun run = problem.Attend(options);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
    }

    private static void AssertFails(AttendProblem problem, string[] options, string fragment)
    {
        string[] before = Directory.GetFiles(problem.Folder.Path);
        CommandRun run = problem.Attend(options);
        Assert.Equal((1, ""), (run.ExitCode, run.Output));
        Assert.Contains(fragment, run.Error);
        Assert.DoesNotContain("unexpected", run.Error);
        Assert.Single(run.Error.TrimEnd().Split('\n'));
        Assert.Equal(before.Order(), Directory.GetFiles(problem.Folder.Path).Order());
    }
}
