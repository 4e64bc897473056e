using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>The laws on the host engine.</summary>
public sealed class HostEngineTests : EngineLaws
{
    private protected override IAttentionEngine Engine { get; } = new SimdEngine();

    private protected override IEnumerable<IAttentionEngine> OtherDegrees { get; } = [new SimdEngine(1), new SimdEngine(3), new SimdEngine(7)];

    // With so many features, rows of them do not follow each other.
    [Theory]
    [InlineData("favor+ wide", true)]
    [InlineData("favor+ wide", false)]
    [InlineData("relu wide", true)]
    [InlineData("relu wide", false)]
    public void Laws_hold_with_rows_that_lie_apart(string map, bool causal)
    {
        Errs_no_more_than_twice_plain_float32(map, causal);
        Bits_of_gradients_depend_neither_on_threads_nor_on_neighbours(map);
        Bits_depend_neither_on_threads_nor_on_neighbours(map);
        Blocks_of_any_sizes_give_the_result_of_one_call(map);
    }

    // Gradients of rectified rows of one element are 0 by cancellation, which many features make worse than plain float32.
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Gradients_are_right_with_rows_that_lie_apart(bool causal)
    {
        Gradients_err_no_more_than_three_times_plain_float32("favor+ wide", causal);
        Gradients_of_states_are_the_oracle_s("favor+ wide", causal);
    }

    // Step, append and read of one token, from states of any content, NaN and far-apart scales included.
    [Theory]
    [InlineData("favor+")]
    [InlineData("favor+ wide")]
    [InlineData("favor+hyperbolic")]
    [InlineData("elu")]
    [InlineData("relu")]
    [InlineData("relu projected")]
    [InlineData("softplus")]
    [InlineData("general exponential")]
    [InlineData("general direct")]
    public void A_token_in_one_sweep_gives_the_bits_of_a_chunk_of_one(string map)
    {
        // Vectors that the processor does not have are made of those that it has.
        Law.ForAll(
            100, seed: 9000,
            random => (Lanes: random.Choose(1, 4, 8, 16), Threads: random.Choose(1, 2, 16), Shape: Shape(random), Seed: random.NextWord(), Std: random.Choose(0.3, 1, 5), Special: random.Choose(0f, 0f, 0f, float.NaN, float.PositiveInfinity, float.NegativeInfinity), SpecialAt: random.Next(1, 5), IsValue: random.Choose(false, false, true), Normalize: random.NextBool()),
            sample =>
            {
                var chunks = new SimdEngine(1, sweepsTokens: false, sample.Lanes);
                var sweeps = new SimdEngine(sample.Threads, sweepsTokens: true, sample.Lanes);
                AttentionProblem problem = Maps.Problem(map, sample.Shape, causal: true, sample.Normalize);
                AttentionState expected = EngineRun.State(problem);
                AttentionState actual = EngineRun.State(problem);
                for (ulong token = 0; token < 6; token++)
                {
                    (float[] q, float[] k, float[] v) = TestData.Inputs(sample.Shape, sample.Seed + token, sample.Std);
                    if (token == (ulong)sample.SpecialAt && sample.Special != 0)
                    {
                        float[] row = sample.IsValue ? v : k;
                        row[row.Length / 2] = sample.Special;
                    }

                    if (token % 3 == 1)
                    {
                        EngineRun.Append(chunks, EngineMemory.Host, problem, k, v, expected);
                        EngineRun.Append(sweeps, EngineMemory.Host, problem, k, v, actual);
                    }
                    else
                    {
                        SameBits(
                            EngineRun.Forward(chunks, EngineMemory.Host, problem, q, k, v, expected, expected),
                            EngineRun.Forward(sweeps, EngineMemory.Host, problem, q, k, v, actual, actual));
                    }

                    SameBits(EngineRun.Read(chunks, EngineMemory.Host, problem, q, expected), EngineRun.Read(sweeps, EngineMemory.Host, problem, q, actual));
                    SameBits(expected.LogScale, actual.LogScale);
                    SameBits(expected.Normalizers, actual.Normalizers);
                    SameBits(expected.Sums, actual.Sums);
                }
            });

        static AttentionShape Shape(SeededRandom random)
        {
            // Up to more heads than are projected together, and to as many query heads as one key head may have then.
            int keyHeads = random.Choose(1, 2, 3, 8, 11, 30);
            int group = keyHeads < 3 ? random.Choose(1, 2, 3, 55) : random.Choose(1, 1, 2, 3);
            return new AttentionShape(
                random.Next(1, 3), 1, 1, keyHeads * group, keyHeads, Math.Max(1, random.NextLength(40)), Math.Max(1, random.NextLength(80)));
        }
    }

    // What raises a feature's sums must not reach the state that they came from: EngineRun holds that it has not changed.
    [Theory]
    [InlineData("favor+", 64)]
    [InlineData("favor+", 60)]
    [InlineData("favor+hyperbolic", 128)]
    [InlineData("elu", 64)]
    public void A_token_leaves_the_state_it_starts_from_alone(string map, int dv)
    {
        var shape = new AttentionShape(2, 1, 1, 6, 3, 24, dv);
        AttentionProblem problem = Maps.Problem(map, shape, causal: true);
        AttentionState before = EngineRun.State(problem);
        int raised = 0;
        for (ulong token = 0; token < 6; token++)
        {
            // Keys of falling norm have ever larger features, since |x|²/2 is taken off.
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, token, 6 - token);
            AttentionState expected = EngineRun.State(problem);
            AttentionState actual = EngineRun.State(problem);
            SameBits(
                EngineRun.Forward(new SimdEngine(1, sweepsTokens: false), EngineMemory.Host, problem, q, k, v, before, expected),
                EngineRun.Forward(Engine, EngineMemory.Host, problem, q, k, v, before, actual));
            SameBits(expected.Sums, actual.Sums);
            SameBits(expected.Normalizers, actual.Normalizers);
            SameBits(expected.LogScale, actual.LogScale);
            for (int i = 0; token > 0 && i < actual.LogScale.Length; i++)
            {
                raised += actual.LogScale[i] > before.LogScale[i] ? 1 : 0;
            }

            before = actual;
        }

        Assert.Equal(map != "elu", raised > 0);
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

    // Threads that share a chain expect the scales of its chunks. A chunk that is cut, and one that has a NaN, leave another than they thought.
    // Behind them threads take parts of a wide state through the chunks again.
    [Theory]
    [InlineData("favor+", -1, 3)]
    [InlineData("favor+", (9 * 64) + 3, 3)]
    [InlineData("favor+", 9 * 64, 3)]
    [InlineData("favor+hyperbolic", -1, 3)]
    [InlineData("general exponential", -1, 3)]
    [InlineData("favor+ wide", -1, 100)]
    [InlineData("favor+ wide", (26 * 64) + 3, 100)]
    [InlineData("favor+ wide", 26 * 64, 100)]
    public void Threads_change_no_bit_behind_a_chunk_that_is_cut(string map, int nan, int dv)
    {
        var shape = new AttentionShape(1, 2000, 2000, 2, 1, 5, dv);
        AttentionProblem problem = Maps.Problem(map, shape, causal: true);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 81, 0.5);
        k.AsSpan(0, 5).Fill(15);
        k.AsSpan(5 * 64 * 5, 5).Fill(-15);
        if (nan >= 0)
        {
            k[5 * nan] = float.NaN;
        }

        AttentionState one = EngineRun.State(problem);
        float[] expected = EngineRun.Forward(new SimdEngine(1), EngineMemory.Host, problem, q, k, v, one, one);
        Assert.All(expected[..(9 * 64 * 2 * dv)], output => Assert.True(float.IsFinite(output)));
        foreach (int degree in new[] { 2, 3, 40 })
        {
            AttentionState many = EngineRun.State(problem);
            SameBits(expected, EngineRun.Forward(new SimdEngine(degree), EngineMemory.Host, problem, q, k, v, many, many));
            SameBits(one.Sums, many.Sums);
            SameBits(one.LogScale, many.LogScale);
            SameBits(one.Normalizers, many.Normalizers);
        }
    }

    // Wide states of few chains, which threads take through the chunks in parts; more threads than some have vectors.
    [Theory]
    [InlineData("favor+ wide", true)]
    [InlineData("favor+ wide", false)]
    [InlineData("relu wide", true)]
    [InlineData("relu wide", false)]
    public void Threads_change_no_bit_of_a_wide_state(string map, bool causal)
    {
        var shape = new AttentionShape(2, 1100, 1100, 1, 1, 13, 100);
        AttentionProblem problem = Maps.Problem(map, shape, causal);
        Assert.InRange(new LinearLayout(problem, 40, 8).StatePieces, 3, 4);
        ChangeNoBit(problem, seed: 82, 3, 4, 40);
    }

    // Any chains in any number of threads: whole, handed on, or by chunks; an infinite key, and chunks that are cut.
    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    [InlineData("general exponential")]
    public void No_number_of_threads_changes_a_bit(string map) =>
        Law.ForAll(
            60, seed: 9200,
            random => (Batch: random.Next(1, 3), KeyHeads: random.Next(1, 4), Group: random.Next(1, 2), Queries: random.NextLength(400), Keys: random.NextLength(400), Causal: random.NextBool(), Storage: random.Choose(ElementType.Single, ElementType.Single, ElementType.Half), Threads: random.Choose(2, 5, 17), Std: random.Choose(0.5, 0.5, 9), Special: random.Choose(0f, 0f, float.NaN, float.NegativeInfinity), Seed: random.NextWord()),
            sample =>
            {
                var shape = new AttentionShape(sample.Batch, sample.Causal ? sample.Keys : sample.Queries, sample.Keys, sample.KeyHeads * sample.Group, sample.KeyHeads, 12, 20);
                AttentionProblem problem = Maps.Problem(map, shape, sample.Causal) with { Storage = sample.Storage };
                (float[] q, float[] k, float[] v) = TestData.Inputs(shape, sample.Seed, sample.Std);
                (q, k, v) = (StoredTensor.Round(q, sample.Storage), StoredTensor.Round(k, sample.Storage), StoredTensor.Round(v, sample.Storage));
                if (sample.Special != 0 && k.Length > 0)
                {
                    k[(int)(sample.Seed % (ulong)k.Length)] = sample.Special;
                }

                float[] g = StoredTensor.Round(TestData.Normal(sample.Seed, shape.OutputElements), sample.Storage);
                (float[] Output, AttentionState State, AttentionGradients Gradients) one = Run(1);
                (float[] Output, AttentionState State, AttentionGradients Gradients) many = Run(sample.Threads);
                SameBits(one.Output, many.Output);
                SameBits(one.State.Sums, many.State.Sums);
                SameBits(one.State.LogScale, many.State.LogScale);
                SameBits(one.State.Normalizers, many.State.Normalizers);
                SameBits(one.Gradients.Query, many.Gradients.Query);
                SameBits(one.Gradients.Key, many.Gradients.Key);
                SameBits(one.Gradients.Value, many.Gradients.Value);

                (float[], AttentionState, AttentionGradients) Run(int threads)
                {
                    var engine = new SimdEngine(threads);
                    AttentionState state = EngineRun.State(problem);
                    float[] output = EngineRun.Forward(engine, EngineMemory.Host, problem, q, k, v, null, state);
                    return (output, state, EngineRun.Backward(engine, EngineMemory.Host, problem, q, k, v, output, g).Gradients);
                }
            });

    // Chains that are more than threads, and not so many that each may keep its own: some stretches of keys, and bidirectional some of queries.
    [Theory]
    [InlineData("favor+", true, 1, 6, 700, 700, 2, 6)]
    [InlineData("favor+", true, 2, 6, 700, 700, 3, 6)]
    [InlineData("favor+", true, 3, 2, 600, 600, 2, 5)]
    [InlineData("favor+", true, 1, 14, 2100, 2100, 2, 4)]
    [InlineData("favor+", false, 1, 6, 700, 300, 2, 9)]
    [InlineData("favor+", false, 3, 4, 0, 300, 3, 4)]
    [InlineData("favor+", false, 1, 6, 700, 0, 2, 6)]
    [InlineData("elu", true, 1, 12, 700, 700, 2, 6)]
    [InlineData("elu", false, 3, 4, 200, 700, 2, 8)]
    [InlineData("elu", true, 1, 8, 700, 700, 2, 6)]
    [InlineData("elu", true, 1, 14, 700, 700, 7, 6)]
    public void Threads_that_hand_chains_to_each_other_change_no_bit(
        string map, bool causal, int batch, int keyHeads, int keyLength, int queryLength, int degree, int stretches)
    {
        var shape = new AttentionShape(batch, queryLength, keyLength, 2 * keyHeads, keyHeads, 13, 20);
        AttentionProblem problem = Maps.Problem(map, shape, causal);
        var layout = new LinearLayout(problem, degree, 8);
        Assert.True(layout.ByRelay);
        Assert.Equal(stretches, layout.Stretches);
        ChangeNoBit(problem, seed: 83, degree);
    }

    // A function holds the thread that calls it first, which has half of the chains, until the other has done its own and waits for a share. Then it fails, or is held in its next stretch until the other has one.
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task A_thread_that_falls_behind_leaves_chains_to_others_and_one_that_fails_stops_them(bool fails)
    {
        const int Length = 700;
        const int Dimension = 13;
        const int HalfTheCalls = 4 * Length * 2 * Dimension;
        const int CallsOfStretch = 4 * 128 * 2 * Dimension;
        var shape = new AttentionShape(1, Length, 8, Dimension);
        (Thread? held, Thread? other) = (null, null);
        (int heldCalls, int otherCalls) = (0, 0);
        (bool isArmed, bool isLate) = (false, false);
        float Slow(float x)
        {
            if (!isArmed)
            {
                return MathF.Abs(x);
            }

            Thread thread = Thread.CurrentThread;
            if ((Interlocked.CompareExchange(ref held, thread, null) ?? thread) != thread)
            {
                other = thread;
                Interlocked.Increment(ref otherCalls);
                return MathF.Abs(x);
            }

            heldCalls++;
            bool isInTime = true;
            if (heldCalls == 1)
            {
                isInTime = Wait(() => otherCalls >= HalfTheCalls && other!.ThreadState.HasFlag(ThreadState.WaitSleepJoin));
            }
            else if (heldCalls == CallsOfStretch + 1)
            {
                isInTime = Wait(() => otherCalls > HalfTheCalls);
            }

            isLate |= !isInTime;
            return fails ? throw new FormatException("my own") : MathF.Abs(x);
        }

        var problem = new AttentionProblem { Shape = shape, Features = FeatureMap.FromFunction("slow", Slow).Lower(Dimension, 1), Causal = true, Normalize = true, Scale = 1 };
        Assert.True(new LinearLayout(problem, 2, 8).ByRelay);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 84);
        AttentionState before = EngineRun.State(problem);
        EngineRun.Forward(new SimdEngine(1), EngineMemory.Host, problem, q, k, v, null, before);
        AttentionState state = before.Fork();
        isArmed = true;
        Task<float[]> run = Task.Run(() => EngineRun.Forward(new SimdEngine(2), EngineMemory.Host, problem, q, k, v, state, state)).WaitAsync(TimeSpan.FromSeconds(300));
        if (fails)
        {
            await Assert.ThrowsAsync<FormatException>(() => run);
            Assert.False(isLate);
            SameBits(before.Sums, state.Sums);
            SameBits(before.Normalizers, state.Normalizers);
            return;
        }

        float[] output = await run;
        Assert.False(isLate);
        isArmed = false;
        SameBits(EngineRun.Forward(new SimdEngine(1), EngineMemory.Host, problem, q, k, v, before, before), output);
        SameBits(before.Sums, state.Sums);

        static bool Wait(Func<bool> condition) => SpinWait.SpinUntil(condition, TimeSpan.FromSeconds(100));
    }

    // One chain, in two threads. A function holds the thread that comes to some key or query of the fourth chunk until the other has done all that it can do meanwhile: with a query everything else, with a key what comes before it and as
    // many chunks behind it as a thread keeps. Then it goes on, or fails.
    [Theory]
    [InlineData(true, false)]
    [InlineData(true, true)]
    [InlineData(false, false)]
    [InlineData(false, true)]
    public async Task A_thread_that_is_held_at_a_chunk_holds_up_no_other(bool isQuery, bool fails)
    {
        const int Length = 12 * 64;
        const int Dimension = 13;
        const float Marked = 100;
        const int CallsOfChunk = 64 * Dimension;
        const int Others = ((2 * 12) - 1) * CallsOfChunk;
        const int OthersOfKeys = ((2 * 3) + ChunkRelay.MaxSlots) * CallsOfChunk;
        int calls = 0;
        int marked = 0;
        bool isLate = false;
        bool isArmed = false;
        float Slow(float x)
        {
            if (isArmed && x != Marked)
            {
                Interlocked.Increment(ref calls);
            }

            if (isArmed && x == Marked && Interlocked.Increment(ref marked) == 1)
            {
                isLate = !SpinWait.SpinUntil(() => Volatile.Read(ref calls) == (isQuery ? Others : OthersOfKeys), TimeSpan.FromSeconds(100));
                return fails ? throw new FormatException("my own") : x;
            }

            return MathF.Abs(x);
        }

        var shape = new AttentionShape(1, Length, 1, Dimension);
        var problem = new AttentionProblem { Shape = shape, Features = FeatureMap.FromFunction("slow", Slow).Lower(Dimension, 1), Causal = true, Normalize = true, Scale = 1 };
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 85);
        (isQuery ? q : k).AsSpan(3 * CallsOfChunk, CallsOfChunk).Fill(Marked);
        AttentionState before = EngineRun.State(problem);
        EngineRun.Forward(new SimdEngine(1), EngineMemory.Host, problem, q, k, v, null, before);
        AttentionState state = before.Fork();
        isArmed = true;
        Task<float[]> run = Task.Run(() => EngineRun.Forward(new SimdEngine(2), EngineMemory.Host, problem, q, k, v, state, state)).WaitAsync(TimeSpan.FromSeconds(300));
        if (fails)
        {
            await Assert.ThrowsAsync<FormatException>(() => run);
            Assert.False(isLate);
            SameBits(before.Sums, state.Sums);
            return;
        }

        float[] output = await run;
        Assert.False(isLate);
        isArmed = false;
        SameBits(EngineRun.Forward(new SimdEngine(1), EngineMemory.Host, problem, q, k, v, before, before), output);
        SameBits(before.Sums, state.Sums);
    }

    // The state stands far above the first key of the second chunk, others of it do not, and a late one cuts the chunk: only there.
    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void A_late_key_that_cuts_a_chunk_changes_no_bit_before_it(int degree)
    {
        var engine = new SimdEngine(degree);
        (AttentionProblem problem, float[] q, float[] k, float[] v) = Maps.RisingKeys();
        float[] calm = EngineRun.Forward(engine, EngineMemory.Host, problem, q, k, v);
        k.AsSpan(2 * 124, 2).Fill(170);
        float[] cut = EngineRun.Forward(engine, EngineMemory.Host, problem, q, k, v);
        SameBits(calm.AsSpan(0, 2 * 124), cut.AsSpan(0, 2 * 124));
        Assert.NotEqual(calm[2 * 124], cut[2 * 124]);
    }

    [Theory]
    [InlineData(float.PositiveInfinity)]
    [InlineData(float.NegativeInfinity)]
    [InlineData(float.NaN)]
    [InlineData(3e38f)]
    [InlineData(-3e38f)]
    public void A_token_of_an_infinite_logarithm_has_the_bits_of_a_chunk_of_one(float special)
    {
        var shape = new AttentionShape(1, 1, 1, 1, 1, 3, 5);
        var form = new FeatureForm { InputDimension = 3, FeatureDimension = 3, Activation = FeatureActivation.Exp };
        var problem = new AttentionProblem { Shape = shape, Features = new FeaturePair(form, form), Causal = true };
        AttentionState expected = EngineRun.State(problem);
        AttentionState actual = EngineRun.State(problem);
        for (ulong token = 0; token < 4; token++)
        {
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, token);
            k[1] = token == 2 ? special : k[1];
            SameBits(
                EngineRun.Forward(new SimdEngine(1, sweepsTokens: false), EngineMemory.Host, problem, q, k, v, expected, expected),
                EngineRun.Forward(Engine, EngineMemory.Host, problem, q, k, v, actual, actual));
            SameBits(expected.LogScale, actual.LogScale);
            SameBits(expected.Normalizers, actual.Normalizers);
            SameBits(expected.Sums, actual.Sums);
        }
    }

    // Log features that rise by hundreds within a chunk, so that rows of a block see different segments of it.
    [Theory]
    [InlineData("favor+", 8)]
    [InlineData("favor+", 30)]
    [InlineData("general exponential", 8)]
    public void Queries_see_their_keys_of_a_chunk_that_is_cut(string map, double std) =>
        Law.ForAll(
            20, seed: 9100,
            random => (Length: random.Next(1, 200), Block: random.Choose(1, 1, 3, 20, 100), Mask: random.NextWord(), Seed: random.NextWord()),
            sample =>
            {
                var shape = new AttentionShape(1, sample.Length, 2, 16);
                bool[] mask = Sequences.Mask(new SeededRandom(sample.Mask), 1, sample.Length);
                AttentionProblem problem = Maps.Problem(map, shape, causal: true) with
                {
                    Layout = SequenceLayout.FromKeyMask(1, sample.Length, mask),
                    CausalBlock = sample.Block,
                };
                (float[] q, float[] k, float[] v) = TestData.Inputs(shape, sample.Seed, std);
                for (int token = 0; token < sample.Length; token++)
                {
                    // From short keys to long and back.
                    float size = MathF.Pow(MathF.Abs(MathF.Sin(token * 0.37f)), 3);
                    foreach (ref float x in k.AsSpan(token * 2 * 16, 2 * 16))
                    {
                        x *= size;
                    }
                }

                float[] actual = EngineRun.Forward(Engine, EngineMemory.Host, problem, q, k, v);
                Tolerance.Require(problem, q, k, v, actual, Sequences.Bytes(mask));
                foreach (IAttentionEngine other in OtherDegrees)
                {
                    SameBits(actual, EngineRun.Forward(other, EngineMemory.Host, problem, q, k, v));
                }
            });

    // Their maximum over all keys is one over those that take part.
    [Theory]
    [InlineData(ReferenceConvention.Jax, "favor+", false)]
    [InlineData(ReferenceConvention.Jax, "favor+", true)]
    [InlineData(ReferenceConvention.Jax, "relu projected", true)]
    [InlineData(ReferenceConvention.Lucidrains, "favor+", false)]
    [InlineData(ReferenceConvention.Lucidrains, "favor+", true)]
    public void Published_conventions_see_no_masked_key(ReferenceConvention convention, string map, bool causal)
    {
        var shape = new AttentionShape(1, 150, 2, 12);
        bool[] mask = [.. Enumerable.Range(0, 150).Select(j => j >= 5 && j % 7 != 3)];
        int[] keys = [.. Enumerable.Range(0, 150).Where(j => mask[j])];
        int[] queries = causal ? keys : [.. Enumerable.Range(0, 150)];
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 17);
        AttentionProblem problem = Maps.Problem(map, shape, causal) with { Convention = convention, FeatureEpsilon = 1e-4f };
        foreach (IAttentionEngine engine in OtherDegrees.Append(Engine))
        {
            float[] actual = EngineRun.Forward(
                engine, EngineMemory.Host, problem with { Layout = SequenceLayout.FromKeyMask(1, 150, mask) }, q, Sequences.Spoiled(k, mask, 1e30f),
                Sequences.Spoiled(v, mask, float.NaN));
            float[] expected = EngineRun.Forward(
                engine, EngineMemory.Host, problem with { Shape = new AttentionShape(1, queries.Length, keys.Length, 2, 2, 12, 12) },
                Sequences.Gather(q, 24, queries), Sequences.Gather(k, 24, keys), Sequences.Gather(v, 24, keys));
            SameBits(expected, Sequences.Gather(actual, 24, queries));
            Assert.All(actual[..(causal ? 5 * 24 : 0)], x => Assert.Equal(0, x));
        }
    }

    [Theory]
    [InlineData("favor+", ElementType.Half)]
    [InlineData("elu", ElementType.BFloat16)]
    [InlineData("general exponential", ElementType.BFloat16)]
    [InlineData("general direct", ElementType.Half)]
    public void A_token_of_sixteen_bits_gives_the_float32_result_rounded_once(string map, ElementType storage)
    {
        var shape = new AttentionShape(2, 1, 1, 6, 3, 12, 21);
        AttentionProblem problem = Maps.Problem(map, shape, causal: true);
        AttentionProblem stored = problem with { Storage = storage };
        AttentionState expected = EngineRun.State(problem);
        AttentionState actual = EngineRun.State(problem);
        for (ulong token = 0; token < 4; token++)
        {
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, token);
            (q, k, v) = (StoredTensor.Round(q, storage), StoredTensor.Round(k, storage), StoredTensor.Round(v, storage));
            SameBits(
                StoredTensor.Round(EngineRun.Forward(Engine, EngineMemory.Host, problem, q, k, v, expected, expected), storage),
                EngineRun.Forward(Engine, EngineMemory.Host, stored, q, k, v, actual, actual));
            EngineRun.Append(Engine, EngineMemory.Host, problem, k, v, expected);
            EngineRun.Append(Engine, EngineMemory.Host, stored, k, v, actual);
            SameBits(
                StoredTensor.Round(EngineRun.Read(Engine, EngineMemory.Host, problem, q, expected), storage),
                EngineRun.Read(Engine, EngineMemory.Host, stored, q, actual));
            SameBits(expected.Sums, actual.Sums);
            SameBits(expected.Normalizers, actual.Normalizers);
            SameBits(expected.LogScale, actual.LogScale);
        }
    }

    // A row of padding may hold anything, a query too.
    [Theory]
    [InlineData("favor+", true)]
    [InlineData("favor+", false)]
    [InlineData("elu", true)]
    [InlineData("softmax", true)]
    public void A_query_that_sees_no_key_may_be_NaN(string map, bool causal)
    {
        var shape = new AttentionShape(2, 100, 1, 8);
        AttentionProblem problem = (map == "softmax" ? new AttentionProblem { Shape = shape, Causal = causal } : Maps.Problem(map, shape, causal)) with
        {
            Layout = SequenceLayout.FromKeyLengths([0, 30], 100, PaddingSide.Left),
        };
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 18);
        int blind = causal ? 170 : 100;
        q.AsSpan(0, blind * 8).Fill(float.NaN);
        foreach (IAttentionEngine engine in OtherDegrees.Append(Engine))
        {
            float[] actual = EngineRun.Forward(engine, EngineMemory.Host, problem, q, k, v);
            Assert.All(actual[..(blind * 8)], x => Assert.Equal(0, x));
            Assert.All(actual[(blind * 8)..], x => Assert.True(float.IsFinite(x) && x != 0));
        }
    }

    [Fact]
    public void A_layout_of_no_sequences_is_nothing_to_do()
    {
        AttentionProblem problem = Maps.Problem("favor+", new AttentionShape(1, 0, 1, 8), causal: true) with { Layout = SequenceLayout.FromCuSeqlens([0]) };
        Assert.Empty(EngineRun.Forward(Engine, EngineMemory.Host, problem, [], [], []));
        AttentionState state = EngineRun.State(problem);
        Assert.Empty(EngineRun.Forward(Engine, EngineMemory.Host, problem, [], [], [], state, state));
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("softmax")]
    public unsafe void Buffers_that_are_not_stored_as_the_problem_says_are_refused(string map)
    {
        var shape = new AttentionShape(1, 4, 1, 8);
        AttentionProblem problem = (map == "softmax" ? new AttentionProblem { Shape = shape } : Maps.Problem(map, shape, causal: true)) with
        {
            Storage = ElementType.Half,
        };
        float[] memory = new float[32 + (Engine.WorkspaceBytes(problem) / sizeof(float)) + 1];
        fixed (float* start = memory)
        {
            var region = MemoryRegion.Host(start, 32);
            var stored = TensorBuffer.Dense(region with { Type = ElementType.Half }, 4, 1, 8);
            var buffers = new AttentionBuffers
            {
                Query = stored,
                Key = stored,
                Value = stored,
                Output = TensorBuffer.Dense(region, 4, 1, 8),
                Workspace = MemoryRegion.Host(start + 32, memory.Length - 32),
            };
            Assert.Equal("buffers", Assert.Throws<ArgumentException>(() => Engine.Forward(problem, buffers)).ParamName);
        }
    }

    /// <summary>Two calls, the second in place on the state that the first leaves.</summary>
    private static void ChangeNoBit(AttentionProblem problem, ulong seed, params int[] degrees)
    {
        (float[] q, float[] k, float[] v) = TestData.Inputs(problem.Shape, seed);
        AttentionState one = EngineRun.State(problem);
        EngineRun.Forward(new SimdEngine(1), EngineMemory.Host, problem, q, k, v, null, one);
        float[] expected = EngineRun.Forward(new SimdEngine(1), EngineMemory.Host, problem, q, k, v, one, one);
        foreach (int degree in degrees)
        {
            AttentionState many = EngineRun.State(problem);
            EngineRun.Forward(new SimdEngine(degree), EngineMemory.Host, problem, q, k, v, null, many);
            SameBits(expected, EngineRun.Forward(new SimdEngine(degree), EngineMemory.Host, problem, q, k, v, many, many));
            SameBits(one.Sums, many.Sums);
            SameBits(one.LogScale, many.LogScale);
            SameBits(one.Normalizers, many.Normalizers);
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
