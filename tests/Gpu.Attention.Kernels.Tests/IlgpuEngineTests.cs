using Gpu.Attention.Tests;
using ILGPU.Runtime;

namespace Gpu.Attention.Kernels.Tests;

/// <summary>The laws on the device engine.</summary>
public abstract class IlgpuEngineTests : EngineLaws, IDisposable
{
    private readonly Accelerator _accelerator;
    private readonly DeviceMemory _memory;
    private readonly IlgpuEngine _engine;
    private readonly IlgpuEngine[] _others;

    private protected IlgpuEngineTests(Accelerator accelerator, IlgpuEngineOptions options)
    {
        _accelerator = accelerator;
        _memory = new DeviceMemory(accelerator);
        _engine = new IlgpuEngine(accelerator, options);
        _others = [new IlgpuEngine(accelerator, options with { BlockItems = 1 }), new IlgpuEngine(accelerator, options with { BlockItems = 5 })];
    }

    private protected override IAttentionEngine Engine => _engine;

    private protected override IEnumerable<IAttentionEngine> OtherDegrees => _others;

    private protected override EngineMemory Memory => _memory;

    private protected override string[] Refused => ["softplus", "softmax"];

    /// <summary>Every law leaves the device as it found it.</summary>
    public void Dispose()
    {
        _engine.Dispose();
        Array.ForEach(_others, other => other.Dispose());
        long live = _memory.LiveBytes + _engine.LiveBytes + _others.Sum(other => other.LiveBytes);
        _accelerator.Dispose();
        GC.SuppressFinalize(this);
        Xunit.Assert.Equal(0, live);
    }
}

/// <summary>On the simulator, with four threads in a group that keep 8 × 8 sums each.</summary>
public sealed class SimulatedBlock8Tests() : IlgpuEngineTests(
    TestAccelerators.OpenSimulator(2, 2), new IlgpuEngineOptions { Tiling = LinearTiling.Chunk16Block8 })
{
    private protected override int MaxLength => 40;

    private protected override int Cases(int full) => 2;
}

/// <summary>On the simulator, with sixteen threads in a group that keep 4 × 4 sums each.</summary>
public sealed class SimulatedBlock4Tests() : IlgpuEngineTests(
    TestAccelerators.OpenSimulator(4, 4), new IlgpuEngineOptions { Tiling = LinearTiling.Chunk16Block4 })
{
    private protected override int MaxLength => 20;

    private protected override int Cases(int full) => 1;
}

/// <summary>On OpenCL as devices run it.</summary>
public sealed class OpenCLEngineTests() : IlgpuEngineTests(TestAccelerators.OpenOpenCL(), new IlgpuEngineOptions());

/// <summary>On OpenCL with 4 × 4 sums a thread.</summary>
public sealed class OpenCLBlock4Tests() : IlgpuEngineTests(
    TestAccelerators.OpenOpenCL(), new IlgpuEngineOptions { Tiling = LinearTiling.Chunk64Block4 })
{
    private protected override int Cases(int full) => Math.Min(full, 6);
}

/// <summary>On CUDA as devices run it.</summary>
public sealed class CudaEngineTests() : IlgpuEngineTests(TestAccelerators.OpenCuda(), new IlgpuEngineOptions());
