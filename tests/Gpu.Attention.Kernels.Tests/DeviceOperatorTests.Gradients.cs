using System.Numerics.Tensors;
using Gpu.Attention.TestKit;
using Gpu.Attention.Tests;
using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention.Kernels.Tests;

// Backward passes of operators. A map that the engine does not differentiate is skipped: the host has it.
public abstract partial class DeviceOperatorTests
{
    public static TheoryData<string, bool> GradientKinds =>
        [.. from map in new[] { "favor+", "elu", "softmax" } from causal in new[] { false, true } select (map, causal)];

    [Theory]
    [MemberData(nameof(GradientKinds))]
    public void Gradients_pass_a_small_budget(string map, bool causal)
    {
        int length = Math.Min(_length, 100);
        var shape = new AttentionShape(2, length, length, 4, 2, 13, 10);
        AttentionProblem problem = Posed(map, shape, causal);
        SkipUnlessDifferentiated(problem);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 21);
        float[] g = TestData.Normal(22, shape.OutputElements);
        AttentionGradients? first = null;
        using var engine = new IlgpuEngine(_accelerator);
        Assert.Null(SegmentPlan.Find(problem, engine, 0, out long smallest, GradientParts.All(problem)));
        foreach (long budget in new[] { 0, smallest })
        {
            var options = new ComputeDeviceOptions { AllowFallback = false, MemoryBudgetBytes = budget };
            using Operators operators = Make(map, problem, options);
            float[] output = new float[shape.OutputElements];
            var actual = new AttentionGradients(new float[q.Length], new float[k.Length], new float[v.Length]);
            operators.Forward<float>(shape, q, k, v, output);
            operators.Backward<float>(shape, q, k, v, output, g, actual.Query, actual.Key, actual.Value);
            first ??= actual;
            RequireSameBits(first.Query, actual.Query);
            RequireSameBits(first.Key, actual.Key);
            RequireSameBits(first.Value, actual.Value);
            Assert.True(budget == 0 || operators.Device.MemoryUse.Peak <= Math.Max(budget, operators.ForwardBytes(shape)) + SegmentLayout.Alignment);

            operators.Backward<float>(shape, q, k, v, output, g, [], actual.Key, []);
            RequireSameBits(first.Key, actual.Key);
        }

        Tolerance.RequireGradients(problem, q, k, v, g, first!);
    }

    // 16-bit tensors with a layout: of the host, of the device, and the caller's views.
    [Theory]
    [MemberData(nameof(GradientKinds))]
    public void Gradients_of_tensors_and_views_stay_on_the_device(string map, bool causal)
    {
        int length = Math.Min(_length, 200);
        SequenceLayout layout = SequenceLayout.FromKeyLengths([length - 7, length], length, PaddingSide.Left);
        var shape = new AttentionShape(2, length, length, 4, 2, 13, 10);
        AttentionProblem problem = Posed(map, shape, causal) with { Storage = ElementType.Half, Layout = layout };
        SkipUnlessDifferentiated(problem);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 23);
        System.Half[] query = Halves(q), key = Halves(k), value = Halves(v), gradient = Halves(TestData.Normal(24, shape.OutputElements));
        var output = new System.Half[gradient.Length];
        using Operators operators = Make(map, problem, new ComputeDeviceOptions { AllowFallback = false });
        operators.Forward<System.Half>(shape, query, key, value, output, layout);
        System.Half[] expectedQuery = new System.Half[q.Length], expectedKey = new System.Half[k.Length], expectedValue = new System.Half[v.Length];
        operators.Backward<System.Half>(shape, query, key, value, output, gradient, expectedQuery, expectedKey, expectedValue, layout);
        Assert.Contains(expectedKey, x => x != (System.Half)0);

        DeviceTensor[] tensors =
        [
            Tensor(query, 4, 13), Tensor(key, 2, 13), Tensor(value, 2, 10), Tensor(output, 4, 10), Tensor(gradient, 4, 10),
            Tensor(new System.Half[q.Length], 4, 13), Tensor(new System.Half[k.Length], 2, 13), Tensor(new System.Half[v.Length], 2, 10),
        ];
        operators.Backward(tensors, layout);
        System.Half[][] expected = [expectedQuery, expectedKey, expectedValue];
        for (int i = 0; i < expected.Length; i++)
        {
            var actual = new System.Half[expected[i].Length];
            tensors[5 + i].Download<System.Half>(actual);
            Assert.Equal(expected[i], actual);
        }

        Array.ForEach(tensors, tensor => tensor.Dispose());
        MemoryBuffer1D<System.Half, Stride1D.Dense>[] buffers =
        [
            .. new[] { query, key, value, output, gradient, new System.Half[q.Length], new System.Half[k.Length], new System.Half[v.Length] }
                .Select(content => _accelerator.Allocate1D(content)),
        ];
        operators.Backward(shape, [.. buffers.Select(buffer => buffer.View.BaseView)], layout);
        _stream.Synchronize();
        for (int i = 0; i < expected.Length; i++)
        {
            Assert.Equal(expected[i], buffers[5 + i].GetAsArray1D());
        }

        Array.ForEach(buffers, buffer => buffer.Dispose());

        DeviceTensor Tensor(System.Half[] content, int heads, int width) =>
            DeviceTensor.From(operators.Device, new ReadOnlyTensorSpan<System.Half>(content, [2, length, heads, width]));
    }

    private static System.Half[] Halves(float[] content) => [.. content.Select(x => (System.Half)x)];

    private static AttentionProblem Posed(string map, AttentionShape shape, bool causal) => map == "softmax"
        ? new AttentionProblem { Shape = shape, Causal = causal, Scale = 1 / MathF.Sqrt(shape.KeyDimension) }
        : Maps.Problem(map, shape, causal);

    private void SkipUnlessDifferentiated(AttentionProblem problem)
    {
        using var engine = new IlgpuEngine(_accelerator);
        EngineSupport support = engine.SupportsBackward(problem);
        Assert.SkipWhen(!support.IsSupported, support.Reason);
    }

    private Operators Make(string map, AttentionProblem problem, ComputeDeviceOptions options) => map == "softmax"
        ? new Operators(null, new SoftmaxAttention(Open(options), new SoftmaxAttentionOptions { Causal = problem.Causal }))
        : new Operators(Linear(map, problem.Shape, problem.Causal, options), null);

    /// <summary>One of the two operators.</summary>
    private sealed class Operators(LinearAttention? linear, SoftmaxAttention? softmax) : IDisposable
    {
        public ComputeDevice Device => linear?.Device ?? softmax!.Device;

        public long ForwardBytes(AttentionShape shape) => linear?.WorkspaceBytes(shape) ?? softmax!.WorkspaceBytes(shape);

        public void Forward<T>(AttentionShape shape, T[] query, T[] key, T[] value, T[] output, SequenceLayout? layout = null)
            where T : unmanaged
        {
            linear?.Forward<T>(shape, query, key, value, output, layout);
            softmax?.Forward<T>(shape, query, key, value, output, layout);
        }

        public void Backward<T>(
            AttentionShape shape, T[] query, T[] key, T[] value, T[] output, T[] outputGradient, T[] queryGradient, T[] keyGradient, T[] valueGradient,
            SequenceLayout? layout = null)
            where T : unmanaged
        {
            linear?.Backward<T>(shape, query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient, default, layout);
            softmax?.Backward<T>(shape, query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient, layout);
        }

        public void Backward(DeviceTensor[] t, SequenceLayout layout)
        {
            linear?.Backward(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], layout);
            softmax?.Backward(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], layout);
        }

        public void Backward(AttentionShape shape, ArrayView<System.Half>[] v, SequenceLayout layout)
        {
            linear?.Backward(shape, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], layout);
            softmax?.Backward(shape, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], layout);
        }

        public void Dispose()
        {
            linear?.Dispose();
            softmax?.Dispose();
        }
    }
}
