using System.Xml.Linq;
using Gpu.Attention.Samples.Streaming;
using Xunit;

namespace Gpu.Attention.Samples.Tests;

/// <summary>The whole sample, once, as <c>--quick</c> runs it.</summary>
public sealed class QuickStreamRun : IDisposable
{
    public QuickStreamRun() => Results = new StreamRun(new StreamOptions { Tokens = 4_096, Output = Folder }, Console).Run();

    internal StreamResults Results { get; }

    internal StringWriter Console { get; } = new();

    internal string Folder { get; } = Directory.CreateTempSubdirectory("gpu-attention-stream-").FullName;

    public void Dispose()
    {
        Directory.Delete(Folder, recursive: true);
        Console.Dispose();
    }
}

public sealed class StreamTests(QuickStreamRun run) : IClassFixture<QuickStreamRun>
{
    [Fact]
    public void EveryCheck_Passes()
    {
        Assert.True(run.Results.IsRight, run.Console.ToString());
        Assert.DoesNotContain("fallback", run.Console.ToString());
    }

    [Fact]
    public void LinearAttention_CostsTheSameAtTheEndAsAtTheStart() => Assert.All(run.Results.Linear, curve =>
    {
        Assert.Equal([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096], curve.Positions);
        Assert.True(
            curve.Costs[^1].Seconds < 3 * curve.Costs[0].Seconds,
            $"{curve.Name}: {curve.Costs[0].Seconds * 1e6} µs at the start, {curve.Costs[^1].Seconds * 1e6} at the end");
        Assert.All(curve.Costs, cost => Assert.Equal(curve.Costs[0].Bytes, cost.Bytes));
        Assert.Equal(0, curve.AllocatedBytes);
    });

    [Fact]
    public void ExactAttention_CostsMoreTheMoreThereWas()
    {
        Assert.All(run.Results.Exact.Costs, cost => Assert.Equal(cost.Position * 2L * 8 * 64 * sizeof(float), cost.Bytes));
        Assert.True(run.Results.Exact.Costs[^1].Seconds > 10 * run.Results.Exact.Costs[0].Seconds);
    }

    [Fact]
    public void TheLimit_IsBelowATokenThatWasForgotten()
    {
        const int Count = 4_096;
        const int Forgotten = 1_000;
        var stream = new TokenStream(1);
        float[] query = new float[Count * TokenStream.Width];
        float[] key = new float[query.Length];
        float[] value = new float[query.Length];
        stream.Fill(0, query, key, value);
        int lost = Forgotten * TokenStream.Width;
        float[] last = query[^TokenStream.Width..];
        float[] output = new float[TokenStream.Width];
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        attention.Forward(
            new AttentionShape(1, 1, Count - 1, TokenStream.Heads, TokenStream.Heads, TokenStream.Dimension, TokenStream.Dimension), last,
            [.. key[..lost], .. key[(lost + TokenStream.Width)..]], [.. value[..lost], .. value[(lost + TokenStream.Width)..]], output);

        Curve curve = run.Results.Linear[0];
        Assert.True(StreamRun.ShareOfLimit(Count, curve.Outputs[^1], output) > 5);
        attention.Forward(
            new AttentionShape(1, 1, Count, TokenStream.Heads, TokenStream.Heads, TokenStream.Dimension, TokenStream.Dimension), last, key, value, output);
        Assert.InRange(StreamRun.ShareOfLimit(Count, curve.Outputs[^1], output), 0, 1);
        output[0] = float.NaN;
        Assert.False(StreamRun.ShareOfLimit(Count, curve.Outputs[^1], output) <= 1);
    }

    [Theory]
    [InlineData(StreamRun.TimeFile)]
    [InlineData(StreamRun.MemoryFile)]
    public void Picture_IsWellFormedAndNamedByTheRun(string file)
    {
        XElement root = XElement.Load(Path.Combine(run.Folder, file));
        Assert.Equal("svg", root.Name.LocalName);
        Assert.Contains(Path.Combine(run.Folder, file), run.Console.ToString());
    }
}
