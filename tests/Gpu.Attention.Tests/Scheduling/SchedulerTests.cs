using System.Numerics.Tensors;
using Gpu.Attention.TestKit;
using Microsoft.Extensions.Logging;

namespace Gpu.Attention.Tests;

/// <summary>The scheduler on devices that have little memory, and fail.</summary>
public sealed class SchedulerTests
{
    private const long Plenty = 1L << 30;

    public static TheoryData<string, bool, QueueTiming> Kinds =>
        [.. from map in new[] { "favor+", "elu", "softmax" } from causal in new[] { false, true } from timing in Enum.GetValues<QueueTiming>() select (map, causal, timing)];

    [Theory]
    [MemberData(nameof(Kinds))]
    public void Segments_give_the_bits_of_one_piece(string map, bool causal, QueueTiming timing) =>
        Law.ForAll(25, seed: 300, random => (Shape: Shapes.Next(random, causal, maxLength: 400), Share: random.NextDouble(), Seed: random.NextWord(), HasStates: random.NextBool()), sample =>
        {
            bool hasStates = sample.HasStates && map != "softmax" && sample.Shape.Batch > 0;
            using var reference = new Run(ComputeDevice.Open(DeviceKind.Cpu), map, causal, sample.Shape, sample.Seed, hasStates);
            reference.Forward();
            long smallest = Smallest(reference.Problem);
            long whole = SegmentPlan.Find(reference.Problem, new SimdEngine(1), long.MaxValue, out _)!.Layout.TotalBytes;
            foreach (double share in new[] { 0, sample.Share * sample.Share, 1 })
            {
                var fake = new FakeDevice(Plenty, timing);
                using (var run = new Run(
                    fake.Open(new ComputeDeviceOptions { MemoryBudgetBytes = smallest + (long)(share * (whole - smallest)) }), map, causal, sample.Shape, sample.Seed, hasStates))
                {
                    run.Forward();
                    Assert.Equal(fake.Info, run.LastDevice);
                    Assert.Empty(run.Fallbacks);
                    run.RequireSameBits(reference);
                }

                Assert.Equal(0, fake.Allocated);
                Assert.Equal(0, fake.LiveBytes);
            }
        });

    [Fact]
    public void The_next_segment_goes_up_and_the_one_before_comes_down_while_one_is_computed()
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Lazy);
        var shape = new AttentionShape(1, 640, 2, 16);
        AttentionProblem problem = Maps.Problem("elu", shape, causal: true);
        using var run = new Run(fake.Open(new ComputeDeviceOptions { MemoryBudgetBytes = Budget(problem, slots: 2) }), "elu", true, shape, 1, false);
        run.Forward();

        // Segment 3 is computed (its number in the log) between its start and the wait for it.
        int start = fake.Log.IndexOf("compute 3");
        List<string> meanwhile = fake.Log[(start + 1)..fake.Log.FindIndex(start, step => step == "wait Compute")];
        Assert.Equal(3, meanwhile.Count(step => step.StartsWith("upload", StringComparison.Ordinal)));
        Assert.Single(meanwhile, step => step.StartsWith("download", StringComparison.Ordinal));
        Assert.Contains("upload 12", meanwhile);
        Assert.Contains("download 2", meanwhile);
    }

    [Theory]
    [InlineData(QueueTiming.Eager)]
    [InlineData(QueueTiming.Lazy)]
    public void A_tensor_of_many_pieces_of_staging_memory_arrives_whole(QueueTiming timing)
    {
        var fake = new FakeDevice(Plenty, timing);
        using ComputeDevice device = fake.Open();
        float[] content = TestData.Normal(1, (3 << 20) + 12345);
        using DeviceTensor tensor = DeviceTensor.From(device, new ReadOnlyTensorSpan<float>(content));
        float[] back = new float[content.Length];
        tensor.Download(back);
        Assert.Equal(content, back);
    }

    [Fact]
    public void Less_memory_than_planned_for_means_smaller_segments_and_says_so()
    {
        var shape = new AttentionShape(2, 500, 2, 16);
        using var reference = new Run(ComputeDevice.Open(DeviceKind.Cpu), "favor+", true, shape, 5, true);
        reference.Forward();
        long smallest = Smallest(reference.Problem);
        var logs = new Logs();
        var fake = new FakeDevice(smallest * 2, QueueTiming.Lazy);
        using var run = new Run(fake.Open(new ComputeDeviceOptions { MemoryBudgetBytes = Plenty, LoggerFactory = logs }), "favor+", true, shape, 5, true);
        run.Forward();
        run.RequireSameBits(reference);
        Assert.Equal(fake.Info, run.LastDevice);
        Assert.NotEmpty(run.Fallbacks);
        Assert.All(run.Fallbacks, step => Assert.Contains("bytes left", step.Reason, StringComparison.Ordinal));
        Assert.Equal(run.Fallbacks.Count, logs.Warnings.Count(text => text.Contains("smaller segments", StringComparison.Ordinal)));

        // The next call knows.
        fake.Log.Clear();
        int known = run.Fallbacks.Count;
        run.Forward();
        run.RequireSameBits(reference);
        Assert.Equal(known, run.Fallbacks.Count);
        Assert.DoesNotContain("allocate", fake.Log);
    }

    [Fact]
    public void Too_little_memory_for_the_smallest_segment_means_the_host()
    {
        var shape = new AttentionShape(2, 500, 2, 16);
        var logs = new Logs();
        var fake = new FakeDevice(1000, QueueTiming.Lazy);
        using var run = new Run(fake.Open(new ComputeDeviceOptions { LoggerFactory = logs }), "favor+", true, shape, 5, true);
        run.Forward();
        using var reference = new Run(ComputeDevice.Open(DeviceKind.Cpu), "favor+", true, shape, 5, true);
        reference.Forward();
        run.RequireSameBits(reference);
        Assert.Equal(DeviceKind.Cpu, run.LastDevice.Kind);
        FallbackStep step = Assert.Single(run.Fallbacks);
        Assert.Equal(fake.Info, step.Device);
        Assert.Contains("at least", step.Reason, StringComparison.Ordinal);
        Assert.Contains(logs.Warnings, text => text.Contains("Going on with", StringComparison.Ordinal) && text.Contains(step.Reason, StringComparison.Ordinal));
    }

    // At its first step, its second, and so on to the last: the caller's state, which is read and written, must still be what it was when the next
    // device begins.
    [Theory]
    [InlineData(QueueTiming.Eager)]
    [InlineData(QueueTiming.Lazy)]
    public void A_device_that_fails_anywhere_hands_over_to_the_next_one(QueueTiming timing)
    {
        var shape = new AttentionShape(2, 300, 2, 16);
        AttentionProblem problem = Maps.Problem("favor+", shape, causal: true) with { HasInitialState = true, WantsFinalState = true };
        using var reference = new Run(ComputeDevice.Open(DeviceKind.Cpu), "favor+", true, shape, 6, true);
        reference.Forward();
        int at = 0;
        for (bool hasFailed = true; hasFailed; at++)
        {
            var first = new FakeDevice(Plenty, timing, "first");
            var second = new FakeDevice(Plenty, timing, "second");
            int steps = 0;
            first.OnStep = step =>
            {
                if (steps++ == at)
                {
                    throw new InvalidOperationException("it burns");
                }
            };
            using (var run = new Run(first.Open(new ComputeDeviceOptions { MemoryBudgetBytes = Budget(problem, slots: 2) }, second), "favor+", true, shape, 6, true))
            {
                run.Forward();
                run.RequireSameBits(reference);
                hasFailed = first.Failure is not null;
                Assert.Equal(hasFailed ? second.Info : first.Info, run.LastDevice);
                Assert.Equal(hasFailed ? [new FallbackStep(first.Info, "it burns")] : [], run.Fallbacks);

                // It is not asked again, by this operator or another.
                first.Log.Clear();
                first.OnStep = static _ => { };
                run.Forward();
                Assert.Equal(!hasFailed, first.Log.Exists(step => step.StartsWith("compute", StringComparison.Ordinal)));
            }

            Assert.Equal((0, 0), (first.Allocated, second.Allocated));
        }

        Assert.InRange(at, 100, 1000);
    }

    [Fact]
    public void What_a_device_s_engine_refuses_runs_on_the_next_one()
    {
        var shape = new AttentionShape(1, 70, 1, 8);
        var fake = new FakeDevice(Plenty, QueueTiming.Eager) { Refusal = "not today" };
        using var run = new Run(fake.Open(), "elu", true, shape, 6, false);
        run.Forward();
        run.Forward();
        Assert.Equal(DeviceKind.Cpu, run.LastDevice.Kind);
        Assert.Contains("not today", Assert.Single(run.Fallbacks).Reason, StringComparison.Ordinal);

        // It did not fail, and is asked again.
        fake.Refusal = null;
        run.Forward();
        Assert.Equal(fake.Info, run.LastDevice);
    }

    [Fact]
    public void Without_fallback_the_exception_says_what_failed()
    {
        var shape = new AttentionShape(1, 70, 1, 8);
        var options = new ComputeDeviceOptions { AllowFallback = false };

        var refusing = new FakeDevice(Plenty, QueueTiming.Eager) { Refusal = "not today" };
        using (var run = new Run(refusing.Open(options), "elu", true, shape, 6, false))
        {
            Assert.Contains("not today", Assert.Throws<NotSupportedException>(run.Forward).Message, StringComparison.Ordinal);
        }

        var small = new FakeDevice(1000, QueueTiming.Eager);
        using (var run = new Run(small.Open(options), "elu", true, shape, 6, false))
        {
            var thrown = Assert.Throws<DeviceException>(run.Forward);
            Assert.Equal(small.Info, thrown.Device);
            Assert.Contains("at least", thrown.Message, StringComparison.Ordinal);
        }

        var failing = new FakeDevice(Plenty, QueueTiming.Eager) { OnStep = step => _ = step == "compute 0" ? throw new InvalidOperationException("no such instruction") : 0 };
        using (var run = new Run(failing.Open(options), "elu", true, shape, 6, false))
        {
            var thrown = Assert.Throws<DeviceException>(run.Forward);
            Assert.Contains("no such instruction", thrown.Message, StringComparison.Ordinal);
            Assert.Equal("no such instruction", thrown.InnerException!.Message);
        }
    }

    [Fact]
    public void A_device_that_cannot_be_opened_is_passed_over_and_asked_once()
    {
        int asked = 0;
        var info = new DeviceInfo { Kind = DeviceKind.Cuda, Name = "absent" };
        using var device = new ComputeDevice(
            "a test",
            [
                new DeviceCandidate(info, () =>
                {
                    asked++;
                    throw new InvalidOperationException("nobody home");
                }),
                DeviceList.Candidate(DeviceList.Enumerate().First(d => d.Kind == DeviceKind.Cpu), null),
            ],
            null);
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        var shape = new AttentionShape(1, 3, 1, 2);
        for (int i = 0; i < 3; i++)
        {
            attention.Forward(shape, new float[6], new float[6], new float[6], new float[6]);
        }

        Assert.Equal(1, asked);
        Assert.Equal([new FallbackStep(info, "nobody home")], attention.Fallbacks);
        Assert.Contains("nobody home", Assert.Throws<DeviceException>(() => DeviceTensor.Allocate(device, 3)).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Tensors_of_a_device_are_worked_on_where_they_lie(bool onHost)
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Lazy);
        using (ComputeDevice device = onHost ? ComputeDevice.Open(DeviceKind.Cpu) : fake.Open())
        {
            var shape = new AttentionShape(2, 70, 90, 4, 2, 8, 12);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 3);
            float[] expected = new float[shape.OutputElements];
            float[] actual = new float[shape.OutputElements];
            using DeviceTensor query = DeviceTensor.From(device, new ReadOnlyTensorSpan<float>(q, [2, 70, 4, 8]));
            using DeviceTensor key = DeviceTensor.From(device, new ReadOnlyTensorSpan<float>(k, [2, 90, 2, 8]));
            using DeviceTensor value = DeviceTensor.From(device, new ReadOnlyTensorSpan<float>(v, [2, 90, 2, 12]));
            using DeviceTensor output = DeviceTensor.Allocate(device, 2, 70, 4, 12);
            using (var linear = new LinearAttention(device, FeatureMap.EluPlusOne))
            {
                linear.Forward(query, key, value, output);
                output.Download(new TensorSpan<float>(actual, [2, 70, 4, 12]));
                linear.Forward(shape, q, k, v, expected);
                Assert.Equal(expected, actual);
            }

            using (var softmax = new SoftmaxAttention(device))
            {
                softmax.Forward(query, key, value, output);
                output.Download(actual);
                softmax.Forward(shape, q, k, v, expected);
                Assert.Equal(expected, actual);
            }

            Assert.True(device.MemoryUse.Live >= 4 * (q.Length + k.Length + v.Length + expected.Length));
            query.Dispose();
            Assert.Throws<ObjectDisposedException>(() => query.Download(q));
        }

        Assert.Equal(0, fake.Allocated);
    }

    [Fact]
    public void Bad_device_tensors_are_refused_by_name()
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using ComputeDevice other = new FakeDevice(Plenty, QueueTiming.Eager).Open();
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        using DeviceTensor here = DeviceTensor.Allocate(device, 1, 4, 1, 2);
        using DeviceTensor output = DeviceTensor.Allocate(device, 1, 4, 1, 2);
        using DeviceTensor there = DeviceTensor.Allocate(other, 1, 4, 1, 2);
        using DeviceTensor flat = DeviceTensor.Allocate(device, 8);
        using DeviceTensor wide = DeviceTensor.Allocate(device, 1, 4, 1, 3);
        Assert.Contains("does not lie", Assert.Throws<ArgumentException>("key", () => attention.Forward(here, there, here, output)).Message, StringComparison.Ordinal);
        Assert.Contains("rank", Assert.Throws<ArgumentException>("query", () => attention.Forward(flat, here, here, output)).Message, StringComparison.Ordinal);
        Assert.Contains("an input", Assert.Throws<ArgumentException>("output", () => attention.Forward(here, here, here, here)).Message, StringComparison.Ordinal);
        Assert.Contains("[1, 4, 1, 3]", Assert.Throws<ArgumentException>("key", () => attention.Forward(here, wide, here, output)).Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentNullException>("value", () => attention.Forward(here, here, null!, output));
        Assert.Throws<ArgumentException>("source", () => here.Upload(new float[7]));
        Assert.Throws<ArgumentException>("destination", () => here.Download(new TensorSpan<float>(new float[8], [2, 2, 1, 2])));
        Assert.Contains("negative", Assert.Throws<ArgumentException>("lengths", () => DeviceTensor.Allocate(device, 3, -1)).Message, StringComparison.Ordinal);
        Assert.Contains("addressed", Assert.Throws<ArgumentException>("lengths", () => DeviceTensor.Allocate(device, nint.MaxValue, 3)).Message, StringComparison.Ordinal);
        using ComputeDevice small = new FakeDevice(100, QueueTiming.Eager).Open();
        Assert.Contains("room", Assert.Throws<DeviceException>(() => DeviceTensor.Allocate(small, 1000)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_pool_keeps_what_comes_back_and_gives_it_up_when_memory_is_short()
    {
        var fake = new FakeDevice(10_000, QueueTiming.Eager);
        fake.Retain();
        DeviceBlock first = fake.Pool.Rent(1000);
        DeviceBlock second = fake.Pool.Rent(3000);
        Assert.Equal((1024, 3072), (first.Bytes, second.Bytes));
        Assert.Equal((4096, 4096, 4096), (fake.Pool.LiveBytes, fake.Pool.PeakBytes, fake.Pool.HeldBytes));
        fake.Pool.Return(second);
        fake.Pool.Return(second);
        Assert.Equal((1024, 4096, 4096), (fake.Pool.LiveBytes, fake.Pool.PeakBytes, fake.Pool.HeldBytes));

        // Half the size is not worth the block; a little less is.
        Assert.Same(second, fake.Pool.Rent(2000));
        fake.Pool.Return(second);
        DeviceBlock small = fake.Pool.Rent(100);
        Assert.NotSame(second, small);

        // 9,000 bytes are there only without what is kept.
        fake.Pool.Return(small);
        fake.Pool.Return(first);
        DeviceBlock large = fake.Pool.Rent(9000);
        Assert.Equal(large.Bytes, fake.Allocated);
        Assert.Throws<DeviceOutOfMemoryException>(() => fake.Pool.Rent(9000));
        fake.Pool.Return(large);
        fake.Pool.Trim();
        Assert.Equal((0, 0), (fake.Allocated, fake.Pool.HeldBytes));
    }

    [Fact]
    public void What_outlives_its_device_gives_its_memory_back_all_the_same()
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Eager);
        ComputeDevice device = fake.Open();
        DeviceTensor tensor = DeviceTensor.Allocate(device, 1, 4, 1, 2);
        DeviceTensor output = DeviceTensor.Allocate(device, 1, 4, 1, 2);
        tensor.Upload(new float[8]);
        var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        attention.Forward(tensor, tensor, tensor, output);
        device.Dispose();
        Assert.Throws<ObjectDisposedException>(() => attention.Forward(tensor, tensor, tensor, output));
        Assert.Throws<ObjectDisposedException>(() => tensor.Upload(new float[8]));
        attention.Dispose();
        tensor.Dispose();
        output.Dispose();
        Assert.Equal((0, 0), (fake.Allocated, fake.LiveBytes));
    }

    [Fact]
    public void A_second_call_takes_no_memory_from_the_device()
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Eager);
        using var run = new Run(fake.Open(), "favor+", true, new AttentionShape(1, 200, 2, 16), 1, true);
        run.Forward();
        int allocations = fake.Allocations;
        run.Forward();
        Assert.Equal(allocations, fake.Allocations);
        Assert.Equal(0, fake.Pool.LiveBytes);
    }

    [Theory]
    [InlineData("nonsense")]
    [InlineData("cpu:")]
    [InlineData("cpu:x")]
    [InlineData("")]
    public void A_name_that_is_no_device_is_refused(string id) =>
        Assert.Contains("auto, cuda", Assert.Throws<ArgumentException>(nameof(id), () => ComputeDevice.Open(id)).Message, StringComparison.Ordinal);

    [Fact]
    public void Devices_are_opened_by_name()
    {
        using ComputeDevice host = ComputeDevice.Open("CPU");
        using ComputeDevice first = ComputeDevice.Open("cpu:0");
        using ComputeDevice best = ComputeDevice.Open("auto");
        Assert.Equal(DeviceKind.Cpu, host.Info.Kind);
        Assert.Equal(host.Info, first.Info);
        Assert.Throws<NotSupportedException>(() => ComputeDevice.Open("cpu:7"));
    }

    private static long Smallest(AttentionProblem problem)
    {
        Assert.Null(SegmentPlan.Find(problem, new SimdEngine(1), 0, out long smallest));
        return smallest;
    }

    /// <summary>The least bytes that a plan with so many slots takes.</summary>
    private static long Budget(AttentionProblem problem, int slots)
    {
        long budget = Smallest(problem);
        while (SegmentPlan.Find(problem, new SimdEngine(1), budget, out _)!.Slots < slots)
        {
            budget += budget / 20;
        }

        return budget;
    }

    /// <summary>An operator with its inputs and results, and a state that is both initial and final.</summary>
    private sealed class Run : IDisposable
    {
        private readonly ComputeDevice _device;
        private readonly LinearAttention? _linear;
        private readonly SoftmaxAttention? _softmax;
        private readonly AttentionShape _shape;
        private readonly (float[] Query, float[] Key, float[] Value) _inputs;
        private readonly float[] _output;
        private readonly AttentionState? _before;
        private readonly AttentionState? _state;

        public Run(ComputeDevice device, string map, bool causal, AttentionShape shape, ulong seed, bool hasStates)
        {
            (_device, _shape, _inputs, _output) = (device, shape, TestData.Inputs(shape, seed), new float[shape.OutputElements]);
            if (map == "softmax")
            {
                _softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = causal });
                Problem = new AttentionProblem { Shape = shape, Causal = causal };
                return;
            }

            _linear = new LinearAttention(device, Maps.Create(map, shape.KeyDimension), new LinearAttentionOptions { Causal = causal });
            Problem = Maps.Problem(map, shape, causal) with { HasInitialState = hasStates, WantsFinalState = hasStates };
            if (hasStates)
            {
                _before = _linear.CreateState(shape.Batch, shape.KeyHeads, shape.ValueDimension, shape.KeyDimension);
                TestData.Normal(seed + 1, _before.LogScale.Length).CopyTo(_before.LogScale);
                TestData.Normal(seed + 2, _before.Sums.Length).CopyTo(_before.Sums);
                Array.ConvertAll(TestData.Normal(seed + 3, _before.Normalizers.Length), x => 1 + MathF.Abs(x)).CopyTo(_before.Normalizers);
                _state = _before.Fork();
            }
        }

        public AttentionProblem Problem { get; }

        public DeviceInfo LastDevice => _linear?.LastDevice ?? _softmax!.LastDevice;

        public IReadOnlyList<FallbackStep> Fallbacks => _linear?.Fallbacks ?? _softmax!.Fallbacks;

        public void Forward()
        {
            _output.AsSpan().Fill(float.NaN);
            _before?.CopyTo(_state!);
            if (_linear is not null)
            {
                _linear.Forward(_shape, _inputs.Query, _inputs.Key, _inputs.Value, _output, _state, _state);
            }
            else
            {
                _softmax!.Forward(_shape, _inputs.Query, _inputs.Key, _inputs.Value, _output);
            }
        }

        public void RequireSameBits(Run other)
        {
            RequireSameBits(other._output, _output);
            if (_state is not null)
            {
                RequireSameBits(other._state!.LogScale, _state.LogScale);
                RequireSameBits(other._state.Sums, _state.Sums);
                RequireSameBits(other._state.Normalizers, _state.Normalizers);
            }
        }

        public void Dispose()
        {
            _linear?.Dispose();
            _softmax?.Dispose();
            _device.Dispose();
        }

        private static void RequireSameBits(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual) =>
            Assert.True(System.Runtime.InteropServices.MemoryMarshal.AsBytes(expected).SequenceEqual(System.Runtime.InteropServices.MemoryMarshal.AsBytes(actual)));
    }

    /// <summary>Keeps what is logged as a warning.</summary>
    private sealed class Logs : ILoggerFactory, ILogger
    {
        public List<string> Warnings { get; } = [];

        public void AddProvider(ILoggerProvider provider)
        {
        }

        public ILogger CreateLogger(string categoryName) => this;

        public IDisposable? BeginScope<TState>(TState state)
            where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => true;

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter)
        {
            if (logLevel == LogLevel.Warning)
            {
                Warnings.Add(formatter(state, exception));
            }
        }

        public void Dispose()
        {
        }
    }
}
