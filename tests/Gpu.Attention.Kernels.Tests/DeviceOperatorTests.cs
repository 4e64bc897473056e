using System.Numerics.Tensors;
using System.Runtime.InteropServices;
using Gpu.Attention.TestKit;
using Gpu.Attention.Tests;
using ILGPU;
using ILGPU.Runtime;
using ILGPU.Runtime.OpenCL;

namespace Gpu.Attention.Kernels.Tests;

/// <summary>Operators on a caller's accelerator: cut to a small budget, on tensors and views of the device, and without a leak.</summary>
public abstract partial class DeviceOperatorTests : IDisposable
{
    private readonly Accelerator _accelerator;
    private readonly AcceleratorStream _stream;
    private readonly int _length;
    private readonly List<ComputeDevice> _devices = [];

    private protected DeviceOperatorTests(Accelerator accelerator, int length)
    {
        _accelerator = accelerator;
        _stream = accelerator.CreateStream();
        _length = length;
    }

    public static TheoryData<string, bool, bool> Kinds =>
        [.. from map in new[] { "favor+", "elu" } from causal in new[] { false, true } from hasStates in new[] { false, true } select (map, causal, hasStates)];

    [Theory]
    [MemberData(nameof(Kinds))]
    public void A_small_budget_changes_no_bit(string map, bool causal, bool hasStates)
    {
        var shape = new AttentionShape(2, _length, _length, 4, 2, 13, 10);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 11);
        using LinearAttention whole = Linear(map, shape, causal, new ComputeDeviceOptions { AllowFallback = false });
        AttentionState? before = hasStates ? State(whole, shape) : null;
        AttentionState? expectedState = before?.Fork();
        float[] expected = new float[shape.OutputElements];
        whole.Forward(shape, q, k, v, expected, expectedState, expectedState);

        AttentionProblem problem = Maps.Problem(map, shape, causal) with { HasInitialState = hasStates, WantsFinalState = hasStates };
        Tolerance.Require(problem with { HasInitialState = false, WantsFinalState = false }, q, k, v, hasStates ? Plain(whole, shape, q, k, v) : expected);
        using var engine = new IlgpuEngine(_accelerator);
        Assert.Null(SegmentPlan.Find(problem, engine, 0, out long smallest));
        foreach (long budget in new[] { smallest, smallest * 2 })
        {
            using LinearAttention small = Linear(map, shape, causal, new ComputeDeviceOptions { AllowFallback = false, MemoryBudgetBytes = budget });
            AttentionState? state = before?.Fork();
            float[] actual = new float[shape.OutputElements];
            small.Forward(shape, q, k, v, actual, state, state);
            RequireSameBits(expected, actual);
            Assert.InRange(small.Device.MemoryUse.Peak, 1, budget + SegmentLayout.Alignment);
            if (state is not null)
            {
                RequireSameBits(expectedState!.LogScale, state.LogScale);
                RequireSameBits(expectedState.Sums, state.Sums);
                RequireSameBits(expectedState.Normalizers, state.Normalizers);
            }
        }
    }

    [Fact]
    public void Exact_attention_runs_under_a_budget()
    {
        var shape = new AttentionShape(2, _length, _length, 4, 2, 13, 10);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 12);
        var problem = new AttentionProblem { Shape = shape, Causal = true, Scale = 1 / MathF.Sqrt(13) };
        using var engine = new IlgpuEngine(_accelerator);
        Assert.Null(SegmentPlan.Find(problem, engine, 0, out long smallest));
        float[]? first = null;
        foreach (long budget in new[] { smallest, 0 })
        {
            using var attention = new SoftmaxAttention(
                Open(new ComputeDeviceOptions { AllowFallback = false, MemoryBudgetBytes = budget }), new SoftmaxAttentionOptions { Causal = true });
            float[] actual = new float[shape.OutputElements];
            attention.Forward(shape, q, k, v, actual);
            Tolerance.Require(problem, q, k, v, actual);
            RequireSameBits(first ??= actual, actual);
        }
    }

    [Fact]
    public void Tensors_stay_on_the_device()
    {
        var shape = new AttentionShape(1, _length, _length, 2, 1, 8, 12);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 13);
        using LinearAttention attention = Linear("favor+", shape, true, null);
        float[] expected = Plain(attention, shape, q, k, v);
        using DeviceTensor query = DeviceTensor.From(attention.Device, new ReadOnlyTensorSpan<float>(q, [1, _length, 2, 8]));
        using DeviceTensor key = DeviceTensor.From(attention.Device, new ReadOnlyTensorSpan<float>(k, [1, _length, 1, 8]));
        using DeviceTensor value = DeviceTensor.From(attention.Device, new ReadOnlyTensorSpan<float>(v, [1, _length, 1, 12]));
        using DeviceTensor output = DeviceTensor.Allocate(attention.Device, 1, _length, 2, 12);
        float[] actual = new float[expected.Length];
        for (int i = 0; i < 2; i++)
        {
            attention.Forward(query, key, value, output);
            output.Download(actual);
            RequireSameBits(expected, actual);
        }
    }

    // Packed prompts into states, in segments of whole sequences; then the same with 16-bit tensors that stay on the device, and with the caller's views.
    [Theory]
    [InlineData("favor+", false)]
    [InlineData("favor+", true)]
    [InlineData("elu", true)]
    public void Packed_sequences_pass_a_small_budget_and_stay_on_the_device(string map, bool causal)
    {
        int[] ends = [0, _length / 2, _length / 2, _length - 3, _length];
        SequenceLayout layout = SequenceLayout.FromCuSeqlens(ends);
        var shape = new AttentionShape(1, _length, _length, 4, 2, 13, 10);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 15);
        using LinearAttention whole = Linear(map, shape, causal, new ComputeDeviceOptions { AllowFallback = false });
        AttentionState expectedState = whole.CreateState(4, 2, 10, 13);
        float[] expected = new float[shape.OutputElements];
        whole.Forward<float>(shape, q, k, v, expected, expectedState, expectedState, layout);

        AttentionProblem problem = Maps.Problem(map, shape, causal) with { HasInitialState = true, WantsFinalState = true, Layout = layout };
        using var engine = new IlgpuEngine(_accelerator);
        Assert.Null(SegmentPlan.Find(problem, engine, 0, out long smallest));
        using LinearAttention small = Linear(map, shape, causal, new ComputeDeviceOptions { AllowFallback = false, MemoryBudgetBytes = smallest });
        AttentionState state = small.CreateState(4, 2, 10, 13);
        float[] actual = new float[shape.OutputElements];
        small.Forward<float>(shape, q, k, v, actual, state, state, layout);
        RequireSameBits(expected, actual);
        RequireSameBits(expectedState.Sums, state.Sums);
        RequireSameBits(expectedState.Normalizers, state.Normalizers);

        System.Half[] half = [.. q.Select(x => (System.Half)x)], halfKey = [.. k.Select(x => (System.Half)x)], halfValue = [.. v.Select(x => (System.Half)x)];
        var fromHost = new System.Half[expected.Length];
        whole.Forward<System.Half>(shape, half, halfKey, halfValue, fromHost, layout);
        using DeviceTensor query = DeviceTensor.From(whole.Device, new ReadOnlyTensorSpan<System.Half>(half, [1, _length, 4, 13]));
        using DeviceTensor key = DeviceTensor.From(whole.Device, new ReadOnlyTensorSpan<System.Half>(halfKey, [1, _length, 2, 13]));
        using DeviceTensor value = DeviceTensor.From(whole.Device, new ReadOnlyTensorSpan<System.Half>(halfValue, [1, _length, 2, 10]));
        using DeviceTensor output = DeviceTensor.Allocate<System.Half>(whole.Device, 1, _length, 4, 10);
        whole.Forward(query, key, value, output, layout);
        var onDevice = new System.Half[expected.Length];
        output.Download<System.Half>(onDevice);
        Assert.Equal(fromHost, onDevice);

        using MemoryBuffer1D<System.Half, Stride1D.Dense> queries = _accelerator.Allocate1D(half);
        using MemoryBuffer1D<System.Half, Stride1D.Dense> keys = _accelerator.Allocate1D(halfKey);
        using MemoryBuffer1D<System.Half, Stride1D.Dense> values = _accelerator.Allocate1D(halfValue);
        using MemoryBuffer1D<System.Half, Stride1D.Dense> outputs = _accelerator.Allocate1D<System.Half>(expected.Length);
        whole.Forward(shape, queries.View.BaseView, keys.View.BaseView, values.View.BaseView, outputs.View.BaseView, layout);
        _stream.Synchronize();
        Assert.Equal(fromHost, outputs.GetAsArray1D());
    }

    [Fact]
    public void Mass_is_summed_on_the_device()
    {
        var shape = new AttentionShape(1, _length, _length, 2, 1, 13, 1);
        (float[] q, float[] k, _) = TestData.Inputs(shape, 16);
        SequenceLayout layout = SequenceLayout.FromKeyLengths([_length - 2], _length, PaddingSide.Left);
        using LinearAttention attention = Linear("favor+", shape, true, new ComputeDeviceOptions { AllowFallback = false });
        int[] tokens = [0, 5, _length - 1];
        float[] mass = new float[2 * tokens.Length];
        attention.ReceivedMass(shape, q, k, tokens, mass, layout);
        float[] weights = new float[2 * _length * _length];
        attention.Weights(shape, q, k, [.. Enumerable.Range(0, _length)], weights, layout);
        for (int i = 0; i < mass.Length; i++)
        {
            int head = i / tokens.Length;
            Assert.Equal(Enumerable.Range(0, _length).Sum(row => (double)weights[(((head * _length) + row) * _length) + tokens[i % tokens.Length]]), mass[i], 1e-4);
        }

        Assert.Equal(0, mass[0]);
    }

    // Views that begin anywhere in one buffer, on the caller's stream.
    [Fact]
    public void A_caller_s_own_views_are_used_without_a_copy()
    {
        var shape = new AttentionShape(2, _length, _length, 2, 2, 5, 7);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 14);
        using LinearAttention attention = Linear("elu", shape, true, null);
        using var exact = new SoftmaxAttention(attention.Device);
        float[] expected = Plain(attention, shape, q, k, v);
        using MemoryBuffer1D<float, Stride1D.Dense> buffer = _accelerator.Allocate1D(new float[q.Length + k.Length + v.Length + expected.Length + 20]);
        long at = 1;
        ArrayView<float> query = Place(q);
        ArrayView<float> key = Place(k);
        ArrayView<float> value = Place(v);
        ArrayView<float> output = Place(new float[expected.Length]);
        attention.Forward(shape, query, key, value, output);
        _stream.Synchronize();
        RequireSameBits(expected, Content(output));
        exact.Forward(shape, query, key, value, output);
        _stream.Synchronize();
        float[] actual = Content(output);
        exact.Forward(shape, q, k, v, expected);
        RequireSameBits(expected, actual);

        Assert.Throws<ArgumentException>("key", () => attention.Forward(shape, query, key.SubView(1, key.Length - 1), value, output));
        Assert.Contains("overlaps", Assert.Throws<ArgumentException>("output", () => attention.Forward(
            shape, query, key, value, buffer.View.BaseView.SubView(3, output.Length))).Message, StringComparison.Ordinal);
        using Accelerator other = TestAccelerators.OpenSimulator(2, 2);
        using MemoryBuffer1D<float, Stride1D.Dense> elsewhere = other.Allocate1D<float>(key.Length);
        Assert.Contains("operator's device", Assert.Throws<ArgumentException>("key", () => attention.Forward(
            shape, query, elsewhere.View.BaseView, value, output)).Message, StringComparison.Ordinal);

        ArrayView<float> Place(float[] content)
        {
            ArrayView<float> view = buffer.View.BaseView.SubView(at, content.Length);
            view.CopyFromCPU(_stream, content);
            _stream.Synchronize();
            at += content.Length + 3;
            return view;
        }

        float[] Content(ArrayView<float> view)
        {
            float[] content = new float[view.Length];
            view.CopyToCPU(_stream, content);
            _stream.Synchronize();
            return content;
        }
    }

    // A driver takes the address that it had, and the process or the context ends.
    [Fact]
    public void A_view_of_freed_memory_is_refused()
    {
        var shape = new AttentionShape(1, 4, 1, 2);
        using LinearAttention attention = Linear("elu", shape, true, null);
        using MemoryBuffer1D<float, Stride1D.Dense> buffer = _accelerator.Allocate1D<float>(24);
        MemoryBuffer1D<float, Stride1D.Dense> freed = _accelerator.Allocate1D<float>(8);
        ArrayView<float> view = freed.View.BaseView;
        freed.Dispose();
        ArrayView<float> all = buffer.View.BaseView;
        Assert.Equal("key", Assert.Throws<ObjectDisposedException>(() => attention.Forward(shape, all.SubView(0, 8), view, all.SubView(8, 8), all.SubView(16, 8))).ObjectName);
    }

    // An arena of bytes, as programs with a pool of their own have it.
    [Fact]
    public void A_view_may_be_cast_from_memory_of_another_type()
    {
        var shape = new AttentionShape(1, _length, 1, 4);
        (float[] q, _, _) = TestData.Inputs(shape, 15);
        using LinearAttention attention = Linear("elu", shape, true, null);
        float[] expected = Plain(attention, shape, q, q, q);
        using MemoryBuffer1D<byte, Stride1D.Dense> arena = _accelerator.Allocate1D<byte>((2 * q.Length * sizeof(float)) + 256);
        ArrayView<float> all = arena.View.BaseView.Cast<float>();
        ArrayView<float> rows = all.SubView(3, q.Length);
        ArrayView<float> output = all.SubView(q.Length + 5, q.Length);
        rows.CopyFromCPU(_stream, q);
        attention.Forward(shape, rows, rows, rows, output);
        float[] actual = new float[q.Length];
        output.CopyToCPU(_stream, actual);
        _stream.Synchronize();
        RequireSameBits(expected, actual);
    }

    [Fact]
    public void A_stream_of_another_accelerator_is_refused()
    {
        using Accelerator other = TestAccelerators.OpenSimulator(2, 2);
        using AcceleratorStream stream = other.CreateStream();
        Assert.Throws<ArgumentException>(nameof(stream), () => ComputeDevice.FromAccelerator(_accelerator, stream));
    }

    /// <summary>Whatever a test did, the device holds nothing of it.</summary>
    public void Dispose()
    {
        GC.SuppressFinalize(this);
        long live = 0;
        foreach (ComputeDevice device in _devices)
        {
            device.Dispose();
            live += device.MemoryUse.Live + device.MemoryUse.Held;
        }

        _stream.Dispose();
        Assert.Equal(0, live);
    }

    private static AttentionState State(LinearAttention attention, AttentionShape shape)
    {
        AttentionState state = attention.CreateState(shape.Batch, shape.KeyHeads, shape.ValueDimension, shape.KeyDimension);
        TestData.Normal(1, state.LogScale.Length).CopyTo(state.LogScale);
        TestData.Normal(2, state.Sums.Length).CopyTo(state.Sums);
        Array.ConvertAll(TestData.Normal(3, state.Normalizers.Length), x => 1 + MathF.Abs(x)).CopyTo(state.Normalizers);
        return state;
    }

    private static float[] Plain(LinearAttention attention, AttentionShape shape, float[] q, float[] k, float[] v)
    {
        float[] output = new float[shape.OutputElements];
        attention.Forward(shape, q, k, v, output);
        Assert.Equal(attention.Device.Info, attention.LastDevice);
        return output;
    }

    private static void RequireSameBits(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual) =>
        Assert.True(MemoryMarshal.AsBytes(expected).SequenceEqual(MemoryMarshal.AsBytes(actual)));

    private LinearAttention Linear(string map, AttentionShape shape, bool causal, ComputeDeviceOptions? options) =>
        new(Open(options), Maps.Create(map, shape.KeyDimension), new LinearAttentionOptions { Causal = causal });

    private ComputeDevice Open(ComputeDeviceOptions? options)
    {
        ComputeDevice device = ComputeDevice.FromAccelerator(_accelerator, _stream, options);
        _devices.Add(device);
        return device;
    }
}

/// <summary>On the simulator.</summary>
[Collection(TestAccelerators.Simulators)]
public sealed class SimulatedOperatorTests() : DeviceOperatorTests(TestAccelerators.SharedSimulator(2, 2), length: 35)
{
    [Fact]
    public void The_simulator_runs_when_asked_for_and_never_by_default()
    {
        using ComputeDevice byDefault = ComputeDevice.OpenDefault();
        Assert.NotEqual(DeviceKind.Simulator, byDefault.Info.Kind);
        using (ComputeDevice device = ComputeDevice.Open("simulator"))
        {
            using var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
            var shape = new AttentionShape(1, 3, 1, 2);
            float[] output = new float[6];
            attention.Forward(shape, [1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1], [2, 4, 2, 4, 2, 4], output);
            Assert.Equal([2, 4, 2, 4, 2, 4], output);
            Assert.Equal(DeviceKind.Simulator, attention.LastDevice.Kind);
        }

        using ComputeDevice again = ComputeDevice.Open(DeviceKind.Simulator);
        using DeviceTensor tensor = DeviceTensor.Allocate(again, 3);
        Assert.Equal(256, again.MemoryUse.Live);
    }

    [Fact]
    public void An_accelerator_that_is_gone_hands_over_to_the_host_and_says_so()
    {
        Accelerator accelerator = TestAccelerators.OpenSimulator(2, 2);
        ComputeDevice device = ComputeDevice.FromAccelerator(accelerator);
        var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        var shape = new AttentionShape(1, 3, 1, 2);
        float[] output = new float[6];
        attention.Forward(shape, new float[6], new float[6], [1, 2, 1, 2, 1, 2], output);
        DeviceTensor tensor = DeviceTensor.Allocate(device, 3);
        accelerator.Dispose();
        attention.Forward(shape, new float[6], new float[6], [1, 2, 1, 2, 1, 2], output);
        Assert.Equal([1, 2, 1, 2, 1, 2], output);
        Assert.Contains("disposed", Assert.Single(attention.Fallbacks).Reason, StringComparison.Ordinal);
        Assert.Contains("disposed", Assert.Throws<DeviceException>(() => tensor.Upload([1f, 2, 3])).Message, StringComparison.Ordinal);
        tensor.Dispose();
        attention.Dispose();
        device.Dispose();
        Assert.Equal((0, 0), (device.MemoryUse.Live, device.MemoryUse.Held));
    }

    [Fact]
    public void A_driver_s_code_is_named_where_its_exception_has_no_message()
    {
        using Accelerator accelerator = TestAccelerators.OpenSimulator(2, 2);
        var runtime = new IlgpuRuntime(new DeviceInfo { Kind = DeviceKind.OpenCL, Name = "a test" }, accelerator, null);
        var exception = new CLException(CLError.CL_BUILD_PROGRAM_FAILURE);
        Assert.Equal(nameof(CLError.CL_BUILD_PROGRAM_FAILURE), runtime.Describe(exception));
        Assert.Equal($"not compiled: {nameof(CLError.CL_BUILD_PROGRAM_FAILURE)}", runtime.Describe(new InvalidOperationException("not compiled", exception)));
        Assert.Equal("it burns", runtime.Describe(new InvalidOperationException("it burns")));
    }

    // Kernels need groups of four threads at least.
    [Fact]
    public void An_accelerator_that_kernels_do_not_fit_hands_over_to_the_host()
    {
        using Accelerator tiny = TestAccelerators.OpenSimulator(2, 1);
        using ComputeDevice device = ComputeDevice.FromAccelerator(tiny);
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        float[] output = new float[6];
        attention.Forward(new AttentionShape(1, 3, 1, 2), new float[6], new float[6], [1, 2, 1, 2, 1, 2], output);
        Assert.Equal([1, 2, 1, 2, 1, 2], output);
        Assert.Equal(DeviceKind.Cpu, attention.LastDevice.Kind);
        Assert.Contains("Groups of", Assert.Single(attention.Fallbacks).Reason, StringComparison.Ordinal);

        using ComputeDevice strict = ComputeDevice.FromAccelerator(tiny, options: new ComputeDeviceOptions { AllowFallback = false });
        using var alone = new LinearAttention(strict, FeatureMap.EluPlusOne);
        Assert.Contains("Groups of", Assert.Throws<DeviceException>(() => alone.Forward(
            new AttentionShape(1, 3, 1, 2), new float[6], new float[6], new float[6], output)).Message, StringComparison.Ordinal);
    }
}

/// <summary>On OpenCL.</summary>
[Collection(TestAccelerators.Drivers)]
public sealed class OpenCLOperatorTests() : DeviceOperatorTests(TestAccelerators.SharedOpenCL(), length: 500);

/// <summary>On CUDA.</summary>
[Collection(TestAccelerators.Drivers)]
public sealed class CudaOperatorTests() : DeviceOperatorTests(TestAccelerators.SharedCuda(), length: 500);
