using Gpu.Attention.Tests;
using ILGPU.Runtime;

namespace Gpu.Attention.Kernels.Tests;

/// <summary>The laws on the device engine.</summary>
public abstract class IlgpuEngineTests : EngineLaws, IDisposable
{
    private readonly DeviceMemory _memory;
    private readonly IlgpuEngine _engine;
    private readonly IlgpuEngine[] _others;

    private protected IlgpuEngineTests(Accelerator accelerator, IlgpuEngineOptions options)
    {
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
        GC.SuppressFinalize(this);
        Xunit.Assert.Equal(0, live);
    }
}

/// <summary>On the simulator, with four threads in a group that keep 8 × 8 sums each.</summary>
public sealed class SimulatedBlock8Tests() : IlgpuEngineTests(
    TestAccelerators.SharedSimulator(2, 2), new IlgpuEngineOptions { Tiling = LinearTiling.Chunk16Block8 })
{
    private protected override int MaxLength => 40;

    private protected override int Cases(int full) => 2;
}

/// <summary>On the simulator, with sixteen threads in a group that keep 4 × 4 sums each.</summary>
public sealed class SimulatedBlock4Tests() : IlgpuEngineTests(
    TestAccelerators.SharedSimulator(4, 4), new IlgpuEngineOptions { Tiling = LinearTiling.Chunk16Block4 })
{
    private protected override int MaxLength => 20;

    private protected override int Cases(int full) => 1;
}

/// <summary>On OpenCL as devices run it.</summary>
public sealed class OpenCLEngineTests() : IlgpuEngineTests(TestAccelerators.SharedOpenCL(), new IlgpuEngineOptions())
{
    private protected override int Cases(int full) => Math.Min(full, 12);
}

/// <summary>On OpenCL with 4 × 4 sums a thread.</summary>
public sealed class OpenCLBlock4Tests() : IlgpuEngineTests(
    TestAccelerators.SharedOpenCL(), new IlgpuEngineOptions { Tiling = LinearTiling.Chunk64Block4 })
{
    private protected override int Cases(int full) => Math.Min(full, 4);
}

/// <summary>On CUDA as devices run it.</summary>
public sealed class CudaEngineTests() : IlgpuEngineTests(TestAccelerators.SharedCuda(), new IlgpuEngineOptions());
