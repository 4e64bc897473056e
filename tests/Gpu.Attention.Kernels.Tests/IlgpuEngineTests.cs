using Gpu.Attention.TestKit;
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

    private protected override IEnumerable<IAttentionEngine> OtherDegrees => [.. _others, new LeastWorkspace(_engine)];

    private protected override EngineMemory Memory => _memory;

    private protected override string[] Refused => ["softplus", "favor+ as jax"];

    /// <summary>Every law leaves the device as it found it.</summary>
    public void Dispose()
    {
        _engine.Dispose();
        Array.ForEach(_others, other => other.Dispose());
        long live = _memory.LiveBytes + _engine.LiveBytes + _others.Sum(other => other.LiveBytes);
        GC.SuppressFinalize(this);
        Assert.Equal(0, live);
    }

    /// <summary>An engine that is given no more workspace than it can do with.</summary>
    private sealed class LeastWorkspace(IAttentionEngine engine) : IAttentionEngine
    {
        public string Name => engine.Name;

        public int SegmentMultiple => engine.SegmentMultiple;

        public EngineSupport Supports(AttentionProblem problem) => engine.Supports(problem);

        public long WorkspaceBytes(AttentionProblem problem) => engine.MinimumWorkspaceBytes(problem);

        public long MinimumWorkspaceBytes(AttentionProblem problem) => engine.MinimumWorkspaceBytes(problem);

        public void Forward(AttentionProblem problem, in AttentionBuffers buffers) => engine.Forward(problem, buffers);

        public EngineSupport SupportsBackward(AttentionProblem problem) => engine.SupportsBackward(problem);

        public long BackwardWorkspaceBytes(AttentionProblem problem) => engine.MinimumBackwardWorkspaceBytes(problem);

        public long MinimumBackwardWorkspaceBytes(AttentionProblem problem) => engine.MinimumBackwardWorkspaceBytes(problem);

        public void Backward(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients) =>
            engine.Backward(problem, buffers, gradients);
    }
}

/// <summary>On the simulator, with four threads in a group that keep 8 × 8 sums each.</summary>
[Collection(TestAccelerators.Simulators)]
public sealed class SimulatedBlock8Tests() : IlgpuEngineTests(
    TestAccelerators.SharedSimulator(2, 2), new IlgpuEngineOptions { Tiling = Tiling.Chunk16Block8 })
{
    private protected override int MaxLength => 100;

    private protected override int Cases(int full) => Math.Min(full, 4);
}

/// <summary>On the simulator, with sixteen threads in a group that keep 4 × 4 sums each.</summary>
[Collection(TestAccelerators.Simulators)]
public sealed class SimulatedBlock4Tests() : IlgpuEngineTests(
    TestAccelerators.SharedSimulator(4, 4), new IlgpuEngineOptions { Tiling = Tiling.Chunk16Block4 })
{
    private protected override int MaxLength => 50;

    private protected override int Cases(int full) => Math.Min(full, 2);
}

/// <summary>On OpenCL as devices run it.</summary>
[Collection(TestAccelerators.Drivers)]
public sealed class OpenCLEngineTests() : IlgpuEngineTests(TestAccelerators.SharedOpenCL(), new IlgpuEngineOptions())
{
    private protected override int MaxLength => 1000;

    private protected override int Cases(int full) => Math.Min(full, 15);

    // Too long for the oracles; the host engine is held against them, and is an implementation of its own.
    [Theory]
    [InlineData(true, 4096, 8, 8, 64)]
    [InlineData(true, 16384, 1, 1, 64)]
    [InlineData(true, 1500, 6, 2, 100)]
    [InlineData(false, 4096, 4, 2, 48)]
    public void Agrees_with_the_host_engine_at_realistic_sizes(bool causal, int length, int heads, int keyHeads, int valueDimension)
    {
        var shape = new AttentionShape(1, length, length, heads, keyHeads, 64, valueDimension);
        var problem = new AttentionProblem
        {
            Shape = shape,
            Features = FeatureMap.FavorPlus(RandomProjection.Orthogonal(256, 64, seed: 1)).Lower(64, 0.125f),
            Causal = causal,
        };
        RequireAgreement(Engine, problem, 77);
    }

    [Theory]
    [InlineData(true, 1024, 1024, 2, 2, 64, 64)]
    [InlineData(false, 1024, 1024, 2, 1, 100, 64)]
    [InlineData(true, 2048, 2048, 4, 2, 100, 100)]
    [InlineData(false, 2048, 2048, 2, 2, 64, 100)]
    [InlineData(false, 300, 3001, 4, 1, 64, 64)]
    public void Exact_attention_agrees_with_the_host_engine_at_realistic_sizes(
        bool causal, int queries, int keys, int heads, int keyHeads, int dimension, int valueDimension) =>
        RequireAgreement(
            Engine,
            new AttentionProblem
            {
                Shape = new AttentionShape(1, queries, keys, heads, keyHeads, dimension, valueDimension),
                Causal = causal,
                Scale = 1 / MathF.Sqrt(dimension),
            },
            77);

    // As wide as the kernels take: d = 256, r = 1024.
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Agrees_with_the_host_engine_at_the_widest(bool causal)
    {
        var problem = new AttentionProblem
        {
            Shape = new AttentionShape(1, 200, 200, 2, 1, 256, 130),
            Features = FeatureMap.FavorPlus(RandomProjection.Orthogonal(1024, 256, seed: 1)).Lower(256, 0.0625f),
            Causal = causal,
        };
        RequireAgreement(Engine, problem, 79);
    }

    [Fact]
    public void Plans_of_the_layouts_that_were_used_last_are_kept()
    {
        var shape = new AttentionShape(2, 70, 1, 8);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 80);
        AttentionProblem problem = Maps.Problem("elu", shape, causal: true);
        using var engine = new IlgpuEngine(TestAccelerators.SharedOpenCL());
        EngineRun.Forward(engine, Memory, problem, q, k, v);
        long forms = engine.LiveBytes;
        long plan = 0;
        for (int used = 1; used <= 20; used++)
        {
            problem = problem with { Layout = SequenceLayout.FromKeyLengths([35, 70], 70) };
            EngineRun.Forward(engine, Memory, problem, q, k, v);
            EngineRun.Forward(engine, Memory, problem, q, k, v);
            plan = used == 1 ? engine.LiveBytes - forms : plan;
            Assert.InRange(plan, 1, 10_000);
            Assert.Equal(forms + (Math.Min(used, 16) * plan), engine.LiveBytes);
        }
    }

    [Theory]
    [InlineData(ElementType.Single, ElementType.Half)]
    [InlineData(ElementType.Half, ElementType.BFloat16)]
    [InlineData(ElementType.BFloat16, ElementType.Single)]
    public void Tensors_that_are_stored_otherwise_than_the_problem_says_are_refused(ElementType storage, ElementType given)
    {
        AttentionProblem problem = Maps.Problem("elu", new AttentionShape(1, 1, 1, 8), causal: true) with { Storage = storage };
        using PlacedBuffer memory = Memory.Place(new PoisonedBuffer(8, misalignment: 1));
        using PlacedBuffer workspace = Memory.Place(new PoisonedBuffer(Engine.WorkspaceBytes(problem) / sizeof(float), misalignment: 1));
        TensorBuffer right = TensorBuffer.Dense(memory.Region with { Type = storage }, 1, 1, 8);
        TensorBuffer wrong = right with { Memory = memory.Region with { Type = given } };
        var buffers = new AttentionBuffers { Query = right, Key = right, Value = right, Output = right, Workspace = workspace.Region };
        foreach (AttentionBuffers refused in new[] { buffers with { Query = wrong }, buffers with { Key = wrong }, buffers with { Value = wrong }, buffers with { Output = wrong } })
        {
            Assert.Contains($"{given}", Assert.Throws<ArgumentException>("buffers", () => Engine.Forward(problem, refused)).Message, StringComparison.Ordinal);
        }
    }

    // Small tiles, so that as many items as groups fit into memory.
    [Theory]
    [InlineData(true, 3)]
    [InlineData(false, 1)]
    public void Agrees_with_the_host_engine_on_a_grid_beyond_65535_groups(bool causal, int length)
    {
        var shape = new AttentionShape(70_000, length, 1, 4);
        var problem = new AttentionProblem
        {
            Shape = shape,
            Features = causal ? FeatureMap.FavorPlus(RandomProjection.Orthogonal(8, 4, seed: 1)).Lower(4, 0.5f) : FeatureMap.EluPlusOne.Lower(4, 1),
            Causal = causal,
        };
        using var engine = new IlgpuEngine(
            TestAccelerators.SharedOpenCL(), new IlgpuEngineOptions { Tiling = Tiling.Chunk16Block8, BlockItems = shape.Batch });
        RequireAgreement(engine, problem, 78);
    }

    [Theory]
    [InlineData(true, 1500, 6, 2, 100)]
    [InlineData(true, 3000, 1, 1, 64)]
    [InlineData(false, 1100, 4, 2, 48)]
    public void Linear_gradients_agree_with_the_host_engine_s_at_realistic_sizes(bool causal, int length, int heads, int keyHeads, int valueDimension) =>
        RequireLinearGradients(
            new AttentionProblem
            {
                Shape = new AttentionShape(1, length, length, heads, keyHeads, 64, valueDimension),
                Features = FeatureMap.FavorPlus(RandomProjection.Orthogonal(256, 64, seed: 1)).Lower(64, 0.125f),
                Causal = causal,
            },
            std: 1);

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Linear_gradients_agree_with_the_host_engine_s_at_the_widest(bool causal) =>
        RequireLinearGradients(
            new AttentionProblem
            {
                Shape = new AttentionShape(1, 150, 150, 2, 1, 256, 130),
                Features = FeatureMap.FavorPlus(RandomProjection.Orthogonal(1024, 256, seed: 1)).Lower(256, 0.0625f),
                Causal = causal,
            },
            std: 1);

    // Blocks of tokens that see one another, in packed sequences whose log features rise by hundreds within a chunk.
    [Theory]
    [InlineData(1)]
    [InlineData(7)]
    [InlineData(150)]
    public void Linear_gradients_of_steep_chunks_under_a_layout_agree_with_the_host_engine_s(int causalBlock) =>
        RequireLinearGradients(
            new AttentionProblem
            {
                Shape = new AttentionShape(1, 400, 400, 4, 2, 16, 20),
                Features = FeatureMap.FavorPlus(RandomProjection.Orthogonal(70, 16, seed: 1)).Lower(16, 0.25f),
                Causal = true,
                CausalBlock = causalBlock,
                Layout = SequenceLayout.FromCuSeqlens([0, 250, 260, 400], [0, 250, 260, 400]),
            },
            std: 6);

    private void RequireLinearGradients(AttentionProblem problem, double std)
    {
        (float[] q, float[] k, float[] v) = TestData.Inputs(problem.Shape, 81, std);
        float[] g = TestData.Normal(82, problem.Shape.OutputElements);
        var host = new SimdEngine();
        float[] output = EngineRun.Forward(host, EngineMemory.Host, problem, q, k, v);
        AttentionGradients expected = EngineRun.Backward(host, EngineMemory.Host, problem, q, k, v, output, g).Gradients;
        AttentionGradients actual = EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g).Gradients;
        RequireClose("query", expected.Query, actual.Query);
        RequireClose("key", expected.Key, actual.Key);
        RequireClose("value", expected.Value, actual.Value);

        void RequireClose(string name, float[] x, float[] y)
        {
            double largest = x.Max(e => (double)MathF.Abs(e));
            double worst = x.Zip(y, (a, b) => (double)MathF.Abs(a - b)).Max();
            Assert.True(worst <= 2e-5 * largest, $"the {name} gradient's largest difference {worst:g3} beside its largest element {largest:g3}");
        }
    }

    private void RequireAgreement(IAttentionEngine engine, AttentionProblem problem, ulong seed)
    {
        (float[] q, float[] k, float[] v) = TestData.Inputs(problem.Shape, seed);
        float[] expected = EngineRun.Forward(new SimdEngine(), EngineMemory.Host, problem, q, k, v);
        float[] actual = EngineRun.Forward(engine, Memory, problem, q, k, v);
        double worst = expected.Zip(actual, (x, y) => (double)MathF.Abs(x - y)).Max();
        Assert.True(worst <= 2e-5, $"largest difference {worst:g3}");
    }
}

/// <summary>On OpenCL with 4 × 4 sums a thread.</summary>
[Collection(TestAccelerators.Drivers)]
public sealed class OpenCLBlock4Tests() : IlgpuEngineTests(
    TestAccelerators.SharedOpenCL(), new IlgpuEngineOptions { Tiling = Tiling.Chunk64Block4 })
{
    private protected override int MaxLength => 200;

    private protected override int Cases(int full) => Math.Min(full, 5);

    // A function and a direction are some thirty kernels, and the driver takes seconds to compile each. Those of the other maps differ in their function.
    private protected override bool TriesBackward(string map) => map is "favor+" or "elu" or "softmax";
}

/// <summary>On CUDA as devices run it.</summary>
[Collection(TestAccelerators.Drivers)]
public sealed class CudaEngineTests() : IlgpuEngineTests(TestAccelerators.SharedCuda(), new IlgpuEngineOptions());
