using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>The laws on the host engine.</summary>
public sealed class HostEngineTests : EngineLaws
{
    private protected override IAttentionEngine Engine { get; } = new SimdEngine();

    private protected override IEnumerable<IAttentionEngine> OtherDegrees { get; } = [new SimdEngine(1), new SimdEngine(3), new SimdEngine(7)];

    // Step, append and read of one token, from states of any content, NaN and far-apart scales included.
    [Theory]
    [InlineData("favor+")]
    [InlineData("favor+hyperbolic")]
    [InlineData("elu")]
    [InlineData("relu")]
    [InlineData("relu projected")]
    [InlineData("softplus")]
    [InlineData("general exponential")]
    [InlineData("general direct")]
    public void A_token_in_one_sweep_gives_the_bits_of_a_chunk_of_one(string map)
    {
        var chunks = new SimdEngine(1, sweepsTokens: false);
        Law.ForAll(
            100, seed: 9000,
            random => (Shape: Shape(random), Seed: random.NextWord(), Std: random.Choose(0.3, 1, 5), Special: random.Choose(0f, 0f, 0f, float.NaN, float.PositiveInfinity), Normalize: random.NextBool()),
            sample =>
            {
                AttentionProblem problem = Maps.Problem(map, sample.Shape, causal: true, sample.Normalize);
                AttentionState expected = EngineRun.State(problem);
                AttentionState actual = EngineRun.State(problem);
                for (ulong token = 0; token < 6; token++)
                {
                    (float[] q, float[] k, float[] v) = TestData.Inputs(sample.Shape, sample.Seed + token, sample.Std);
                    if (token == 3 && sample.Special != 0)
                    {
                        k[k.Length / 2] = sample.Special;
                    }

                    if (token % 3 == 1)
                    {
                        EngineRun.Append(chunks, EngineMemory.Host, problem, k, v, expected);
                        EngineRun.Append(Engine, EngineMemory.Host, problem, k, v, actual);
                    }
                    else
                    {
                        SameBits(
                            EngineRun.Forward(chunks, EngineMemory.Host, problem, q, k, v, expected, expected),
                            EngineRun.Forward(Engine, EngineMemory.Host, problem, q, k, v, actual, actual));
                    }

                    SameBits(EngineRun.Read(chunks, EngineMemory.Host, problem, q, expected), EngineRun.Read(Engine, EngineMemory.Host, problem, q, actual));
                    SameBits(expected.LogScale, actual.LogScale);
                    SameBits(expected.Normalizers, actual.Normalizers);
                    SameBits(expected.Sums, actual.Sums);
                }
            });

        static AttentionShape Shape(SeededRandom random)
        {
            int keyHeads = random.Choose(1, 2, 3, 8, 11);
            return new AttentionShape(
                random.Next(1, 3), 1, 1, keyHeads * random.Choose(1, 1, 2, 3), keyHeads, Math.Max(1, random.NextLength(40)), Math.Max(1, random.NextLength(80)));
        }
    }

    // So many heads that several threads share them.
    [Fact]
    public void Threads_change_no_bit_of_a_token()
    {
        var shape = new AttentionShape(20, 1, 1, 16, 16, 60, 60);
        AttentionProblem problem = Maps.Problem("favor+", shape, causal: true);
        AttentionState? expectedState = null;
        float[]? expected = null;
        foreach (IAttentionEngine engine in new[] { new SimdEngine(1, sweepsTokens: false), new SimdEngine(1), new SimdEngine(3), new SimdEngine() })
        {
            AttentionState state = EngineRun.State(problem);
            float[] output = [];
            for (ulong token = 0; token < 3; token++)
            {
                (float[] q, float[] k, float[] v) = TestData.Inputs(shape, token);
                output = EngineRun.Forward(engine, EngineMemory.Host, problem, q, k, v, state, state);
            }

            SameBits(expected ??= output, output);
            SameBits((expectedState ??= state).Sums, state.Sums);
        }
    }

    /// <summary>The same bits, but that one NaN is as good as another.</summary>
    private static void SameBits(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual)
    {
        Assert.Equal(expected.Length, actual.Length);
        for (int i = 0; i < expected.Length; i++)
        {
            if (BitConverter.SingleToInt32Bits(expected[i]) != BitConverter.SingleToInt32Bits(actual[i]) && !(float.IsNaN(expected[i]) && float.IsNaN(actual[i])))
            {
                Assert.Fail($"element {i} of {expected.Length} changed from {expected[i]:g9} to {actual[i]:g9}");
            }
        }
    }
}
