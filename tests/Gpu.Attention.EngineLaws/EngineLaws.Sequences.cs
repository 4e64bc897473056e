using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

// Masks, packed sequences and blocks of tokens.
public abstract partial class EngineLaws
{
    private static readonly string[] SequenceMaps = ["favor+", "favor+hyperbolic", "elu", "relu projected", "identity", "general exponential", "general direct", "softmax"];

    public static TheoryData<string, bool> SequenceMapsAndDirections =>
        [.. from map in SequenceMaps from causal in new[] { false, true } select (map, causal)];

    [Theory]
    [MemberData(nameof(SequenceMapsAndDirections))]
    public void A_masked_key_reaches_nothing(string map, bool causal) =>
        Holds(map, () => Law.ForAll(Cases(40), seed: 20000, random => MaskedCase.Next(random, causal, Limit(200)), sample =>
        {
            (float[] q, float[] k, float[] v) = Inputs(map, sample.Shape, sample.Seed);
            AttentionProblem problem = Posed(map, sample.Shape, causal, sample.Normalize) with { Layout = sample.Layout, CausalBlock = sample.CausalBlock };
            float[] actual = Forward(Engine, problem, q, Sequences.Spoiled(k, sample.Mask, sample.Spoiler), Sequences.Spoiled(v, sample.Mask, sample.Spoiler));
            Tolerance.Require(problem, q, k, v, actual, Sequences.Bytes(sample.Mask));
        }));

    // Not only to rounding: bit for bit, the padding is as if it were not there.
    [Theory]
    [MemberData(nameof(SequenceMapsAndDirections))]
    public void A_masked_sequence_has_the_bits_of_one_without_its_masked_tokens(string map, bool causal) =>
        Holds(map, () => Law.ForAll(Cases(25), seed: 21000, random => MaskedCase.Next(random, causal, Limit(300)) with { CausalBlock = 1 }, sample =>
        {
            AttentionShape shape = sample.Shape;
            (float[] q, float[] k, float[] v) = Inputs(map, shape, sample.Seed, 2);
            AttentionProblem problem = Posed(map, shape, causal, sample.Normalize) with { Layout = sample.Layout };
            float[] whole = Forward(Engine, problem, q, Sequences.Spoiled(k, sample.Mask, sample.Spoiler), Sequences.Spoiled(v, sample.Mask, sample.Spoiler));
            for (int b = 0; b < shape.Batch; b++)
            {
                int[] keys = [.. Enumerable.Range(0, shape.KeyLength).Where(j => sample.Mask[(b * shape.KeyLength) + j])];
                int[] queries = causal ? keys : [.. Enumerable.Range(0, shape.QueryLength)];
                var without = new AttentionShape(1, queries.Length, keys.Length, shape.Heads, shape.KeyHeads, shape.KeyDimension, shape.ValueDimension);
                float[] expected = Forward(
                    Engine, Posed(map, without, causal, sample.Normalize),
                    Sequences.Gather(Part(q, b, shape.Batch), shape.Heads * shape.KeyDimension, queries),
                    Sequences.Gather(Part(k, b, shape.Batch), shape.KeyHeads * shape.KeyDimension, keys),
                    Sequences.Gather(Part(v, b, shape.Batch), shape.KeyHeads * shape.ValueDimension, keys));
                RequireSameBits(expected, Sequences.Gather(Part(whole, b, shape.Batch), shape.Heads * shape.ValueDimension, queries));
            }
        }));

    [Theory]
    [MemberData(nameof(SequenceMapsAndDirections))]
    public void Packed_sequences_have_the_bits_of_each_alone(string map, bool causal) =>
        Holds(map, () => Law.ForAll(Cases(25), seed: 22000, random => PackedCase.Next(random, causal, Limit(150)), sample =>
        {
            (float[] q, float[] k, float[] v) = Inputs(map, sample.Shape, sample.Seed, 2);
            AttentionProblem problem = Posed(map, sample.Shape, causal, sample.Normalize) with { Layout = sample.Layout, CausalBlock = sample.CausalBlock };
            AttentionState? initial = sample.HasState && map != "softmax" ? Seen(map, problem, sample.Seed + 1) : null;
            AttentionState? final = initial is null ? null : EngineRun.State(problem);
            float[] packed = Forward(Engine, problem, q, k, v, initial, final);
            for (int n = 0; n < sample.Queries.Length - 1; n++)
            {
                int[] queries = [.. Enumerable.Range(sample.Queries[n], sample.Queries[n + 1] - sample.Queries[n])];
                int[] keys = [.. Enumerable.Range(sample.Keys[n], sample.Keys[n + 1] - sample.Keys[n])];
                AttentionShape s = sample.Shape;
                var shape = new AttentionShape(1, queries.Length, keys.Length, s.Heads, s.KeyHeads, s.KeyDimension, s.ValueDimension);
                AttentionProblem alone = Posed(map, shape, causal, sample.Normalize) with { CausalBlock = sample.CausalBlock };
                if (sample.CausalBlock > 1 || (causal && queries.Length != keys.Length))
                {
                    alone = alone with { Layout = SequenceLayout.FromCuSeqlens([0, queries.Length], [0, keys.Length]) };
                }

                float[] qn = Sequences.Gather(q, s.Heads * s.KeyDimension, queries);
                float[] kn = Sequences.Gather(k, s.KeyHeads * s.KeyDimension, keys);
                float[] vn = Sequences.Gather(v, s.KeyHeads * s.ValueDimension, keys);
                AttentionState? own = final is null ? null : EngineRun.State(alone);
                float[] expected = Forward(Engine, alone, qn, kn, vn, initial?.Select(n), own);
                RequireSameBits(expected, Sequences.Gather(packed, s.Heads * s.ValueDimension, queries));
                if (own is not null)
                {
                    RequireSameBits(own.LogScale, final!.Select(n).LogScale);
                    RequireSameBits(own.Sums, final.Select(n).Sums);
                    RequireSameBits(own.Normalizers, final.Select(n).Normalizers);
                }
                else
                {
                    Tolerance.Require(alone, qn, kn, vn, expected);
                }
            }
        }));

    [Theory]
    [MemberData(nameof(SequenceMapsAndDirections))]
    public void A_layout_that_says_nothing_changes_no_bit(string map, bool causal)
    {
        SkipRefused(map);
        var shape = new AttentionShape(2, Limit(200), Limit(200), 4, 2, 12, 10);
        AttentionProblem problem = Posed(map, shape, causal);
        (float[] q, float[] k, float[] v) = Inputs(map, shape, 38);
        float[] expected = Forward(Engine, problem, q, k, v);
        RequireSameBits(expected, Forward(Engine, problem with { Layout = SequenceLayout.Whole(2, shape.KeyLength) }, q, k, v));
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("general exponential")]
    [InlineData("softmax")]
    public void A_query_sees_its_block_of_tokens_and_nothing_later(string map) =>
        Holds(map, () => Law.ForAll(Cases(40), seed: 23000, random => (Length: random.Next(2, Limit(200)), Block: random.Next(2, 40), Seed: random.NextWord(), At: random.NextDouble(), By: random.Choose(float.NaN, 25, float.PositiveInfinity)), sample =>
        {
            var shape = new AttentionShape(1, sample.Length, sample.Length, 2, 1, 12, 20);
            AttentionProblem problem = Posed(map, shape, causal: true) with { CausalBlock = sample.Block, Layout = SequenceLayout.Whole(1, sample.Length) };
            (float[] q, float[] k, float[] v) = Inputs(map, shape, sample.Seed);
            float[] before = Forward(Engine, problem, q, k, v);
            Tolerance.Require(problem, q, k, v, before);
            int changed = (int)(sample.At * sample.Length) / sample.Block * sample.Block;
            k.AsSpan(changed * 12).Fill(sample.By);
            v.AsSpan(changed * 20).Fill(sample.By);
            RequireSameBits(before.AsSpan(0, changed * 2 * 20), Forward(Engine, problem, q, k, v).AsSpan(0, changed * 2 * 20));
        }));

    [Theory]
    [InlineData("favor+", false)]
    [InlineData("favor+", true)]
    [InlineData("elu", true)]
    [InlineData("general exponential", true)]
    public void A_state_has_seen_the_keys_that_take_part(string map, bool causal) =>
        Holds(map, () => Law.ForAll(Cases(25), seed: 24000, random => MaskedCase.Next(random, causal, Limit(150)) with { CausalBlock = 1 }, sample =>
        {
            AttentionShape shape = sample.Shape;
            (float[] q, float[] k, float[] v) = Inputs(map, shape, sample.Seed, 1.5);
            AttentionProblem problem = Posed(map, shape, causal) with { Layout = sample.Layout };
            AttentionState initial = Seen(map, problem, sample.Seed + 1);
            AttentionState final = EngineRun.State(problem);
            float[] output = Forward(
                Engine, problem, q, Sequences.Spoiled(k, sample.Mask, sample.Spoiler), Sequences.Spoiled(v, sample.Mask, sample.Spoiler), initial, final);
            for (int b = 0; b < shape.Batch; b++)
            {
                int[] keys = [.. Enumerable.Range(0, shape.KeyLength).Where(j => sample.Mask[(b * shape.KeyLength) + j])];
                int[] queries = causal ? keys : [.. Enumerable.Range(0, shape.QueryLength)];
                var without = new AttentionShape(1, queries.Length, keys.Length, shape.Heads, shape.KeyHeads, shape.KeyDimension, shape.ValueDimension);
                AttentionProblem alone = Posed(map, without, causal);
                AttentionState own = EngineRun.State(alone);
                float[] expected = Forward(
                    Engine, alone, Sequences.Gather(Part(q, b, shape.Batch), shape.Heads * shape.KeyDimension, queries),
                    Sequences.Gather(Part(k, b, shape.Batch), shape.KeyHeads * shape.KeyDimension, keys),
                    Sequences.Gather(Part(v, b, shape.Batch), shape.KeyHeads * shape.ValueDimension, keys), initial.Select(b), own);
                RequireSameBits(expected, Sequences.Gather(Part(output, b, shape.Batch), shape.Heads * shape.ValueDimension, queries));
                RequireSameBits(own.LogScale, final.Select(b).LogScale);
                RequireSameBits(own.Sums, final.Select(b).Sums);
                RequireSameBits(own.Normalizers, final.Select(b).Normalizers);

                // Queries before the first key that takes part see what the initial state has seen, and no scale of a later key.
                int blind = causal ? keys.DefaultIfEmpty(shape.KeyLength).First() : 0;
                int[] early = [.. Enumerable.Range(0, blind)];
                var reading = new AttentionShape(1, blind, 0, shape.Heads, shape.KeyHeads, shape.KeyDimension, shape.ValueDimension);
                float[] read = Forward(
                    Engine, Posed(map, reading, causal: false), Sequences.Gather(Part(q, b, shape.Batch), shape.Heads * shape.KeyDimension, early), [], [],
                    initial.Select(b));
                RequireSameBits(read, Sequences.Gather(Part(output, b, shape.Batch), shape.Heads * shape.ValueDimension, early));
            }
        }));

    [Theory]
    [MemberData(nameof(SequenceMapsAndDirections))]
    public void A_query_that_sees_nothing_gives_0_be_it_nan(string map, bool causal)
    {
        SkipRefused(map);
        bool[] mask = [.. Enumerable.Range(0, 3 * 20).Select(i => i >= 20 && (i >= 40 || i % 20 >= 9))];
        var shape = new AttentionShape(3, 20, 20, 2, 1, 6, 5);
        (float[] q, float[] k, float[] v) = Inputs(map, shape, 45);
        AttentionProblem problem = Posed(map, shape, causal) with { Layout = SequenceLayout.FromKeyMask(3, 20, mask) };
        float[] expected = Forward(Engine, problem, q, k, v);
        int blind = 20 + (causal ? 9 : 0);
        q.AsSpan(0, blind * 2 * 6).Fill(float.NaN);
        float[] actual = Forward(Engine, problem, q, k, v);
        Assert.True(actual.AsSpan(0, blind * 2 * 5).IndexOfAnyExcept(0) < 0);
        RequireSameBits(expected.AsSpan(blind * 2 * 5), actual.AsSpan(blind * 2 * 5));

        var none = new AttentionShape(1, 20, 0, 2, 1, 6, 5);
        Assert.True(Forward(Engine, Posed(map, none, causal: false), q[..(20 * 2 * 6)], [], []).AsSpan().IndexOfAnyExcept(0) < 0);
    }

    // A key far above all others that a query before it must not be scaled by.
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_query_before_all_keys_is_not_scaled_by_them(bool hasState)
    {
        var shape = new AttentionShape(1, 20, 20, 1, 1, 4, 4);
        bool[] mask = [.. Enumerable.Range(0, 20).Select(j => j >= 7)];
        AttentionProblem problem = Maps.Problem("favor+", shape, causal: true) with { Layout = SequenceLayout.FromKeyMask(1, 20, mask) };
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 43);
        k.AsSpan(7 * 4).Fill(40);
        AttentionState? initial = hasState ? Seen("favor+", problem, 44) : null;
        float[] actual = Forward(Engine, problem, q, k, v, initial);
        ReadOnlySpan<float> early = actual.AsSpan(0, 7 * 4);
        Assert.True(hasState ? early.IndexOf(0) < 0 : early.IndexOfAnyExcept(0) < 0);
        Assert.All(actual, x => Assert.True(float.IsFinite(x)));
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("softmax")]
    public void With_a_layout_bits_depend_neither_on_threads_nor_on_workspace(string map) =>
        Holds(map, () => Law.ForAll(Cases(8), seed: 25000, random => PackedCase.Next(random, random.NextBool(), Limit(700)), sample =>
        {
            AttentionProblem problem = Posed(map, sample.Shape, sample.Causal, sample.Normalize) with { Layout = sample.Layout, CausalBlock = sample.CausalBlock };
            (float[] q, float[] k, float[] v) = TestData.Inputs(sample.Shape, sample.Seed, 2.5);
            float[] expected = Forward(Engine, problem, q, k, v);
            foreach (IAttentionEngine other in OtherDegrees)
            {
                RequireSameBits(expected, Forward(other, problem, q, k, v));
            }

            long least = Engine.MinimumWorkspaceBytes(problem);
            RequireSameBits(expected, EngineRun.Forward(Engine, Memory, problem, q, k, v, workspaceBytes: least));
        }));

    // Sums are float32 whatever is stored, so the result is that of the stored numbers, rounded once.
    [Theory]
    [InlineData("favor+", ElementType.Half)]
    [InlineData("favor+", ElementType.BFloat16)]
    [InlineData("elu", ElementType.Half)]
    [InlineData("elu", ElementType.BFloat16)]
    [InlineData("general exponential", ElementType.Half)]
    [InlineData("general direct", ElementType.BFloat16)]
    [InlineData("softmax", ElementType.Half)]
    [InlineData("softmax", ElementType.BFloat16)]
    public void Sixteen_bit_tensors_give_the_float32_result_rounded_once(string map, ElementType storage) =>
        Holds(map, () => Law.ForAll(Cases(30), seed: 26000, random => (Case: MaskedCase.Next(random, random.NextBool(), Limit(150)), HasLayout: random.NextBool()), sample =>
        {
            AttentionShape shape = sample.Case.Shape;
            AttentionProblem problem = Posed(map, shape, sample.Case.Causal, sample.Case.Normalize);
            if (sample.HasLayout)
            {
                problem = problem with { Layout = sample.Case.Layout, CausalBlock = sample.Case.CausalBlock };
            }

            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, sample.Case.Seed);
            (q, k, v) = (StoredTensor.Round(q, storage), StoredTensor.Round(k, storage), StoredTensor.Round(v, storage));
            if (sample.HasLayout)
            {
                (k, v) = (Sequences.Spoiled(k, sample.Case.Mask, float.NaN), Sequences.Spoiled(v, sample.Case.Mask, float.PositiveInfinity));
            }

            bool hasState = map != "softmax";
            AttentionState? expectedState = hasState ? EngineRun.State(problem) : null;
            AttentionState? actualState = hasState ? EngineRun.State(problem) : null;
            float[] expected = Forward(Engine, problem, q, k, v, null, expectedState);
            float[] actual = Forward(Engine, problem with { Storage = storage }, q, k, v, null, actualState);
            RequireSameBits(StoredTensor.Round(expected, storage), actual);
            if (hasState)
            {
                RequireSameBits(expectedState!.Sums, actualState!.Sums);
                RequireSameBits(expectedState.Normalizers, actualState.Normalizers);
                RequireSameBits(expectedState.LogScale, actualState.LogScale);
            }
        }));

    // elu(x) + 1 computed as it reads is 0 below −8.3 in Half and below −6.2 in bfloat16; exp(x) is not.
    [Theory]
    [InlineData(ElementType.Half)]
    [InlineData(ElementType.BFloat16)]
    public void Elu_loses_nothing_on_the_negative_side_in_sixteen_bits(ElementType storage)
    {
        var shape = new AttentionShape(1, 1, 2, 1, 1, 1, 1);
        AttentionProblem problem = Maps.Problem("elu", shape, causal: false) with { Storage = storage };
        Assert.Equal(1 / (1 + MathF.Exp(-1)), Forward(Engine, problem, [0], [-11, -12], [1, 0])[0], 4e-3f);
    }

    // Every number of 16 bits, subnormal, infinite and NaN too, comes in and goes out as it is.
    [Theory]
    [InlineData(ElementType.Half)]
    [InlineData(ElementType.BFloat16)]
    public void Every_sixteen_bit_number_passes(ElementType storage)
    {
        SkipRefused("elu");
        const int Width = 64;
        float[] all = StoredTensor.Read(
            System.Runtime.InteropServices.MemoryMarshal.Cast<ushort, float>(Enumerable.Range(0, 1 << 16).Select(i => (ushort)i).ToArray()), 1 << 16, storage);
        int most = Limit(all.Length / Width);

        // Engines that are not held to every case of a law see the numbers of some of their calls.
        int calls = ((all.Length / Width) + most - 1) / most;
        int step = calls / Math.Min(calls, Cases(calls));
        for (int first = 0; first < all.Length / Width; first += step * most)
        {
            // One key a sequence, and so every output is its value.
            int rows = Math.Min(most, (all.Length / Width) - first);
            var shape = new AttentionShape(rows, 1, 1, 1, 1, 1, Width);
            AttentionProblem problem = Maps.Problem("elu", shape, causal: false) with { Storage = storage };
            float[] v = all[(first * Width)..((first + rows) * Width)];
            float[] actual = Forward(Engine, problem, new float[rows], new float[rows], v);
            for (int i = 0; i < v.Length; i++)
            {
                Assert.True(v[i].Equals(actual[i]), $"{v[i]:g9} came out as {actual[i]:g9}");
            }
        }
    }

    [Fact]
    public void A_layout_that_does_not_fit_is_refused_with_a_reason()
    {
        AttentionProblem problem = Maps.Problem("favor+", new AttentionShape(1, 4, 1, 8), causal: true);
        foreach (AttentionProblem refused in new[]
        {
            problem with { CausalBlock = 2 },
            problem with { CausalBlock = 0, Layout = SequenceLayout.Whole(1, 4) },
            problem with { Layout = SequenceLayout.Whole(2, 4) },
            problem with { Layout = SequenceLayout.Whole(1, 5) },
            problem with { Layout = SequenceLayout.FromCuSeqlens([0, 5]) },
            problem with { Layout = SequenceLayout.FromCuSeqlens([0, 3], [0, 4]) },
            problem with { Shape = new AttentionShape(1, 3, 4, 1, 1, 8, 8), Layout = SequenceLayout.Whole(1, 4) },
        })
        {
            EngineSupport support = Engine.Supports(refused);
            Assert.False(support.IsSupported);
            Assert.NotEmpty(support.Reason);
        }
    }

    private static AttentionProblem Posed(string map, AttentionShape shape, bool causal, bool normalize = true) => map == "softmax"
        ? new AttentionProblem { Shape = shape, Causal = causal, Scale = 1 / MathF.Sqrt(shape.KeyDimension) }
        : Maps.Problem(map, shape, causal, normalize);

    /// <summary>States that have seen something, made by the engine itself.</summary>
    private AttentionState Seen(string map, AttentionProblem problem, ulong seed)
    {
        AttentionShape s = problem.Shape;
        var shape = new AttentionShape(problem.Sequences, 0, 7, s.Heads, s.KeyHeads, s.KeyDimension, s.ValueDimension);
        AttentionProblem first = problem with { Shape = shape, Causal = false, Layout = null, CausalBlock = 1 };
        AttentionState state = EngineRun.State(first);
        (_, float[] k, float[] v) = Inputs(map, shape, seed);
        Append(Engine, first, k, v, state);
        return state;
    }

    private sealed record MaskedCase(AttentionShape Shape, bool Causal, bool[] Mask, int CausalBlock, ulong Seed, float Spoiler, bool Normalize)
    {
        public SequenceLayout Layout => SequenceLayout.FromKeyMask(Shape.Batch, Shape.KeyLength, Mask);

        public static MaskedCase Next(SeededRandom random, bool causal, int maxLength)
        {
            AttentionShape shape = Shapes.Next(random, causal, maxLength, maxDimension: 24);
            return new MaskedCase(
                shape, causal, Sequences.Mask(random, shape.Batch, shape.KeyLength), causal && random.NextBool() ? random.Next(2, 90) : 1, random.NextWord(),
                random.Choose(float.NaN, float.PositiveInfinity, float.NegativeInfinity, 1e30f), random.Next(0, 3) > 0);
        }

        public override string ToString() => $"{Shape}, causal {Causal}, block {CausalBlock}, mask {string.Concat(Mask.Select(m => m ? '1' : '0'))}";
    }

    private sealed record PackedCase(
        AttentionShape Shape, bool Causal, int[] Queries, int[] Keys, int CausalBlock, bool HasState, ulong Seed, bool Normalize)
    {
        public SequenceLayout Layout => SequenceLayout.FromCuSeqlens(Queries, Keys);

        public static PackedCase Next(SeededRandom random, bool causal, int maxLength)
        {
            int sequences = random.Next(1, 5);
            int[] queries = Sequences.Offsets(random, sequences, maxLength);
            int[] keys = random.NextBool() ? queries : Sequences.Offsets(random, sequences, maxLength);
            AttentionShape any = Shapes.Next(random, causal, 2, maxDimension: 24);
            return new PackedCase(
                new AttentionShape(1, queries[^1], keys[^1], any.Heads, any.KeyHeads, any.KeyDimension, any.ValueDimension), causal, queries, keys,
                causal && random.Next(0, 2) == 0 ? random.Next(2, 90) : 1, random.NextBool(), random.NextWord(), random.Next(0, 3) > 0);
        }

        public override string ToString() =>
            $"{Shape}, causal {Causal}, block {CausalBlock}, queries {string.Join(' ', Queries)}, keys {string.Join(' ', Keys)}, state {HasState}";
    }
}
