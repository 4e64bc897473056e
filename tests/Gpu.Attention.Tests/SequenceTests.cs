using System.Numerics.Tensors;
using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>Masked and packed sequences, and 16-bit tensors, through the operators: on the host, and on a device with little memory.</summary>
public sealed class SequenceTests
{
    public static TheoryData<string, bool> Kinds =>
        [.. from map in new[] { "favor+", "elu", "softmax" } from causal in new[] { false, true } select (map, causal)];

    [Theory]
    [MemberData(nameof(Kinds))]
    public void Segments_of_sequences_give_the_bits_of_one_piece(string map, bool causal) =>
        Law.ForAll(25, seed: 600, random => Sample.Next(random, causal), sample =>
        {
            using ComputeDevice host = ComputeDevice.Open(DeviceKind.Cpu);
            AttentionState? expectedState = sample.State(map, host, causal);
            float[] expected = sample.Forward<float>(map, host, causal, expectedState, out AttentionProblem problem);
            SegmentPlan.Find(problem, new SimdEngine(1), 0, out long smallest);
            long whole = SegmentPlan.Find(problem, new SimdEngine(1), long.MaxValue, out _)!.Layout.TotalBytes;
            foreach (double share in new[] { 0, sample.Share * sample.Share, 1 })
            {
                var fake = new FakeDevice(1L << 30, sample.Share > 0.5 ? QueueTiming.Eager : QueueTiming.Lazy);
                using (ComputeDevice device = fake.Open(
                    new ComputeDeviceOptions { MemoryBudgetBytes = smallest + (long)(share * (whole - smallest)), AllowFallback = false }))
                {
                    AttentionState? state = sample.State(map, device, causal);
                    Assert.Equal(Bits(expected), Bits(sample.Forward<float>(map, device, causal, state, out _)));
                    Assert.Equal(Bits(expectedState), Bits(state));
                }

                Assert.Equal(0, fake.Allocated);
            }
        });

    [Theory]
    [MemberData(nameof(Kinds))]
    public void Half_tensors_pass_a_device_of_little_memory(string map, bool causal) =>
        Law.ForAll(15, seed: 650, random => Sample.Next(random, causal), sample =>
        {
            using ComputeDevice host = ComputeDevice.Open(DeviceKind.Cpu);
            float[] expected = sample.Forward<Half>(map, host, causal, null, out AttentionProblem problem);
            SegmentPlan.Find(problem, new SimdEngine(1), 0, out long smallest);
            var fake = new FakeDevice(1L << 30, QueueTiming.Lazy);
            using ComputeDevice device = fake.Open(new ComputeDeviceOptions { MemoryBudgetBytes = smallest, AllowFallback = false });
            Assert.Equal(Bits(expected), Bits(sample.Forward<Half>(map, device, causal, null, out _)));

            using ComputeDevice roomy = new FakeDevice(1L << 30, QueueTiming.Lazy).Open();
            Assert.Equal(Bits(expected), Bits(sample.ForwardOnDevice(map, roomy, causal)));
        });

    [Fact]
    public void Plans_of_layouts_cover_every_sequence_once_and_fit() =>
        Law.ForAll(100, seed: 670, random => (Sample: Sample.Next(random, causal: true), HasStates: random.NextBool()), sample =>
        {
            SequenceLayout layout = sample.Sample.Layout;
            AttentionProblem problem = Maps.Problem("favor+", sample.Sample.Shape, causal: true) with
            {
                Layout = layout,
                HasInitialState = sample.HasStates,
                WantsFinalState = sample.HasStates,
            };
            var engine = new SimdEngine(1);
            SegmentPlan whole = SegmentPlan.Find(problem, engine, long.MaxValue, out _)!;
            Assert.Null(SegmentPlan.Find(problem, engine, 0, out long smallest));
            Assert.Null(SegmentPlan.Find(problem, engine, smallest - 1, out _));
            foreach (long budget in new[] { smallest, smallest + (long)(sample.Sample.Share * (whole.Layout.TotalBytes - smallest)), whole.Layout.TotalBytes })
            {
                SegmentPlan plan = SegmentPlan.Find(problem, engine, budget, out _)!;
                Assert.True(plan.Layout.TotalBytes <= budget, $"{plan} in {budget}");
                var seen = new int[layout.Sequences, problem.Shape.KeyHeads];
                foreach (Segment segment in plan.Segments)
                {
                    SequenceLayout part = segment.Problem.Layout!;
                    Assert.True(engine.Supports(segment.Problem).IsSupported);
                    for (int n = 0; n < part.Sequences; n++)
                    {
                        int sequence = segment.FirstSequence + n;
                        Assert.Equal(layout.KeyTokens(sequence).ToArray(), part.KeyTokens(n).ToArray().Select(j => j + segment.FirstKey));
                        for (int head = 0; head < segment.Problem.Shape.KeyHeads; head++)
                        {
                            seen[sequence, segment.FirstKeyHead + head]++;
                        }
                    }
                }

                Assert.All(seen.Cast<int>(), count => Assert.Equal(1, count));
            }
        });

    // Continuous decoding: prompts of different lengths go in packed, steps go on in a batch, a stream ends, another begins.
    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    public void Streams_that_come_and_go_have_the_bits_of_each_alone(string map)
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var attention = new LinearAttention(device, Maps.Create(map, 12), new LinearAttentionOptions { Causal = true });
        int[] lengths = [70, 1, 130];
        float[][] prompts = [.. lengths.Select((n, i) => TestData.Normal((ulong)i, n * 2 * 12))];
        AttentionState[] alone = [.. prompts.Select(prompt => Prompt(prompt))];
        AttentionState batch = attention.CreateState(3, 2, 12, 12);
        float[] packed = [.. prompts.SelectMany(p => p)];
        attention.Append<float>(batch, new AttentionShape(1, packed.Length / 24, 2, 12), packed, packed, SequenceLayout.FromCuSeqlens([0, 70, 71, 201]));
        for (int n = 0; n < 3; n++)
        {
            Assert.Equal(Bits(alone[n]), Bits(batch.Select(n)));
        }

        float[] tokens = TestData.Normal(9, 3 * 24);
        RequireStep([0, 1, 2]);
        batch = AttentionState.Concat(batch.Select(2, 0), Prompt(prompts[1]));
        alone = [alone[2], alone[0], Prompt(prompts[1])];
        RequireStep([0, 1, 2]);

        // Streams that pause take part with nothing: the layout masks their token.
        float[] before = batch.Select(1).Sums.ToArray();
        float[] output = new float[tokens.Length];
        attention.Step<float>(batch, new AttentionShape(3, 1, 2, 12), tokens, tokens, tokens, output, SequenceLayout.FromKeyLengths([1, 0, 1], 1));
        Assert.Equal(before, batch.Select(1).Sums.ToArray());

        AttentionState Prompt(float[] prompt)
        {
            AttentionState state = attention.CreateState(1, 2, 12, 12);
            attention.Append<float>(state, new AttentionShape(1, prompt.Length / 24, 2, 12), prompt, prompt);
            return state;
        }

        void RequireStep(int[] streams)
        {
            float[] together = new float[tokens.Length];
            attention.Step<float>(batch, new AttentionShape(3, 1, 2, 12), tokens, tokens, tokens, together);
            foreach (int n in streams)
            {
                float[] one = tokens[(n * 24)..((n + 1) * 24)];
                float[] own = new float[24];
                attention.Step<float>(alone[n], new AttentionShape(1, 1, 2, 12), one, one, one, own);
                Assert.Equal(Bits(own), Bits(together.AsSpan(n * 24, 24)));
            }
        }
    }

    [Fact]
    public void A_block_causal_operator_needs_no_layout_of_the_caller()
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        var shape = new AttentionShape(2, 50, 2, 8);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 4);
        foreach (string map in new[] { "elu", "softmax" })
        {
            float[] output = new float[shape.OutputElements];
            if (map == "softmax")
            {
                using var softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = true, CausalBlock = 7 });
                softmax.Forward<float>(shape, q, k, v, output);
            }
            else
            {
                using var linear = new LinearAttention(device, FeatureMap.EluPlusOne, new LinearAttentionOptions { Causal = true, CausalBlock = 7 });
                linear.Forward<float>(shape, q, k, v, output);
            }

            AttentionProblem problem = map == "softmax"
                ? new AttentionProblem { Shape = shape, Causal = true, CausalBlock = 7, Scale = 1 / MathF.Sqrt(8) }
                : Maps.Problem("elu", shape, causal: true) with { CausalBlock = 7 };
            Tolerance.Require(problem, q, k, v, output);
        }
    }

    [Fact]
    public void What_does_not_fit_is_refused_by_name()
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne, new LinearAttentionOptions { Causal = true });
        using var softmax = new SoftmaxAttention(device);
        var shape = new AttentionShape(1, 4, 1, 3);
        float[] rows = new float[12];
        float[] output = new float[12];
        Refused("layout", "tensors of batch 2", () => attention.Forward<float>(shape, rows, rows, rows, output, SequenceLayout.FromKeyLengths([1, 2], 4)));
        Refused("layout", "does not fit", () => softmax.Forward<float>(shape, rows, rows, rows, output, SequenceLayout.FromKeyLengths([1], 5)));
        Refused("layout", "3 queries and 3 keys", () => attention.Forward<float>(shape, rows, rows, rows, output, SequenceLayout.FromCuSeqlens([0, 3])));
        Refused("layout", "are not", () => attention.Forward<float>(new AttentionShape(1, 4, 0, 1, 1, 3, 3), rows, [], [], output, SequenceLayout.FromKeyLengths([1], 5)));
        Refused("mass", "mass overlaps the key", () => attention.ReceivedMass(shape, rows, output, [0, 1], output.AsSpan(0, 2)));
        using var blocks = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = true, CausalBlock = 2 });
        Assert.Contains(
            "CausalBlock", Assert.Throws<NotSupportedException>(() => blocks.WorkspaceBytes(new AttentionShape(65536, 65536, 1, 1))).Message, StringComparison.Ordinal);
        Refused("options", "CausalBlock is 0", () => new LinearAttention(device, FeatureMap.EluPlusOne, new LinearAttentionOptions { CausalBlock = 0 }).Dispose());
        Refused("options", "CausalBlock is -1", () => new SoftmaxAttention(device, new SoftmaxAttentionOptions { CausalBlock = -1 }).Dispose());
        AttentionState state = attention.CreateState(2, 1, 3, 3);
        Refused("state", "does not fit a state [3,", () => attention.Append<float>(state, shape, rows, rows, SequenceLayout.FromCuSeqlens([0, 1, 2, 4])));
        Assert.Contains(
            "Int32", Assert.Throws<NotSupportedException>(() => attention.Forward<int>(shape, new int[12], new int[12], new int[12], new int[12])).Message,
            StringComparison.Ordinal);

        using DeviceTensor single = DeviceTensor.Allocate(device, 1, 4, 1, 3);
        using DeviceTensor half = DeviceTensor.Allocate<Half>(device, 1, 4, 1, 3);
        using DeviceTensor target = DeviceTensor.Allocate<Half>(device, 1, 4, 1, 3);
        Refused("value", "stored as Single", () => attention.Forward(half, half, single, target));
        Refused("source", "stored as Half", () => half.Upload(rows));
        Refused("destination", "stored as Half", () => half.Download(output));
    }

    private static void Refused(string parameter, string message, Action call) =>
        Assert.Contains(message, Assert.Throws<ArgumentException>(parameter, call).Message, StringComparison.Ordinal);

    private static uint[] Bits(AttentionState? state) =>
        state is null ? [] : [.. Bits(state.LogScale), .. Bits(state.Sums), .. Bits(state.Normalizers)];

    private static uint[] Bits(ReadOnlySpan<float> values)
    {
        uint[] bits = new uint[values.Length];
        for (int i = 0; i < bits.Length; i++)
        {
            bits[i] = BitConverter.SingleToUInt32Bits(values[i]);
        }

        return bits;
    }

    private sealed record Sample(AttentionShape Shape, SequenceLayout Layout, double Share, ulong Seed)
    {
        public static Sample Next(SeededRandom random, bool causal)
        {
            AttentionShape any = Shapes.Next(random, causal, maxLength: 200, maxDimension: 20);
            if (random.NextBool())
            {
                return new Sample(
                    any, SequenceLayout.FromKeyMask(any.Batch, any.KeyLength, Sequences.Mask(random, any.Batch, any.KeyLength)), random.NextDouble(),
                    random.NextWord());
            }

            int sequences = random.Next(1, 6);
            int[] queries = Sequences.Offsets(random, sequences, 200);
            int[] keys = random.NextBool() ? queries : Sequences.Offsets(random, sequences, 200);
            var shape = new AttentionShape(1, queries[^1], keys[^1], any.Heads, any.KeyHeads, any.KeyDimension, any.ValueDimension);
            return new Sample(shape, SequenceLayout.FromCuSeqlens(queries, keys), random.NextDouble(), random.NextWord());
        }

        /// <summary>A state that has seen something, for maps that have one.</summary>
        public AttentionState? State(string map, ComputeDevice device, bool causal)
        {
            if (map == "softmax")
            {
                return null;
            }

            using LinearAttention attention = Linear(map, device, causal);
            AttentionState state = attention.CreateState(Layout.Sequences, Shape.KeyHeads, Shape.ValueDimension, Shape.KeyDimension);
            TestData.Normal(Seed + 5, state.Sums.Length).CopyTo(state.Sums);
            Array.ConvertAll(TestData.Normal(Seed + 6, state.Normalizers.Length), MathF.Abs).CopyTo(state.Normalizers);
            TestData.Normal(Seed + 7, state.LogScale.Length).CopyTo(state.LogScale);
            return state;
        }

        public float[] Forward<T>(string map, ComputeDevice device, bool causal, AttentionState? state, out AttentionProblem problem)
            where T : unmanaged, System.Numerics.INumberBase<T>
        {
            (float[] q, float[] k, float[] v) = TestData.Inputs(Shape, Seed);
            var output = new T[Shape.OutputElements];
            if (map == "softmax")
            {
                using var softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = causal });
                softmax.Forward<T>(Shape, Stored<T>(q), Stored<T>(k), Stored<T>(v), output, Layout);
                problem = new AttentionProblem { Shape = Shape, Causal = causal };
            }
            else
            {
                using LinearAttention attention = Linear(map, device, causal);
                attention.Forward<T>(Shape, Stored<T>(q), Stored<T>(k), Stored<T>(v), output, state, state, Layout);
                problem = Maps.Problem(map, Shape, causal);
            }

            problem = problem with
            {
                Layout = Layout,
                HasInitialState = state is not null,
                WantsFinalState = state is not null,
                Storage = TensorArguments.StorageOf<T>(),
            };
            return Array.ConvertAll(output, float.CreateChecked);
        }

        public float[] ForwardOnDevice(string map, ComputeDevice device, bool causal)
        {
            (float[] q, float[] k, float[] v) = TestData.Inputs(Shape, Seed);
            using DeviceTensor query = Place(q, Shape.QueryLength, Shape.Heads, Shape.KeyDimension);
            using DeviceTensor key = Place(k, Shape.KeyLength, Shape.KeyHeads, Shape.KeyDimension);
            using DeviceTensor value = Place(v, Shape.KeyLength, Shape.KeyHeads, Shape.ValueDimension);
            using DeviceTensor output = DeviceTensor.Allocate<Half>(device, Shape.Batch, Shape.QueryLength, Shape.Heads, Shape.ValueDimension);
            if (map == "softmax")
            {
                using var softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = causal });
                softmax.Forward(query, key, value, output, Layout);
            }
            else
            {
                using LinearAttention attention = Linear(map, device, causal);
                attention.Forward(query, key, value, output, Layout);
            }

            var result = new Half[Shape.OutputElements];
            output.Download<Half>(result);
            return Array.ConvertAll(result, x => (float)x);

            DeviceTensor Place(float[] rows, int tokens, int heads, int width) =>
                DeviceTensor.From(device, new ReadOnlyTensorSpan<Half>(Stored<Half>(rows), [Shape.Batch, tokens, heads, width]));
        }

        public override string ToString() => $"{Shape}, {Layout}";

        private static T[] Stored<T>(float[] values)
            where T : unmanaged, System.Numerics.INumberBase<T> => Array.ConvertAll(values, T.CreateTruncating);

        private LinearAttention Linear(string map, ComputeDevice device, bool causal) =>
            new(device, Maps.Create(map, Shape.KeyDimension), new LinearAttentionOptions { Causal = causal });
    }
}
