using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>Runs alone: what other tests allocate would be counted.</summary>
[CollectionDefinition(nameof(AllocationTests), DisableParallelization = true)]
[Collection(nameof(AllocationTests))]
public sealed class AllocationTests
{
    [Theory]
    [InlineData(false, 8)]
    [InlineData(true, 8)]
    [InlineData(true, 1)]
    [InlineData(false, 1)]
    public void A_second_call_allocates_nothing(bool causal, int heads)
    {
        var shape = new AttentionShape(1, 1000, heads, 16);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1, 0.5);
        float[] output = new float[shape.OutputElements];
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var favor = new LinearAttention(
            device, FeatureMap.FavorPlus(RandomProjection.Orthogonal(32, 16, 1)), new LinearAttentionOptions { Causal = causal });
        using var elu = new LinearAttention(device, FeatureMap.EluPlusOne, new LinearAttentionOptions { Causal = causal });
        using var softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = causal });

        // The runtime allocates at times of its own (a method compiled again, a thread of the pool): the least of several rounds counts.
        long least = long.MaxValue;
        for (int round = 0; round < 20 && least > 0; round++)
        {
            long before = GC.GetTotalAllocatedBytes(precise: true);
            favor.Forward(shape, q, k, v, output);
            elu.Forward(shape, q, k, v, output);
            softmax.Forward(shape, q, k, v, output);
            least = Math.Min(least, GC.GetTotalAllocatedBytes(precise: true) - before);
        }

        Assert.Equal(0, least);
    }

    [Theory]
    [InlineData(1, 8)]
    [InlineData(1, 1)]
    [InlineData(5, 8)]
    public void A_second_token_allocates_nothing(int tokens, int heads)
    {
        var shape = new AttentionShape(2, tokens, heads, 16);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1, 0.5);
        float[] output = new float[shape.OutputElements];
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var favor = new LinearAttention(device, FeatureMap.FavorPlus(RandomProjection.Orthogonal(32, 16, 1)));
        using var elu = new LinearAttention(device, FeatureMap.EluPlusOne);
        AttentionState favorState = favor.CreateState(2, heads, 16);
        AttentionState eluState = elu.CreateState(2, heads, 16, 16);
        long least = long.MaxValue;
        for (int round = 0; round < 20 && least > 0; round++)
        {
            long before = GC.GetTotalAllocatedBytes(precise: true);
            favor.Step(favorState, shape, q, k, v, output);
            favor.Append(favorState, shape, k, v);
            favor.Read(favorState, shape, q, output);
            elu.Step(eluState, shape, q, k, v, output);
            elu.Append(eluState, shape, k, v);
            elu.Read(eluState, shape, q, output);
            least = Math.Min(least, GC.GetTotalAllocatedBytes(precise: true) - before);
        }

        Assert.Equal(0, least);
    }

    [Theory]
    [InlineData(false, 8)]
    [InlineData(true, 8)]
    [InlineData(true, 1)]
    public unsafe void A_second_backward_pass_allocates_nothing(bool causal, int heads)
    {
        var shape = new AttentionShape(1, 1000, heads, 16);
        AttentionProblem[] problems =
            [Maps.Problem("favor+", shape, causal), Maps.Problem("elu", shape, causal), new AttentionProblem { Shape = shape, Causal = causal, Scale = 0.25f }];
        var engine = new SimdEngine();
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1, 0.5);
        float[] workspace = new float[problems.Max(p => Math.Max(engine.WorkspaceBytes(p), engine.BackwardWorkspaceBytes(p))) / sizeof(float)];
        float[] rest = new float[5 * shape.OutputElements];
        fixed (float* query = q, key = k, value = v, scratch = workspace, others = rest)
        {
            nint size = (nint)shape.OutputElements;
            var buffers = new AttentionBuffers
            {
                Query = Tensor(query), Key = Tensor(key), Value = Tensor(value), Output = Tensor(others), Workspace = MemoryRegion.Host(scratch, workspace.Length),
            };
            var gradients = new GradientBuffers
            {
                OutputGradient = Tensor(others + size), QueryGradient = Tensor(others + (2 * size)), KeyGradient = Tensor(others + (3 * size)),
                ValueGradient = Tensor(others + (4 * size)),
            };
            long least = long.MaxValue;
            for (int round = 0; round < 20 && least > 0; round++)
            {
                long before = GC.GetTotalAllocatedBytes(precise: true);
                foreach (AttentionProblem problem in problems)
                {
                    engine.Forward(problem, buffers);
                    engine.Backward(problem, buffers, gradients);
                }

                least = Math.Min(least, GC.GetTotalAllocatedBytes(precise: true) - before);
            }

            Assert.Equal(0, least);
        }

        TensorBuffer Tensor(float* elements) => TensorBuffer.Dense(MemoryRegion.Host(elements, shape.OutputElements), 1000, heads, 16);
    }
}
