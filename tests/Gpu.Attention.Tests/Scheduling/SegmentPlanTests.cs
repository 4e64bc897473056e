using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>Plans are pure: what they must be for any problem and any budget.</summary>
public sealed class SegmentPlanTests
{
    private readonly SimdEngine _engine = new(1);

    public static TheoryData<string, bool> Kinds => new() { { "favor+", false }, { "favor+", true }, { "elu", true }, { "elu", false }, { "softmax", false }, { "softmax", true } };

    [Theory]
    [MemberData(nameof(Kinds))]
    public void Segments_cover_every_token_once_and_fit(string map, bool causal) =>
        Law.ForAll(200, seed: 100, random => (Problem: Problem(random, map, causal), Share: random.NextDouble()), sample =>
        {
            SegmentPlan whole = SegmentPlan.Find(sample.Problem, _engine, long.MaxValue, out _)!;
            Assert.True(whole.Segments.Length == (sample.Problem.Shape.Batch == 0 ? 0 : 1));
            Assert.Null(SegmentPlan.Find(sample.Problem, _engine, 0, out long smallest));
            Assert.Null(SegmentPlan.Find(sample.Problem, _engine, smallest - 1, out _));
            foreach (long budget in new[] { smallest, smallest + (long)(sample.Share * (whole.Layout.TotalBytes - smallest)), whole.Layout.TotalBytes })
            {
                SegmentPlan? plan = SegmentPlan.Find(sample.Problem, _engine, budget, out _);
                Assert.NotNull(plan);
                Assert.True(plan.Layout.TotalBytes <= budget, $"{plan} in {budget}");
                RequireCover(sample.Problem, plan);
                RequireStates(sample.Problem, plan);
            }
        });

    [Fact]
    public void The_batch_is_cut_before_the_tokens_and_the_tokens_before_the_heads()
    {
        AttentionProblem problem = Maps.Problem("elu", new AttentionShape(9, 1000, 4, 16), causal: true);
        long whole = SegmentPlan.Find(problem, _engine, long.MaxValue, out _)!.Layout.TotalBytes;
        var seen = new List<(int Sequences, int Tokens, int Heads)>();
        for (long budget = whole; SegmentPlan.Find(problem, _engine, budget, out _) is { } plan; budget = budget * 9 / 10)
        {
            AttentionShape shape = plan.Segments[0].Problem.Shape;
            seen.Add((shape.Batch, shape.QueryLength, shape.KeyHeads));
        }

        Assert.Contains((9, 1000, 4), seen);
        Assert.Contains(seen, s => s is { Sequences: 2 or 3, Tokens: 1000 });
        Assert.Contains(seen, s => s is { Sequences: 1, Tokens: < 1000 and > 64, Heads: 4 });
        Assert.Contains(seen, s => s is { Sequences: 1, Tokens: 64, Heads: 1 });
        Assert.All(seen, s => Assert.True((s.Tokens == 1000 || s.Sequences == 1) && (s.Heads == 4 || s.Tokens == 64), $"{s}"));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void The_longest_sequence_is_cut_to_its_end(bool causal)
    {
        AttentionProblem problem = Maps.Problem("elu", new AttentionShape(1, int.MaxValue, 1, 1), causal);
        Segment[] segments = SegmentPlan.Find(problem, _engine, 12L << 30, out _)!.Segments;
        Assert.InRange(segments.Length, 3, 100);
        Assert.Equal(int.MaxValue, segments.Sum(segment => (long)segment.Problem.Shape.KeyLength));
        Assert.Equal(int.MaxValue, segments.Sum(segment => (long)segment.Problem.Shape.QueryLength));
    }

    [Fact]
    public void Places_are_aligned_and_apart()
    {
        AttentionProblem problem = Maps.Problem("favor+", new AttentionShape(2, 100, 70, 4, 2, 13, 7), causal: false) with { WantsFinalState = true };
        var layout = new SegmentLayout(problem, new SegmentSize(1, 2, 64, 64), slots: 2, workspaceBytes: 1001);
        long[] places =
        [
            .. layout.Query, .. layout.Key, .. layout.Value, .. layout.Output,
            .. layout.States.SelectMany(s => new[] { s.LogScale, s.Maximum, s.Sums, s.Normalizers }), layout.Workspace,
        ];
        Assert.Equal((4 * 2) + (3 * 4) + 1, places.Distinct().Count());
        Assert.All(places, place => Assert.Equal(0, place % 256));
        Assert.True(layout.Key[0] - layout.Query[1] >= 64 * 4 * 13 * sizeof(float));
        Assert.True(layout.TotalBytes - layout.Workspace >= 1001);
    }

    [Fact]
    public void Sizes_beyond_64_bits_are_too_large_and_no_more()
    {
        var problem = new AttentionProblem { Shape = new AttentionShape(1 << 20, 1, 1, 1, 1, 1 << 20, 1 << 20), Features = Maps.Problem("elu", new AttentionShape(1, 1, 1, 1), true).Features };
        var layout = new SegmentLayout(problem with { WantsFinalState = true }, new SegmentSize(1 << 20, int.MaxValue, int.MaxValue, int.MaxValue), 2, 0);
        Assert.Equal(long.MaxValue, layout.TotalBytes);
    }

    private static AttentionProblem Problem(SeededRandom random, string map, bool causal)
    {
        AttentionShape shape = Shapes.Next(random, causal, maxLength: 1000);
        AttentionProblem problem = map == "softmax"
            ? new AttentionProblem { Shape = shape, Causal = causal }
            : Maps.Problem(map, shape, causal);
        return map == "softmax" ? problem : problem with { HasInitialState = random.NextBool(), WantsFinalState = random.NextBool() };
    }

    private static void RequireCover(AttentionProblem problem, SegmentPlan plan)
    {
        AttentionShape shape = problem.Shape;
        var queries = new int[shape.Batch, shape.KeyHeads, shape.QueryLength];
        var keys = new int[shape.Batch, shape.KeyHeads, shape.KeyLength];
        foreach (Segment segment in plan.Segments)
        {
            AttentionShape part = segment.Problem.Shape;
            Assert.Equal(shape.HeadGroup, part.HeadGroup);
            Assert.True(!problem.Causal || segment.FirstKey == segment.FirstQuery);
            for (int b = 0; b < part.Batch; b++)
            {
                for (int h = 0; h < part.KeyHeads; h++)
                {
                    for (int t = 0; t < part.QueryLength; t++)
                    {
                        queries[segment.FirstSequence + b, segment.FirstKeyHead + h, segment.FirstQuery + t]++;
                    }

                    for (int t = 0; t < part.KeyLength; t++)
                    {
                        keys[segment.FirstSequence + b, segment.FirstKeyHead + h, segment.FirstKey + t]++;
                    }
                }
            }
        }

        Assert.All(queries.Cast<int>(), count => Assert.Equal(1, count));
        Assert.All(keys.Cast<int>(), count => Assert.Equal(1, count));
    }

    /// <summary>A group begins with the caller's state or none, hands it on without a gap, and leaves the caller's once if at all.</summary>
    private static void RequireStates(AttentionProblem problem, SegmentPlan plan)
    {
        foreach (IGrouping<int, Segment> group in plan.Segments.GroupBy(segment => segment.Group))
        {
            Segment[] segments = [.. group];
            Assert.Equal(problem.HasInitialState ? StateEdge.Caller : StateEdge.None, segments[0].Before);
            Assert.Equal(problem.WantsFinalState ? 1 : 0, segments.Count(s => s.After == StateEdge.Caller));
            bool isEmpty = problem.Shape.KeyLength == 0 && !problem.HasInitialState;
            Assert.All(segments.Skip(1), s => Assert.Equal(isEmpty ? StateEdge.None : StateEdge.Neighbor, s.Before));
            Assert.All(segments, s => Assert.Equal(s.Before != StateEdge.None, s.Problem.HasInitialState));
            Assert.All(segments, s => Assert.Equal(s.After != StateEdge.None, s.Problem.WantsFinalState));
            Assert.All(segments.SkipLast(1), s => Assert.Equal(problem.Causal || s.Problem.Shape.QueryLength == 0 ? StateEdge.Neighbor : StateEdge.None, s.After));
        }
    }
}
