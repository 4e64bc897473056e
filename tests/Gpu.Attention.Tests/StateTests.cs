using System.Numerics.Tensors;
using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>A sequence that comes in pieces: append, read, step, through the operator; on the host and by way of a device's memory.</summary>
public sealed class StateTests : IDisposable
{
    private readonly ComputeDevice _host = ComputeDevice.Open(DeviceKind.Cpu);
    private readonly FakeDevice _fake = new(1L << 30, QueueTiming.Lazy);
    private readonly ComputeDevice _device;

    public StateTests() => _device = _fake.Open(new ComputeDeviceOptions { AllowFallback = false });

    public static TheoryData<string, bool> MapsAndDevices =>
        [.. from map in new[] { "favor+", "elu", "relu projected", "general exponential" } from onHost in new[] { true, false } select (map, onHost)];

    public void Dispose()
    {
        _host.Dispose();
        _device.Dispose();
        Assert.Equal(0, _fake.Allocated);
    }

    [Theory]
    [MemberData(nameof(MapsAndDevices))]
    public void Steps_of_any_sizes_are_a_causal_call(string map, bool onHost) =>
        Law.ForAll(onHost ? 60 : 20, seed: 100, random => (Shape: Shapes.Next(random, causal: true, 120, 24), Seed: random.NextWord()), sample =>
        {
            AttentionShape shape = sample.Shape;
            using LinearAttention attention = Open(map, shape.KeyDimension, onHost);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, sample.Seed);
            AttentionState state = attention.CreateState(shape.Batch, shape.KeyHeads, shape.ValueDimension, shape.KeyDimension);
            float[] actual = new float[shape.OutputElements];
            foreach ((int first, int count) in Blocks.Of(shape.KeyLength, sample.Seed))
            {
                float[] output = new float[shape.With(count, count).OutputElements];
                attention.Step(
                    state, shape.With(count, count), Blocks.Tokens(q, shape.Batch, shape.Heads * shape.KeyDimension, first, count),
                    Blocks.Tokens(k, shape.Batch, shape.KeyHeads * shape.KeyDimension, first, count),
                    Blocks.Tokens(v, shape.Batch, shape.KeyHeads * shape.ValueDimension, first, count), output);
                Blocks.Place(output, actual, shape.Batch, shape.Heads * shape.ValueDimension, first, count);
            }

            Tolerance.Require(Maps.Problem(map, shape, causal: true), q, k, v, actual);
        });

    [Theory]
    [MemberData(nameof(MapsAndDevices))]
    public void Append_and_read_are_a_bidirectional_call(string map, bool onHost) =>
        Law.ForAll(onHost ? 60 : 20, seed: 200, random => (Shape: Shapes.Next(random, causal: false, 120, 24), Seed: random.NextWord()), sample =>
        {
            AttentionShape shape = sample.Shape;
            using LinearAttention attention = Open(map, shape.KeyDimension, onHost);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, sample.Seed);
            AttentionState state = attention.CreateState(shape.Batch, shape.KeyHeads, shape.ValueDimension, shape.KeyDimension);
            foreach ((int first, int count) in Blocks.Of(shape.KeyLength, sample.Seed))
            {
                attention.Append(
                    state, shape.With(7, count), Blocks.Tokens(k, shape.Batch, shape.KeyHeads * shape.KeyDimension, first, count),
                    Blocks.Tokens(v, shape.Batch, shape.KeyHeads * shape.ValueDimension, first, count));
            }

            AttentionState before = state.Fork();
            float[] actual = new float[shape.OutputElements];
            attention.Read(state, shape, q, actual);
            RequireSameBits(before, state);
            Tolerance.Require(Maps.Problem(map, shape, causal: false), q, k, v, actual);
        });

    [Theory]
    [MemberData(nameof(MapsAndDevices))]
    public void A_step_gives_the_bits_of_a_causal_call_with_the_same_states_alone_or_in_a_batch(string map, bool onHost) =>
        Law.ForAll(20, seed: 300, random => (Length: random.Choose(1, 2, 5, 8, 9, 64, 100), Seed: random.NextWord(), Group: random.Next(1, 3)), sample =>
        {
            var shape = new AttentionShape(3, sample.Length, sample.Length, 2 * sample.Group, 2, 12, 10);
            using LinearAttention attention = Open(map, 12, onHost);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, sample.Seed);
            AttentionState expectedState = attention.CreateState(3, 2, 10, 12);
            AttentionState state = expectedState.Fork();
            float[] expected = new float[shape.OutputElements];
            float[] actual = new float[shape.OutputElements];
            for (int repeat = 0; repeat < 3; repeat++)
            {
                AttentionState initial = expectedState.Fork();
                attention.Forward(shape, q, k, v, expected, initial, expectedState);
                attention.Step(state, shape, q, k, v, actual);
                Assert.Equal(expected, actual);
                RequireSameBits(expectedState, state);
            }

            for (int b = 0; b < 3; b++)
            {
                var one = new AttentionShape(1, sample.Length, sample.Length, 2 * sample.Group, 2, 12, 10);
                AttentionState alone = attention.CreateState(1, 2, 10, 12);
                float[] output = new float[one.OutputElements];
                for (int repeat = 0; repeat < 3; repeat++)
                {
                    attention.Step(alone, one, Part(q, b), Part(k, b), Part(v, b), output);
                }

                Assert.Equal(Part(actual, b), output);
                Assert.Equal(Part(state.Sums.ToArray(), b), alone.Sums.ToArray());
                Assert.Equal(Part(state.Normalizers.ToArray(), b), alone.Normalizers.ToArray());
                Assert.Equal(Part(state.LogScale.ToArray(), b), alone.LogScale.ToArray());
            }
        });

    [Fact]
    public void Tensors_and_flat_spans_give_the_same_bits()
    {
        var shape = new AttentionShape(2, 5, 5, 4, 2, 12, 10);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1);
        using LinearAttention attention = Open("favor+", 12, onHost: true);
        AttentionState flat = attention.CreateState(2, 2, 10);
        AttentionState tensor = flat.Fork();
        float[] expected = new float[shape.OutputElements];
        float[] actual = new float[shape.OutputElements];
        attention.Append(flat, shape, k, v);
        attention.Append(tensor, Tensor(k, 2, 5, 2, 12), Tensor(v, 2, 5, 2, 10));
        RequireSameBits(flat, tensor);
        attention.Read(flat, shape, q, expected);
        attention.Read(tensor, Tensor(q, 2, 5, 4, 12), Tensor(actual, 2, 5, 4, 10));
        Assert.Equal(expected, actual);
        attention.Step(flat, shape, q, k, v, expected);
        attention.Step(tensor, Tensor(q, 2, 5, 4, 12), Tensor(k, 2, 5, 2, 12), Tensor(v, 2, 5, 2, 10), Tensor(actual, 2, 5, 4, 10));
        Assert.Equal(expected, actual);
        RequireSameBits(flat, tensor);
    }

    [Fact]
    public void Wrong_arguments_are_named_before_any_work()
    {
        var shape = new AttentionShape(2, 5, 5, 4, 2, 12, 10);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1);
        float[] o = new float[shape.OutputElements];
        using LinearAttention attention = Open("elu", 12, onHost: true);
        AttentionState state = attention.CreateState(2, 2, 10, 12);
        AttentionState other = attention.CreateState(2, 2, 9, 12);
        Assert.Throws<ArgumentNullException>("state", () => attention.Append(null!, shape, k, v));
        Assert.Throws<ArgumentNullException>("state", () => attention.Read(null!, shape, q, o));
        Assert.Throws<ArgumentNullException>("state", () => attention.Read(null!, Tensor(q, 2, 5, 4, 12), Tensor(o, 2, 5, 4, 10)));
        Assert.Throws<ArgumentNullException>("state", () => attention.Step(null!, shape, q, k, v, o));
        Assert.Throws<ArgumentException>("state", () => attention.Append(other, shape, k, v));
        Assert.Throws<ArgumentException>("state", () => attention.Read(other, shape, q, o));
        Assert.Throws<ArgumentException>("state", () => attention.Step(other, shape, q, k, v, o));
        Assert.Throws<ArgumentException>("shape", () => attention.Append(state, default, k, v));
        Assert.Throws<ArgumentException>("shape", () => attention.Read(state, default, q, o));
        Assert.Throws<ArgumentException>("shape", () => attention.Step(state, default, q, k, v, o));
        Assert.Throws<ArgumentException>("key", () => attention.Append(state, shape, k.AsSpan(1), v));
        Assert.Throws<ArgumentException>("value", () => attention.Append(state, shape, k, v.AsSpan(1)));
        Assert.Throws<ArgumentException>("query", () => attention.Read(state, shape, q.AsSpan(1), o));
        Assert.Throws<ArgumentException>("output", () => attention.Read(state, shape, q, o.AsSpan(1)));
        Assert.Throws<ArgumentException>("key", () => attention.Step(state, shape.With(5, 4), q, k.AsSpan(0, 2 * 4 * 24), v.AsSpan(0, 2 * 4 * 20), o));
        Assert.Throws<ArgumentException>("output", () => attention.Read(attention.CreateState(2, 2, 10, 10), new AttentionShape(2, 5, 0, 4, 2, 10, 10), o, o));
        Assert.Throws<ArgumentException>("value", () => attention.Append(state, Tensor(k, 2, 5, 2, 12), Tensor(v, 2, 5, 1, 20)));
        var heads = Assert.Throws<ArgumentException>("query", () => attention.Read(state, Tensor(q, 2, 5, 3, 16), Tensor(o, 2, 5, 3, 10)));
        Assert.Contains("query [2, 5, 3, 16] does not fit a state of 2 heads", heads.Message, StringComparison.Ordinal);
        Assert.All(o, x => Assert.Equal(0, x));
        RequireSameBits(attention.CreateState(2, 2, 10, 12), state);
    }

    [Fact]
    public void A_convention_that_no_state_can_carry_is_refused()
    {
        var shape = new AttentionShape(1, 1, 1, 4);
        float[] row = [1, 2, 3, 4];
        foreach (LinearAttentionOptions options in new[]
        {
            new LinearAttentionOptions { Compatibility = ReferenceConvention.Lucidrains, Causal = true },
            new LinearAttentionOptions { Compatibility = ReferenceConvention.Lucidrains },
        })
        {
            using var attention = new LinearAttention(_host, FeatureMap.Relu(), options);
            AttentionState state = attention.CreateState(1, 1, 4, 4);
            Assert.Throws<NotSupportedException>(() => attention.Step(state, shape, row, row, row, new float[4]));
            if (options.Causal)
            {
                Assert.Throws<NotSupportedException>(() => attention.Append(state, shape, row, row));
                Assert.Throws<NotSupportedException>(() => attention.Read(state, shape, row, new float[4]));
            }
        }
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    public void A_state_goes_through_a_file_and_only_back_to_its_own_map(string map)
    {
        var shape = new AttentionShape(1, 5, 2, 12);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1);
        float[] expected = new float[shape.OutputElements];
        float[] actual = new float[shape.OutputElements];
        using LinearAttention attention = Open(map, 12, onHost: true);
        using LinearAttention same = Open(map, 12, onHost: true);
        AttentionState state = attention.CreateState(1, 2, 12, 12);
        attention.Append(state, shape, k, v);
        using var file = new MemoryStream();
        state.Save(file);
        file.Position = 0;
        AttentionState loaded = same.LoadState(file, 12);
        attention.Step(state, shape, q, k, v, expected);
        same.Step(loaded, shape, q, k, v, actual);
        Assert.Equal(expected, actual);
        RequireSameBits(state, loaded);

        foreach ((FeatureMap features, LinearAttentionOptions options) in new[]
        {
            (map == "elu" ? FeatureMap.Identity : FeatureMap.FavorPlus(RandomProjection.Orthogonal(37, 12, seed: 12)), new LinearAttentionOptions()),
            (Maps.Create(map, 12), new LinearAttentionOptions { FeatureEpsilon = 0.1f }),
            (Maps.Create(map, 12), map == "elu" ? new LinearAttentionOptions { Compatibility = ReferenceConvention.Jax } : new LinearAttentionOptions { Scale = 0.1f }),
        })
        {
            using var other = new LinearAttention(_host, features, options);
            file.Position = 0;
            Assert.Contains("other key features", Assert.Throws<InvalidDataException>(() => other.LoadState(file, 12)).Message, StringComparison.Ordinal);
            Assert.Contains("other key features", Assert.Throws<ArgumentException>("state", () => other.Read(state, shape, q, actual)).Message, StringComparison.Ordinal);
            Assert.Throws<ArgumentException>("initialState", () => other.Forward(shape, q, k, v, actual, state, null));
        }

        Assert.Equal(map == "elu", Record.Exception(() => attention.LoadState(new MemoryStream())) is ArgumentException);
    }

    // Continuous decoding: sequences come and go, and each is what it would be alone.
    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    public void Sequences_that_start_and_end_at_different_times_are_those_they_would_be_alone(string map) =>
        Law.ForAll(25, seed: 400, random => random.NextWord(), seed =>
        {
            const int Length = 40;
            var random = new SeededRandom(seed);
            var whole = new AttentionShape(1, Length, Length, 2, 1, 12, 10);
            using LinearAttention attention = Open(map, 12, onHost: true);
            (float[] Q, float[] K, float[] V)[] data = [.. Enumerable.Range(0, 8).Select(i => TestData.Inputs(whole, seed + (ulong)i))];
            var running = new List<(int Sequence, int At)>();
            AttentionState state = attention.CreateState(0, 1, 10, 12);
            float[][] outputs = [.. data.Select(_ => new float[whole.OutputElements])];
            int started = 0;
            for (int step = 0; step < 100; step++)
            {
                if (started < data.Length && random.Next(0, 3) == 0)
                {
                    running.Add((started++, 0));
                    state = AttentionState.Concat(state, attention.CreateState(1, 1, 10, 12));
                }

                if (random.Next(0, 2) == 0)
                {
                    int[] order = [.. Enumerable.Range(0, running.Count).OrderBy(_ => random.NextWord()).Where(i => running[i].At < Length)];
                    running = [.. order.Select(i => running[i])];
                    state = state.Select(order);
                }

                if (running.Any(r => r.At == Length))
                {
                    int[] left = [.. Enumerable.Range(0, running.Count).Where(i => running[i].At < Length)];
                    running = [.. left.Select(i => running[i])];
                    state = state.Select(left);
                }

                var shape = new AttentionShape(running.Count, 1, 1, 2, 1, 12, 10);
                float[] output = new float[shape.OutputElements];
                attention.Step(
                    state, shape, Rows(r => data[r.Sequence].Q, 24), Rows(r => data[r.Sequence].K, 12), Rows(r => data[r.Sequence].V, 10), output);
                for (int i = 0; i < running.Count; i++)
                {
                    output.AsSpan(i * 20, 20).CopyTo(outputs[running[i].Sequence].AsSpan(running[i].At * 20));
                    running[i] = (running[i].Sequence, running[i].At + 1);
                }
            }

            var one = new AttentionShape(1, 1, 1, 2, 1, 12, 10);
            for (int sequence = 0; sequence < started; sequence++)
            {
                AttentionState alone = attention.CreateState(1, 1, 10, 12);
                float[] output = new float[20];
                for (int at = 0; at < (running.Any(r => r.Sequence == sequence) ? running.First(r => r.Sequence == sequence).At : Length); at++)
                {
                    attention.Step(
                        alone, one, data[sequence].Q.AsSpan(at * 24, 24), data[sequence].K.AsSpan(at * 12, 12), data[sequence].V.AsSpan(at * 10, 10), output);
                    Assert.Equal(output, outputs[sequence][(at * 20)..((at + 1) * 20)]);
                }
            }

            float[] Rows(Func<(int Sequence, int At), float[]> of, int row) =>
                [.. running.SelectMany(r => of(r).AsSpan(r.At * row, row).ToArray())];
        });

    // Wherever the device breaks off: the state that the next one begins with is the caller's, untouched.
    [Theory]
    [InlineData("allocate")]
    [InlineData("upload")]
    [InlineData("compute")]
    [InlineData("download")]
    public void A_device_that_fails_hands_a_step_over_with_the_state_it_was_given(string where)
    {
        var shape = new AttentionShape(1, 3, 2, 12);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1);
        var fake = new FakeDevice(1L << 30, QueueTiming.Eager);
        using ComputeDevice device = fake.Open();
        FeatureMap map = Maps.Create("favor+", 12);
        using var attention = new LinearAttention(device, map);
        using var reference = new LinearAttention(_host, map);
        AttentionState state = attention.CreateState(1, 2, 12);
        AttentionState expected = state.Fork();
        float[] actual = new float[shape.OutputElements];
        attention.Step(state, shape, q, k, v, actual);
        fake.OnStep = step =>
        {
            if (step.Split(' ')[0] == where)
            {
                throw new InvalidOperationException("broken");
            }
        };
        attention.Append(state, new AttentionShape(1, 0, 300, 2, 2, 12, 12), TestData.Normal(5, 300 * 24), TestData.Normal(6, 300 * 24));
        float[] other = new float[actual.Length];
        reference.Step(expected, shape, q, k, v, other);
        reference.Append(expected, new AttentionShape(1, 0, 300, 2, 2, 12, 12), TestData.Normal(5, 300 * 24), TestData.Normal(6, 300 * 24));
        Assert.Equal(other, actual);
        RequireSameBits(expected, state);
        Assert.Equal(device.Candidates[1].Info, attention.LastDevice);
    }

    private static TensorSpan<float> Tensor(float[] data, nint a, nint b, nint c, nint d) => new(data, [a, b, c, d]);

    private static float[] Part(float[] tensor, int index) => tensor[(tensor.Length / 3 * index)..(tensor.Length / 3 * (index + 1))];

    private static void RequireSameBits(AttentionState expected, AttentionState actual)
    {
        Assert.Equal(expected.LogScale.ToArray(), actual.LogScale.ToArray());
        Assert.Equal(expected.Normalizers.ToArray(), actual.Normalizers.ToArray());
        Assert.Equal(expected.Sums.ToArray(), actual.Sums.ToArray());
    }

    private LinearAttention Open(string map, int dimension, bool onHost) =>
        new(onHost ? _host : _device, Maps.Create(map, dimension), new LinearAttentionOptions { Causal = true });
}
