using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>What the laws don't say of exact attention's backward pass on the host.</summary>
public sealed class SoftmaxBackwardTests
{
    [Theory]
    [InlineData(ElementType.Single)]
    [InlineData(ElementType.Half)]
    public void Memory_grows_by_three_numbers_a_row(ElementType storage)
    {
        var engine = new SimdEngine(4);
        foreach (bool causal in new[] { false, true })
        {
            long Bytes(int length) => engine.BackwardWorkspaceBytes(
                new AttentionProblem { Shape = new AttentionShape(2, length, length, 6, 2, 64, 64), Causal = causal, Storage = storage });
            Assert.Equal(3 * sizeof(float) * 2 * 6 * 30_000L, Bytes(50_000) - Bytes(20_000));
        }
    }

    // More rows than a block has, and more keys than a tile, with ends of both inside a group of rows that share a product.
    [Theory]
    [InlineData(385, 385, true)]
    [InlineData(390, 64, false)]
    [InlineData(1, 65, false)]
    public void Ends_of_blocks_and_tiles_are_right(int queries, int keys, bool causal)
    {
        var shape = new AttentionShape(1, queries, keys, 2, 1, 7, 17);
        var problem = new AttentionProblem { Shape = shape, Causal = causal, Scale = 0.4f };
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 3);
        float[] g = TestData.Normal(4, shape.OutputElements);
        var engine = new SimdEngine();
        float[] output = EngineRun.Forward(engine, EngineMemory.Host, problem, q, k, v);
        Tolerance.RequireGradients(problem, q, k, v, g, EngineRun.Backward(engine, EngineMemory.Host, problem, q, k, v, output, g).Gradients);
    }

    // Rows of other widths than the laws', in vectors that the processor may not have: those are made of ones that it has.
    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(8)]
    [InlineData(16)]
    public void Outputs_and_gradients_are_right_in_vectors_of_every_width(int lanes)
    {
        var engine = new SimdEngine(2, lanes: lanes);
        foreach ((int length, int dimension, int valueDimension) in new[] { (1, 100, 60), (63, 60, 100), (65, 100, 13), (100, 160, 130), (450, 60, 64) })
        {
            foreach (bool causal in new[] { false, true })
            {
                var shape = new AttentionShape(1, length, length, 2, 1, dimension, valueDimension);
                var problem = new AttentionProblem { Shape = shape, Causal = causal, Scale = 1 / MathF.Sqrt(dimension) };
                (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 6);
                float[] g = TestData.Normal(7, shape.OutputElements);
                float[] output = EngineRun.Forward(engine, EngineMemory.Host, problem, q, k, v);
                Tolerance.Require(problem, q, k, v, output);
                Tolerance.RequireGradients(problem, q, k, v, g, EngineRun.Backward(engine, EngineMemory.Host, problem, q, k, v, output, g).Gradients);
            }
        }
    }
}
