using System.Numerics.Tensors;
using Gpu.Attention.TestKit;
using Xunit;

namespace Gpu.Attention.Core.Tests;

/// <summary>Layouts against what they say, token by token; and what is no layout.</summary>
public sealed class SequenceLayoutTests
{
    [Fact]
    public void Every_query_sees_the_keys_that_the_definition_says() =>
        Law.ForAll(600, seed: 500, Case.Next, sample =>
        {
            SequencePlan plan = sample.Layout.Plan(sample.Problem, sample.Chunk);
            Assert.Equal(sample.Layout.Sequences, plan.Sequences);
            Assert.Equal(Enumerable.Range(0, plan.Sequences), plan.Order.Order());
            for (int place = 0; place < plan.Sequences; place++)
            {
                (int firstQuery, int queries, int firstKey, int keys) = sample.Extent(plan.Order[place]);
                int[] tokens = [.. Enumerable.Range(firstKey, keys).Where(j => sample.IsThere(plan.Order[place], j))];
                Assert.Equal(tokens, plan.KeyTokens[plan.FirstKey[place]..plan.FirstKey[place + 1]]);
                Assert.Equal((tokens.Length + sample.Chunk - 1) / sample.Chunk, plan.KeyChunks(place));
                Assert.Equal(queries, plan.Queries(place));
                Assert.Equal(sample.Layout.IsPacked ? 0 : plan.Order[place], plan.Batch[place]);
                Assert.True(place == 0 || plan.Keys(place) <= plan.Keys(place - 1));
                for (int i = 0; i < queries; i++)
                {
                    int sees = tokens.Count(j => !sample.Causal || j - firstKey < (((i / sample.Block) + 1) * sample.Block) + keys - queries);
                    Assert.Equal(sees, plan.Visible[plan.FirstRow[place] + i]);
                }

                RequireBlocks(plan, place, firstQuery, queries, sample.Causal);
            }
        });

    [Fact]
    public void A_slice_is_the_layout_of_some_of_the_sequences() =>
        Law.ForAll(300, seed: 700, Case.Next, sample =>
        {
            SequenceLayout layout = sample.Layout;
            for (int first = 0; first < layout.Sequences; first++)
            {
                SequenceLayout slice = layout.Slice(first, layout.Sequences - first);
                Assert.Equal(layout.Sequences - first, slice.Sequences);
                for (int n = 0; n < slice.Sequences; n++)
                {
                    (int begin, int keys) = layout.Keys(first + n);
                    (int sliceBegin, int sliceKeys) = slice.Keys(n);
                    Assert.Equal(keys, sliceKeys);
                    Assert.Equal(begin - (layout.IsPacked ? layout.Keys(first).First : 0), sliceBegin);
                    Assert.Equal(layout.KeyTokens(first + n).ToArray().Select(j => j - begin), slice.KeyTokens(n).ToArray().Select(j => j - sliceBegin));
                    Assert.Equal(layout.Queries(first + n, 5).Count, slice.Queries(n, 5).Count);
                }
            }
        });

    [Fact]
    public void Lengths_masks_and_offsets_say_the_same()
    {
        var tensor = new ReadOnlyTensorSpan<bool>([true, true, false, false, true, false, false, false], [2, 4]);
        SequenceLayout mask = SequenceLayout.FromKeyMask(tensor);
        SequenceLayout lengths = SequenceLayout.FromKeyLengths([2, 1], 4);
        SequenceLayout left = SequenceLayout.FromKeyLengths([2, 1], 4, PaddingSide.Left);
        for (int n = 0; n < 2; n++)
        {
            Assert.Equal(mask.KeyTokens(n), lengths.KeyTokens(n));
            Assert.Equal(mask.KeyTokens(n).ToArray().Select(j => j + (n == 0 ? 2 : 3)), left.KeyTokens(n).ToArray());
        }

        Assert.Equal((2, 4, 3, false, (int?)null), (mask.Batch, mask.KeyLength, mask.VisibleKeys, mask.IsPacked, mask.QueryLength));
        SequenceLayout packed = SequenceLayout.FromCuSeqlens([0, 2, 2, 5], [0, 0, 3, 4]);
        Assert.Equal((1, 4, 4, true, (int?)5, 3), (packed.Batch, packed.KeyLength, packed.VisibleKeys, packed.IsPacked, packed.QueryLength, packed.Sequences));
    }

    [Fact]
    public void What_is_no_layout_is_refused_by_name()
    {
        Refused("keyMask", "3 elements where [2, 2] has 4", () => SequenceLayout.FromKeyMask(2, 2, [true, true, true]));
        Refused("keyMask", "[4] is not [B, S]", () => SequenceLayout.FromKeyMask(new ReadOnlyTensorSpan<bool>(new bool[4])));
        Refused("keyLengths", "keyLengths[1] is 5", () => SequenceLayout.FromKeyLengths([4, 5], 4));
        Refused("keyLengths", "keyLengths[0] is -1", () => SequenceLayout.FromKeyLengths([-1], 4));
        Refused("keyLengths", "are more than", () => SequenceLayout.FromKeyLengths([int.MaxValue, int.MaxValue], int.MaxValue));
        Refused("padding", "on no side", () => SequenceLayout.FromKeyLengths([1], 3, (PaddingSide)7));
        Refused("cuSeqlens", "begin with 0", () => SequenceLayout.FromCuSeqlens([]));
        Refused("cuSeqlens", "begin with 0", () => SequenceLayout.FromCuSeqlens([1, 2]));
        Refused("cuSeqlens", "cuSeqlens[2] is 1, less than 2", () => SequenceLayout.FromCuSeqlens([0, 2, 1]));
        Refused("cuSeqlens", "2147483647 tokens together", () => SequenceLayout.FromCuSeqlens([0, int.MaxValue]));
        Refused("cuSeqlensQuery", "cuSeqlensQuery[1] is -2", () => SequenceLayout.FromCuSeqlens([0, -2], [0, 1]));
        Refused("cuSeqlensKey", "cuSeqlensKey[1] is -1", () => SequenceLayout.FromCuSeqlens([0, 2], [0, -1]));
        Refused("cuSeqlensKey", "has 3 offsets where cuSeqlensQuery has 2", () => SequenceLayout.FromCuSeqlens([0, 2], [0, 1, 2]));
        Assert.Throws<ArgumentOutOfRangeException>("batch", () => SequenceLayout.FromKeyMask(-1, 0, []));
        Assert.Throws<ArgumentOutOfRangeException>("batch", () => SequenceLayout.FromKeyMask(int.MaxValue, 0, []));
        Assert.Throws<ArgumentOutOfRangeException>("keyLength", () => SequenceLayout.FromKeyLengths([], -1));
        SequenceLayout few = SequenceLayout.FromKeyLengths([1, 1, 1, 1], 3);
        Assert.Contains(
            "2400000000", new AttentionProblem { Shape = new AttentionShape(4, 600_000_000, 3, 1, 1, 4, 4), Layout = few }.WhyIllPosed(), StringComparison.Ordinal);
        Assert.Equal("1 sequence of 1 key, 0 of which take part", SequenceLayout.FromKeyLengths([0], 1).ToString());
    }

    [Fact]
    public void A_plan_is_made_once_for_a_problem()
    {
        SequenceLayout layout = SequenceLayout.FromCuSeqlens([0, 3, 7]);
        var problem = new AttentionProblem { Shape = new AttentionShape(1, 7, 2, 4), Layout = layout, Causal = true };
        SequencePlan plan = layout.Plan(problem, 64);
        Assert.Same(plan, layout.Plan(problem with { Scale = 3, Shape = new AttentionShape(1, 7, 3, 8) }, 64));
        Assert.NotSame(plan, layout.Plan(problem, 16));
        Assert.NotSame(plan, layout.Plan(problem with { Causal = false }, 64));
        Assert.NotSame(plan, layout.Plan(problem with { CausalBlock = 2 }, 64));
    }

    [Theory]
    [InlineData(1f, 0x3F80)]
    [InlineData(-0f, 0x8000)]
    [InlineData(float.PositiveInfinity, 0x7F80)]
    [InlineData(float.MaxValue, 0x7F80)]
    [InlineData(float.Epsilon, 0)]
    public void A_brain_float_is_the_nearest(float value, int bits) => Assert.Equal(bits, ((BFloat16)value).Bits);

    [Fact]
    public void A_brain_float_rounds_to_even_and_keeps_what_it_is()
    {
        foreach (int upper in Enumerable.Range(0, 1 << 16))
        {
            float number = new BFloat16((ushort)upper);
            Assert.Equal(float.IsNaN(number) ? (upper | 0x40) : upper, ((BFloat16)number).Bits);
            if (float.IsFinite(number))
            {
                float half = BitConverter.Int32BitsToSingle((upper << 16) | 0x8000);
                Assert.Equal(upper + (upper & 1), ((BFloat16)half).Bits);
                Assert.Equal(upper + 1, ((BFloat16)BitConverter.Int32BitsToSingle((upper << 16) | 0x8001)).Bits);
            }
        }

        Assert.True(float.IsNaN((BFloat16)BitConverter.Int32BitsToSingle(0x7F800001)));
    }

    private static void Refused(string parameter, string message, Func<object> make) =>
        Assert.Contains(message, Assert.Throws<ArgumentException>(parameter, make).Message, StringComparison.Ordinal);

    /// <summary>Blocks take every query once, in order; those of a chunk see whole chunks before it and a key of it at least.</summary>
    private static void RequireBlocks(SequencePlan plan, int place, int firstQuery, int queries, bool causal)
    {
        int next = firstQuery;
        int expected = plan.FirstBlock[place];
        for (int chunk = -1; chunk < plan.KeyChunks(place); chunk++)
        {
            (int first, int end) = plan.BlocksOf(place, chunk);
            Assert.Equal(expected, first);
            expected = end;
            for (int b = first; b < end; b++)
            {
                QueryBlock block = plan.Blocks[b];
                Assert.Equal(chunk, block.Chunk);
                Assert.Equal(next, block.FirstQuery);
                Assert.InRange(block.Queries, 1, plan.Chunk);
                next += block.Queries;
                for (int i = block.FirstQuery; causal && i < next; i++)
                {
                    int visible = plan.Visible[plan.FirstRow[place] + i - firstQuery];
                    Assert.InRange(visible - (chunk * plan.Chunk), chunk < 0 ? plan.Chunk : 1, plan.Chunk);
                }
            }
        }

        Assert.Equal(expected, plan.FirstBlock[place + 1]);
        Assert.Equal(firstQuery + queries, next);
    }

    private sealed record Case(bool Causal, int Block, int Chunk, bool[]? Mask, int[] Queries, int[] Keys, AttentionShape Shape)
    {
        public SequenceLayout Layout { get; } = Mask is null
            ? SequenceLayout.FromCuSeqlens(Queries, Keys)
            : SequenceLayout.FromKeyMask(Shape.Batch, Shape.KeyLength, Mask);

        public AttentionProblem Problem => new() { Shape = Shape, Layout = Layout, Causal = Causal, CausalBlock = Block };

        public static Case Next(SeededRandom random)
        {
            bool causal = random.NextBool();
            int block = causal && random.NextBool() ? random.Next(2, 30) : 1;
            int chunk = random.Choose(4, 16, 64);
            if (random.NextBool())
            {
                int batch = random.Next(1, 4);
                int length = random.NextLength(130);
                return new Case(causal, block, chunk, Sequences.Mask(random, batch, length), [], [], new AttentionShape(batch, length, length, 1, 1, 1, 1));
            }

            int sequences = random.Next(0, 5);
            int[] queries = Sequences.Offsets(random, sequences, 130);
            int[] keys = random.NextBool() ? queries : Sequences.Offsets(random, sequences, 130);
            return new Case(causal, block, chunk, null, queries, keys, new AttentionShape(1, queries[^1], keys[^1], 1, 1, 1, 1));
        }

        public (int FirstQuery, int Queries, int FirstKey, int Keys) Extent(int n) => Mask is null
            ? (Queries[n], Queries[n + 1] - Queries[n], Keys[n], Keys[n + 1] - Keys[n])
            : (0, Shape.QueryLength, 0, Shape.KeyLength);

        public bool IsThere(int n, int token) => Mask?[(n * Shape.KeyLength) + token] ?? true;
    }
}
