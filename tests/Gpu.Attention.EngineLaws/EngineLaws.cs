using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>What holds for every engine. A class for each engine says which, and how much of it the engine can be asked to do.</summary>
public abstract partial class EngineLaws
{
    public static TheoryData<string, bool> MapsAndDirections =>
        [.. from map in Maps.Names from causal in new[] { false, true } select (map, causal)];

    public static TheoryData<int, int, int, int> OddSizes =>
        [.. from length in new[] { 1, 63, 65, 100, 1000 }
            from dimensions in new[] { (13, 60), (60, 13), (100, 64) }
            from heads in new[] { 1, 3 }
            select (length, dimensions.Item1, dimensions.Item2, heads)];

    private protected abstract IAttentionEngine Engine { get; }

    /// <summary>Generated cases of a law that has <paramref name="full"/> of them.</summary>
    private protected virtual int Cases(int full) => full;

    /// <summary>The most tokens in a sequence.</summary>
    private protected virtual int MaxLength => int.MaxValue;

    /// <summary>Where the engine's buffers lie.</summary>
    private protected virtual EngineMemory Memory => EngineMemory.Host;

    /// <summary>Maps that the engine cannot run, "softmax" for exact attention and "favor+ as jax" for a published convention: it must refuse them with a reason.</summary>
    private protected virtual string[] Refused => [];

    /// <summary>False for a map, "softmax" for exact attention, whose backward pass is left to the tests of an engine that differs in little else.</summary>
    private protected virtual bool TriesBackward(string map) => true;

    /// <summary>The same engine with other numbers of threads or sizes of blocks, whose bits must be the same.</summary>
    private protected abstract IEnumerable<IAttentionEngine> OtherDegrees { get; }

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void Errs_no_more_than_twice_plain_float32(string map, bool causal) =>
        Holds(map, () => Law.ForAll(Cases(40), seed: 1000, random => (Shape: Shapes.Next(random, causal, Limit(130), Limit(40)), Seed: random.NextWord(), Normalize: random.NextBool()), sample =>
        {
            AttentionProblem problem = Maps.Problem(map, sample.Shape, causal, sample.Normalize);
            (float[] q, float[] k, float[] v) = Inputs(map, sample.Shape, sample.Seed);
            Tolerance.Require(problem, q, k, v, Forward(Engine, problem, q, k, v));
        }));

    [Theory]
    [MemberData(nameof(OddSizes))]
    public void Errs_no_more_than_twice_plain_float32_at_odd_sizes(int length, int dimension, int valueDimension, int heads)
    {
        Assert.SkipWhen(length > MaxLength, $"Too long for this engine's tests, which end at {MaxLength} tokens.");
        var shape = new AttentionShape(1, length, length, heads, heads, dimension, valueDimension);
        foreach (string map in new[] { "favor+", "elu" })
        {
            AttentionProblem problem = Maps.Problem(map, shape, causal: true);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 5, std: 0.7);
            Tolerance.Require(problem, q, k, v, Forward(Engine, problem, q, k, v));
        }
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Exact_attention_errs_no_more_than_twice_plain_float32(bool causal) =>
        Holds("softmax", () => Law.ForAll(Cases(40), seed: 2000, random => (Shape: Shapes.Next(random, causal, Limit(300)), Seed: random.NextWord(), Std: random.Choose(0.3, 1, 5)), sample =>
        {
            var problem = new AttentionProblem { Shape = sample.Shape, Causal = causal, Scale = 1 / MathF.Sqrt(sample.Shape.KeyDimension) };
            (float[] q, float[] k, float[] v) = TestData.Inputs(sample.Shape, sample.Seed, sample.Std);
            Tolerance.Require(problem, q, k, v, Forward(Engine, problem, q, k, v));
        }));

    [Theory]
    [InlineData(500)]
    [InlineData(1000)]
    public void Exact_attention_over_many_blocks_agrees_with_the_oracle(int length)
    {
        SkipRefused("softmax");
        Assert.SkipWhen(length > MaxLength, $"Too long for this engine's tests, which end at {MaxLength} tokens.");
        foreach (bool causal in new[] { false, true })
        {
            var shape = new AttentionShape(1, length, length, 2, 1, 24, 40);
            var problem = new AttentionProblem { Shape = shape, Causal = causal, Scale = -0.7f };
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 8);
            Tolerance.Require(problem, q, k, v, Forward(Engine, problem, q, k, v));
        }
    }

    // Log features that rise by hundreds within a chunk, and ones so low that their exponentials would all vanish.
    [Theory]
    [InlineData("favor+", 3)]
    [InlineData("favor+", 8)]
    [InlineData("favor+", 30)]
    [InlineData("favor+hyperbolic", 8)]
    [InlineData("general exponential", 8)]
    public void Large_norms_neither_overflow_nor_vanish(string map, double std) =>
        Law.ForAll(Cases(10), seed: 3000, random => (Causal: random.NextBool(), Length: random.NextLength(Limit(200)), Seed: random.NextWord()), sample =>
        {
            var shape = new AttentionShape(1, sample.Length, 2, 16);
            AttentionProblem problem = Maps.Problem(map, shape, sample.Causal);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, sample.Seed, std);
            for (int token = 0; token < sample.Length; token++)
            {
                // From short keys to long and back, so that a chunk starts at either end of the range.
                float size = MathF.Pow(MathF.Abs(MathF.Sin(token * 0.37f)), 3);
                for (int i = 0; i < 2 * 16; i++)
                {
                    k[(token * 2 * 16) + i] *= size;
                }
            }

            float[] actual = Forward(Engine, problem, q, k, v);
            Assert.All(actual, x => Assert.True(float.IsFinite(x)));
            Tolerance.Require(problem, q, k, v, actual);
        });

    // One log feature rises by 100; the other of the first key lies above all others, or below them too.
    [Theory]
    [InlineData(0)]
    [InlineData(-200)]
    public void A_chunk_may_begin_far_below_what_follows(float other)
    {
        var shape = new AttentionShape(1, 20, 1, 2);
        var form = new FeatureForm { InputDimension = 2, FeatureDimension = 2, Activation = FeatureActivation.Exp };
        var problem = new AttentionProblem { Shape = shape, Features = new FeaturePair(form, form), Causal = true };
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 42);
        (k[0], k[1]) = (other, -100);
        Tolerance.Require(problem, q, k, v, Forward(Engine, problem, q, k, v));
    }

    // The chunk's first key sets the scale; the keys after it lie up to e^55 above.
    [Theory]
    [InlineData(-100)]
    [InlineData(-130)]
    public void Bare_sums_do_not_vanish_at_the_scale_of_the_first_key(float first)
    {
        var shape = new AttentionShape(1, 20, 1, 2);
        var form = new FeatureForm { InputDimension = 2, FeatureDimension = 2, Activation = FeatureActivation.Exp };
        var problem = new AttentionProblem { Shape = shape, Features = new FeaturePair(form, form), Causal = true, Normalize = false };
        float[] q = [.. Enumerable.Repeat(15f, 40)];
        float[] k = [.. Enumerable.Range(0, 40).Select(i => i < 2 ? first : first + 55)];
        float[] v = TestData.Normal(3, 40);
        Tolerance.Require(problem, q, k, v, Forward(Engine, problem, q, k, v));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_feature_with_an_offset_of_minus_infinity_takes_no_part(bool causal)
    {
        var shape = new AttentionShape(1, 130, 2, 3);
        var form = new FeatureForm { InputDimension = 3, FeatureDimension = 3, Activation = FeatureActivation.Exp, Offset = [0, float.NegativeInfinity, 1] };
        var problem = new AttentionProblem { Shape = shape, Features = new FeaturePair(form, form), Causal = causal };
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 7);
        Tolerance.Require(problem, q, k, v, Forward(Engine, problem, q, k, v));
    }

    [Theory]
    [InlineData("relu", false)]
    [InlineData("relu", true)]
    [InlineData("elu", true)]
    public void A_constant_is_added_to_every_direct_feature(string map, bool causal)
    {
        var shape = new AttentionShape(1, Limit(100), 2, 5);
        AttentionProblem problem = Maps.Problem(map, shape, causal) with { FeatureEpsilon = 0.3f };
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 41);
        Tolerance.Require(problem, q, k, v, Forward(Engine, problem, q, k, v));
    }

    // φ(q)·φ(k) = e^-89.2, a subnormal number whose reciprocal float32 does not have.
    [Fact]
    public void A_tiny_normaliser_divides()
    {
        var shape = new AttentionShape(1, 4, 1, 1);
        AttentionProblem problem = Maps.Problem("elu", shape, causal: true);
        float[] rows = [-44.6f, -44.6f, -44.6f, -44.6f];
        Assert.All(Forward(Engine, problem, rows, rows, [3, 3, 3, 3]), x => Assert.Equal(3, x, 1e-3f));
    }

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void Equal_values_come_out_as_they_are(string map, bool causal)
    {
        if (map == "identity")
        {
            return; // Rows of any sign have no weights to speak of; TestData makes them positive elsewhere.
        }

        SkipRefused(map);
        var shape = new AttentionShape(2, Limit(150), 3, 20);
        AttentionProblem problem = Maps.Problem(map, shape, causal);
        (float[] q, float[] k, _) = TestData.Inputs(shape, 3, 0.8);
        float[] ones = [.. Enumerable.Repeat(1f, (int)shape.ValueElements)];
        Assert.All(Forward(Engine, problem, q, k, ones), x => Assert.Equal(1, x, 2e-6));
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("softplus")]
    public void Unit_values_give_weights_that_are_not_negative_and_sum_to_one(string map)
    {
        SkipRefused(map);
        int length = Limit(90);
        foreach (bool causal in new[] { false, true })
        {
            var shape = new AttentionShape(1, length, length, 1, 1, 20, length);
            AttentionProblem problem = Maps.Problem(map, shape, causal);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 4);
            Array.Clear(v);
            for (int i = 0; i < length; i++)
            {
                v[(i * length) + i] = 1;
            }

            float[] weights = Forward(Engine, problem, q, k, v);
            for (int row = 0; row < length; row++)
            {
                ReadOnlySpan<float> of = weights.AsSpan(row * length, length);
                Assert.Equal(1.0, of.ToArray().Sum(x => (double)x), 1e-5);
                Assert.True(of.IndexOfAnyExceptInRange(0, 1.00001f) < 0);
                Assert.True(!causal || of[(row + 1)..].IndexOfAnyExcept(0) < 0, "a causal row has weight on a later key");
            }
        }
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("relu projected")]
    [InlineData("general exponential")]
    [InlineData("softmax")]
    public void No_bit_of_a_causal_output_depends_on_a_later_token(string map) =>
        Holds(map, () => Law.ForAll(Cases(40), seed: 5000, random => (Length: random.Next(2, Limit(150)), Seed: random.NextWord(), At: random.NextDouble(), Kind: random.Next(0, 3)), sample =>
        {
            var shape = new AttentionShape(1, sample.Length, sample.Length, 2, 1, 16, 20);
            AttentionProblem problem = map == "softmax"
                ? new AttentionProblem { Shape = shape, Causal = true, Scale = 0.25f }
                : Maps.Problem(map, shape, causal: true);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, sample.Seed);
            float[] before = Forward(Engine, problem, q, k, v);
            int changed = 1 + (int)(sample.At * (sample.Length - 1));
            float replacement = sample.Kind switch { 0 => float.NaN, 1 => float.PositiveInfinity, 2 => 25, _ => -1e-3f };
            q.AsSpan(changed * 2 * 16).Fill(replacement);
            k.AsSpan(changed * 16).Fill(replacement);
            v.AsSpan(changed * 20).Fill(replacement);
            float[] after = Forward(Engine, problem, q, k, v);
            RequireSameBits(before.AsSpan(0, changed * 2 * 20), after.AsSpan(0, changed * 2 * 20));
        }));

    // One key rises far above the first, so that the chunk is cut there; what comes later must not undo that.
    [Theory]
    [InlineData(6, float.NaN)]
    [InlineData(13, float.NaN)]
    [InlineData(21, float.NaN)]
    [InlineData(37, float.NaN)]
    [InlineData(21, float.NegativeInfinity)]
    public void A_later_token_does_not_undo_a_cut_in_a_chunk(int changed, float replacement)
    {
        var shape = new AttentionShape(1, 39, 1, 16);
        AttentionProblem problem = Maps.Problem("favor+", shape, causal: true);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 6, std: 0.5);
        for (int token = 0; token < 39; token++)
        {
            k.AsSpan(token * 16, 16).Fill(token == 5 ? 0 : 7 + (0.001f * token));
        }

        float[] before = Forward(Engine, problem, q, k, v);
        Tolerance.Require(problem, q, k, v, before);
        k.AsSpan(changed * 16, 16).Fill(replacement);
        RequireSameBits(before.AsSpan(0, changed * 16), Forward(Engine, problem, q, k, v).AsSpan(0, changed * 16));
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("softmax")]
    [InlineData("favor+ as jax")]
    public void Bits_depend_neither_on_threads_nor_on_neighbours(string map) =>
        Holds(map, () => Law.ForAll(Cases(12), seed: 6000, random => (Shape: Shapes.Next(random, causal: true, Limit(1400), maxDimension: 24), Causal: random.NextBool(), Seed: random.NextWord()), sample =>
        {
            AttentionShape shape = sample.Shape;
            AttentionProblem problem = map switch
            {
                "softmax" => new AttentionProblem { Shape = shape, Causal = sample.Causal },
                "favor+ as jax" => Maps.Problem("favor+", shape, sample.Causal) with { Convention = ReferenceConvention.Jax, FeatureEpsilon = 1e-6f },
                _ => Maps.Problem(map, shape, sample.Causal),
            };
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, sample.Seed, 2.5);
            float[] expected = Forward(Engine, problem, q, k, v);
            foreach (IAttentionEngine other in OtherDegrees)
            {
                RequireSameBits(expected, Forward(other, problem, q, k, v));
            }

            for (int b = 0; b < shape.Batch; b++)
            {
                AttentionProblem alone = problem with
                {
                    Shape = new AttentionShape(1, shape.QueryLength, shape.KeyLength, shape.Heads, shape.KeyHeads, shape.KeyDimension, shape.ValueDimension),
                };
                float[] row = Forward(
                    Engine, alone, Part(q, b, shape.Batch), Part(k, b, shape.Batch), Part(v, b, shape.Batch));
                RequireSameBits(Part(expected, b, shape.Batch), row);
            }
        }));

    [Theory]
    [InlineData("favor+", false)]
    [InlineData("favor+", true)]
    [InlineData("elu", true)]
    [InlineData("softmax", false)]
    [InlineData("softmax", true)]
    public void Less_workspace_changes_no_bit_and_too_little_is_refused(string map, bool causal)
    {
        SkipRefused(map);
        var shape = new AttentionShape(3, Limit(200), Limit(200), 4, 2, 12, 10);
        AttentionProblem problem = map == "softmax" ? new AttentionProblem { Shape = shape, Causal = causal } : Maps.Problem(map, shape, causal);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 39);
        float[] expected = Forward(Engine, problem, q, k, v);
        long least = Engine.MinimumWorkspaceBytes(problem);
        long best = Engine.WorkspaceBytes(problem);
        Assert.InRange(least, 0, best);
        foreach (long bytes in new[] { least, least + ((best - least) / 3), best + 4096 })
        {
            RequireSameBits(expected, EngineRun.Forward(Engine, Memory, problem, q, k, v, workspaceBytes: bytes));
        }

        Assert.Contains(
            "workspace",
            Assert.Throws<ArgumentException>("buffers", () => EngineRun.Forward(Engine, Memory, problem, q, k, v, workspaceBytes: least - 4)).Message,
            StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("general exponential")]
    public void Permuting_keys_and_values_changes_nothing_but_rounding(string map)
    {
        int keys = Limit(130);
        var shape = new AttentionShape(1, Limit(70), keys, 2, 2, 12, 9);
        AttentionProblem problem = Maps.Problem(map, shape, causal: false);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 31);
        float[] k2 = new float[k.Length];
        float[] v2 = new float[v.Length];
        for (int j = 0; j < keys; j++)
        {
            int to = j * 37 % keys;
            k.AsSpan(j * 24, 24).CopyTo(k2.AsSpan(to * 24));
            v.AsSpan(j * 18, 18).CopyTo(v2.AsSpan(to * 18));
        }

        Tolerance.Require(problem, q, k, v, Forward(Engine, problem, q, k2, v2));
    }

    [Fact]
    public void Scaling_every_key_feature_changes_nothing()
    {
        var shape = new AttentionShape(1, Limit(140), 2, 16);
        AttentionProblem problem = Maps.Problem("relu", shape, causal: true);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 32);
        float[] doubled = [.. k.Select(x => 4 * x)];
        RequireSameBits(Forward(Engine, problem, q, k, v), Forward(Engine, problem, q, doubled, v));
    }

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void A_sequence_in_pieces_with_carried_state_is_the_sequence_in_one(string map, bool causal) =>
        Holds(map, () => Law.ForAll(Cases(10), seed: 7000, random => (Length: random.Next(1, Limit(200)), Seed: random.NextWord(), Cuts: random.Next(1, 4)), sample =>
        {
            var shape = new AttentionShape(2, sample.Length, sample.Length, 4, 2, 12, 10);
            AttentionProblem problem = Maps.Problem(map, shape, causal);
            (float[] q, float[] k, float[] v) = Inputs(map, shape, sample.Seed);
            AttentionState whole = EngineRun.State(problem);
            float[] expected = Forward(Engine, problem, q, k, v, null, whole);
            Tolerance.Require(problem, q, k, v, expected);

            AttentionState carried = EngineRun.State(problem);
            float[] pieced = new float[expected.Length];
            int piece = (sample.Length + sample.Cuts - 1) / sample.Cuts;
            for (int start = 0; start < sample.Length; start += piece)
            {
                int n = Math.Min(piece, sample.Length - start);
                AttentionProblem part = problem with { Shape = new AttentionShape(2, n, n, 4, 2, 12, 10) };
                float[] output = Forward(
                    Engine, part, Tokens(q, 48, start, n), Tokens(k, 24, start, n), Tokens(v, 20, start, n), carried, carried);
                for (int b = 0; b < 2; b++)
                {
                    output.AsSpan(b * n * 40, n * 40).CopyTo(pieced.AsSpan(((b * sample.Length) + start) * 40));
                }
            }

            RequireSameState(whole, carried);
            if (causal)
            {
                Tolerance.Require(problem, q, k, v, pieced);
            }

            float[] Tokens(float[] tensor, int row, int start, int n) =>
                [.. Enumerable.Range(0, 2).SelectMany(b => tensor.AsSpan(((b * sample.Length) + start) * row, n * row).ToArray())];
        }));

    [Theory]
    [InlineData("favor+")]
    [InlineData("general exponential")]
    [InlineData("elu")]
    public void Segments_whose_state_keeps_its_scale_give_the_bits_of_the_whole(string map)
    {
        int segment = Engine.SegmentMultiple;
        var shape = new AttentionShape(2, (segment * 5 / 2) + 3, (segment * 5 / 2) + 3, 4, 2, 12, 10);
        AttentionProblem problem = Maps.Problem(map, shape, causal: true);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 40, 2.5);
        AttentionState whole = EngineRun.State(problem);
        float[] expected = Forward(Engine, problem, q, k, v, null, whole);
        (float[] output, float[] maximum) = EngineRun.ForwardInSegments(Engine, Memory, problem, q, k, v, segment);
        RequireSameBits(expected, output);
        RequireSameBits(whole.LogScale, maximum);
    }

    // Causal above all: what a final state needs to know of later keys must not come near the output.
    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void A_wanted_final_state_changes_no_bit_of_the_output(string map, bool causal)
    {
        SkipRefused(map);
        var shape = new AttentionShape(1, Limit(150), Limit(150), 2, 1, 12, 10);
        AttentionProblem problem = Maps.Problem(map, shape, causal);
        (float[] q, float[] k, float[] v) = Inputs(map, shape, 38);
        RequireSameBits(
            Forward(Engine, problem, q, k, v), Forward(Engine, problem, q, k, v, null, EngineRun.State(problem)));
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    public void The_final_state_is_the_recurrence_s(string map)
    {
        int length = Limit(150);
        var shape = new AttentionShape(1, 0, length, 2, 2, 12, 10);
        AttentionProblem problem = Maps.Problem(map, shape, causal: false);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 33);
        AttentionState actual = EngineRun.State(problem);
        Forward(Engine, problem, q, k, v, null, actual);
        ReferenceState expected = ReferenceAttention.Recurrent(
            new AttentionShape(1, length, length, 2, 2, 12, 10), Oracles.Kernel(problem), new float[length * 24], k, v, new ReferenceOptions { Causal = true }).State;
        for (int row = 0; row < actual.Normalizers.Length; row++)
        {
            double scale = actual.LogScale.IsEmpty ? 1 : Math.Exp(actual.LogScale[row]);
            double reference = actual.LogScale.IsEmpty ? 1 : Math.Exp(expected.LogScale[row]);
            Assert.Equal(expected.Normalizers[row] * reference, actual.Normalizers[row] * scale, 1e-4 * expected.Normalizers[row] * reference);
            for (int i = 0; i < 10; i++)
            {
                double s = expected.Sums[(row * 10) + i] * reference;
                Assert.Equal(s, actual.Sums[(row * 10) + i] * scale, 1e-4 * expected.Normalizers[row] * reference);
            }

            if (!actual.LogScale.IsEmpty)
            {
                Assert.Equal(expected.LogScale[row], actual.LogScale[row], 1e-5);
                Assert.True(actual.Normalizers[row] >= 0.99999f, "the largest key of a feature counts as one");
            }
        }
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    public void Merged_states_of_two_halves_read_as_the_whole(string map)
    {
        int length = Limit(60);
        var shape = new AttentionShape(1, 20, 2 * length, 2, 2, 12, 10);
        AttentionProblem problem = Maps.Problem(map, shape, causal: false);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 34);
        AttentionState first = EngineRun.State(problem);
        AttentionState second = EngineRun.State(problem);
        AttentionProblem half = problem with { Shape = new AttentionShape(1, 0, length, 2, 2, 12, 10) };
        Forward(Engine, half, [], k[..(length * 24)], v[..(length * 20)], null, first);
        Forward(Engine, half, [], k[(length * 24)..], v[(length * 20)..], null, second);
        first.Merge(second);
        AttentionProblem read = problem with { Shape = new AttentionShape(1, 20, 0, 2, 2, 12, 10) };
        Tolerance.Require(problem, q, k, v, Forward(Engine, read, q, [], [], first));
    }

    // The recurrence is the oracle: it has no chunks, and no blocks.
    [Theory]
    [InlineData("favor+")]
    [InlineData("favor+hyperbolic")]
    [InlineData("elu")]
    [InlineData("relu projected")]
    [InlineData("softplus")]
    [InlineData("general exponential")]
    [InlineData("general direct")]
    public void Blocks_of_any_sizes_give_the_result_of_one_call(string map) =>
        Holds(map, () => Law.ForAll(Cases(60), seed: 8000, random => (Shape: Shapes.Next(random, causal: true, Limit(150), Limit(40)), Seed: random.NextWord(), Normalize: random.NextBool()), sample =>
        {
            // The general map's log features are large. There one weight is all of a bare sum, which errs by that one's logarithm, and plain float32 now
            // and then gets it right by chance: one call is no better there than blocks.
            AttentionShape shape = sample.Shape;
            AttentionProblem problem = Maps.Problem(map, shape, causal: true, sample.Normalize || map == "general exponential");
            (float[] q, float[] k, float[] v) = Inputs(map, shape, sample.Seed, std: 0.6);
            AttentionState state = EngineRun.State(problem);
            float[] actual = new float[shape.OutputElements];
            foreach ((int first, int count) in Blocks.Of(shape.KeyLength, sample.Seed))
            {
                float[] output = Forward(
                    Engine, problem with { Shape = shape.With(count, count) }, Blocks.Tokens(q, shape.Batch, shape.Heads * shape.KeyDimension, first, count),
                    Blocks.Tokens(k, shape.Batch, shape.KeyHeads * shape.KeyDimension, first, count),
                    Blocks.Tokens(v, shape.Batch, shape.KeyHeads * shape.ValueDimension, first, count), state, state);
                Blocks.Place(output, actual, shape.Batch, shape.Heads * shape.ValueDimension, first, count);
            }

            ReferenceResult expected = ReferenceAttention.Recurrent(shape, Oracles.Kernel(problem), q, k, v, Oracles.Options(problem));
            Tolerance.Require(actual, expected.Output, PlainAttention.Run(problem, q, k, v));
            RequireState(expected.State, state);
        }));

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("general exponential")]
    [InlineData("general direct")]
    public void Append_and_read_in_blocks_of_any_sizes_are_a_bidirectional_pass(string map) =>
        Holds(map, () => Law.ForAll(Cases(60), seed: 8500, random => (Shape: Shapes.Next(random, causal: false, Limit(150), Limit(40)), Seed: random.NextWord(), Parts: random.Next(1, 4)), sample =>
        {
            AttentionShape shape = sample.Shape;
            AttentionProblem problem = Maps.Problem(map, shape, causal: false);
            (float[] q, float[] k, float[] v) = Inputs(map, shape, sample.Seed);

            // Block after block to one of several states, which then merge: whoever saw a key, in whatever order, it was seen.
            AttentionState[] parts = [.. Enumerable.Range(0, sample.Parts).Select(_ => EngineRun.State(problem))];
            int next = 0;
            foreach ((int first, int count) in Blocks.Of(shape.KeyLength, sample.Seed))
            {
                Append(
                    Engine, problem with { Shape = shape.With(0, count) }, Blocks.Tokens(k, shape.Batch, shape.KeyHeads * shape.KeyDimension, first, count),
                    Blocks.Tokens(v, shape.Batch, shape.KeyHeads * shape.ValueDimension, first, count), parts[next++ % parts.Length]);
            }

            AttentionState state = parts[^1].Fork();
            Array.ForEach(parts[..^1], state.Merge);
            float[] actual = new float[shape.OutputElements];
            foreach ((int first, int count) in Blocks.Of(shape.QueryLength, sample.Seed + 1))
            {
                float[] output = Read(
                    Engine, problem with { Shape = shape.With(count, 0) }, Blocks.Tokens(q, shape.Batch, shape.Heads * shape.KeyDimension, first, count), state);
                Blocks.Place(output, actual, shape.Batch, shape.Heads * shape.ValueDimension, first, count);
            }

            ReferenceResult expected = ReferenceAttention.Recurrent(shape, Oracles.Kernel(problem), q, k, v, Oracles.Options(problem));
            Tolerance.Require(actual, expected.Output, PlainAttention.Run(problem, q, k, v));
            RequireState(expected.State, state);
        }));

    // Direct features have no scale, and a state between chunks is what it is inside a call.
    [Theory]
    [InlineData("elu")]
    [InlineData("general direct")]
    public void Blocks_of_whole_chunks_give_the_bits_of_one_call_with_direct_features(string map) =>
        Law.ForAll(Cases(20), seed: 8800, random => (Length: random.Choose(random.Next(1, Math.Min(5 * Engine.SegmentMultiple, MaxLength)), Math.Min(Engine.SegmentMultiple * random.Next(1, 3), MaxLength - 1) + 1), Heads: random.Next(1, 3), Seed: random.NextWord()), sample =>
        {
            var shape = new AttentionShape(2, sample.Length, sample.Length, sample.Heads * 2, sample.Heads, 12, 10);
            AttentionProblem problem = Maps.Problem(map, shape, causal: true);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, sample.Seed);
            AttentionState whole = EngineRun.State(problem);
            float[] expected = Forward(Engine, problem, q, k, v, null, whole);
            AttentionState state = EngineRun.State(problem);
            float[] actual = new float[expected.Length];
            foreach ((int first, int count) in Blocks.Of(sample.Length, sample.Seed, Engine.SegmentMultiple))
            {
                float[] output = Forward(
                    Engine, problem with { Shape = shape.With(count, count) }, Blocks.Tokens(q, 2, shape.Heads * 12, first, count),
                    Blocks.Tokens(k, 2, shape.KeyHeads * 12, first, count), Blocks.Tokens(v, 2, shape.KeyHeads * 10, first, count), state, state);
                Blocks.Place(output, actual, 2, shape.Heads * 10, first, count);
            }

            RequireSameBits(expected, actual);
            RequireSameBits(whole.Sums, state.Sums);
            RequireSameBits(whole.Normalizers, state.Normalizers);
        });

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("softmax")]
    public void A_row_that_sees_nothing_is_zero(string map)
    {
        SkipRefused(map);
        var shape = new AttentionShape(1, 5, 0, 2, 2, 12, 10);
        AttentionProblem problem = map == "softmax" ? new AttentionProblem { Shape = shape } : Maps.Problem(map, shape, causal: false);
        Assert.All(Forward(Engine, problem, TestData.Normal(1, 120), [], []), x => Assert.Equal(0, x));
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("relu")]
    [InlineData("softplus")]
    [InlineData("softmax")]
    public void A_nan_key_reaches_every_row_that_sees_it(string map)
    {
        SkipRefused(map);
        int length = Limit(100);
        int at = length / 2;
        var shape = new AttentionShape(1, length, 1, 16);
        AttentionProblem problem = map == "softmax" ? new AttentionProblem { Shape = shape, Causal = true } : Maps.Problem(map, shape, causal: true);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 35);
        k.AsSpan(at * 16, 16).Fill(float.NaN);
        float[] actual = Forward(Engine, problem, q, k, v);
        Assert.All(actual[..(at * 16)], x => Assert.True(float.IsFinite(x)));
        Assert.All(actual[(at * 16)..], x => Assert.True(float.IsNaN(x), map));
    }

    // First, last and in between: what a running maximum makes of a NaN depends on where it comes.
    [Theory]
    [InlineData(0)]
    [InlineData(17)]
    [InlineData(34)]
    public void A_nan_or_an_infinite_logit_of_exact_attention_stays_with_its_row(int at)
    {
        SkipRefused("softmax");
        var shape = new AttentionShape(1, 5, 35, 1, 1, 2, 3);
        var problem = new AttentionProblem { Shape = shape };
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 39);

        // Logits of +inf, -inf, finite and NaN: of an infinite key only the sign of the query's first element counts.
        float[] rows = [1, 0.5f, -1, 0.5f, 1, 0.25f, 0, 1, float.NaN, 1];
        rows.CopyTo(q, 0);
        k[at * 2] = float.PositiveInfinity;
        float[] actual = Forward(Engine, problem, q, k, v);
        float[] without = Forward(
            Engine, problem with { Shape = new AttentionShape(1, 5, 34, 1, 1, 2, 3) }, q, [.. k[..(at * 2)], .. k[((at + 1) * 2)..]],
            [.. v[..(at * 3)], .. v[((at + 1) * 3)..]]);
        foreach (int row in new[] { 0, 2, 3, 4 })
        {
            Assert.All(actual[(row * 3)..((row + 1) * 3)], x => Assert.True(float.IsNaN(x)));
        }

        for (int i = 3; i < 6; i++)
        {
            Assert.Equal(without[i], actual[i], 1e-6f);
        }
    }

    // Whole tiles of logits −∞: the running maximum is −∞ then, and −∞ − −∞ must not come near a weight.
    [Fact]
    public void Keys_with_logits_of_minus_infinity_weigh_nothing_in_exact_attention()
    {
        SkipRefused("softmax");
        int length = Limit(500);
        int first = length / 2;
        var shape = new AttentionShape(1, length, 1, 4);
        var problem = new AttentionProblem { Shape = shape, Causal = true };
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 40);
        for (int token = 0; token < length; token++)
        {
            q[token * 4] = 1;
            k[token * 4] = token < first ? float.NegativeInfinity : k[token * 4];
        }

        float[] actual = Forward(Engine, problem, q, k, v);
        Assert.All(actual[..(first * 4)], x => Assert.Equal(0, x));
        var rest = new AttentionShape(1, length - first, 1, 4);
        Tolerance.Require(problem with { Shape = rest }, q[(first * 4)..], k[(first * 4)..], v[(first * 4)..], actual.AsSpan(first * 4));
    }

    [Fact]
    public void A_map_runs_or_is_refused_with_a_reason()
    {
        var shape = new AttentionShape(1, 4, 1, 8);
        foreach (string map in Maps.Names.Append("softmax"))
        {
            EngineSupport support = Engine.Supports(map == "softmax" ? new AttentionProblem { Shape = shape } : Maps.Problem(map, shape, causal: true));
            Assert.Equal(!Refused.Contains(map), support.IsSupported);
            Assert.NotEqual(support.IsSupported, support.Reason.Length > 0);
        }
    }

    // Both places of the NaN: which operand of a vector maximum wins beside one is the machine's choice, and the compiler's.
    [Theory]
    [InlineData(3, false)]
    [InlineData(35, false)]
    [InlineData(3, true)]
    [InlineData(35, true)]
    public void A_nan_key_reaches_every_part_of_the_final_state(int at, bool causal)
    {
        var shape = new AttentionShape(1, 40, 1, 16);
        AttentionProblem problem = Maps.Problem("favor+", shape, causal);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 37);
        k.AsSpan(at * 16, 16).Fill(float.NaN);
        AttentionState state = EngineRun.State(problem);
        Forward(Engine, problem, q, k, v, null, state);
        Assert.All(state.LogScale.ToArray(), x => Assert.True(float.IsNaN(x)));
        Assert.All(state.Sums.ToArray(), x => Assert.True(float.IsNaN(x)));
        Assert.All(state.Normalizers.ToArray(), x => Assert.True(float.IsNaN(x)));
    }

    [Fact]
    public void What_is_not_there_yet_is_refused_with_a_reason()
    {
        AttentionProblem problem = Maps.Problem("favor+", new AttentionShape(1, 4, 1, 8), causal: true);
        foreach (AttentionProblem refused in new[]
        {
            problem with { Shape = new AttentionShape(1, 4, 5, 1, 1, 8, 8) },
            problem with { Convention = ReferenceConvention.Jax, WantsFinalState = true },
            problem with { Shape = new AttentionShape(1, 1, 1, 1, 1, 8, int.MaxValue) },
            problem with { Shape = new AttentionShape(1, 1, 1, 1, 1, 8, int.MaxValue), Features = null },
            problem with { Shape = new AttentionShape(1, 1, 1, 1, 1, 8, 1 << 27) },
        })
        {
            EngineSupport support = Engine.Supports(refused);
            Assert.False(support.IsSupported);
            Assert.NotEmpty(support.Reason);
            var thrown = Assert.Throws<NotSupportedException>(() => Engine.Forward(refused, default));
            Assert.Contains(support.Reason, thrown.Message, StringComparison.Ordinal);
        }

        Assert.Contains("workspace", Assert.Throws<ArgumentException>("buffers", () => Engine.Forward(problem, default)).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>("buffers", () => Engine.Forward(problem with { WantsFinalState = true }, default));
    }

    private protected int Limit(int length) => Math.Min(length, MaxLength);

    private void SkipRefused(string map) => Assert.SkipWhen(Refused.Contains(map), $"The engine refuses {map}.");

    private void Holds(string map, Action law)
    {
        SkipRefused(map);
        law();
    }

    private float[] Forward(
        IAttentionEngine engine, AttentionProblem problem, float[] query, float[] key, float[] value,
        AttentionState? initialState = null, AttentionState? finalState = null) =>
        EngineRun.Forward(engine, Memory, problem, query, key, value, initialState, finalState);

    private void Append(IAttentionEngine engine, AttentionProblem problem, float[] key, float[] value, AttentionState state) =>
        EngineRun.Append(engine, Memory, problem, key, value, state);

    private float[] Read(IAttentionEngine engine, AttentionProblem problem, float[] query, AttentionState state) =>
        EngineRun.Read(engine, Memory, problem, query, state);

    private protected static (float[] Query, float[] Key, float[] Value) Inputs(string map, AttentionShape shape, ulong seed, double std = 1)
    {
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, seed, std);
        return Maps.NeedsPositiveRows(map)
            ? (Array.ConvertAll(q, MathF.Abs), Array.ConvertAll(k, MathF.Abs), v)
            : (q, k, v);
    }

    private static float[] Part(float[] tensor, int index, int parts) =>
        tensor[(tensor.Length / parts * index)..(tensor.Length / parts * (index + 1))];

    private static void RequireSameBits(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual)
    {
        Assert.Equal(expected.Length, actual.Length);
        for (int i = 0; i < expected.Length; i++)
        {
            if (BitConverter.SingleToInt32Bits(expected[i]) != BitConverter.SingleToInt32Bits(actual[i]))
            {
                Assert.Fail($"element {i} of {expected.Length} changed from {expected[i]:g9} to {actual[i]:g9}");
            }
        }
    }

    /// <summary>A state against the recurrence's, relative to the normalisers: values are of size one.</summary>
    private static void RequireState(ReferenceState expected, AttentionState actual)
    {
        for (int row = 0; row < actual.Normalizers.Length; row++)
        {
            double factor = actual.LogScale.IsEmpty ? 1 : Math.Exp(actual.LogScale[row] - expected.LogScale[row]);
            bool isEmpty = !actual.LogScale.IsEmpty && float.IsNegativeInfinity(actual.LogScale[row]);
            factor = isEmpty ? 1 : factor;
            double z = expected.Normalizers[row];

            // A direct feature next to zero is what is left of an argument of size one, and as exact as that.
            double size = z + (actual.LogScale.IsEmpty ? 0.1 : 1e-30);
            Assert.Equal(z, actual.Normalizers[row] * factor, 1e-4 * size);
            for (int i = 0; i < actual.ValueDimension; i++)
            {
                int at = (row * actual.ValueDimension) + i;
                Assert.Equal(expected.Sums[at], actual.Sums[at] * factor, 4e-4 * size);
            }

            if (!actual.LogScale.IsEmpty && !isEmpty)
            {
                Assert.Equal(expected.LogScale[row], actual.LogScale[row], 1e-5 * (1 + Math.Abs(expected.LogScale[row])));
            }
        }
    }

    private static void RequireSameState(AttentionState expected, AttentionState actual)
    {
        for (int row = 0; row < expected.Normalizers.Length; row++)
        {
            if (!expected.LogScale.IsEmpty)
            {
                Assert.Equal(expected.LogScale[row], actual.LogScale[row], 1e-6f * (1 + MathF.Abs(expected.LogScale[row])));
            }

            Assert.Equal(expected.Normalizers[row], actual.Normalizers[row], 1e-5f * (1e-6f + MathF.Abs(expected.Normalizers[row])));
            for (int i = 0; i < expected.ValueDimension; i++)
            {
                int at = (row * expected.ValueDimension) + i;
                Assert.Equal(expected.Sums[at], actual.Sums[at], 1e-5f * (1e-6f + expected.Normalizers[row]) * 4);
            }
        }
    }
}
