using System.Diagnostics;
using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention.Benchmarks;

/// <summary>The device engine with a problem's tensors in the device's memory.</summary>
internal sealed class DeviceRun : IDisposable
{
    private readonly Accelerator _accelerator;
    private readonly IlgpuEngine _engine;
    private readonly AttentionProblem _problem;
    private readonly MemoryBuffer1D<float, Stride1D.Dense>[] _tensors;
    private readonly AttentionBuffers _buffers;
    private Dictionary<LinearStage, double>? _stages;
    private long _launched;

    public DeviceRun(Accelerator accelerator, DeviceOptions options, AttentionShape shape, FeatureMap map, AttentionData data)
    {
        _accelerator = accelerator;
        _engine = new IlgpuEngine(accelerator, new IlgpuEngineOptions { Tiling = options.Tiling, BlockItems = options.BlockItems, Launched = OnLaunched });
        _problem = new AttentionProblem
        {
            Shape = shape,
            Features = map.Lower(shape.KeyDimension, 1 / MathF.Sqrt(shape.KeyDimension)),
            Causal = options.Causal,
        };
        _tensors =
        [
            accelerator.Allocate1D(data.Query),
            accelerator.Allocate1D(data.Key),
            accelerator.Allocate1D(data.Value),
            accelerator.Allocate1D<float>(shape.OutputElements),
            accelerator.Allocate1D<float>((_engine.WorkspaceBytes(_problem) + sizeof(float) - 1) / sizeof(float)),
        ];
        MemoryRegion[] regions = [.. _tensors.Select(tensor => new MemoryRegion(tensor, 0, tensor.Length))];
        _buffers = new AttentionBuffers
        {
            Query = TensorBuffer.Dense(regions[0], shape.QueryLength, shape.Heads, shape.KeyDimension),
            Key = TensorBuffer.Dense(regions[1], shape.KeyLength, shape.KeyHeads, shape.KeyDimension),
            Value = TensorBuffer.Dense(regions[2], shape.KeyLength, shape.KeyHeads, shape.ValueDimension),
            Output = TensorBuffer.Dense(regions[3], shape.QueryLength, shape.Heads, shape.ValueDimension),
            Workspace = regions[4],
        };
    }

    /// <summary>Runs once and compares; kernels are compiled by it.</summary>
    public double LargestDifference(float[] expected)
    {
        Forward();

        // A NaN is a difference that no bar lets pass.
        return expected.Zip(_tensors[3].GetAsArray1D(), (x, y) => (double)MathF.Abs(x - y)).Aggregate(0.0, Math.Max);
    }

    /// <summary>Milliseconds of a call.</summary>
    public double Forward()
    {
        long start = Stopwatch.GetTimestamp();
        _engine.Forward(_problem, _buffers);
        _accelerator.Synchronize();
        return Stopwatch.GetElapsedTime(start).TotalMilliseconds;
    }

    /// <summary>Milliseconds of a call's stages, each waited for.</summary>
    public IReadOnlyDictionary<LinearStage, double> ForwardByStage()
    {
        var stages = Enum.GetValues<LinearStage>().ToDictionary(stage => stage, _ => 0.0);
        _stages = stages;
        _launched = Stopwatch.GetTimestamp();
        Forward();
        _stages = null;
        return stages;
    }

    public void Dispose()
    {
        _engine.Dispose();
        Array.ForEach(_tensors, tensor => tensor.Dispose());
    }

    private void OnLaunched(LinearStage stage)
    {
        if (_stages is not null)
        {
            _accelerator.Synchronize();
            _stages[stage] += Stopwatch.GetElapsedTime(_launched).TotalMilliseconds;
            _launched = Stopwatch.GetTimestamp();
        }
    }
}
