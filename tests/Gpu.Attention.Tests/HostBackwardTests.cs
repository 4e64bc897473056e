using System.Runtime.Intrinsics;
using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>What the host engine's backward pass of linear attention promises beyond the laws of every engine.</summary>
public sealed class HostBackwardTests
{
    private const int Block = LinearBackwardLayout.BlockChunks * LinearLayout.Chunk;

    private static SimdEngine Engine { get; } = new();

    // More than one block of chunks: states are made again from the boundaries of blocks, which pieces of a thousand tokens never need.
    [Theory]
    [InlineData("favor+", 0.5)]
    [InlineData("favor+", 12)]
    [InlineData("elu", 1)]
    public void Many_blocks_of_chunks_give_the_gradients_of_pieces_with_states_between_them(string map, double std)
    {
        const int Piece = 1000;
        var shape = new AttentionShape(1, (2 * Block) + 300, (2 * Block) + 300, 2, 1, 5, 3);
        AttentionProblem problem = Maps.Problem(map, shape, causal: true);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 70, std);
        float[] g = TestData.Normal(71, shape.OutputElements);
        AttentionGradients whole = Backward(problem, q, k, v, g);

        var states = new List<AttentionState>();
        var outputs = new List<float[]>();
        AttentionState? before = null;
        foreach ((int first, int count) in Pieces())
        {
            AttentionState after = EngineRun.State(problem);
            outputs.Add(EngineRun.Forward(
                Engine, EngineMemory.Host, Part(count), Tokens(q, 10, first, count), Tokens(k, 5, first, count), Tokens(v, 3, first, count), before, after));
            states.Add(after);
            before = after;
        }

        AttentionState? stateGradient = null;
        foreach ((int first, int count) in Pieces().Reverse())
        {
            int piece = first / Piece;
            (AttentionGradients gradients, AttentionState? earlier) = EngineRun.Backward(
                Engine, EngineMemory.Host, Part(count), Tokens(q, 10, first, count), Tokens(k, 5, first, count), Tokens(v, 3, first, count), outputs[piece],
                Tokens(g, 6, first, count), piece > 0 ? states[piece - 1] : null, stateGradient);
            RequireClose(gradients.Query, Tokens(whole.Query, 10, first, count), Size(whole.Query));
            RequireClose(gradients.Key, Tokens(whole.Key, 5, first, count), Size(whole.Key));
            RequireClose(gradients.Value, Tokens(whole.Value, 3, first, count), Size(whole.Value));
            stateGradient = earlier;
        }

        AttentionProblem Part(int count) => problem with { Shape = shape.With(count, count) };

        IEnumerable<(int First, int Count)> Pieces() =>
            Enumerable.Range(0, ((shape.KeyLength - 1) / Piece) + 1).Select(n => (n * Piece, Math.Min(Piece, shape.KeyLength - (n * Piece))));

        static float[] Tokens(float[] tensor, int row, int first, int count) => tensor.AsSpan(first * row, count * row).ToArray();
    }

    [Theory]
    [InlineData("favor+", true)]
    [InlineData("favor+", false)]
    [InlineData("general direct", true)]
    public void Threads_change_no_bit_over_many_blocks(string map, bool causal)
    {
        var shape = new AttentionShape(2, Block + 100, Block + 100, 2, 2, 3, 2);
        AttentionProblem problem = Maps.Problem(map, shape, causal);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 72);
        float[] g = TestData.Normal(73, shape.OutputElements);
        float[] output = EngineRun.Forward(Engine, EngineMemory.Host, problem, q, k, v);
        AttentionGradients one = EngineRun.Backward(new SimdEngine(1), EngineMemory.Host, problem, q, k, v, output, g).Gradients;
        AttentionGradients many = EngineRun.Backward(new SimdEngine(5), EngineMemory.Host, problem, q, k, v, output, g).Gradients;
        Assert.Equal(one.Query, many.Query);
        Assert.Equal(one.Key, many.Key);
        Assert.Equal(one.Value, many.Value);
    }

    // Fewer chains than threads: a chain's chunks are spread over them, with states on either side and, at the larger deviation, chunks that are cut. Wide states
    // are scanned by several threads, and the longer chain takes several rounds of chunks.
    [Theory]
    [InlineData("favor+", 0.5, true, false)]
    [InlineData("favor+", 12, true, false)]
    [InlineData("elu", 1, true, false)]
    [InlineData("favor+", 0.5, false, false)]
    [InlineData("elu", 1, false, false)]
    [InlineData("favor+ wide", 0.5, true, true)]
    [InlineData("favor+ wide", 5, true, true)]
    [InlineData("relu wide", 1, true, true)]
    [InlineData("favor+ wide", 0.5, false, true)]
    public void Threads_change_no_bit_of_one_chain(string map, double std, bool causal, bool isWide)
    {
        AttentionShape shape = isWide ? new(1, 2200, 2200, 2, 1, 16, 40) : new(1, 700, 700, 2, 1, 5, 3);
        AttentionProblem problem = Maps.Problem(map, shape, causal);
        Assert.Equal(map == "favor+ wide", new LinearBackwardLayout(problem, 40, 8).StatePieces > 1);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 76, std);
        float[] g = TestData.Normal(77, shape.OutputElements);
        AttentionState before = EngineRun.State(problem);
        EngineRun.Forward(Engine, EngineMemory.Host, problem, q, k, v, null, before);
        float[] output = EngineRun.Forward(Engine, EngineMemory.Host, problem, q, k, v, before, EngineRun.State(problem));
        AttentionState asked = Run(1, null).State!;
        (AttentionGradients one, AttentionState? first) = Run(1, asked);
        foreach (int degree in new[] { 2, 3, 40 })
        {
            (AttentionGradients many, AttentionState? other) = Run(degree, asked);
            Assert.Equal(one.Query, many.Query);
            Assert.Equal(one.Key, many.Key);
            Assert.Equal(one.Value, many.Value);
            Assert.Equal(first!.Sums, other!.Sums);
            Assert.Equal(first.Normalizers, other.Normalizers);
        }

        (AttentionGradients Gradients, AttentionState? State) Run(int degree, AttentionState? finalGradient) =>
            EngineRun.Backward(new SimdEngine(degree), EngineMemory.Host, problem, q, k, v, output, g, before, finalGradient);
    }

    // The first key lies far below all others, so that the first chunk is cut, and the scale of the state behind it is not the one that was to be expected.
    [Theory]
    [InlineData("favor+")]
    [InlineData("favor+hyperbolic")]
    public void Threads_change_no_bit_behind_a_chunk_that_is_cut(string map)
    {
        var shape = new AttentionShape(1, 500, 500, 2, 1, 5, 3);
        AttentionProblem problem = Maps.Problem(map, shape, causal: true);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 78, 0.5);
        float[] calm = [.. k];
        k.AsSpan(0, 5).Fill(15);
        float[] g = TestData.Normal(79, shape.OutputElements);
        float[] output = EngineRun.Forward(Engine, EngineMemory.Host, problem, q, k, v);
        AttentionGradients one = Run(1);
        foreach (int degree in new[] { 2, 3, 40 })
        {
            AttentionGradients many = Run(degree);
            Assert.Equal(one.Query, many.Query);
            Assert.Equal(one.Key, many.Key);
            Assert.Equal(one.Value, many.Value);
        }

        // Nearly all that later rows see is what they would see without that key.
        AttentionGradients other = EngineRun.Backward(
            Engine, EngineMemory.Host, problem, q, calm, v, EngineRun.Forward(Engine, EngineMemory.Host, problem, q, calm, v), g).Gradients;
        Assert.Equal(other.Query[^1], one.Query[^1], 0.05);
        Assert.All(one.Key, gradient => Assert.True(float.IsFinite(gradient)));

        AttentionGradients Run(int degree) =>
            EngineRun.Backward(new SimdEngine(degree), EngineMemory.Host, problem, q, k, v, output, g).Gradients;
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void A_late_key_that_cuts_a_chunk_changes_no_bit_of_earlier_queries_gradients(int degree)
    {
        var engine = new SimdEngine(degree);
        (AttentionProblem problem, float[] q, float[] k, float[] v) = Maps.RisingKeys();
        float[] output = TestData.Normal(7, q.Length);
        float[] g = TestData.Normal(8, q.Length);
        float[] calm = EngineRun.Backward(engine, EngineMemory.Host, problem, q, k, v, output, g).Gradients.Query;
        k.AsSpan(2 * 124, 2).Fill(170);
        float[] cut = EngineRun.Backward(engine, EngineMemory.Host, problem, q, k, v, output, g).Gradients.Query;
        Assert.Equal(calm[..(2 * 124)], cut[..(2 * 124)]);
        Assert.NotEqual(calm[2 * 124], cut[2 * 124]);
    }

    // A state more for every block of chunks: never one for every chunk, let alone for every token.
    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    public void Workspace_grows_by_a_state_for_every_block_of_chunks(int degree)
    {
        // Rows of 256 features lie 17 cache lines apart; [V 1] takes 65 columns, in whole vectors.
        const int Row = 272;
        int lanes = Vector512.IsHardwareAccelerated ? 16 : Vector256.IsHardwareAccelerated ? 8 : Vector128.IsHardwareAccelerated ? 4 : 1;
        const long StateBytes = 4 * ((65 * Row) + Row);
        long keyBytes = 4 * ((64 * (Row + LinearLayout.RoundUp(65, lanes))) + (65 * Row) + 64 + (3 * Row) + 16);
        var engine = new SimdEngine(degree);
        long first = Bytes(Block);
        Assert.Equal(first, Bytes(Block - 10));
        Assert.Equal(degree * (LinearBackwardLayout.BlockChunks - 1) * keyBytes, first - Bytes(LinearLayout.Chunk));
        Assert.Equal(degree * StateBytes, Bytes(Block + 1) - first);
        Assert.Equal(degree * 255 * StateBytes, Bytes(256 * Block) - first);
        Assert.Equal(Bytes(100, causal: false), Bytes(1_000_000, causal: false));

        long Bytes(int length, bool causal = true) =>
            engine.BackwardWorkspaceBytes(Maps.Problem("favor+", new AttentionShape(1, length, 8, 64), causal) with { Features = Favor() });

        static FeaturePair Favor() => FeatureMap.FavorPlus(RandomProjection.Orthogonal(256, 64, seed: 1)).Lower(64, 1);
    }

    // Under the normaliser what scales all features of a query alike has no gradient: Σ_r dl_r = 0.
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void What_scales_a_query_s_features_alike_has_no_part_in_its_gradient(bool causal)
    {
        var shape = new AttentionShape(1, 150, 2, 12);
        AttentionProblem problem = Maps.Problem("favor+", shape, causal);
        FeatureForm form = problem.Features!.Query;
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 74);
        float[] g = TestData.Normal(75, shape.OutputElements);
        AttentionGradients plain = Backward(problem, q, k, v, g);

        // The row's own term is never touched.
        AttentionGradients other = Backward(
            With(form with { NormCoefficient = 3 * form.NormCoefficient, Linear = [.. Enumerable.Range(0, 12).Select(i => 0.3f * i)] }), q, k, v, g);
        Assert.Equal(plain.Query, other.Query);
        Assert.Equal(plain.Key, other.Key);

        // The same said by a vector added to every row of W cancels in the sum over features only.
        float[] shifted = [.. form.Projection!.Select((w, i) => w + (0.05f * (i % 12)))];
        AttentionGradients moved = Backward(With(form with { Projection = shifted }), q, k, v, g);
        RequireClose(plain.Query, moved.Query, Size(plain.Query));
        RequireClose(plain.Key, moved.Key, Size(plain.Key));

        AttentionProblem With(FeatureForm query) => problem with { Features = new FeaturePair(query, problem.Features.Key) };
    }

    [Fact]
    public void A_state_that_keeps_its_scale_is_refused()
    {
        AttentionProblem problem = Maps.Problem("favor+", new AttentionShape(1, 4, 1, 8), causal: true) with { HasInitialState = true };
        var region = new MemoryRegion(null, 64, 4);
        var state = new StateBuffers(region, region, region) { Maximum = region };
        Assert.Throws<ArgumentException>("buffers", () => Engine.Backward(problem, new AttentionBuffers { InitialState = state }, default));
    }

    private static AttentionGradients Backward(AttentionProblem problem, float[] q, float[] k, float[] v, float[] g) => EngineRun.Backward(
        Engine, EngineMemory.Host, problem, q, k, v, EngineRun.Forward(Engine, EngineMemory.Host, problem, q, k, v), g).Gradients;

    private static float Size(float[] gradient) => gradient.Max(MathF.Abs);

    private static void RequireClose(float[] expected, float[] actual, float size)
    {
        Assert.Equal(expected.Length, actual.Length);
        for (int i = 0; i < expected.Length; i++)
        {
            Assert.True(MathF.Abs(expected[i] - actual[i]) <= 1e-4f * size, $"element {i} of {expected.Length} is {actual[i]:g9}, not {expected[i]:g9}; the largest is {size:g3}");
        }
    }
}
