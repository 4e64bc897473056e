using BenchmarkDotNet.Attributes;

namespace Gpu.Attention.Benchmarks;

/// <summary>Whole calls of the operators on the host, on every core. A steady call allocates nothing, or the run fails.</summary>
[MemoryDiagnoser]
public class ForwardBenchmarks
{
    private ComputeDevice _device = null!;
    private AttentionRun _run = null!;
    private AttentionData _data = null!;

    [ParamsSource(nameof(Cases))]
    public AttentionCase Case { get; set; } = null!;

    public static IEnumerable<AttentionCase> Cases =>
        from length in new[] { 1024, 4096 }
        from features in new[] { "favor", "elu", "softmax" }
        from causal in new[] { true, false }
        select new AttentionCase(features, causal, length);

    [GlobalSetup]
    public void Setup()
    {
        _device = ComputeDevice.Open(DeviceKind.Cpu);
        _run = Case.Open(_device);
        _data = new AttentionData(Case.Shape);
    }

    [GlobalCleanup]
    public void Cleanup()
    {
        _run.Dispose();
        _device.Dispose();
    }

    [Benchmark]
    public void Forward() => _run.Forward(Case.Shape, _data);
}
