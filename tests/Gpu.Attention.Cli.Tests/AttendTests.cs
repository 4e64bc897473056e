using System.Text.Json;
using Gpu.Attention.Cli.Files;
using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

public sealed class AttendTests : IDisposable
{
    private const int Features = 24;
    private const ulong Seed = 7;
    private static readonly AttentionShape SelfAttention = new(2, 70, 70, 4, 2, 8, 5);
    private static readonly AttentionShape CrossAttention = new(2, 9, 70, 4, 2, 8, 5);

    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    public static TheoryData<string, bool> MapsAndDirections()
    {
        var data = new TheoryData<string, bool>();
        foreach (string features in FeatureKind.All)
        {
            data.Add(features, false);
            data.Add(features, true);
        }

        return data;
    }

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void Attend_EveryMap_AgreesWithTheOracle(string features, bool causal) =>
        AssertAgrees(causal ? SelfAttention : CrossAttention, features, causal, new Variant());

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void Attend_Scaled_AgreesWithTheOracle(string features, bool causal) =>
        AssertAgrees(SelfAttention, features, causal, new Variant { Scale = 0.3f });

    [Theory]
    [InlineData("favor+", true)]
    [InlineData("favor+hyperbolic", false)]
    [InlineData("elu", true)]
    [InlineData("relu", false)]
    public void Attend_NotNormalized_AgreesWithTheOracle(string features, bool causal) =>
        AssertAgrees(SelfAttention, features, causal, new Variant { Normalize = false, Scale = 0.4f });

    [Theory]
    [InlineData("favor+", "jax", null)]
    [InlineData("favor+", "jax", 0.01f)]
    [InlineData("favor+", "lucidrains", null)]
    [InlineData("favor+hyperbolic", "jax", null)]
    [InlineData("relu", "jax", null)]
    [InlineData("relu", "lucidrains", null)]
    [InlineData("relu", "none", 0.001f)]
    [InlineData("elu", "jax", 0.5f)]
    public void Attend_PublishedConventions_AgreeWithTheOracle(string features, string compat, float? epsilon)
    {
        AssertAgrees(SelfAttention, features, false, new Variant { Compat = compat, Epsilon = epsilon });
        AssertAgrees(SelfAttention, features, true, new Variant { Compat = compat, Epsilon = epsilon });
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("favor+hyperbolic")]
    [InlineData("relu")]
    public void Attend_ProjectionDrawn_IsTheProjectionOfItsRecipe(string features)
    {
        string given = Attend(SelfAttention, "a.npy", "--features", features, "--projection", WriteProjection(RowLength.SqrtDimension)).Output;
        string drawn = Attend(
            SelfAttention, "b.npy", "--features", features, "--num-features", $"{Features}", "--seed", $"{Seed}", "--ortho-scaling", "1").Output;
        Assert.Equal(File.ReadAllBytes(given), File.ReadAllBytes(drawn));
    }

    [Fact]
    public void Attend_Defaults_AreFavorPlusWith256FeaturesOfSeed42()
    {
        byte[] defaults = File.ReadAllBytes(Attend(SelfAttention, "a.npy").Output);
        byte[] spelt = File.ReadAllBytes(Attend(
            SelfAttention, "b.npy", "--features", "favor+", "--num-features", "256", "--seed", "42", "--ortho-scaling", "0", "--compat", "none").Output);
        Assert.Equal(spelt, defaults);
        Assert.NotEqual(defaults, File.ReadAllBytes(Attend(SelfAttention, "c.npy", "--seed", "43").Output));
    }

    [Fact]
    public void Attend_ReluWithoutAProjection_IsReluOfTheRows()
    {
        (float[] query, float[] key, float[] value) = Inputs(SelfAttention);
        string path = Attend(SelfAttention, "o.npy", "--features", "relu").Output;
        double[] oracle = ReferenceAttention.Linear(SelfAttention, ReferenceFeatures.Relu(), query, key, value);
        AssertWithin(SelfAttention, FeatureMap.Relu(), oracle, NpyFile.Read(path).Data, causal: false, new Variant());
    }

    [Fact]
    public void Attend_Float64Inputs_AreTheSameAsFloat32()
    {
        byte[] single = File.ReadAllBytes(Attend(SelfAttention, "a.npy", "--causal").Output);
        (float[] query, float[] key, float[] value) = Inputs(SelfAttention);
        _folder.WriteBytes("q.npy", NpyBytes.OfDouble([2, 70, 4, 8], query));
        _folder.WriteBytes("k.npy", NpyBytes.OfDouble([2, 70, 2, 8], key));
        _folder.WriteBytes("v.npy", NpyBytes.OfDouble([2, 70, 2, 5], value));
        CommandRun run = CommandRun.Of([.. Arguments("b.npy"), "--causal"]);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Equal(single, File.ReadAllBytes(_folder["b.npy"]));
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("favor+hyperbolic")]
    [InlineData("elu")]
    [InlineData("relu")]
    [InlineData("identity")]
    public void Attend_InTwoPieces_IsTheWhole(string features)
    {
        const int Split = 33;
        (float[] query, float[] key, float[] value) = Inputs(SelfAttention);

        // Sums of weights of either sign come close to zero, and dividing by them tells nothing.
        string[] how = ["--features", features, "--causal", .. features == FeatureKind.Identity ? (string[])["--no-normalize"] : []];
        float[] whole = NpyFile.Read(Attend(SelfAttention, "o.npy", [.. how, "--final-state", _folder["whole.npz"]]).Output).Data;

        // The state goes back into the file that it came from.
        string state = _folder["s.npz"];
        string first = Piece("first", 0, Split, "--final-state", state);
        string second = Piece("second", Split, 70, "--initial-state", state, "--final-state", state);
        float[] joined = Join(NpyFile.Read(first).Data, NpyFile.Read(second).Data, Split);
        AssertClose(whole, joined);
        AttentionState expected = ReadState(_folder["whole.npz"], features);
        AttentionState actual = ReadState(state, features);
        AssertClose(expected.Normalizers.ToArray(), actual.Normalizers.ToArray());
        AssertClose(expected.Sums.ToArray(), actual.Sums.ToArray());
        AssertClose(expected.LogScale.ToArray(), actual.LogScale.ToArray());

        string Piece(string name, int from, int to, params string[] options)
        {
            var shape = new AttentionShape(2, to - from, to - from, 4, 2, 8, 5);
            WriteInputs(shape, Slice(query, 4 * 8, from, to), Slice(key, 2 * 8, from, to), Slice(value, 2 * 5, from, to));
            CommandRun run = CommandRun.Of([.. Arguments($"{name}.npy"), .. how, .. options]);
            Assert.Equal((0, ""), (run.ExitCode, run.Error));
            return _folder[$"{name}.npy"];
        }
    }

    [Fact]
    public void Attend_StateOfOtherSizes_ExitsWith1AndLeavesNoOutput()
    {
        Attend(SelfAttention, "o.npy", "--num-features", "16", "--final-state", _folder["s.npz"]);
        File.Delete(_folder["o.npy"]);
        CommandRun run = CommandRun.Of([.. Arguments("o.npy"), "--num-features", "17", "--initial-state", _folder["s.npz"]]);
        Assert.Equal(1, run.ExitCode);
        Assert.Contains("[2, 2, 16, 5] where [2, 2, 17, 5] is needed", run.Error);
        Assert.False(File.Exists(_folder["o.npy"]));
    }

    [Fact]
    public void Attend_AsJson_IsOneObjectOfTheRun()
    {
        CommandRun run = CommandRun.Of([.. WriteInputs(SelfAttention), "--causal", "--json"]);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        JsonElement root = Assert.Single(run.Json());
        Assert.StartsWith("Cpu", root.GetProperty("device").GetString());
        Assert.NotEmpty(root.GetProperty("reason").GetString()!);
        Assert.Equal("favor+", root.GetProperty("features").GetString());
        Assert.Equal("causal", root.GetProperty("direction").GetString());
        Assert.Equal([2, 70, 4, 5], root.GetProperty("shapes").GetProperty("output").EnumerateArray().Select(e => e.GetInt32()));
        Assert.True(root.GetProperty("ms").GetDouble() > 0);
        Assert.True(root.GetProperty("tokensPerSecond").GetDouble() > 0);
        Assert.True(root.GetProperty("workspaceBytes").GetInt64() > 0);
        Assert.Equal(_folder["o.npy"], root.GetProperty("output").GetString());
    }

    [Fact]
    public void Attend_AsText_IsOneLine()
    {
        CommandRun run = CommandRun.Of(WriteInputs(SelfAttention));
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Single(run.Output.TrimEnd().Split('\n'));
        Assert.DoesNotContain('\u001b', run.Output);
    }

    [Fact]
    public void Attend_OptionsThatChangeNothing_AreNoted()
    {
        CommandRun run = CommandRun.Of([.. WriteInputs(SelfAttention), "--features", "elu", "--num-features", "8"]);
        Assert.Equal(0, run.ExitCode);
        Assert.Contains("--num-features changes nothing", run.Error);
    }

    [Fact]
    public void Attend_NoQueriesOrNoKeys_IsNoFailure()
    {
        Assert.Empty(NpyFile.Read(Attend(new AttentionShape(2, 0, 3, 4, 2, 8, 5), "a.npy").Output).Data);
        Assert.Empty(NpyFile.Read(Attend(new AttentionShape(0, 3, 3, 4, 2, 8, 5), "b.npy").Output).Data);
        Assert.All(NpyFile.Read(Attend(new AttentionShape(2, 3, 0, 4, 2, 8, 5), "c.npy").Output).Data, x => Assert.Equal(0, x));
    }

    [Theory]
    [InlineData(new[] { 2, 70, 4, 8 }, new[] { 2, 70, 2, 8 }, new[] { 2, 69, 2, 5 }, "do not fit")]
    [InlineData(new[] { 2, 70, 4, 8 }, new[] { 2, 70, 2, 7 }, new[] { 2, 70, 2, 5 }, "do not fit")]
    [InlineData(new[] { 2, 70, 4, 8 }, new[] { 1, 70, 2, 8 }, new[] { 1, 70, 2, 5 }, "do not fit")]
    [InlineData(new[] { 2, 70, 4, 8 }, new[] { 2, 70, 3, 8 }, new[] { 2, 70, 3, 5 }, "share 3 key heads")]
    [InlineData(new[] { 2, 70, 32 }, new[] { 2, 70, 2, 8 }, new[] { 2, 70, 2, 5 }, "four dimensions")]
    [InlineData(new[] { 2, 70, 0, 8 }, new[] { 2, 70, 0, 8 }, new[] { 2, 70, 0, 5 }, "heads")]
    [InlineData(new[] { 2, 9, 4, 8 }, new[] { 2, 70, 2, 8 }, new[] { 2, 70, 2, 5 }, "causal")]
    public void Attend_ShapesThatDoNotFit_ExitWith1AndLeaveNoOutput(int[] query, int[] key, int[] value, string fragment)
    {
        _folder.WriteArray("q.npy", query, new float[query.Aggregate(1, (a, b) => a * b)]);
        _folder.WriteArray("k.npy", key, new float[key.Aggregate(1, (a, b) => a * b)]);
        _folder.WriteArray("v.npy", value, new float[value.Aggregate(1, (a, b) => a * b)]);
        AssertFails([.. Arguments("o.npy"), "--causal"], fragment);
    }

    [Theory]
    [InlineData(new[] { 24, 7 }, "of dimension 7, not 8")]
    [InlineData(new[] { 24 }, "two dimensions")]
    [InlineData(new[] { 0, 8 }, "umFeatures")]
    public void Attend_ProjectionThatDoesNotFit_ExitsWith1(int[] shape, string fragment)
    {
        _folder.WriteArray("w.npy", shape, new float[shape.Aggregate(1, (a, b) => a * b)]);
        AssertFails([.. WriteInputs(SelfAttention), "--projection", _folder["w.npy"]], fragment);
    }

    [Fact]
    public void Attend_FilesThatAreNotThere_ExitWith1()
    {
        AssertFails(Arguments("o.npy"), "q.npy");
        string[] arguments = WriteInputs(SelfAttention);
        AssertFails([.. arguments, "--projection", _folder["w.npy"]], "w.npy");
        AssertFails([.. arguments, "--initial-state", _folder["s.npz"]], "s.npz");
        AssertFails(Arguments(Path.Combine("nowhere", "o.npy")), "no directory");
        AssertFails(Arguments("."), "is a directory");
        _folder.WriteBytes("q.npy", "something else"u8.ToArray());
        AssertFails(Arguments("o.npy"), "not an .npy file");
    }

    [Fact]
    public void Attend_ScaleThatRandomFeaturesCannotHave_ExitsWith1() =>
        AssertFails([.. WriteInputs(SelfAttention), "--scale", "-1"], "scale");

    private void AssertFails(string[] arguments, string fragment)
    {
        string[] before = Directory.GetFiles(_folder.Path);
        CommandRun run = CommandRun.Of(arguments);
        Assert.Equal(1, run.ExitCode);
        Assert.Contains(fragment, run.Error);
        Assert.DoesNotContain("unexpected", run.Error);
        Assert.Single(run.Error.TrimEnd().Split('\n'));
        Assert.Equal(before.Order(), Directory.GetFiles(_folder.Path).Order());
    }

    private void AssertAgrees(AttentionShape shape, string features, bool causal, Variant variant)
    {
        bool projected = FeatureKind.TakesProjection(features);
        (CommandRun run, string path) = Attend(
            shape, "o.npy",
            [
                "--features", features, .. variant.Arguments, .. causal ? (string[])["--causal"] : [],
                .. projected ? (string[])["--projection", WriteProjection(RowLength.Chi)] : [],
            ]);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        NpyArray output = NpyFile.Read(path);
        Assert.Equal([shape.Batch, shape.QueryLength, shape.Heads, shape.ValueDimension], output.Shape);

        (float[] query, float[] key, float[] value) = Inputs(shape);
        var options = new ReferenceOptions { Causal = causal, Normalize = variant.Normalize };
        double scale = variant.Scale ?? 1 / Math.Sqrt(shape.KeyDimension);
        if (features == FeatureKind.Softmax)
        {
            AssertWithin(shape, null, ReferenceAttention.Softmax(shape, scale, query, key, value, options), output.Data, causal, variant);
            return;
        }

        RandomProjection? projection = projected ? RandomProjection.Orthogonal(Features, shape.KeyDimension, Seed) : null;
        bool exponential = FeatureKind.NeedsProjection(features);
        double[] oracle = ReferenceAttention.Linear(
            shape, Kernel(features, projection, shape.KeyDimension, scale, variant), query, key, value, options with { Factor = exponential ? 1 : scale });
        AssertWithin(shape, FeatureKind.Create(features, projection), oracle, output.Data, causal, variant);
    }

    private static ReferenceKernel Kernel(string features, RandomProjection? projection, int dimension, double scale, Variant variant)
    {
        float[]? w = projection?.Matrix.ToArray();
        int m = projection?.NumFeatures ?? 0;
        bool hyperbolic = features == FeatureKind.FavorPlusHyperbolic;
        if (FeatureKind.NeedsProjection(features) && variant.Compat != "none")
        {
            float[] rows = hyperbolic ? projection!.ToAntithetic().Matrix.ToArray() : w!;
            int count = hyperbolic ? 2 * m : m;
            return variant.Compat == "jax"
                ? ReferenceFeatures.Jax(rows, count, scale, variant.Epsilon ?? 1e-6)
                : ReferenceFeatures.Lucidrains(rows, count, scale, variant.Epsilon ?? 1e-4);
        }

        Func<double, double> function = features switch
        {
            FeatureKind.Elu => x => x > 0 ? x + 1 : Math.Exp(x),
            FeatureKind.Relu => x => Math.Max(x, 0),
            _ => x => x,
        };
        return (features, variant.Compat) switch
        {
            (FeatureKind.FavorPlus, _) => ReferenceFeatures.FavorPlus(w!, m, scale),
            (FeatureKind.FavorPlusHyperbolic, _) => ReferenceFeatures.FavorPlusHyperbolic(w!, m, scale),
            (_, "jax") => ReferenceFeatures.JaxGeneralized(function, w, m, epsilon: variant.Epsilon ?? 1e-3),
            (_, "lucidrains") => ReferenceFeatures.LucidrainsGeneralized(function, Math.Pow(dimension, -0.25), w, m, variant.Epsilon ?? 1e-3),
            _ => ReferenceFeatures.JaxGeneralized(function, w, m, epsilon: variant.Epsilon ?? 0),
        };
    }

    // What the library is asked, for the plain implementation that errors are measured in.
    private static void AssertWithin(AttentionShape shape, FeatureMap? map, double[] oracle, float[] actual, bool causal, Variant variant)
    {
        float scale = variant.Scale ?? 1 / MathF.Sqrt(shape.KeyDimension);
        bool exponential = map is not null && map.Name.StartsWith("favor", StringComparison.Ordinal);
        var problem = new AttentionProblem
        {
            Shape = shape,
            Features = map?.Lower(shape.KeyDimension, scale),
            Causal = causal,
            Scale = exponential || (map is not null && variant.Normalize) ? 1 : scale,
            Normalize = variant.Normalize,
            Convention = variant.Compat switch
            {
                "jax" => ReferenceConvention.Jax,
                "lucidrains" => ReferenceConvention.Lucidrains,
                _ => ReferenceConvention.None,
            },
            FeatureEpsilon = variant.Epsilon ?? variant.Compat switch
            {
                "none" => 0,
                "jax" when exponential => 1e-6f,
                "lucidrains" when exponential => 1e-4f,
                _ => 1e-3f,
            },
        };
        (float[] query, float[] key, float[] value) = Inputs(shape);
        if (problem.Convention == ReferenceConvention.Lucidrains && !exponential)
        {
            // That implementation scales the rows before any feature map.
            float factor = (float)Math.Pow(shape.KeyDimension, -0.25);
            query = Array.ConvertAll(query, x => x * factor);
            key = Array.ConvertAll(key, x => x * factor);
        }

        Tolerance.Require(actual, oracle, PlainAttention.Run(problem, query, key, value));
    }

    private static void AssertClose(float[] expected, float[] actual)
    {
        Assert.Equal(expected.Length, actual.Length);
        float largest = expected.Select(MathF.Abs).DefaultIfEmpty(0).Max();
        Assert.All(expected.Zip(actual), pair => Assert.InRange(pair.Second - pair.First, -2e-5f * largest, 2e-5f * largest));
    }

    private static (float[] Query, float[] Key, float[] Value) Inputs(AttentionShape shape) => TestData.Inputs(shape, seed: 3, std: 0.7);

    private static float[] Slice(float[] tensor, int row, int from, int to)
    {
        int sequence = tensor.Length / 2;
        return [.. tensor[(from * row)..(to * row)], .. tensor[(sequence + (from * row))..(sequence + (to * row))]];
    }

    private static float[] Join(float[] first, float[] second, int split)
    {
        int a = split * 4 * 5;
        int b = second.Length / 2;
        return [.. first[..a], .. second[..b], .. first[a..], .. second[b..]];
    }

    private static AttentionState ReadState(string path, string features)
    {
        bool exponential = FeatureKind.NeedsProjection(features);
        int count = features switch
        {
            FeatureKind.FavorPlus => 256,
            FeatureKind.FavorPlusHyperbolic => 512,
            _ => 8,
        };
        var state = new AttentionState(2, 2, count, 5, exponential ? FeatureFamily.Exponential : FeatureFamily.Direct);
        StateFile.Read(path, state);
        return state;
    }

    private (CommandRun Run, string Output) Attend(AttentionShape shape, string output, params string[] options)
    {
        WriteInputs(shape);
        CommandRun run = CommandRun.Of([.. Arguments(output), .. options]);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        return (run, _folder[output]);
    }

    private string[] WriteInputs(AttentionShape shape)
    {
        (float[] query, float[] key, float[] value) = Inputs(shape);
        return WriteInputs(shape, query, key, value);
    }

    private string[] WriteInputs(AttentionShape shape, float[] query, float[] key, float[] value)
    {
        _folder.WriteArray("q.npy", [shape.Batch, shape.QueryLength, shape.Heads, shape.KeyDimension], query);
        _folder.WriteArray("k.npy", [shape.Batch, shape.KeyLength, shape.KeyHeads, shape.KeyDimension], key);
        _folder.WriteArray("v.npy", [shape.Batch, shape.KeyLength, shape.KeyHeads, shape.ValueDimension], value);
        return Arguments("o.npy");
    }

    private string[] Arguments(string output) =>
        ["attend", "--query", _folder["q.npy"], "--key", _folder["k.npy"], "--value", _folder["v.npy"], "--output", _folder[output], "--device", "cpu"];

    private string WriteProjection(RowLength length)
    {
        RandomProjection projection = RandomProjection.Orthogonal(Features, SelfAttention.KeyDimension, Seed, length);
        return _folder.WriteArray("w.npy", [Features, SelfAttention.KeyDimension], projection.Matrix.ToArray());
    }

    private sealed record Variant
    {
        public float? Scale { get; init; }

        public bool Normalize { get; init; } = true;

        public string Compat { get; init; } = "none";

        public float? Epsilon { get; init; }

        public string[] Arguments =>
        [
            .. Scale is { } scale ? (string[])["--scale", $"{scale}"] : [],
            .. Normalize ? [] : (string[])["--no-normalize"],
            "--compat", Compat,
            .. Epsilon is { } epsilon ? (string[])["--feature-epsilon", $"{epsilon}"] : [],
        ];
    }
}
