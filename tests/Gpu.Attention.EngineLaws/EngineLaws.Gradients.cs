using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

// The backward pass. Every map that an engine runs forward it differentiates.
public abstract partial class EngineLaws
{
    private static readonly string[] GradientMaps = [.. Maps.Names, "softmax"];
    private static readonly string[] StatefulMaps = ["favor+", "favor+hyperbolic", "elu", "relu projected", "softplus", "general exponential", "general direct"];

    public static TheoryData<string, bool> GradientMapsAndDirections =>
        [.. from map in GradientMaps from causal in new[] { false, true } select (map, causal)];

    public static TheoryData<string, bool> StatefulMapsAndDirections =>
        [.. from map in StatefulMaps from causal in new[] { false, true } select (map, causal)];

    [Theory]
    [MemberData(nameof(GradientMapsAndDirections))]
    public void Gradients_err_no_more_than_three_times_plain_float32(string map, bool causal) =>
        HoldsBackward(map, () => Law.ForAll(Cases(30), seed: 30000, random => (Shape: Shapes.Next(random, causal, Limit(130), Limit(40)), Seed: random.NextWord(), Normalize: random.NextBool()), sample =>
        {
            AttentionProblem problem = Posed(map, sample.Shape, causal, sample.Normalize);
            (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, sample.Seed);
            Tolerance.RequireGradients(problem, q, k, v, g, Backward(Engine, problem, q, k, v, g));
        }));

    [Theory]
    [MemberData(nameof(OddSizes))]
    public void Gradients_err_no_more_than_three_times_plain_float32_at_odd_sizes(int length, int dimension, int valueDimension, int heads)
    {
        Assert.SkipWhen(length > Math.Min(MaxLength, 100), "Too long for the gradients' oracles, or for this engine's tests.");
        var shape = new AttentionShape(1, length, length, heads, heads, dimension, valueDimension);
        foreach (string map in new[] { "favor+", "elu", "softmax" })
        {
            HoldsBackward(map, () =>
            {
                AttentionProblem problem = Posed(map, shape, causal: true);
                (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, 5, std: 0.7);
                Tolerance.RequireGradients(problem, q, k, v, g, Backward(Engine, problem, q, k, v, g));
            });
        }
    }

    [Theory]
    [InlineData(500, false)]
    [InlineData(500, true)]
    public void Gradients_of_exact_attention_over_many_blocks_agree_with_the_oracle(int length, bool causal) => HoldsBackward("softmax", () =>
    {
        Assert.SkipWhen(length > MaxLength, $"Too long for this engine's tests, which end at {MaxLength} tokens.");
        var shape = new AttentionShape(1, length, length, 2, 1, 24, 40);
        var problem = new AttentionProblem { Shape = shape, Causal = causal, Scale = -0.7f };
        (float[] q, float[] k, float[] v, float[] g) = GradientInputs("softmax", problem, 8);
        Tolerance.RequireGradients(problem, q, k, v, g, Backward(Engine, problem, q, k, v, g));
    });

    // Log features that rise by hundreds within a chunk, and ones so low that their exponentials would all vanish.
    [Theory]
    [InlineData("favor+", 3)]
    [InlineData("favor+", 8)]
    [InlineData("favor+hyperbolic", 8)]
    [InlineData("general exponential", 8)]
    [InlineData("elu", 8)]
    [InlineData("softmax", 3)]
    [InlineData("softmax", 8)]
    public void Gradients_of_large_norms_neither_overflow_nor_vanish(string map, double std) =>
        HoldsBackward(map, () => Law.ForAll(Cases(10), seed: 31000, random => (Causal: random.NextBool(), Length: random.NextLength(Limit(200)), Seed: random.NextWord()), sample =>
        {
            var shape = new AttentionShape(1, sample.Length, 2, 16);
            AttentionProblem problem = Posed(map, shape, sample.Causal);
            (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, sample.Seed, std);
            for (int token = 0; token < sample.Length; token++)
            {
                // From short keys to long and back, so that a chunk starts at either end of the range.
                float size = MathF.Pow(MathF.Abs(MathF.Sin(token * 0.37f)), 3);
                for (int i = 0; i < 2 * 16; i++)
                {
                    k[(token * 2 * 16) + i] *= size;
                }
            }

            AttentionGradients actual = Backward(Engine, problem, q, k, v, g);
            Assert.All(actual.Query.Concat(actual.Key).Concat(actual.Value), x => Assert.True(float.IsFinite(x)));
            Tolerance.RequireGradients(problem, q, k, v, g, actual);
        }));

    // The first rows' normalisers are far below the others'; a loss of these rows only does not drown in what the others err.
    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("relu projected")]
    [InlineData("softplus")]
    public void Gradients_of_rows_with_a_small_normaliser_are_right(string map) => HoldsBackward(map, () =>
    {
        int length = Limit(70);
        var shape = new AttentionShape(1, length, length, 2, 1, 8, 6);
        AttentionProblem problem = Posed(map, shape, causal: true);
        (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, 51);
        for (int i = 0; i < 5 * 8; i++)
        {
            k[i] = map == "relu projected" ? 1e-3f * k[i] : k[i] - 4;
        }

        g.AsSpan(5 * 2 * 6).Clear();
        AttentionGradients actual = Backward(Engine, problem, q, k, v, g);
        Tolerance.RequireGradients(problem, q, k, v, g, actual);
        Assert.All(actual.Key.AsSpan(5 * 8).ToArray(), x => Assert.Equal(0, x));
        Assert.All(actual.Value.AsSpan(5 * 6).ToArray(), x => Assert.Equal(0, x));
    });

    [Theory]
    [InlineData("relu", false)]
    [InlineData("elu", true)]
    public void Gradients_know_of_the_constant_added_to_direct_features(string map, bool causal) => HoldsBackward(map, () =>
    {
        var shape = new AttentionShape(1, Limit(100), 2, 5);
        AttentionProblem problem = Posed(map, shape, causal) with { FeatureEpsilon = 0.3f };
        (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, 41);
        Tolerance.RequireGradients(problem, q, k, v, g, Backward(Engine, problem, q, k, v, g));
    });

    // All features of a row are 0, and its output with them, whatever its inputs are.
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_row_whose_weights_sum_to_zero_gives_no_gradient(bool causal) => HoldsBackward("relu", () =>
    {
        var shape = new AttentionShape(1, 20, 2, 3);
        AttentionProblem problem = Posed("relu", shape, causal);
        (float[] q, float[] k, float[] v, float[] g) = GradientInputs("relu", problem, 52);
        q.AsSpan(6 * 6, 12).Fill(-1);
        AttentionGradients actual = Backward(Engine, problem, q, k, v, g);
        Tolerance.RequireGradients(problem, q, k, v, g, actual);
        Assert.All(actual.Query.AsSpan(6 * 6, 12).ToArray(), x => Assert.Equal(0, x));
    });

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_feature_with_an_offset_of_minus_infinity_gives_no_gradient(bool causal) => HoldsBackward("general exponential", () =>
    {
        var shape = new AttentionShape(1, Limit(130), 2, 3);
        var form = new FeatureForm { InputDimension = 3, FeatureDimension = 3, Activation = FeatureActivation.Exp, Offset = [0, float.NegativeInfinity, 1] };
        var problem = new AttentionProblem { Shape = shape, Features = new FeaturePair(form, form), Causal = causal };
        (float[] q, float[] k, float[] v, float[] g) = GradientInputs("general exponential", problem, 7);
        Tolerance.RequireGradients(problem, q, k, v, g, Backward(Engine, problem, q, k, v, g));
    });

    [Theory]
    [MemberData(nameof(GradientMapsAndDirections))]
    public void A_masked_key_has_no_gradient_and_reaches_none(string map, bool causal) =>
        HoldsBackward(map, () => Law.ForAll(Cases(20), seed: 32000, random => MaskedCase.Next(random, causal, Limit(130)), sample =>
        {
            AttentionProblem plain = Posed(map, sample.Shape, causal, sample.Normalize) with { CausalBlock = sample.CausalBlock };
            (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, plain, sample.Seed);
            AttentionGradients actual = Backward(
                Engine, plain with { Layout = sample.Layout }, q, Sequences.Spoiled(k, sample.Mask, sample.Spoiler),
                Sequences.Spoiled(v, sample.Mask, sample.Spoiler), g);
            Tolerance.RequireGradients(plain, q, k, v, g, actual, Sequences.Bytes(sample.Mask));
            RequireZeroWhereMasked(actual.Key, sample.Mask);
            RequireZeroWhereMasked(actual.Value, sample.Mask);
        }));

    [Theory]
    [MemberData(nameof(SequenceMapsAndDirections))]
    public void Gradients_of_packed_sequences_have_the_bits_of_each_alone(string map, bool causal) =>
        HoldsBackward(map, () => Law.ForAll(Cases(20), seed: 33000, random => PackedCase.Next(random, causal, Limit(150)), sample =>
        {
            AttentionShape s = sample.Shape;
            AttentionProblem problem = Posed(map, s, causal, sample.Normalize) with { Layout = sample.Layout, CausalBlock = sample.CausalBlock };
            (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, sample.Seed, 2);
            bool hasState = sample.HasState && map != "softmax";
            AttentionState? initial = hasState ? Seen(map, problem, sample.Seed + 1) : null;
            AttentionState? finalGradient = hasState ? EngineRun.State(problem) : null;
            float[] output = Forward(Engine, problem, q, k, v, initial, finalGradient);
            Randomize(finalGradient, sample.Seed + 2);
            (AttentionGradients packed, AttentionState? packedState) =
                EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g, initial, finalGradient);
            for (int n = 0; n < sample.Queries.Length - 1; n++)
            {
                int[] queries = [.. Enumerable.Range(sample.Queries[n], sample.Queries[n + 1] - sample.Queries[n])];
                int[] keys = [.. Enumerable.Range(sample.Keys[n], sample.Keys[n + 1] - sample.Keys[n])];
                var shape = new AttentionShape(1, queries.Length, keys.Length, s.Heads, s.KeyHeads, s.KeyDimension, s.ValueDimension);
                AttentionProblem alone = Posed(map, shape, causal, sample.Normalize) with { CausalBlock = sample.CausalBlock };
                if (sample.CausalBlock > 1 || (causal && queries.Length != keys.Length))
                {
                    alone = alone with { Layout = SequenceLayout.FromCuSeqlens([0, queries.Length], [0, keys.Length]) };
                }

                (AttentionGradients own, AttentionState? ownState) = EngineRun.Backward(
                    Engine, Memory, alone, Sequences.Gather(q, s.Heads * s.KeyDimension, queries), Sequences.Gather(k, s.KeyHeads * s.KeyDimension, keys),
                    Sequences.Gather(v, s.KeyHeads * s.ValueDimension, keys), Sequences.Gather(output, s.Heads * s.ValueDimension, queries),
                    Sequences.Gather(g, s.Heads * s.ValueDimension, queries), initial?.Select(n), finalGradient?.Select(n));
                RequireSameBits(own.Query, Sequences.Gather(packed.Query, s.Heads * s.KeyDimension, queries));
                RequireSameBits(own.Key, Sequences.Gather(packed.Key, s.KeyHeads * s.KeyDimension, keys));
                RequireSameBits(own.Value, Sequences.Gather(packed.Value, s.KeyHeads * s.ValueDimension, keys));
                if (ownState is not null)
                {
                    RequireSameBits(ownState.Sums, packedState!.Select(n).Sums);
                    RequireSameBits(ownState.Normalizers, packedState.Select(n).Normalizers);
                }
            }
        }));

    [Theory]
    [InlineData("favor+", true)]
    [InlineData("favor+", false)]
    [InlineData("elu", true)]
    [InlineData("elu", false)]
    public void Keys_without_a_query_have_the_gradients_that_their_state_asks_for(string map, bool causal) => HoldsBackward(map, () =>
    {
        const int Keys = 37;
        AttentionProblem none = With(0), one = With(1);
        (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, one, 61);
        g.AsSpan().Clear();
        AttentionState finalGradient = EngineRun.State(one);
        float[] output = Forward(Engine, one, q, k, v, null, finalGradient);
        Randomize(finalGradient, 62);
        AttentionGradients expected = EngineRun.Backward(Engine, Memory, one, q, k, v, output, g, null, finalGradient).Gradients;
        AttentionGradients actual = EngineRun.Backward(Engine, Memory, none, [], k, v, [], [], null, finalGradient).Gradients;
        Assert.Contains(expected.Key, x => x != 0);
        Assert.Equal(expected.Key, actual.Key);
        Assert.Equal(expected.Value, actual.Value);

        AttentionProblem With(int queries) => Posed(map, new AttentionShape(1, queries, Keys, 2, 1, 8, 6), causal) with
        {
            Layout = SequenceLayout.FromCuSeqlens([0, queries], [0, Keys]), WantsFinalState = true,
        };
    });

    [Theory]
    [MemberData(nameof(SequenceMapsAndDirections))]
    public void Gradients_of_a_masked_sequence_have_the_bits_of_one_without_its_masked_tokens(string map, bool causal) =>
        HoldsBackward(map, () => Law.ForAll(Cases(15), seed: 33500, random => MaskedCase.Next(random, causal, Limit(200)) with { CausalBlock = 1 }, sample =>
        {
            AttentionShape s = sample.Shape;
            AttentionProblem problem = Posed(map, s, causal, sample.Normalize) with { Layout = sample.Layout };
            (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, sample.Seed, 2);
            AttentionGradients whole = Backward(
                Engine, problem, q, Sequences.Spoiled(k, sample.Mask, sample.Spoiler), Sequences.Spoiled(v, sample.Mask, sample.Spoiler), g);
            for (int b = 0; b < s.Batch; b++)
            {
                int[] keys = [.. Enumerable.Range(0, s.KeyLength).Where(j => sample.Mask[(b * s.KeyLength) + j])];
                int[] queries = causal ? keys : [.. Enumerable.Range(0, s.QueryLength)];
                var without = new AttentionShape(1, queries.Length, keys.Length, s.Heads, s.KeyHeads, s.KeyDimension, s.ValueDimension);
                AttentionGradients own = Backward(
                    Engine, Posed(map, without, causal, sample.Normalize), Sequences.Gather(Part(q, b, s.Batch), s.Heads * s.KeyDimension, queries),
                    Sequences.Gather(Part(k, b, s.Batch), s.KeyHeads * s.KeyDimension, keys), Sequences.Gather(Part(v, b, s.Batch), s.KeyHeads * s.ValueDimension, keys),
                    Sequences.Gather(Part(g, b, s.Batch), s.Heads * s.ValueDimension, queries));
                RequireSameBits(own.Query, Sequences.Gather(Part(whole.Query, b, s.Batch), s.Heads * s.KeyDimension, queries));
                if (!causal)
                {
                    RequireSameBits(own.Key, Sequences.Gather(Part(whole.Key, b, s.Batch), s.KeyHeads * s.KeyDimension, keys));
                    RequireSameBits(own.Value, Sequences.Gather(Part(whole.Value, b, s.Batch), s.KeyHeads * s.ValueDimension, keys));
                }
            }
        }));

    // Row after row the same numbers, whatever the whole of the batch is and however many threads work on it.
    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("general exponential")]
    [InlineData("softmax")]
    public void Bits_of_gradients_depend_neither_on_threads_nor_on_neighbours(string map) =>
        HoldsBackward(map, () => Law.ForAll(Cases(8), seed: 34000, random => (Shape: Shapes.Next(random, causal: true, Limit(900), maxDimension: 24), Causal: random.NextBool(), Seed: random.NextWord()), sample =>
        {
            AttentionShape s = sample.Shape;
            AttentionProblem problem = Posed(map, s, sample.Causal);
            (float[] q, float[] k, float[] v) = TestData.Inputs(s, sample.Seed, 2.5);
            float[] g = OutputGradient(s, sample.Seed);
            float[] output = Forward(Engine, problem, q, k, v);
            AttentionGradients expected = EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g).Gradients;
            foreach (IAttentionEngine other in OtherDegrees)
            {
                RequireSameBits(expected, EngineRun.Backward(other, Memory, problem, q, k, v, output, g).Gradients);
            }

            for (int b = 0; b < s.Batch; b++)
            {
                AttentionProblem alone = problem with { Shape = new AttentionShape(1, s.QueryLength, s.KeyLength, s.Heads, s.KeyHeads, s.KeyDimension, s.ValueDimension) };
                AttentionGradients own = EngineRun.Backward(
                    Engine, Memory, alone, Part(q, b, s.Batch), Part(k, b, s.Batch), Part(v, b, s.Batch), Part(output, b, s.Batch), Part(g, b, s.Batch)).Gradients;
                RequireSameBits(
                    new AttentionGradients(Part(expected.Query, b, s.Batch), Part(expected.Key, b, s.Batch), Part(expected.Value, b, s.Batch)), own);
            }
        }));

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("softmax")]
    public void With_a_layout_bits_of_gradients_do_not_depend_on_threads(string map) =>
        HoldsBackward(map, () => Law.ForAll(Cases(6), seed: 34500, random => PackedCase.Next(random, random.NextBool(), Limit(500)), sample =>
        {
            AttentionProblem problem = Posed(map, sample.Shape, sample.Causal, sample.Normalize) with { Layout = sample.Layout, CausalBlock = sample.CausalBlock };
            (float[] q, float[] k, float[] v) = TestData.Inputs(sample.Shape, sample.Seed, 2.5);
            float[] g = OutputGradient(sample.Shape, sample.Seed);
            float[] output = Forward(Engine, problem, q, k, v);
            AttentionGradients expected = EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g).Gradients;
            foreach (IAttentionEngine other in OtherDegrees)
            {
                RequireSameBits(expected, EngineRun.Backward(other, Memory, problem, q, k, v, output, g).Gradients);
            }
        }));

    [Theory]
    [MemberData(nameof(GradientMapsAndDirections))]
    public void Gradients_left_out_change_no_bit_of_the_others(string map, bool causal) => HoldsBackward(map, () =>
    {
        var shape = new AttentionShape(1, Limit(100), Limit(100), 4, 2, 12, 10);
        AttentionProblem problem = Posed(map, shape, causal);
        (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, 53);
        AttentionState? initial = map == "softmax" ? null : Seen(map, problem, 54);
        float[] output = Forward(Engine, problem, q, k, v, initial);
        (AttentionGradients all, AttentionState? state) = EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g, initial);
        for (Wanted wanted = Wanted.None; wanted < Wanted.All; wanted++)
        {
            (AttentionGradients some, AttentionState? someState) =
                EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g, initial, wanted: wanted);
            RequireSameBits(
                new AttentionGradients(
                    wanted.HasFlag(Wanted.Query) ? all.Query : [], wanted.HasFlag(Wanted.Key) ? all.Key : [], wanted.HasFlag(Wanted.Value) ? all.Value : []), some);
            if (someState is not null)
            {
                RequireSameBits(state!.Sums, someState.Sums);
                RequireSameBits(state.Normalizers, someState.Normalizers);
            }
        }
    });

    [Theory]
    [MemberData(nameof(GradientMapsAndDirections))]
    public void An_output_gradient_left_out_is_zero(string map, bool causal) => HoldsBackward(map, () =>
    {
        var shape = new AttentionShape(2, Limit(70), Limit(70), 2, 1, 6, 5);
        AttentionProblem problem = Posed(map, shape, causal);
        (float[] q, float[] k, float[] v, _) = GradientInputs(map, problem, 55);
        AttentionState? finalGradient = map == "softmax" ? null : EngineRun.State(problem);
        float[] output = Forward(Engine, problem, q, k, v, null, finalGradient);
        Randomize(finalGradient, 56);
        AttentionGradients actual = EngineRun.Backward(Engine, Memory, problem, q, k, v, output, null, null, finalGradient).Gradients;
        AttentionGradients zero = EngineRun.Backward(Engine, Memory, problem, q, k, v, output, new float[output.Length], null, finalGradient).Gradients;
        Assert.All(actual.Query, x => Assert.Equal(0, x));
        RequireClose(Array.ConvertAll(zero.Key, x => (double)x), actual.Key, 1e-6);
        RequireClose(Array.ConvertAll(zero.Value, x => (double)x), actual.Value, 1e-6);
    });

    // Rows before a token do not see it: what is no number there reaches neither the token's gradients nor those of later ones.
    [Theory]
    [MemberData(nameof(GradientMapsAndDirections))]
    public void A_key_s_gradient_does_not_depend_on_rows_that_do_not_see_it(string map, bool isBlock) =>
        HoldsBackward(map, () => Law.ForAll(Cases(20), seed: 35000, random => (Length: random.Next(2, Limit(150)), Block: random.Next(2, 40), Seed: random.NextWord(), At: random.NextDouble(), By: random.Choose(float.NaN, float.PositiveInfinity, 1e30f)), sample =>
        {
            (AttentionProblem problem, int changed) = CausalCase(map, sample.Length, isBlock ? sample.Block : 1, sample.At);
            (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, sample.Seed);
            float[] output = Forward(Engine, problem, q, k, v);
            AttentionGradients before = EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g).Gradients;
            g.AsSpan(0, changed * 2 * 20).Fill(sample.By);
            output.AsSpan(0, changed * 2 * 20).Fill(sample.By);
            q.AsSpan(0, changed * 2 * 12).Fill(sample.By);
            AttentionGradients after = EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g).Gradients;
            RequireSameBits(before.Key.AsSpan(changed * 12), after.Key.AsSpan(changed * 12));
            RequireSameBits(before.Value.AsSpan(changed * 20), after.Value.AsSpan(changed * 20));
            RequireSameBits(before.Query.AsSpan(changed * 2 * 12), after.Query.AsSpan(changed * 2 * 12));
        }));

    [Theory]
    [MemberData(nameof(GradientMapsAndDirections))]
    public void A_query_s_gradient_does_not_depend_on_keys_that_it_does_not_see(string map, bool isBlock) =>
        HoldsBackward(map, () => Law.ForAll(Cases(20), seed: 36000, random => (Length: random.Next(2, Limit(150)), Block: random.Next(2, 40), Seed: random.NextWord(), At: random.NextDouble(), By: random.Choose(float.NaN, float.PositiveInfinity, 25)), sample =>
        {
            (AttentionProblem problem, int changed) = CausalCase(map, sample.Length, isBlock ? sample.Block : 1, sample.At);
            (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, sample.Seed);
            AttentionGradients before = Backward(Engine, problem, q, k, v, g);
            q.AsSpan(changed * 2 * 12).Fill(sample.By);
            k.AsSpan(changed * 12).Fill(sample.By);
            v.AsSpan(changed * 20).Fill(sample.By);
            g.AsSpan(changed * 2 * 20).Fill(sample.By);
            AttentionGradients after = Backward(Engine, problem, q, k, v, g);
            RequireSameBits(before.Query.AsSpan(0, changed * 2 * 12), after.Query.AsSpan(0, changed * 2 * 12));
        }));

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("softmax")]
    public void A_nan_output_gradient_reaches_all_that_its_row_sees(string map) => HoldsBackward(map, () =>
    {
        int length = Limit(100);
        int at = length / 2;
        var shape = new AttentionShape(1, length, 1, 16);
        AttentionProblem problem = Posed(map, shape, causal: true);
        (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, 57);
        g.AsSpan(at * 16, 16).Fill(float.NaN);
        AttentionGradients actual = Backward(Engine, problem, q, k, v, g);
        foreach (float[] gradient in new[] { actual.Key, actual.Value })
        {
            Assert.All(gradient[..((at + 1) * 16)], x => Assert.True(float.IsNaN(x)));
            Assert.All(gradient[((at + 1) * 16)..], x => Assert.True(float.IsFinite(x)));
        }

        Assert.All(actual.Query[(at * 16)..((at + 1) * 16)], x => Assert.True(float.IsNaN(x)));
        Assert.All(actual.Query[..(at * 16)].Concat(actual.Query[((at + 1) * 16)..]), x => Assert.True(float.IsFinite(x)));
    });

    [Theory]
    [MemberData(nameof(StatefulMapsAndDirections))]
    public void Gradients_of_states_are_the_oracle_s(string map, bool causal) =>
        HoldsBackward(map, () => Law.ForAll(Cases(20), seed: 37000, random => (Shape: Shapes.Next(random, causal, Limit(100), Limit(24)), Seed: random.NextWord(), Normalize: random.NextBool()), sample =>
        {
            // One weight is all of a bare sum of the general map's exponentials, which errs by that one's large logarithm.
            AttentionProblem problem = Posed(map, sample.Shape, causal, sample.Normalize || map == "general exponential");
            (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, sample.Seed);
            AttentionState initial = Seen(map, problem, sample.Seed + 1);
            AttentionState finalGradient = EngineRun.State(problem);
            float[] output = Forward(Engine, problem, q, k, v, initial, finalGradient);
            Randomize(finalGradient, sample.Seed + 2);
            (AttentionGradients actual, AttentionState? state) =
                EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g, initial, finalGradient);
            ReferenceGradient expected = Oracles.Gradients(
                problem, q, k, v, g, initial: Oracles.State(initial), finalGradient: Oracles.State(finalGradient));

            // Where all of a row's rectified features are next to nothing, it divides by what rounding left of them.
            double tolerance = map == "relu projected" ? 1e-4 : 1e-5;

            // What is summed is of size one: of one dimension a homogeneous map's query gradients cancel, and rounding is what is left.
            RequireClose(expected.Query, actual.Query, tolerance, least: map == "relu projected" ? 1 : 0.1);
            RequireClose(expected.Key, actual.Key, tolerance);
            RequireClose(expected.Value, actual.Value, tolerance);
            RequireClose(expected.Initial!.Sums, state!.Sums, tolerance);
            RequireClose(expected.Initial.Normalizers, state.Normalizers, tolerance);
        }));

    // The second part's gradient of its initial state is the first part's of its final one.
    [Theory]
    [MemberData(nameof(StatefulMapsAndDirections))]
    public void Gradients_of_a_sequence_in_two_parts_are_those_of_the_whole(string map, bool causal) =>
        HoldsBackward(map, () => Law.ForAll(Cases(15), seed: 38000, random => (Length: random.Next(1, Limit(150)), Seed: random.NextWord(), At: random.NextDouble(), Normalize: random.NextBool()), sample =>
        {
            var shape = new AttentionShape(2, sample.Length, sample.Length, 4, 2, 12, 10);
            AttentionProblem problem = Posed(map, shape, causal, sample.Normalize || map == "general exponential");
            (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, sample.Seed, std: 0.6);

            // Without a direction all keys come first and all queries last.
            int cut = (int)(sample.At * (sample.Length + 1));
            (int First, int Count) firstKeys = causal ? (0, cut) : (0, sample.Length);
            (int First, int Count) firstQueries = causal ? (0, cut) : (0, 0);
            AttentionProblem first = problem with { Shape = shape.With(firstQueries.Count, firstKeys.Count) };
            AttentionProblem second = problem with { Shape = shape.With(sample.Length - firstQueries.Count, sample.Length - firstKeys.Count) };
            AttentionState state = EngineRun.State(problem);
            float[] q1 = Tokens(q, 48, 0, firstQueries.Count), k1 = Tokens(k, 24, 0, firstKeys.Count), v1 = Tokens(v, 20, 0, firstKeys.Count);
            float[] q2 = Tokens(q, 48, firstQueries.Count, sample.Length - firstQueries.Count);
            float[] k2 = Tokens(k, 24, firstKeys.Count, sample.Length - firstKeys.Count), v2 = Tokens(v, 20, firstKeys.Count, sample.Length - firstKeys.Count);
            float[] o1 = Forward(Engine, first, q1, k1, v1, null, state);
            float[] o2 = Forward(Engine, second, q2, k2, v2, state);
            (AttentionGradients later, AttentionState? between) = EngineRun.Backward(
                Engine, Memory, second, q2, k2, v2, o2, Tokens(g, 40, firstQueries.Count, sample.Length - firstQueries.Count), state);
            AttentionGradients earlier = EngineRun.Backward(
                Engine, Memory, first, q1, k1, v1, o1, Tokens(g, 40, 0, firstQueries.Count), null, between).Gradients;
            var whole = new AttentionGradients(new float[q.Length], new float[k.Length], new float[v.Length]);
            Place(earlier, 0, firstQueries.Count, 0, firstKeys.Count);
            Place(later, firstQueries.Count, sample.Length - firstQueries.Count, firstKeys.Count, sample.Length - firstKeys.Count);
            Tolerance.RequireGradients(problem, q, k, v, g, whole);

            float[] Tokens(float[] tensor, int row, int at, int count) => Blocks.Tokens(tensor, 2, row, at, count);

            void Place(AttentionGradients part, int query, int queries, int key, int keys)
            {
                Blocks.Place(part.Query, whole.Query, 2, 48, query, queries);
                Blocks.Place(part.Key, whole.Key, 2, 24, key, keys);
                Blocks.Place(part.Value, whole.Value, 2, 20, key, keys);
            }
        }));

    // Of the same stored output, which a backward pass reads.
    [Theory]
    [InlineData("favor+", ElementType.Half)]
    [InlineData("favor+", ElementType.BFloat16)]
    [InlineData("elu", ElementType.Half)]
    [InlineData("general exponential", ElementType.BFloat16)]
    [InlineData("softmax", ElementType.Half)]
    [InlineData("softmax", ElementType.BFloat16)]
    public void Sixteen_bit_gradients_are_the_float32_ones_rounded_once(string map, ElementType storage) =>
        HoldsBackward(map, () => Law.ForAll(Cases(20), seed: 39000, random => (Case: MaskedCase.Next(random, random.NextBool(), Limit(150)), HasLayout: random.NextBool()), sample =>
        {
            AttentionShape shape = sample.Case.Shape;
            AttentionProblem problem = Posed(map, shape, sample.Case.Causal, sample.Case.Normalize);
            if (sample.HasLayout)
            {
                problem = problem with { Layout = sample.Case.Layout, CausalBlock = sample.Case.CausalBlock };
            }

            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, sample.Case.Seed);
            (q, k, v) = (StoredTensor.Round(q, storage), StoredTensor.Round(k, storage), StoredTensor.Round(v, storage));
            float[] g = StoredTensor.Round(OutputGradient(shape, sample.Case.Seed), storage);
            if (sample.HasLayout)
            {
                (k, v) = (Sequences.Spoiled(k, sample.Case.Mask, float.NaN), Sequences.Spoiled(v, sample.Case.Mask, float.PositiveInfinity));
            }

            AttentionState? initial = map == "softmax" ? null : Seen(map, problem, sample.Case.Seed + 1);
            float[] output = Forward(Engine, problem with { Storage = storage }, q, k, v, initial);
            (AttentionGradients expected, AttentionState? expectedState) = EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g, initial);
            (AttentionGradients actual, AttentionState? actualState) =
                EngineRun.Backward(Engine, Memory, problem with { Storage = storage }, q, k, v, output, g, initial);
            RequireSameBits(
                new AttentionGradients(
                    StoredTensor.Round(expected.Query, storage), StoredTensor.Round(expected.Key, storage), StoredTensor.Round(expected.Value, storage)), actual);
            if (expectedState is not null)
            {
                RequireSameBits(expectedState.Sums, actualState!.Sums);
                RequireSameBits(expectedState.Normalizers, actualState.Normalizers);
            }
        }));

    [Fact]
    public void A_map_has_gradients_or_is_refused_with_a_reason()
    {
        var shape = new AttentionShape(1, 4, 1, 8);
        AttentionProblem favor = Posed("favor+", shape, causal: true);
        FeaturePair ownFunction = FeatureMap.FromFunction("softplus", x => MathF.Log(1 + MathF.Exp(x))).Lower(8, 1);
        foreach (string map in GradientMaps)
        {
            EngineSupport support = Engine.SupportsBackward(Posed(map, shape, causal: true));
            Assert.Equal(!Refused.Contains(map), support.IsSupported);
            Assert.NotEqual(support.IsSupported, support.Reason.Length > 0);
        }

        foreach (AttentionProblem refused in new[]
        {
            favor with { Shape = new AttentionShape(1, 4, 5, 1, 1, 8, 8) },
            favor with { Convention = ReferenceConvention.Jax, FeatureEpsilon = 1e-6f },
            favor with { Convention = ReferenceConvention.Lucidrains, FeatureEpsilon = 1e-4f },
            favor with { Features = ownFunction },
            favor with { Features = null, WantsFinalState = true },
        })
        {
            EngineSupport support = Engine.SupportsBackward(refused);
            Assert.False(support.IsSupported);
            Assert.NotEmpty(support.Reason);
            var thrown = Assert.Throws<NotSupportedException>(() => Engine.Backward(refused, default, default));
            Assert.Contains(support.Reason, thrown.Message, StringComparison.Ordinal);
        }
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("softmax")]
    public void Less_workspace_changes_no_bit_of_gradients_and_too_little_is_refused(string map) => HoldsBackward(map, () =>
    {
        int length = Limit(200);
        AttentionProblem problem = Posed(map, new AttentionShape(3, length, length, 4, 2, 12, 10), causal: true);
        (float[] q, float[] k, float[] v, float[] g) = GradientInputs(map, problem, 58);
        float[] output = Forward(Engine, problem, q, k, v);
        AttentionGradients expected = EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g).Gradients;
        long least = Engine.MinimumBackwardWorkspaceBytes(problem);
        long best = Engine.BackwardWorkspaceBytes(problem);
        Assert.InRange(least, 0, best);
        foreach (long bytes in new[] { least, least + ((best - least) / 3), best + 4096 })
        {
            RequireSameBits(expected, EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g, workspaceBytes: bytes).Gradients);
        }

        Assert.Contains(
            "workspace",
            Assert.Throws<ArgumentException>(
                "buffers", () => EngineRun.Backward(Engine, Memory, problem, q, k, v, output, g, workspaceBytes: least - 4)).Message,
            StringComparison.Ordinal);
    });

    /// <summary>A causal problem, and a token that begins a block.</summary>
    private static (AttentionProblem Problem, int Token) CausalCase(string map, int length, int block, double at)
    {
        AttentionProblem problem = Posed(map, new AttentionShape(1, length, length, 2, 1, 12, 20), causal: true);
        problem = block == 1 ? problem : problem with { CausalBlock = block, Layout = SequenceLayout.Whole(1, length) };
        return (problem, (int)(at * length) / block * block);
    }

    private static float[] OutputGradient(AttentionShape shape, ulong seed) => TestData.Normal((seed * 3) + 1_000_000, shape.OutputElements);

    /// <summary>Inputs and an output gradient, of which no argument of an activation lies so close to a kink that rounding could take it across.</summary>
    private static (float[] Query, float[] Key, float[] Value, float[] Gradient) GradientInputs(
        string map, AttentionProblem problem, ulong seed, double std = 1)
    {
        for (; ; seed += 1_000_003)
        {
            (float[] q, float[] k, float[] v) = Inputs(map, problem.Shape, seed, std);
            if (!Oracles.IsNearKink(problem, q, k))
            {
                return (q, k, v, OutputGradient(problem.Shape, seed));
            }
        }
    }

    /// <summary>Fills the sums and normalisers of a state, which keeps its scale.</summary>
    private static void Randomize(AttentionState? gradient, ulong seed)
    {
        if (gradient is not null)
        {
            TestData.Normal(seed * 2, gradient.Sums.Length).CopyTo(gradient.Sums);
            TestData.Normal((seed * 2) + 1, gradient.Normalizers.Length).CopyTo(gradient.Normalizers);
        }
    }

    private static void RequireZeroWhereMasked(float[] gradient, bool[] mask)
    {
        int width = mask.Length == 0 ? 0 : gradient.Length / mask.Length;
        for (int token = 0; token < mask.Length; token++)
        {
            Assert.True(mask[token] || gradient.AsSpan(token * width, width).IndexOfAnyExcept(0) < 0, $"The masked token {token} has a gradient.");
        }
    }

    private static void RequireSameBits(AttentionGradients expected, AttentionGradients actual)
    {
        RequireSameBits(expected.Query, actual.Query);
        RequireSameBits(expected.Key, actual.Key);
        RequireSameBits(expected.Value, actual.Value);
    }

    /// <summary>Errors relative to the largest element, or to inputs of size 1 where all of it cancels, as a lone feature does under its normaliser.</summary>
    private static void RequireClose(ReadOnlySpan<double> expected, ReadOnlySpan<float> actual, double tolerance, double least = 0.1)
    {
        Assert.Equal(expected.Length, actual.Length);
        double size = least;
        foreach (double element in expected)
        {
            size = Math.Max(size, Math.Abs(element));
        }

        for (int i = 0; i < expected.Length; i++)
        {
            Assert.True(Math.Abs(actual[i] - expected[i]) <= tolerance * size, $"element {i} of {expected.Length} is {actual[i]:g9}, not {expected[i]:g9}; the largest is {size:g3}");
        }
    }

    private void HoldsBackward(string map, Action law)
    {
        Assert.SkipWhen(!TriesBackward(map), $"The backward pass of {map} is tested elsewhere.");
        Holds(map, law);
    }

    /// <summary>A backward pass after the engine's own forward pass.</summary>
    private AttentionGradients Backward(IAttentionEngine engine, AttentionProblem problem, float[] query, float[] key, float[] value, float[] outputGradient) =>
        EngineRun.Backward(engine, Memory, problem, query, key, value, Forward(engine, problem, query, key, value), outputGradient).Gradients;
}
