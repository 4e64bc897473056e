using System.Text.Json;
using Gpu.Attention.Cli.Files;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

/// <summary>
/// <c>attend</c> with masks, sequences of different lengths, packed ones and causal blocks: what the operator itself makes of them, bit for bit.
/// </summary>
public sealed class AttendLayoutTests
{
    private static readonly AttentionShape Padded = new(2, 21, 21, 4, 2, 8, 5);
    private static readonly AttentionShape Packed = new(1, 21, 21, 4, 2, 8, 5);
    private static readonly AttentionShape Pairs = new(1, 9, 21, 4, 2, 8, 5);
    private static readonly int[] Lengths = [13, 0];
    private static readonly int[] Ends = [0, 5, 5, 21];
    private static readonly int[] QueryEnds = [0, 2, 6, 9];

    public static TheoryData<string, bool> MapsAndDirections() => AttendTests.MapsAndDirections();

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void KeyLengths_AreThoseOfTheLayout(string features, bool causal)
    {
        AssertSame(Padded, features, causal, SequenceLayout.FromKeyLengths(Lengths, 21), "--key-lengths", "13,0");
        AssertSame(Padded, features, causal, SequenceLayout.FromKeyLengths(Lengths, 21), "--key-lengths", "13,0", "--padding", "right");
        AssertSame(
            Padded, features, causal, SequenceLayout.FromKeyLengths(Lengths, 21, PaddingSide.Left), "--key-lengths", "13,0", "--padding", "left");
    }

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void CuSeqlens_AreThoseOfTheLayout(string features, bool causal)
    {
        AssertSame(Packed, features, causal, SequenceLayout.FromCuSeqlens(Ends), "--cu-seqlens", "0,5,5,21");
        AssertSame(
            Pairs, features, causal, SequenceLayout.FromCuSeqlens(QueryEnds, [0, 5, 9, 21]), "--cu-seqlens", "0,2,6,9", "--cu-seqlens-key", "0,5,9,21");
    }

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void KeyMask_IsThatOfTheLayout(string features, bool causal)
    {
        bool[] mask = Mask();
        AssertSame(Padded, features, causal, SequenceLayout.FromKeyMask(2, 21, mask), MaskOption(mask));
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("softmax")]
    public void CausalBlocks_AreThoseOfTheOptions(string features)
    {
        AssertSame(Padded, features, true, null, (_, _) => ["--causal-block", "4"], block: 4);
        AssertSame(Packed, features, true, SequenceLayout.FromCuSeqlens(Ends), (_, _) => ["--cu-seqlens", "0,5,5,21", "--causal-block", "4"], block: 4);
    }

    [Fact]
    public void AsJson_TheLayoutIsNamed()
    {
        using var problem = new AttendProblem(Packed);
        JsonElement root = Assert.Single(problem.Attend("--features", "elu", "--cu-seqlens", "0,5,5,21", "--json").Json());
        Assert.StartsWith("3 packed sequences", root.GetProperty("layout").GetString());
        Assert.Equal("float32", root.GetProperty("storage").GetString());
        Assert.Equal(JsonValueKind.Null, Assert.Single(problem.Attend("--json").Json()).GetProperty("layout").ValueKind);
    }

    [Theory]
    [InlineData("--key-lengths 13", "--key-lengths has 1 lengths for B = 2 sequences")]
    [InlineData("--key-lengths 13,22", "--key-lengths has 22, more than the S = 21 keys there are")]
    [InlineData("--key-lengths 2147483647,2147483647", "more than the S = 21 keys")]
    [InlineData("--cu-seqlens 0,21", "packed sequences stand in tensors of batch 1, not 2")]
    public void LayoutsOfOtherTensors_ExitWith1(string options, string fragment) => AssertFails(Padded, options.Split(' '), fragment);

    [Theory]
    [InlineData("--cu-seqlens 0,5", "--cu-seqlens ends at 5, but there are T = 9 queries")]
    [InlineData("--cu-seqlens 0,2147483647", "--cu-seqlens ends at 2147483647, but")]
    [InlineData("--cu-seqlens 0", "--cu-seqlens ends at 0, but")]
    [InlineData("--cu-seqlens 0,9", "--cu-seqlens ends at 9, but there are S = 21 keys: say with --cu-seqlens-key where theirs end")]
    [InlineData("--cu-seqlens 0,9 --cu-seqlens-key 0,20", "--cu-seqlens-key ends at 20, but there are S = 21 keys")]
    public void OffsetsThatDoNotEndAtTheEnd_ExitWith1(string options, string fragment) => AssertFails(Pairs, options.Split(' '), fragment);

    [Theory]
    [InlineData("|b1", "(2, 20)", 40, "the mask is [2, 20] where [2, 21] is needed")]
    [InlineData("|b1", "(42,)", 42, "the mask is [42] where [2, 21] is needed")]
    [InlineData("<i4", "(2, 21)", 168, "int32 ('<i4'); a mask has bool ('|b1') or uint8 ('|u1')")]
    [InlineData("|u1", "(2, 21)", 41, "42 bytes of elements, but the file has 41")]
    public void MasksOfOtherTensors_ExitWith1(string descriptor, string shape, int bytes, string fragment)
    {
        using var problem = new AttendProblem(Padded);
        byte[] file = NpyBytes.Make($"{{'descr': '{descriptor}', 'fortran_order': False, 'shape': {shape}, }}", new byte[bytes]);
        AssertFails(problem, ["--key-mask", problem.Folder.WriteBytes("mask.npy", file)], fragment);
        AssertFails(problem, ["--key-mask", problem.Folder["missing.npy"]], "missing.npy");
    }

    private static bool[] Mask() => [.. Enumerable.Range(0, 42).Select(i => i % 3 != 0 && i < 38)];

    private static Func<AttendProblem, bool, string[]> MaskOption(bool[] mask) => (problem, isByte) =>
    [
        "--key-mask", problem.Folder.WriteBytes(
            "mask.npy",
            NpyBytes.Make(
                $"{{'descr': '|{(isByte ? 'u' : 'b')}1', 'fortran_order': False, 'shape': (2, 21), }}", Array.ConvertAll(mask, x => x ? (byte)1 : (byte)0))),
    ];

    private static void AssertSame(AttentionShape shape, string features, bool causal, SequenceLayout layout, params string[] options) =>
        AssertSame(shape, features, causal, layout, (_, _) => options);

    private static void AssertSame(
        AttentionShape shape, string features, bool causal, SequenceLayout? layout, Func<AttendProblem, bool, string[]> options, int block = 1)
    {
        using var problem = new AttendProblem(shape);
        float[] expected = new float[shape.OutputElements];
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        if (features == FeatureKind.Softmax)
        {
            using var attention = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = causal, CausalBlock = block });
            attention.Forward(shape, problem.Query, problem.Key, problem.Value, expected, layout);
        }
        else
        {
            RandomProjection? projection = FeatureKind.NeedsProjection(features) ? RandomProjection.Orthogonal(16, 8, 42) : null;
            using var attention = new LinearAttention(
                device, FeatureKind.Create(features, projection), new LinearAttentionOptions { Causal = causal, CausalBlock = block });
            attention.Forward(shape, problem.Query, problem.Key, problem.Value, expected, layout);
        }

        string[] how =
        [
            "--features", features, .. causal ? (string[])["--causal"] : [], .. FeatureKind.NeedsProjection(features) ? (string[])["--num-features", "16"] : [],
        ];
        foreach (bool isByte in (bool[])[false, true])
        {
            CommandRun run = problem.Attend([.. how, .. options(problem, isByte)]);
            Assert.Equal((0, ""), (run.ExitCode, run.Error));
            Assert.Equal(expected, NpyFile.Read(problem.Folder["o.npy"]).Data);
        }
    }

    private static void AssertFails(AttentionShape shape, string[] options, string fragment)
    {
        using var problem = new AttendProblem(shape);
        AssertFails(problem, options, fragment);
    }

    private static void AssertFails(AttendProblem problem, string[] options, string fragment)
    {
        CommandRun run = problem.Attend(options);
        Assert.Equal((1, ""), (run.ExitCode, run.Output));
        Assert.Contains(fragment, run.Error);
        Assert.DoesNotContain("unexpected", run.Error);
        Assert.Single(run.Error.TrimEnd().Split('\n'));
        Assert.False(File.Exists(problem.Folder["o.npy"]));
    }
}
