using System.Numerics.Tensors;
using System.Runtime.InteropServices;
using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>Backward passes on devices that have little memory, and fail.</summary>
public sealed class SchedulerBackwardTests
{
    private const long Plenty = 1L << 30;

    public static TheoryData<string, bool, QueueTiming> Kinds =>
        [.. from map in new[] { "favor+", "elu", "softmax" } from causal in new[] { false, true } from timing in Enum.GetValues<QueueTiming>() select (map, causal, timing)];

    [Theory]
    [MemberData(nameof(Kinds))]
    public void Gradients_in_segments_have_the_bits_of_one_piece(string map, bool causal, QueueTiming timing) =>
        Law.ForAll(15, seed: 310, random => (Shape: Shapes.Next(random, causal, maxLength: 200), Share: random.NextDouble(), Seed: random.NextWord(), HasStates: random.NextBool()), sample =>
            RequireBitsOfTheHost(
                map, causal, sample.Shape, sample.Seed, sample.HasStates && map != "softmax" && sample.Shape.Batch > 0, null, timing, [0, sample.Share * sample.Share, 1]));

    [Theory]
    [InlineData("favor+", true)]
    [InlineData("elu", false)]
    [InlineData("softmax", false)]
    [InlineData("softmax", true)]
    public void Gradients_of_packed_and_masked_sequences_in_groups_have_the_bits_of_one_piece(string map, bool causal)
    {
        RequireBitsOfTheHost(
            map, causal, new AttentionShape(1, 200, 200, 4, 2, 8, 12), 7, map != "softmax", SequenceLayout.FromCuSeqlens([0, 70, 70, 73, 200]), QueueTiming.Lazy,
            [0, 0.3, 1]);
        bool[] mask = [.. Enumerable.Range(0, 3 * 70).Select(i => i % 7 != 2 && i is < 70 or >= 140)];
        RequireBitsOfTheHost(
            map, causal, new AttentionShape(3, 70, 70, 4, 2, 8, 12), 8, map != "softmax", SequenceLayout.FromKeyMask(3, 70, mask), QueueTiming.Lazy, [0, 0.3, 1]);
    }

    // At its first step, its second, and so on to the last. The gradient of the initial state comes where that of the final one was, and the next device
    // begins with what was there.
    [Theory]
    [InlineData(QueueTiming.Eager)]
    [InlineData(QueueTiming.Lazy)]
    public void A_device_that_fails_anywhere_hands_over_to_the_next_one(QueueTiming timing)
    {
        var shape = new AttentionShape(2, 100, 2, 16);
        using var reference = new Run(ComputeDevice.Open(DeviceKind.Cpu), "favor+", true, shape, 6, true, null);
        reference.Backward();
        long budget = Smallest(reference.Problem);
        int at = 0;
        for (bool hasFailed = true; hasFailed; at++)
        {
            var first = new FakeDevice(Plenty, timing, "first");
            var second = new FakeDevice(Plenty, timing, "second");
            int steps = 0;
            using (var run = new Run(first.Open(new ComputeDeviceOptions { MemoryBudgetBytes = budget }, second), "favor+", true, shape, 6, true, null))
            {
                first.OnStep = step =>
                {
                    if (steps++ == at)
                    {
                        throw new InvalidOperationException("it burns");
                    }
                };
                run.Backward();
                run.RequireSameBits(reference);
                hasFailed = first.Failure is not null;
                Assert.Equal(hasFailed ? second.Info : first.Info, run.LastDevice);
                Assert.Equal(hasFailed ? [new FallbackStep(first.Info, "it burns")] : [], run.Fallbacks);
                first.OnStep = static _ => { };
            }

            Assert.Equal((0, 0), (first.Allocated, second.Allocated));
        }

        Assert.InRange(at, 50, 1000);
    }

    [Fact]
    public void Less_memory_than_planned_for_means_smaller_segments_and_says_so()
    {
        var shape = new AttentionShape(4, 100, 2, 16);
        using var reference = new Run(ComputeDevice.Open(DeviceKind.Cpu), "softmax", true, shape, 5, false, null);
        reference.Backward();
        var fake = new FakeDevice(Smallest(reference.Problem) * 2, QueueTiming.Lazy);
        using var run = new Run(fake.Open(new ComputeDeviceOptions { MemoryBudgetBytes = Plenty }), "softmax", true, shape, 5, false, null);
        run.Backward();
        run.RequireSameBits(reference);
        Assert.Equal(fake.Info, run.LastDevice);
        Assert.NotEmpty(run.Fallbacks);
        Assert.All(run.Fallbacks, step => Assert.Contains("bytes left", step.Reason, StringComparison.Ordinal));
    }

    [Fact]
    public void Too_little_memory_for_a_head_of_a_sequence_means_the_host()
    {
        var shape = new AttentionShape(2, 100, 2, 16);
        using var reference = new Run(ComputeDevice.Open(DeviceKind.Cpu), "elu", true, shape, 5, true, null);
        reference.Backward();
        var fake = new FakeDevice(Plenty, QueueTiming.Lazy);
        using var run = new Run(
            fake.Open(new ComputeDeviceOptions { MemoryBudgetBytes = Smallest(reference.Problem) - 1 }), "elu", true, shape, 5, true, null);
        run.Backward();
        run.RequireSameBits(reference);
        Assert.Equal(DeviceKind.Cpu, run.LastDevice.Kind);
        Assert.Contains("the gradients of", Assert.Single(run.Fallbacks).Reason, StringComparison.Ordinal);
        Assert.Contains("at least", run.Fallbacks[0].Reason, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Gradients_of_a_device_s_tensors_are_made_where_they_lie(bool onHost)
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Lazy);
        using (ComputeDevice device = onHost ? ComputeDevice.Open(DeviceKind.Cpu) : fake.Open())
        {
            var shape = new AttentionShape(2, 30, 40, 4, 2, 8, 12);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 3);
            float[] g = TestData.Normal(4, shape.OutputElements);
            float[] o = new float[shape.OutputElements];
            float[] expectedQuery = new float[q.Length], expectedKey = new float[k.Length], expectedValue = new float[v.Length];
            using DeviceTensor query = DeviceTensor.From(device, new ReadOnlyTensorSpan<float>(q, [2, 30, 4, 8]));
            using DeviceTensor key = DeviceTensor.From(device, new ReadOnlyTensorSpan<float>(k, [2, 40, 2, 8]));
            using DeviceTensor value = DeviceTensor.From(device, new ReadOnlyTensorSpan<float>(v, [2, 40, 2, 12]));
            using DeviceTensor outputGradient = DeviceTensor.From(device, new ReadOnlyTensorSpan<float>(g, [2, 30, 4, 12]));
            using DeviceTensor output = DeviceTensor.Allocate(device, 2, 30, 4, 12);
            using DeviceTensor queryGradient = DeviceTensor.Allocate(device, 2, 30, 4, 8);
            using DeviceTensor keyGradient = DeviceTensor.Allocate(device, 2, 40, 2, 8);
            using DeviceTensor valueGradient = DeviceTensor.Allocate(device, 2, 40, 2, 12);
            using (var linear = new LinearAttention(device, FeatureMap.EluPlusOne))
            {
                linear.Forward(shape, q, k, v, o);
                linear.Backward(shape, q, k, v, o, g, expectedQuery, expectedKey, expectedValue);
                linear.Forward(query, key, value, output);
                linear.Backward(query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient);
                Require(expectedQuery, queryGradient);
                Require(expectedKey, keyGradient);
                Require(expectedValue, valueGradient);
            }

            using (var softmax = new SoftmaxAttention(device))
            {
                softmax.Forward(shape, q, k, v, o);
                softmax.Backward(shape, q, k, v, o, g, expectedQuery, expectedKey, expectedValue);
                softmax.Forward(query, key, value, output);
                softmax.Backward(query, key, value, output, outputGradient, null, keyGradient, null);
                Require(expectedKey, keyGradient);
                softmax.Backward(query, key, value, output, outputGradient, queryGradient, null, valueGradient);
                Require(expectedQuery, queryGradient);
                Require(expectedValue, valueGradient);
                Assert.Throws<ArgumentNullException>("outputGradient", () => softmax.Backward(query, key, value, output, null!, queryGradient, null, null));
                Assert.Throws<ArgumentException>("keyGradient", () => softmax.Backward(query, key, value, output, outputGradient, null, valueGradient, null));
                Assert.Throws<ArgumentException>("keyGradient", () => softmax.Backward(query, key, value, output, outputGradient, null, key, null));
            }
        }

        Assert.Equal(0, fake.Allocated);
    }

    private static void Require(float[] expected, DeviceTensor actual)
    {
        float[] content = new float[expected.Length];
        actual.Download(new TensorSpan<float>(content, actual.Lengths));
        Assert.Equal(expected, content);
    }

    private static void RequireBitsOfTheHost(
        string map, bool causal, AttentionShape shape, ulong seed, bool hasStates, SequenceLayout? layout, QueueTiming timing, double[] shares)
    {
        using var reference = new Run(ComputeDevice.Open(DeviceKind.Cpu), map, causal, shape, seed, hasStates, layout);
        reference.Backward();
        long smallest = Smallest(reference.Problem);
        long whole = SegmentPlan.Find(reference.Problem, new SimdEngine(1), long.MaxValue, out _, GradientParts.All(reference.Problem))!.Layout.TotalBytes;
        foreach (double share in shares)
        {
            var fake = new FakeDevice(Plenty, timing);
            using (var run = new Run(
                fake.Open(new ComputeDeviceOptions { MemoryBudgetBytes = smallest + (long)(share * (whole - smallest)) }), map, causal, shape, seed, hasStates, layout))
            {
                run.Backward();
                Assert.Equal(fake.Info, run.LastDevice);
                Assert.Empty(run.Fallbacks);
                run.RequireSameBits(reference);
                run.Backward(onlyKeys: true);
                run.RequireSameBits(reference);
            }

            Assert.Equal(0, fake.Allocated);
            Assert.Equal(0, fake.LiveBytes);
        }
    }

    private static long Smallest(AttentionProblem problem)
    {
        Assert.Null(SegmentPlan.Find(problem, new SimdEngine(1), 0, out long smallest, GradientParts.All(problem)));
        return smallest;
    }

    /// <summary>An operator with inputs, outputs of the host, and gradients; that of the initial state replaces that of the final one.</summary>
    private sealed class Run : IDisposable
    {
        private readonly ComputeDevice _device;
        private readonly LinearAttention? _linear;
        private readonly SoftmaxAttention? _softmax;
        private readonly AttentionShape _shape;
        private readonly SequenceLayout? _layout;
        private readonly (float[] Query, float[] Key, float[] Value) _inputs;
        private readonly float[] _output;
        private readonly float[] _outputGradient;
        private readonly float[][] _gradients;
        private readonly AttentionState? _before;
        private readonly AttentionState? _after;
        private readonly AttentionStateGradient? _stateGradient;

        public Run(ComputeDevice device, string map, bool causal, AttentionShape shape, ulong seed, bool hasStates, SequenceLayout? layout)
        {
            (_device, _shape, _layout, _inputs) = (device, shape, layout, TestData.Inputs(shape, seed));
            _output = new float[shape.OutputElements];
            _outputGradient = TestData.Normal(seed + 5, shape.OutputElements);
            _gradients = [new float[shape.QueryElements], new float[shape.KeyElements], new float[shape.ValueElements]];
            if (map == "softmax")
            {
                _softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = causal });
                Problem = new AttentionProblem { Shape = shape, Causal = causal, Layout = layout };
                using var host = new SoftmaxAttention(ComputeDevice.Open(DeviceKind.Cpu), new SoftmaxAttentionOptions { Causal = causal });
                host.Forward<float>(shape, _inputs.Query, _inputs.Key, _inputs.Value, _output, layout);
                return;
            }

            var options = new LinearAttentionOptions { Causal = causal };
            _linear = new LinearAttention(device, Maps.Create(map, shape.KeyDimension), options);
            Problem = Maps.Problem(map, shape, causal) with { HasInitialState = hasStates, WantsFinalState = hasStates, Layout = layout };
            using var linear = new LinearAttention(ComputeDevice.Open(DeviceKind.Cpu), Maps.Create(map, shape.KeyDimension), options);
            if (hasStates)
            {
                _before = linear.CreateState(Problem.Sequences, shape.KeyHeads, shape.ValueDimension, shape.KeyDimension);
                TestData.Normal(seed + 1, _before.LogScale.Length).CopyTo(_before.LogScale);
                TestData.Normal(seed + 2, _before.Sums.Length).CopyTo(_before.Sums);
                Array.ConvertAll(TestData.Normal(seed + 3, _before.Normalizers.Length), x => 1 + MathF.Abs(x)).CopyTo(_before.Normalizers);
                _after = _before.Fork();
                _stateGradient = new AttentionStateGradient(_before);
            }

            linear.Forward<float>(shape, _inputs.Query, _inputs.Key, _inputs.Value, _output, _before, _after, layout);
        }

        public AttentionProblem Problem { get; }

        public DeviceInfo LastDevice => _linear?.LastDevice ?? _softmax!.LastDevice;

        public IReadOnlyList<FallbackStep> Fallbacks => _linear?.Fallbacks ?? _softmax!.Fallbacks;

        public void Backward(bool onlyKeys = false)
        {
            Span<float> query = onlyKeys ? default : _gradients[0];
            Span<float> value = onlyKeys ? default : _gradients[2];
            query.Fill(float.NaN);
            _gradients[1].AsSpan().Fill(float.NaN);
            value.Fill(float.NaN);
            if (_softmax is not null)
            {
                _softmax.Backward<float>(
                    _shape, _inputs.Query, _inputs.Key, _inputs.Value, _output, _outputGradient, query, _gradients[1], value, _layout);
                return;
            }

            if (_stateGradient is not null)
            {
                TestData.Normal(11, _stateGradient.Sums.Length).CopyTo(_stateGradient.Sums);
                TestData.Normal(12, _stateGradient.Normalizers.Length).CopyTo(_stateGradient.Normalizers);
            }

            var states = new StateGradients { InitialState = _before, InitialStateGradient = _stateGradient, FinalState = _after, FinalStateGradient = _stateGradient };
            _linear!.Backward<float>(
                _shape, _inputs.Query, _inputs.Key, _inputs.Value, _output, _outputGradient, query, _gradients[1], value, states, _layout);
        }

        public void RequireSameBits(Run other)
        {
            for (int i = 0; i < _gradients.Length; i++)
            {
                RequireSameBits(other._gradients[i], _gradients[i]);
            }

            if (_stateGradient is not null)
            {
                RequireSameBits(other._stateGradient!.Sums, _stateGradient.Sums);
                RequireSameBits(other._stateGradient.Normalizers, _stateGradient.Normalizers);
            }
        }

        public void Dispose()
        {
            _linear?.Dispose();
            _softmax?.Dispose();
            _device.Dispose();
        }

        private static void RequireSameBits(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual) =>
            Assert.True(MemoryMarshal.AsBytes(expected).SequenceEqual(MemoryMarshal.AsBytes(actual)));
    }
}
