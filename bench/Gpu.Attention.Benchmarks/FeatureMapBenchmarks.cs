using BenchmarkDotNet.Attributes;

namespace Gpu.Attention.Benchmarks;

/// <summary>
/// What the engine takes to make features of keys, on one core: a time is that of one row of 64. Values have one column, so that there is next to nothing to sum.
/// </summary>
[MemoryDiagnoser]
public unsafe class FeatureMapBenchmarks
{
    private const int Rows = 4096;
    private const int Dimension = AttentionCase.Dimension;

    private readonly SimdEngine _engine = new(1);
    private AttentionProblem _problem = null!;
    private NativeFloats _keys = null!;
    private NativeFloats _values = null!;
    private NativeFloats _output = null!;
    private NativeFloats _workspace = null!;

    [Params("favor", "favor-hyperbolic", "elu", "relu")]
    public string Map { get; set; } = "";

    [GlobalSetup]
    public void Setup()
    {
        FeatureMap map = new AttentionCase(Map, Causal: false, Rows).Map;
        _problem = new AttentionProblem
        {
            Shape = new AttentionShape(1, queryLength: 1, keyLength: Rows, heads: 1, keyHeads: 1, keyDimension: Dimension, valueDimension: 1),
            Features = map.Lower(Dimension, map.DefaultScale(Dimension)),
        };
        _keys = new NativeFloats(Rows * Dimension, 1);
        _values = new NativeFloats(Rows, 2);
        _output = new NativeFloats(1, 3);
        _workspace = new NativeFloats((int)(_engine.WorkspaceBytes(_problem) / sizeof(float)), 4);
    }

    [GlobalCleanup]
    public void Cleanup()
    {
        _keys.Dispose();
        _values.Dispose();
        _output.Dispose();
        _workspace.Dispose();
    }

    [Benchmark(OperationsPerInvoke = Rows)]
    public void Features() => _engine.Forward(_problem, new AttentionBuffers
    {
        Query = TensorBuffer.Dense(MemoryRegion.Host(_keys.Pointer, Dimension), 1, 1, Dimension),
        Key = TensorBuffer.Dense(MemoryRegion.Host(_keys.Pointer, Rows * Dimension), Rows, 1, Dimension),
        Value = TensorBuffer.Dense(MemoryRegion.Host(_values.Pointer, Rows), Rows, 1, 1),
        Output = TensorBuffer.Dense(MemoryRegion.Host(_output.Pointer, 1), 1, 1, 1),
        Workspace = MemoryRegion.Host(_workspace.Pointer, _engine.WorkspaceBytes(_problem) / sizeof(float)),
    });
}
