using System.Text.Json;
using Gpu.Attention.Cli.Files;
using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

/// <summary>Where commands run: on the device asked for, or on the next with the reason, or not at all.</summary>
public sealed class DeviceTests : IDisposable
{
    private const string SmallBench = "bench --lengths 9 --heads 1 --dim 8 --num-features 16 --causal --repeats 1 --json ";
    private static readonly AttentionShape Shape = new(1, 9, 9, 2, 1, 8, 5);

    private readonly TemporaryFolder _folder = new();

    private static bool HasSimulator => ComputeDevice.Enumerate().Any(d => d.Kind == DeviceKind.Simulator);

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void Devices_ThatAreNotThere_AreBadUsageWithTheReason()
    {
        JsonElement[] missing = [.. CommandRun.Of("devices", "--json").Json()[0].GetProperty("missing").EnumerateArray()];
        Assert.All(missing, kind => AssertRefused(kind.GetProperty("kind").GetString()!, kind.GetProperty("reason").GetString()!));
        if (!HasSimulator)
        {
            Assert.Contains("made without the ILGPU package", CommandRun.OfLine("bench --device cuda").Error);
        }
    }

    [Fact]
    public void Devices_ThatAreRefused_AreBadUsageWithTheReason() =>
        Assert.All(ComputeDevice.Enumerate().Where(d => !d.IsUsable), device => AssertRefused(device.Id, device.Refusal!));

    [Fact]
    public void Bench_OnEveryUsableDevice_RunsThere() =>
        Assert.All(ComputeDevice.Enumerate().Where(d => d.IsUsable), device =>
        {
            CommandRun run = CommandRun.OfLine($"{SmallBench} --features favor+,elu --compare softmax --no-fallback --device {device.Id}");
            Assert.Equal(0, run.ExitCode);
            Assert.Equal(device.Kind == DeviceKind.Simulator, run.Error.Contains("simulator", StringComparison.Ordinal));
            JsonElement[] results = run.Json();
            Assert.Equal(3, results.Length);
            Assert.All(results, result =>
            {
                Assert.Equal(device.Id, result.GetProperty("deviceId").GetString());
                Assert.Equal(device.ToString(), result.GetProperty("device").GetString());
                Assert.Empty(result.GetProperty("fallbacks").EnumerateArray());
                Assert.Equal(device.Kind == DeviceKind.Cpu, result.GetProperty("peakShare").ValueKind == JsonValueKind.Number);
            });
        });

    [Fact]
    public void Bench_OnTheSimulatorWithoutLengths_TakesShortOnes()
    {
        RequireSimulator();
        CommandRun run = CommandRun.OfLine("bench --device simulator --features elu --heads 1 --dim 8 --repeats 1 --json");
        Assert.Equal([16, 64], run.Json().Select(result => result.GetProperty("T").GetInt32()));
    }

    [Fact]
    public void Bench_UnderABudgetThatIsTooSmall_RunsOnTheHostAndSaysWhy()
    {
        RequireSimulator();
        CommandRun run = CommandRun.OfLine(SmallBench + "--device simulator --memory-budget 1k");
        Assert.Equal(0, run.ExitCode);
        JsonElement result = Assert.Single(run.Json());
        Assert.StartsWith("cpu", result.GetProperty("deviceId").GetString());
        Assert.Equal(JsonValueKind.Null, result.GetProperty("peakShare").ValueKind);
        string reason = Assert.Single(result.GetProperty("fallbacks").EnumerateArray()).GetString()!;
        Assert.Contains("where 1024 may be used", reason);
        Assert.Contains($"fallback: {reason}", run.Error);
    }

    [Theory]
    [InlineData("--memory-budget 1K", "where 1024 may be used")]
    [InlineData("--compat jax", "Jax convention")]
    public void Attend_WhatTheDeviceCannotRun_RunsOnTheHostOrNotAtAll(string option, string reason)
    {
        RequireSimulator();
        string[] arguments = [.. Attend("o.npy"), "--device", "simulator", .. option.Split(' ')];
        CommandRun fallen = CommandRun.Of([.. arguments, "--json"]);
        Assert.Equal(0, fallen.ExitCode);
        JsonElement result = Assert.Single(fallen.Json());
        Assert.StartsWith("Cpu", result.GetProperty("device").GetString());
        Assert.StartsWith("Simulator", result.GetProperty("chosen").GetString());
        Assert.Contains(reason, Assert.Single(result.GetProperty("fallbacks").EnumerateArray()).GetString());
        Assert.StartsWith("fallback: Simulator", fallen.Error);
        Assert.Contains(reason, fallen.Error);

        File.Delete(_folder["o.npy"]);
        CommandRun refused = CommandRun.Of([.. arguments, "--no-fallback"]);
        Assert.Equal((1, ""), (refused.ExitCode, refused.Output));
        Assert.Contains(reason, refused.Error);
        Assert.DoesNotContain("unexpected", refused.Error);
        Assert.False(File.Exists(_folder["o.npy"]));
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("softmax")]
    public void Attend_OnTheSimulator_IsWhatTheHostMakesOfIt(string features)
    {
        RequireSimulator();
        string[] how = ["--features", features, "--causal", .. features == FeatureKind.Softmax ? (string[])[] : ["--num-features", "16"]];
        CommandRun host = CommandRun.Of([.. Attend("host.npy"), .. how, "--device", "cpu"]);
        CommandRun simulator = CommandRun.Of([.. Attend("simulator.npy"), .. how, "--device", "simulator:0", "--no-fallback", "--memory-budget", "64M"]);
        Assert.Equal((0, "", 0, ""), (host.ExitCode, host.Error, simulator.ExitCode, simulator.Error));
        Assert.Contains("on Simulator 0", simulator.Output);
        float[] expected = NpyFile.Read(_folder["host.npy"]).Data;
        float[] actual = NpyFile.Read(_folder["simulator.npy"]).Data;
        Assert.All(expected.Zip(actual), pair => Assert.Equal(pair.First, pair.Second, 1e-5f));
    }

    // Whether the device has a backward pass of its own or the host takes over, both passes' devices are named.
    [Theory]
    [InlineData("favor+")]
    [InlineData("softmax")]
    public void Gradients_OnTheSimulator_AreWhatTheHostMakesOfThem(string features)
    {
        RequireSimulator();
        string[] how = ["--features", features, "--causal", .. features == FeatureKind.Softmax ? (string[])[] : ["--num-features", "16"]];
        _folder.WriteArray("do.npy", [1, 9, 2, 5], TestData.Normal(4, Shape.OutputElements));
        JsonElement host = Run("host", "cpu");
        JsonElement simulator = Run("simulator", "simulator");
        Assert.Empty(host.GetProperty("fallbacks").EnumerateArray());
        Assert.StartsWith("Simulator", simulator.GetProperty("device").GetString());
        bool isOnTheHost = simulator.GetProperty("backward").GetProperty("device").GetString()!.StartsWith("Cpu", StringComparison.Ordinal);
        Assert.Equal(isOnTheHost ? 1 : 0, simulator.GetProperty("fallbacks").GetArrayLength());
        foreach (string gradient in new[] { "dq", "dk", "dv" })
        {
            float[] expected = NpyFile.Read(_folder[$"host.{gradient}.npy"]).Data;
            float[] actual = NpyFile.Read(_folder[$"simulator.{gradient}.npy"]).Data;
            Assert.All(expected.Zip(actual), pair => Assert.Equal(pair.First, pair.Second, 1e-5f));
        }

        JsonElement Run(string name, string device) => Assert.Single(CommandRun.Of(
        [
            .. Attend($"{name}.npy"), .. how, "--device", device, "--output-gradient", _folder["do.npy"], "--query-gradient", _folder[$"{name}.dq.npy"],
            "--key-gradient", _folder[$"{name}.dk.npy"], "--value-gradient", _folder[$"{name}.dv.npy"], "--json",
        ]).Json());
    }

    [Fact]
    public void Bench_WithTheBackwardPassOnTheSimulator_NamesWhereEachPassRan()
    {
        RequireSimulator();
        JsonElement result = Assert.Single(CommandRun.OfLine(SmallBench + "--backward --device simulator").Json());
        Assert.True(result.GetProperty("passed").GetBoolean());
        Assert.StartsWith("simulator", result.GetProperty("deviceId").GetString());
        Assert.Equal(
            result.GetProperty("backwardDeviceId").GetString() == result.GetProperty("deviceId").GetString() ? 0 : 1, result.GetProperty("fallbacks").GetArrayLength());
        Assert.True(result.GetProperty("bothMs").GetDouble() > result.GetProperty("ms").GetDouble());
        Assert.Equal(JsonValueKind.Null, result.GetProperty("bothPeakShare").ValueKind);
    }

    [Fact]
    public void Attend_ABudgetOnTheHost_IsNoted()
    {
        CommandRun run = CommandRun.Of([.. Attend("o.npy"), "--device", "cpu", "--memory-budget", "1G"]);
        Assert.Equal(0, run.ExitCode);
        Assert.Contains("--memory-budget changes nothing", run.Error);
    }

    private static void AssertRefused(string id, string reason)
    {
        CommandRun run = CommandRun.OfLine($"{SmallBench} --device {id}");
        Assert.Equal((2, ""), (run.ExitCode, run.Output));
        Assert.StartsWith($"gpu-attention: --device {id}: ", run.Error);
        Assert.Contains(reason, run.Error);
    }

    private static void RequireSimulator() => Assert.SkipUnless(HasSimulator, "This build has no simulator: it was made without the ILGPU package.");

    private string[] Attend(string output)
    {
        (float[] query, float[] key, float[] value) = TestData.Inputs(Shape, seed: 3, std: 0.7);
        _folder.WriteArray("q.npy", [1, 9, 2, 8], query);
        _folder.WriteArray("k.npy", [1, 9, 1, 8], key);
        _folder.WriteArray("v.npy", [1, 9, 1, 5], value);
        return ["attend", "--query", _folder["q.npy"], "--key", _folder["k.npy"], "--value", _folder["v.npy"], "--output", _folder[output]];
    }
}
