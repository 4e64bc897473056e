using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>What the laws don't say of exact attention's forward pass on the host.</summary>
public sealed class SoftmaxForwardTests
{
    // Keys that grow from one to the next: most tiles hold a larger logit than all before, by less or by more than weights may come to under the shift at hand.
    [Theory]
    [InlineData(0.02)]
    [InlineData(0.2)]
    [InlineData(2)]
    [InlineData(-0.2)]
    public void Logits_that_rise_from_tile_to_tile_are_right_in_both_directions(double perKey)
    {
        foreach (bool causal in new[] { false, true })
        {
            var shape = new AttentionShape(1, 450, 450, 2, 2, 7, 17);
            var problem = new AttentionProblem { Shape = shape, Causal = causal, Scale = 0.5f };
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 3);
            float[] g = TestData.Normal(4, shape.OutputElements);
            for (int i = 0; i < q.Length; i += shape.KeyDimension)
            {
                // Every query looks along the first axis, along which keys rise.
                q[i] = 2;
                k[i] = (float)(perKey * (i / (2 * shape.KeyDimension)));
            }

            var engine = new SimdEngine();
            float[] output = EngineRun.Forward(engine, EngineMemory.Host, problem, q, k, v);
            Tolerance.Require(problem, q, k, v, output);
            Tolerance.RequireGradients(problem, q, k, v, g, EngineRun.Backward(engine, EngineMemory.Host, problem, q, k, v, output, g).Gradients);
        }
    }

    // A logit that is rounded must be lowered by what it was rounded to: one key among zeros takes all the weight, however large its logit is.
    [Theory]
    [InlineData(0.3f, 30)]
    [InlineData(0.3f, 100)]
    [InlineData(0.3f, 1000)]
    [InlineData(0.08838835f, 1000)]
    [InlineData(0.3f, 3e5f)]
    [InlineData(0.08838835f, 1.1e6f)]
    public void One_large_logit_takes_all_the_weight(float scale, float x)
    {
        foreach (int keys in new[] { 1, 64, 65, 200 })
        {
            foreach (int at in new[] { 0, keys - 1 })
            {
                var problem = new AttentionProblem { Shape = new AttentionShape(1, 1, keys, 1, 1, 1, 1), Scale = scale };
                float[] k = new float[keys];
                float[] v = new float[keys];
                (k[at], v[at]) = (x, 1);
                var engine = new SimdEngine();
                float[] output = EngineRun.Forward(engine, EngineMemory.Host, problem, [x], k, v);
                float[] valueGradient = EngineRun.Backward(engine, EngineMemory.Host, problem, [x], k, v, output, [1]).Gradients.Value;
                Assert.Equal(1, output[0]);
                Assert.Equal(v, valueGradient);
            }
        }
    }

    // A row that sees so many keys of a tile has the bits that it has in a problem that ends there, whatever the rows of its group see.
    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [InlineData(8)]
    [InlineData(16)]
    public void A_row_has_the_bits_of_a_problem_of_the_keys_that_it_sees(int lanes)
    {
        var shape = new AttentionShape(1, 200, 200, 1, 1, 13, 20);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 5);
        var engine = new SimdEngine(lanes: lanes);
        float[] causal = EngineRun.Forward(engine, EngineMemory.Host, new AttentionProblem { Shape = shape, Causal = true, Scale = 0.3f }, q, k, v);
        foreach (int row in new[] { 0, 1, 15, 16, 62, 63, 64, 100, 127, 128, 199 })
        {
            var one = new AttentionShape(1, 1, row + 1, 1, 1, 13, 20);
            float[] alone = EngineRun.Forward(
                engine, EngineMemory.Host, new AttentionProblem { Shape = one, Scale = 0.3f }, q[(row * 13)..((row + 1) * 13)], k[..((row + 1) * 13)], v[..((row + 1) * 20)]);
            Assert.Equal(alone, causal[(row * 20)..((row + 1) * 20)]);
        }
    }
}
