using System.Reflection;

namespace Gpu.Attention.Kernels.Tests;

public class LinearPlanTests
{
    public static TheoryData<int, int, int, int, bool> Sizes =>
        [.. from chunk in new[] { 16, 64 }
            from features in new[] { 1, 37, 64, 1000 }
            from dimensions in new[] { (1, 1), (13, 60), (64, 65) }
            from causal in new[] { false, true }
            select (chunk, features, dimensions.Item1, dimensions.Item2, causal)];

    // Kernels read them 16 bytes at a time, and only a GPU minds where they lie.
    [Theory]
    [MemberData(nameof(Sizes))]
    public void Everything_in_the_workspace_and_every_row_of_it_starts_at_a_quad(int chunk, int features, int dimension, int valueDimension, bool causal)
    {
        foreach (int blockItems in new[] { 1, 5, 100 })
        {
            var plan = new LinearPlan(Problem(new AttentionShape(3, 150, 150, 4, 2, dimension, valueDimension), features, causal), chunk, blockItems);
            PropertyInfo[] offsets = [.. typeof(LinearPlan).GetProperties().Where(p => p.PropertyType == typeof(long) && p.Name != nameof(LinearPlan.Bytes))];
            Assert.Equal(24, offsets.Length);
            Assert.All(offsets, offset => Assert.Equal(0, (long)offset.GetValue(plan)! * sizeof(float) % WorkspacePlan.Alignment));
            Assert.All(
                new[] { plan.Sizes.PaddedInputs, plan.Sizes.PaddedFeatures, plan.Sizes.PaddedValues, chunk }, width => Assert.Equal(0, width % 4));
        }
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Everything_in_a_backward_workspace_and_every_row_of_it_starts_at_a_quad(int chunk, int features, int dimension, int valueDimension, bool causal)
    {
        foreach (int blockItems in new[] { 1, 5, 100 })
        {
            var plan = new LinearBackwardPlan(Problem(new AttentionShape(3, 150, 150, 4, 2, dimension, valueDimension), features, causal), chunk, blockItems);
            PropertyInfo[] offsets =
            [
                .. typeof(LinearBackwardPlan).GetProperties().Where(p => p.PropertyType == typeof(long) && p.Name != nameof(LinearBackwardPlan.Bytes)),
            ];
            Assert.Equal(44, offsets.Length);
            Assert.All(offsets, offset => Assert.Equal(0, (long)offset.GetValue(plan)! * sizeof(float) % WorkspacePlan.Alignment));
            Assert.Equal(0, plan.InputStride % chunk);
        }
    }

    // A backward pass keeps a state before each block, and a block has at least as many chunks as there are blocks.
    [Fact]
    public void A_backward_workspace_grows_by_no_more_than_a_state_for_each_block_of_chunks()
    {
        AttentionProblem small = Problem(new AttentionShape(1, 10_000, 2, 64), 256, causal: true);
        AttentionProblem large = Problem(new AttentionShape(300, 1_000_000, 2, 64), 256, causal: true);
        AttentionProblem both = Problem(new AttentionShape(300, 1_000_000, 2, 64), 256, causal: false);
        long state = 256 * (64 + 3) * sizeof(float);
        foreach (int items in new[] { 1, 100, 1000 })
        {
            var plan = new LinearBackwardPlan(large, 64, items);
            int blocks = ((plan.KeyChunks - 1) / plan.BlockChunks) + 1;
            Assert.InRange(blocks, 1, plan.BlockChunks);
            Assert.Equal(state, plan.StateFloats * sizeof(float) / plan.BlockChains);
            Assert.InRange(plan.Bytes, 0, (long)Math.Max(items, plan.BlockChunks) * 2_000_000);
            Assert.InRange(new LinearBackwardPlan(small, 64, items).Bytes, 0, plan.Bytes);
            Assert.InRange(new LinearBackwardPlan(both, 64, items).Bytes, 0, (long)items * 2_000_000);
        }
    }

    [Fact]
    public void The_workspace_stops_growing_with_the_length_and_the_batch()
    {
        AttentionProblem small = Problem(new AttentionShape(3, 10_000, 2, 64), 256, causal: true);
        AttentionProblem large = Problem(new AttentionShape(300, 1_000_000, 2, 64), 256, causal: true);
        Assert.Equal(new LinearPlan(small, 64, 1).Bytes, new LinearPlan(large, 64, 1).Bytes);
        Assert.InRange(new LinearPlan(large, 64, 100).Bytes, new LinearPlan(small, 64, 1).Bytes, 100 * new LinearPlan(small, 64, 1).Bytes);
    }

    [Theory]
    [InlineData(1, 1, 1 << 25, "state")]
    [InlineData(1 << 20, 1 << 12, 1, "key heads")]
    public void Sizes_beyond_the_kernels_indices_have_a_reason(int batch, int heads, int valueDimension, string reason)
    {
        AttentionProblem problem = Problem(new AttentionShape(batch, 0, 0, heads, heads, 1, valueDimension), 64, causal: true);
        Assert.Contains(reason, LinearPlan.WhyTooLarge(problem, 64), StringComparison.Ordinal);
        Assert.Null(LinearPlan.WhyTooLarge(Problem(new AttentionShape(batch / 8, 0, 0, heads, heads, 1, 1 << 20), 64, causal: true), 64));
    }

    private static AttentionProblem Problem(AttentionShape shape, int features, bool causal)
    {
        var form = new FeatureForm
        {
            InputDimension = shape.KeyDimension,
            FeatureDimension = features,
            Activation = FeatureActivation.Exp,
            Projection = new float[features * shape.KeyDimension],
        };
        return new AttentionProblem { Shape = shape, Features = new FeaturePair(form, form), Causal = causal };
    }
}
