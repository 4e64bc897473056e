using System.Text.Json;
using Xunit;

namespace Gpu.Attention.Cli.Tests;

public class UsageTests
{
    private const string Attend = "attend --query q.npy --key k.npy --value v.npy --output o.npy ";

    [Theory]
    [InlineData("", "command")]
    [InlineData("dance", "dance")]
    [InlineData("devices --bogus", "--bogus")]
    [InlineData("attend", "--query")]
    [InlineData("attend --query q.npy", "--key")]
    [InlineData(Attend + "--key-mask", "--key-mask")]
    [InlineData(Attend + "more", "more")]
    [InlineData(Attend + "--features performer", "favor+hyperbolic")]
    [InlineData(Attend + "--num-features 0", "--num-features")]
    [InlineData(Attend + "--num-features many", "many")]
    [InlineData(Attend + "--num-features 99999999999", "--num-features")]
    [InlineData(Attend + "--seed -1", "--seed")]
    [InlineData(Attend + "--seed 1.5", "--seed")]
    [InlineData(Attend + "--seed 1 --seed 2", "--seed")]
    [InlineData(Attend + "--ortho-scaling 2", "--ortho-scaling")]
    [InlineData(Attend + "--feature-epsilon -1", "--feature-epsilon")]
    [InlineData(Attend + "--feature-epsilon nan", "--feature-epsilon")]
    [InlineData(Attend + "--scale infinity", "--scale")]
    [InlineData(Attend + "--scale 1,5", "--scale")]
    [InlineData(Attend + "--compat torch", "lucidrains")]
    [InlineData(Attend + "--device tpu", "opencl")]
    [InlineData(Attend + "--device cpu:", "cpu:")]
    [InlineData(Attend + "--device cpu:first", "cpu:first")]
    [InlineData(Attend + "--device cpu:7", "no device Cpu 7")]
    [InlineData(Attend + "--memory-budget 0", "--memory-budget")]
    [InlineData(Attend + "--memory-budget -1", "--memory-budget")]
    [InlineData(Attend + "--memory-budget M", "'M'")]
    [InlineData(Attend + "--memory-budget 1T", "512M")]
    [InlineData(Attend + "--memory-budget 8589934592G", "--memory-budget")]
    [InlineData(Attend + "--key-lengths 1,,2", "--key-lengths")]
    [InlineData(Attend + "--key-lengths -1", "--key-lengths")]
    [InlineData(Attend + "--cu-seqlens 1,2", "--cu-seqlens")]
    [InlineData(Attend + "--cu-seqlens 0,4,3", "--cu-seqlens")]
    [InlineData(Attend + "--cu-seqlens 0,4 --cu-seqlens-key 0,5,4", "--cu-seqlens-key")]
    [InlineData(Attend + "--cu-seqlens 0,4 --cu-seqlens-key 0,4,5", "--cu-seqlens has 2 offsets and --cu-seqlens-key 3")]
    [InlineData(Attend + "--cu-seqlens-key 0,4", "--cu-seqlens-key says something of --cu-seqlens, which is not given")]
    [InlineData(Attend + "--key-lengths 3 --key-mask mask.npy", "--key-lengths and --key-mask exclude each other")]
    [InlineData(Attend + "--key-lengths 3 --cu-seqlens 0,4", "--key-lengths and --cu-seqlens exclude each other")]
    [InlineData(Attend + "--cu-seqlens 0,4 --key-mask mask.npy", "--key-mask and --cu-seqlens exclude each other")]
    [InlineData(Attend + "--padding left", "--padding says something of --key-lengths, which is not given")]
    [InlineData(Attend + "--key-mask mask.npy --padding left", "--padding says something of --key-lengths, which is not given")]
    [InlineData(Attend + "--key-lengths 3 --padding middle", "'middle' is none of left, right")]
    [InlineData(Attend + "--causal-block 4", "--causal-block says something of --causal, which is not given")]
    [InlineData(Attend + "--causal --causal-block 0", "--causal-block")]
    [InlineData(Attend + "--storage float8", "'float8' is none of float32, float16, bfloat16")]
    [InlineData(Attend + "--projection w.npy --num-features 8", "exclude each other")]
    [InlineData(Attend + "--projection w.npy --seed 8", "exclude each other")]
    [InlineData(Attend + "--projection w.npy --features elu", "--projection")]
    [InlineData(Attend + "--features softmax --initial-state s.npz", "--initial-state")]
    [InlineData(Attend + "--features softmax --final-state s.npz", "--final-state")]
    [InlineData(Attend + "--features softmax --no-normalize", "--no-normalize")]
    [InlineData(Attend + "--features softmax --feature-epsilon 0.1", "--feature-epsilon")]
    [InlineData(Attend + "--features softmax --compat jax", "--compat")]
    [InlineData(Attend + "--final-state ./o.npy", "same file")]
    [InlineData("bench --lengths 1,two", "--lengths")]
    [InlineData("bench --lengths 0", "--lengths")]
    [InlineData("bench --features favor+,best", "best")]
    [InlineData("bench --compare elu", "softmax")]
    [InlineData("bench --repeats 0", "--repeats")]
    [InlineData("bench --device tpu", "simulator")]
    [InlineData("bench --memory-budget 1.5G", "1.5G")]
    public void Run_BadUsage_ExitsWith2AndSaysWhat(string line, string fragment)
    {
        CommandRun run = CommandRun.OfLine(line);
        Assert.Equal(2, run.ExitCode);
        Assert.Contains(fragment, run.Error);
        Assert.Empty(run.Output);
    }

    [Theory]
    [InlineData("--help", "devices")]
    [InlineData("attend --help", "--ortho-scaling")]
    [InlineData("bench --help", "--compare")]
    [InlineData("devices -h", "--json")]
    [InlineData("--version", ".")]
    public void Run_Help_ExitsWith0(string line, string fragment)
    {
        CommandRun run = CommandRun.OfLine(line);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains(fragment, run.Output);
    }

    [Fact]
    public void Devices_AsText_IsPlainAndListsTheHost()
    {
        CommandRun run = CommandRun.Of("devices");
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains("cpu:0", run.Output);
        Assert.Contains("by default", run.Output);
        Assert.DoesNotContain('\u001b', run.Output);
        Assert.DoesNotContain('│', run.Output);
    }

    [Fact]
    public void Devices_AsJson_HasEveryKindAndAReasonForWhatIsUnusable()
    {
        CommandRun run = CommandRun.Of("devices", "--json");
        Assert.Equal(0, run.ExitCode);
        JsonElement root = Assert.Single(run.Json());
        JsonElement[] devices = [.. root.GetProperty("devices").EnumerateArray()];
        JsonElement[] missing = [.. root.GetProperty("missing").EnumerateArray()];
        JsonElement host = Assert.Single(devices, d => d.GetProperty("kind").GetString() == "cpu");
        Assert.True(host.GetProperty("isUsable").GetBoolean());
        Assert.True(host.GetProperty("memoryBytes").GetInt64() > 0);
        Assert.Equal(
            ["cpu", "cuda", "opencl", "simulator"], devices.Concat(missing).Select(d => d.GetProperty("kind").GetString()).Distinct().Order());
        JsonElement chosen = Assert.Single(devices, d => d.GetProperty("id").GetString() == root.GetProperty("default").GetString());
        Assert.True(chosen.GetProperty("isUsable").GetBoolean() && !chosen.GetProperty("onlyWhenAskedFor").GetBoolean());
        Assert.All(missing, m => Assert.NotEmpty(m.GetProperty("reason").GetString()!));
        Assert.All(devices, d => Assert.Equal(d.GetProperty("isUsable").GetBoolean(), d.GetProperty("refusal").ValueKind == JsonValueKind.Null));
    }
}
