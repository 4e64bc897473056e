using System.Buffers;
using System.Numerics.Tensors;
using Gpu.Attention.TestKit;
using Microsoft.Extensions.Logging;

namespace Gpu.Attention.Tests;

/// <summary>What a user opens: devices, operators, their checks and their manners.</summary>
public sealed class FaceTests : IDisposable
{
    private readonly ComputeDevice _device = ComputeDevice.Open(DeviceKind.Cpu);

    public void Dispose() => _device.Dispose();

    // Rows so long that sums over them might be aligned first.
    [Fact]
    public void Where_tensors_lie_in_memory_changes_no_bit()
    {
        using var attention = new LinearAttention(
            _device, FeatureMap.FavorPlus(RandomProjection.Orthogonal(40, 264, seed: 1)), new LinearAttentionOptions { Causal = true });
        var shape = new AttentionShape(1, 5, 5, 3, 3, 264, 136);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 91);
        float[] g = TestData.Normal(92, shape.OutputElements);
        (float[] Output, float[] Query, float[] Key) expected = At(0);
        for (int offset = 1; offset < 16; offset++)
        {
            (float[] Output, float[] Query, float[] Key) actual = At(offset);
            Assert.Equal(expected.Output, actual.Output);
            Assert.Equal(expected.Query, actual.Query);
            Assert.Equal(expected.Key, actual.Key);
        }

        (float[] Output, float[] Query, float[] Key) At(int offset)
        {
            float[] query = Placed(q), key = Placed(k), value = Placed(v), gradient = Placed(g);
            float[] output = new float[g.Length], queryGradient = new float[q.Length], keyGradient = new float[k.Length], valueGradient = new float[v.Length];
            attention.Forward<float>(shape, query.AsSpan(offset), key.AsSpan(offset), value.AsSpan(offset), output);
            attention.Backward<float>(
                shape, query.AsSpan(offset), key.AsSpan(offset), value.AsSpan(offset), output, gradient.AsSpan(offset), queryGradient, keyGradient, valueGradient);
            return (output, queryGradient, keyGradient);

            float[] Placed(float[] x) => [.. new float[offset], .. x];
        }
    }

    [Fact]
    public void Tensors_arrays_and_spans_give_the_same_bits()
    {
        var shape = new AttentionShape(2, 70, 90, 4, 2, 12, 10);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1);
        float[] flat = new float[shape.OutputElements];
        float[] tensor = new float[shape.OutputElements];
        using var attention = new LinearAttention(_device, FeatureMap.EluPlusOne);
        attention.Forward(shape, q, k, v, flat);
        attention.Forward(Tensor(q, 2, 70, 4, 12), Tensor(k, 2, 90, 2, 12), Tensor(v, 2, 90, 2, 10), Tensor(tensor, 2, 70, 4, 10));
        Assert.Equal(flat, tensor);

        using var softmax = new SoftmaxAttention(_device);
        softmax.Forward(shape, q, k, v, flat);
        softmax.Forward(Tensor(q, 2, 70, 4, 12), Tensor(k, 2, 90, 2, 12), Tensor(v, 2, 90, 2, 10), Tensor(tensor, 2, 70, 4, 10));
        Assert.Equal(flat, tensor);
    }

    [Fact]
    public void Multidimensional_arrays_are_tensors_too()
    {
        float[,,,] q = new float[1, 3, 1, 2];
        float[,,,] v = { { { { 1f } }, { { 0f } }, { { 0f } } } };
        float[,,,] output = new float[1, 3, 1, 1];
        using var attention = new LinearAttention(_device, FeatureMap.EluPlusOne, new LinearAttentionOptions { Causal = true });
        attention.Forward(new ReadOnlyTensorSpan<float>(q), new ReadOnlyTensorSpan<float>(q), new ReadOnlyTensorSpan<float>(v), new TensorSpan<float>(output));
        Assert.Equal([1f, 1 / 2f, 1 / 3f], output.Cast<float>());
    }

    [Theory]
    [InlineData("query", "query [2, 70, 48] has rank 3; expected rank 4, [B, T, H, D].")]
    [InlineData("key", "key [2, 90, 2, 24] does not fit query [2, 70, 4, 12]")]
    [InlineData("key heads", "key [2, 90, 3, 12] does not fit query [2, 70, 4, 12]: its heads must divide the query's")]
    [InlineData("key batch", "key [1, 90, 2, 12] does not fit query [2, 70, 4, 12]")]
    [InlineData("value", "value [2, 89, 2, 10] does not fit key [2, 90, 2, 12]")]
    [InlineData("output", "output [2, 70, 4, 9] does not fit value [2, 90, 2, 10]")]
    [InlineData("output length", "output [2, 71, 4, 10] does not fit query [2, 70, 4, 12]")]
    [InlineData("query heads", "query [2, 70, 0, 12] has no heads")]
    [InlineData("value width", "value [2, 90, 2, 0] has no heads, or heads of no elements; expected [B, S, Hk, Dv]")]
    [InlineData("strided", "query [2, 70, 4, 12] is not dense")]
    [InlineData("broadcast", "query [2, 70, 4, 12] is not dense")]
    public void A_wrong_tensor_is_named_with_both_shapes_before_any_work(string what, string expected)
    {
        float[] data = new float[8 * 70 * 4 * 24];
        float[] output = [.. Enumerable.Repeat(7f, 2 * 71 * 4 * 10)];
        using var attention = new LinearAttention(_device, FeatureMap.EluPlusOne);
        var thrown = Assert.Throws<ArgumentException>(() =>
        {
            ReadOnlyTensorSpan<float> q = what switch
            {
                "query" => new ReadOnlyTensorSpan<float>(data, [2, 70, 48]),
                "query heads" => Tensor(data, 2, 70, 0, 12),
                "strided" => Tensor(data, 2, 70, 4, 24).Slice(NRange.All, NRange.All, NRange.All, new NRange(0, 12)),
                "broadcast" => new ReadOnlyTensorSpan<float>(data, [2, 70, 4, 12], [0, 48, 12, 1]),
                _ => Tensor(data, 2, 70, 4, 12),
            };
            ReadOnlyTensorSpan<float> k = what switch
            {
                "key" => Tensor(data, 2, 90, 2, 24),
                "key heads" => Tensor(data, 2, 90, 3, 12),
                "key batch" => Tensor(data, 1, 90, 2, 12),
                _ => Tensor(data, 2, 90, 2, 12),
            };
            ReadOnlyTensorSpan<float> v = Tensor(data, 2, what == "value" ? 89 : 90, 2, what == "value width" ? 0 : 10);
            TensorSpan<float> o = Tensor(output, 2, what == "output length" ? 71 : 70, 4, what == "output" ? 9 : 10);
            attention.Forward(q, k, v, o);
        });
        Assert.Contains(expected, thrown.Message, StringComparison.Ordinal);
        Assert.Equal(what.Split(' ')[0] is "strided" or "broadcast" ? "query" : what.Split(' ')[0], thrown.ParamName);
        Assert.All(output, x => Assert.Equal(7, x));
    }

    [Fact]
    public void Flat_memory_of_another_length_is_refused()
    {
        var shape = new AttentionShape(1, 8, 2, 4);
        using var attention = new LinearAttention(_device, FeatureMap.EluPlusOne);
        float[] right = new float[64];
        float[] wrong = new float[63];
        Check("query", wrong, right, right, right);
        Check("key", right, wrong, right, right);
        Check("value", right, right, wrong, right);
        Check("output", right, right, right, wrong);
        Assert.Throws<ArgumentException>("shape", () => attention.Forward(default, right, right, right, new float[64]));

        void Check(string name, float[] q, float[] k, float[] v, float[] o)
        {
            var thrown = Assert.Throws<ArgumentException>(name, () => attention.Forward(shape, q, k, v, o));
            Assert.Contains("63", thrown.Message, StringComparison.Ordinal);
            Assert.Contains("64", thrown.Message, StringComparison.Ordinal);
            Assert.Contains("[1, 8, 2, 4]", thrown.Message, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void An_output_that_overlaps_an_input_is_refused_and_inputs_may_overlap()
    {
        var shape = new AttentionShape(1, 8, 2, 4);
        float[] memory = TestData.Normal(1, 200);
        using var linear = new LinearAttention(_device, FeatureMap.EluPlusOne);
        using var softmax = new SoftmaxAttention(_device);
        foreach (string name in new[] { "query", "key", "value" })
        {
            var thrown = Assert.Throws<ArgumentException>("output", () => Run(linear, name, 63));
            Assert.Contains($"overlaps the {name}", thrown.Message, StringComparison.Ordinal);
            Assert.Throws<ArgumentException>("output", () => Run(softmax, name, 0));
            Run(linear, name, 64);
        }

        void Run(object attention, string name, int offset)
        {
            ReadOnlySpan<float> other = TestData.Normal(2, 64);
            ReadOnlySpan<float> shared = memory.AsSpan(0, 64);
            Span<float> output = memory.AsSpan(offset, 64);
            if (attention is LinearAttention l)
            {
                l.Forward(shape, name == "query" ? shared : other, name == "key" ? shared : other, name == "value" ? shared : other, output);
            }
            else
            {
                softmax.Forward(shape, name == "query" ? shared : other, name == "key" ? shared : other, name == "value" ? shared : other, output);
            }
        }
    }

    [Fact]
    public void Options_are_checked()
    {
        Assert.Throws<ArgumentNullException>(() => new LinearAttention(null!, FeatureMap.EluPlusOne));
        Assert.Throws<ArgumentNullException>(() => new LinearAttention(_device, null!));
        Assert.Throws<ArgumentException>(() => new LinearAttention(_device, FeatureMap.EluPlusOne, new LinearAttentionOptions { Scale = float.NaN }));
        Assert.Throws<ArgumentException>(() => new LinearAttention(_device, FeatureMap.EluPlusOne, new LinearAttentionOptions { FeatureEpsilon = -1 }));
        Assert.Throws<ArgumentException>(
            () => new LinearAttention(_device, FeatureMap.EluPlusOne, new LinearAttentionOptions { Compatibility = (ReferenceConvention)9 }));
        Assert.Throws<ArgumentException>(() => new SoftmaxAttention(_device, new SoftmaxAttentionOptions { Scale = float.PositiveInfinity }));
        using var negative = new LinearAttention(
            _device, FeatureMap.FavorPlus(RandomProjection.Orthogonal(8, 4, 1)), new LinearAttentionOptions { Scale = -1 });
        Assert.Throws<ArgumentOutOfRangeException>(() => negative.WorkspaceBytes(new AttentionShape(1, 8, 2, 4)));
        using var other = new LinearAttention(_device, FeatureMap.FavorPlus(RandomProjection.Orthogonal(8, 4, 1)));
        var thrown = Assert.Throws<ArgumentException>(() => other.WorkspaceBytes(new AttentionShape(1, 8, 2, 5)));
        Assert.Equal("query", thrown.ParamName);
        Assert.Contains("takes rows of dimension 4, not 5: query [1, 8, 2, 5]", thrown.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_map_that_makes_forms_of_another_size_is_refused()
    {
        var shape = new AttentionShape(1, 8, 2, 4);
        float[] data = new float[64];
        using var attention = new LinearAttention(_device, new MapOfTwo());
        Assert.Throws<InvalidOperationException>(() => attention.Forward(shape, data, data, data, new float[64]));
    }

    [Fact]
    public void A_state_of_another_problem_is_refused()
    {
        var shape = new AttentionShape(1, 8, 2, 4);
        float[] data = new float[64];
        using var attention = new LinearAttention(_device, FeatureMap.EluPlusOne);
        using var causal = new LinearAttention(_device, FeatureMap.EluPlusOne, new LinearAttentionOptions { Causal = true });
        AttentionState fits = attention.CreateState(1, 2, 4, 4);
        AttentionState wrong = attention.CreateState(1, 2, 4, 5);
        Assert.Throws<ArgumentException>("initialState", () => attention.Forward(shape, data, data, data, new float[64], wrong, fits));
        Assert.Throws<ArgumentException>("finalState", () => attention.Forward(shape, data, data, data, new float[64], fits, wrong));
        attention.Forward(shape, data, data, data, new float[64], fits, fits);
        Assert.True(fits.Normalizers[0] > 0);
        var uneven = new AttentionShape(1, 8, 4, 2, 2, 4, 4);
        Assert.Throws<NotSupportedException>(() => causal.Forward(uneven, data, new float[32], new float[32], new float[64]));
    }

    [Fact]
    public void Workspace_does_not_grow_with_the_length()
    {
        using var attention = new LinearAttention(
            _device, FeatureMap.FavorPlus(RandomProjection.Orthogonal(256, 64, 1)), new LinearAttentionOptions { Causal = true });
        long few = attention.WorkspaceBytes(new AttentionShape(1, 4096, 8, 64));
        long many = attention.WorkspaceBytes(new AttentionShape(1, 1 << 20, 8, 64));
        Assert.Equal(few, many);
        Assert.InRange(many, 1, 64 << 20);
        using var softmax = new SoftmaxAttention(_device);
        Assert.Equal(softmax.WorkspaceBytes(new AttentionShape(1, 4096, 8, 64)), softmax.WorkspaceBytes(new AttentionShape(1, 1 << 20, 8, 64)));
    }

    [Fact]
    public void Disposing_an_operator_leaves_a_running_call_its_memory()
    {
        var shape = new AttentionShape(1, 64, 2, 4);
        float[] rows = TestData.Normal(1, shape.QueryElements);
        using var executor = new Executor(_device);
        long held = 0;
        FeatureMap map = FeatureMap.FromFunction("disposes", x =>
        {
            executor.Dispose();
            Volatile.Write(ref held, executor.HeldBytes);
            return x * x;
        });
        var problem = new AttentionProblem { Shape = shape, Features = map.Lower(4, 1) };
        float[] output = new float[rows.Length];
        Run();
        Assert.All(output, x => Assert.True(float.IsFinite(x)));
        Assert.True(held > 0);
        Assert.Equal(0, executor.HeldBytes);
        Assert.Throws<ObjectDisposedException>(Run);

        unsafe void Run()
        {
            fixed (float* x = rows)
            fixed (float* y = output)
            {
                executor.Forward(problem, DenseBuffers.Of(shape, ElementType.Single, x, x, x, y));
            }
        }
    }

    [Fact]
    public void A_call_into_a_running_operator_is_refused()
    {
        var shape = new AttentionShape(1, 8, 2, 4);
        float[] rows = TestData.Normal(1, shape.QueryElements);
        LinearAttention? attention = null;
        Exception? thrown = null;
        int calls = 0;
        using LinearAttention running = attention = new LinearAttention(_device, FeatureMap.FromFunction("calls", x =>
        {
            if (Interlocked.Increment(ref calls) == 1)
            {
                thrown = Record.Exception(() => attention!.Forward(shape, rows, rows, rows, new float[64]));
            }

            return x * x;
        }));
        running.Forward(shape, rows, rows, rows, new float[64]);
        Assert.IsType<InvalidOperationException>(thrown);
        running.Forward(shape, rows, rows, rows, new float[64]);
    }

    [Fact]
    public void Sizes_may_change_from_call_to_call()
    {
        using var attention = new LinearAttention(_device, FeatureMap.EluPlusOne);
        foreach (int dimension in new[] { 4, 12, 4 })
        {
            var shape = new AttentionShape(1, 70, 2, dimension);
            (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1);
            float[] actual = new float[shape.OutputElements];
            float[] expected = new float[shape.OutputElements];
            attention.Forward(shape, q, k, v, actual);
            using var fresh = new LinearAttention(_device, FeatureMap.EluPlusOne);
            fresh.Forward(shape, q, k, v, expected);
            Assert.Equal(expected, actual);
        }
    }

    [Fact]
    public void Threads_that_ask_for_sizes_get_their_own()
    {
        using var softmax = new SoftmaxAttention(_device);
        using var linear = new LinearAttention(_device, FeatureMap.EluPlusOne);
        Parallel.Invoke(() => Ask(8), () => Ask(800));

        void Ask(int dimension)
        {
            var shape = new AttentionShape(1, 4, 1, dimension);
            using var softmaxAlone = new SoftmaxAttention(_device);
            using var linearAlone = new LinearAttention(_device, FeatureMap.EluPlusOne);
            (long S, long L) expected = (softmaxAlone.WorkspaceBytes(shape), linearAlone.WorkspaceBytes(shape));
            for (int i = 0; i < 100_000; i++)
            {
                if ((softmax.WorkspaceBytes(shape), linear.WorkspaceBytes(shape)) != expected)
                {
                    Assert.Fail($"round {i}: another thread's problem");
                }
            }
        }
    }

    [Fact]
    public void Disposed_objects_say_so()
    {
        var shape = new AttentionShape(1, 8, 2, 4);
        float[] data = new float[64];
        var attention = new LinearAttention(_device, FeatureMap.EluPlusOne);
        attention.Dispose();
        attention.Dispose();
        Assert.Throws<ObjectDisposedException>(() => attention.Forward(shape, data, data, data, new float[64]));

        ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var orphan = new LinearAttention(device, FeatureMap.EluPlusOne);
        device.Dispose();
        Assert.Throws<ObjectDisposedException>(() => orphan.Forward(shape, data, data, data, new float[64]));
        Assert.Throws<ObjectDisposedException>(() => new SoftmaxAttention(device));
    }

    [Fact]
    public void A_callers_function_that_throws_is_heard()
    {
        var shape = new AttentionShape(4, 100, 4, 8);
        float[] data = TestData.Normal(1, shape.QueryElements);
        using var attention = new LinearAttention(_device, FeatureMap.FromFunction("bad", x => x > 2.5f ? throw new FormatException("my own") : 1));
        Assert.Throws<FormatException>(() => attention.Forward(shape, data, data, data, new float[data.Length]));
        float[] small = [.. data.Select(x => x / 10)];
        attention.Forward(shape, small, small, small, new float[data.Length]);
    }

    // In a key or in a query, of the last head: those before it must not have taken theirs.
    [Theory]
    [InlineData(true, 8)]
    [InlineData(false, 8)]
    [InlineData(true, 5)]
    [InlineData(false, 5)]
    public void A_callers_function_that_throws_leaves_a_stream_where_it_was(bool inKey, int dimension)
    {
        var shape = new AttentionShape(1, 1, 4, dimension);
        using var attention = new LinearAttention(
            _device, FeatureMap.FromFunction("bad", x => x > 9 ? throw new FormatException("my own") : 1 + (x * x)), new LinearAttentionOptions { Causal = true });
        AttentionState state = attention.CreateState(1, 4, dimension, dimension);
        float[] token = TestData.Normal(1, shape.QueryElements);
        float[] output = new float[token.Length];
        attention.Step(state, shape, token, token, token, output);
        AttentionState before = state.Fork();

        float[] bad = [.. token];
        bad[^1] = 10;
        Assert.Throws<FormatException>(() => attention.Step(state, shape, inKey ? token : bad, inKey ? bad : token, token, output));
        Assert.Equal(before.Normalizers, state.Normalizers);
        Assert.Equal(before.Sums, state.Sums);
        if (inKey)
        {
            Assert.Throws<FormatException>(() => attention.Append(state, shape, bad, token));
            Assert.Equal(before.Normalizers, state.Normalizers);
            Assert.Equal(before.Sums, state.Sums);
        }
    }

    [Fact]
    public void The_host_is_always_a_device_and_every_refusal_has_a_reason()
    {
        IReadOnlyList<DeviceInfo> devices = ComputeDevice.Enumerate();
        DeviceInfo host = Assert.Single(devices, d => d.Kind == DeviceKind.Cpu);
        Assert.True(host.IsUsable);
        Assert.True(host.ComputeUnits > 0 && host.MemoryBytes > 0);
        Assert.All(devices, d => Assert.NotEmpty(d.Name));
        Assert.All(devices, d => Assert.True(d.IsUsable || d.Refusal!.Length > 10));
        foreach (DeviceKind kind in Enum.GetValues<DeviceKind>().Where(kind => !devices.Any(d => d.Kind == kind && d.IsUsable)))
        {
            var thrown = Assert.Throws<NotSupportedException>(() => ComputeDevice.Open(kind));
            Assert.Contains(kind.ToString(), thrown.Message, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void The_choice_of_a_device_is_on_it_and_in_the_log()
    {
        using var log = new Recorder();
        using ComputeDevice device = ComputeDevice.OpenDefault(new ComputeDeviceOptions { LoggerFactory = log });
        Assert.NotEmpty(device.Reason);
        Assert.Contains(log.Messages, m => m.Contains(device.Info.Name, StringComparison.Ordinal) && m.Contains(device.Reason, StringComparison.Ordinal));
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        Assert.Same(device, attention.Device);
    }

    private static TensorSpan<float> Tensor(float[] data, nint a, nint b, nint c, nint d) => new(data, [a, b, c, d]);

    /// <summary>Makes forms of rows of two elements, whatever it is asked for.</summary>
    private sealed class MapOfTwo() : FeatureMap("of two")
    {
        public override FeaturePair Lower(int dimension, float scale)
        {
            var form = new FeatureForm { InputDimension = 2, FeatureDimension = 2, Activation = FeatureActivation.Relu };
            return new FeaturePair(form, form);
        }
    }

    private sealed class Recorder : ILoggerFactory, ILogger
    {
        public List<string> Messages { get; } = [];

        public ILogger CreateLogger(string categoryName) => this;

        public void AddProvider(ILoggerProvider provider)
        {
        }

        public IDisposable? BeginScope<TState>(TState state)
            where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => true;

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter) =>
            Messages.Add(formatter(state, exception));

        public void Dispose()
        {
        }
    }
}
