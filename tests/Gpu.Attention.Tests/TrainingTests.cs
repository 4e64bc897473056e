using System.Numerics.Tensors;
using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>Gradients through the operators: what they compute is the engine's to get right, and tested there.</summary>
public sealed class TrainingTests
{
    // A loss that is a sum over outputs, its gradient against differences of the operator's own forward pass.
    [Theory]
    [InlineData("favor+", false)]
    [InlineData("favor+", true)]
    [InlineData("elu", true)]
    [InlineData("softmax", true)]
    public void Gradients_are_those_of_the_forward_pass(string map, bool causal)
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var operation = new Operation(map, device, causal);
        var shape = new AttentionShape(2, 9, 9, 4, 2, 5, 3);
        SequenceLayout layout = SequenceLayout.FromKeyLengths([9, 6], 9, PaddingSide.Left);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 3, 0.7);
        float[] weights = TestData.Normal(4, shape.OutputElements);
        float[][] gradients = operation.Gradients(shape, q, k, v, weights, layout);
        float[][] inputs = [q, k, v];
        for (int input = 0; input < 3; input++)
        {
            for (int i = 0; i < inputs[input].Length; i += 7)
            {
                const float Step = 1e-2f;
                float[][] moved = [[.. q], [.. k], [.. v]];
                moved[input][i] += Step;
                double up = Loss(moved);
                moved[input][i] -= 2 * Step;
                Assert.Equal((up - Loss(moved)) / (2 * Step), gradients[input][i], 4e-3);
            }
        }

        // Keys and values of the padding.
        Assert.True(gradients[1].AsSpan(9 * 2 * 5, 3 * 2 * 5).IndexOfAnyExcept(0) < 0);
        Assert.True(gradients[2].AsSpan(9 * 2 * 3, 3 * 2 * 3).IndexOfAnyExcept(0) < 0);

        double Loss(float[][] x)
        {
            float[] output = operation.Forward(shape, x[0], x[1], x[2], layout);
            return output.Select((o, i) => (double)o * weights[i]).Sum();
        }
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    public void Pieces_with_the_gradients_of_their_states_give_the_whole(string map)
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var operation = new Operation(map, device, causal: true, dimension: 8);
        LinearAttention attention = operation.Linear!;
        var whole = new AttentionShape(1, 150, 2, 8);
        var first = new AttentionShape(1, 64, 2, 8);
        var second = new AttentionShape(1, 86, 2, 8);
        (float[] q, float[] k, float[] v) = TestData.Inputs(whole, 5, 0.5);
        float[] g = TestData.Normal(6, whole.OutputElements);
        float[][] expected = operation.Gradients(whole, q, k, v, g, null);

        int cut = 64 * 16;
        float[] o1 = new float[cut], o2 = new float[q.Length - cut];
        AttentionState between = attention.CreateState(1, 2, 8, 8);
        AttentionState end = attention.CreateState(1, 2, 8, 8);
        attention.Forward<float>(first, q.AsSpan(0, cut), k.AsSpan(0, cut), v.AsSpan(0, cut), o1, null, between);
        attention.Forward<float>(second, q.AsSpan(cut), k.AsSpan(cut), v.AsSpan(cut), o2, between, end);
        var betweenGradient = new AttentionStateGradient(between);
        float[] dq = new float[q.Length], dk = new float[q.Length], dv = new float[q.Length];
        attention.Backward<float>(
            second, q.AsSpan(cut), k.AsSpan(cut), v.AsSpan(cut), o2, g.AsSpan(cut), dq.AsSpan(cut), dk.AsSpan(cut), dv.AsSpan(cut),
            new StateGradients { InitialState = between, InitialStateGradient = betweenGradient });
        attention.Backward<float>(
            first, q.AsSpan(0, cut), k.AsSpan(0, cut), v.AsSpan(0, cut), o1, g.AsSpan(0, cut), dq.AsSpan(0, cut), dk.AsSpan(0, cut), dv.AsSpan(0, cut),
            new StateGradients { FinalState = between, FinalStateGradient = betweenGradient });
        foreach ((float[] one, float[] pieces) in new[] { (expected[0], dq), (expected[1], dk), (expected[2], dv) })
        {
            for (int i = 0; i < one.Length; i++)
            {
                Assert.Equal(one[i], pieces[i], 2e-5f * (1 + MathF.Abs(one[i])));
            }
        }
    }

    [Fact]
    public void Tensors_of_16_bits_and_unwanted_gradients_pass()
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne, new LinearAttentionOptions { Causal = true });
        nint[] sizes = [1, 20, 2, 4];
        Half[] rows = [.. TestData.Normal(7, 160).Select(x => (Half)x)];
        var output = new Half[160];
        Half[][] gradients = [new Half[160], new Half[160], new Half[160]];
        var tokens = new ReadOnlyTensorSpan<Half>(rows, sizes);
        attention.Forward(tokens, tokens, tokens, new TensorSpan<Half>(output, sizes));
        attention.Backward(
            tokens, tokens, tokens, new ReadOnlyTensorSpan<Half>(output, sizes), tokens, new TensorSpan<Half>(gradients[0], sizes),
            new TensorSpan<Half>(gradients[1], sizes), new TensorSpan<Half>(gradients[2], sizes));
        var alone = new Half[160];
        attention.Backward<Half>(new AttentionShape(1, 20, 2, 4), rows, rows, rows, output, rows, [], [], alone);
        Assert.Equal(gradients[2], alone);
        Assert.Contains(gradients[0], x => x != (Half)0);
    }

    [Fact]
    public void A_device_without_a_backward_pass_hands_over_to_the_host_and_says_so()
    {
        var fake = new FakeDevice(1L << 30, QueueTiming.Eager) { BackwardRefusal = "there is no backward pass" };
        using ComputeDevice device = fake.Open();
        using var operation = new Operation("elu", device, causal: true);
        var shape = new AttentionShape(1, 8, 1, 4);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 8);
        operation.Gradients(shape, q, k, v, v, null);
        Assert.Equal(DeviceKind.Cpu, operation.Linear!.LastDevice.Kind);
        Assert.Contains("no backward pass", Assert.Single(operation.Linear.Fallbacks).Reason, StringComparison.Ordinal);

        using ComputeDevice strict = fake.Open(new ComputeDeviceOptions { AllowFallback = false });
        using var alone = new Operation("elu", strict, causal: true);
        Assert.Contains(
            "no backward pass", Assert.Throws<NotSupportedException>(() => alone.Gradients(shape, q, k, v, v, null)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void What_does_not_fit_is_refused_by_name()
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        var shape = new AttentionShape(1, 4, 1, 3);
        float[] x = new float[12], o = new float[12], dq = new float[12], dk = new float[12], dv = new float[12];
        Refused("outputGradient", () => attention.Backward<float>(shape, x, x, x, o, new float[11], dq, dk, dv));
        Refused("keyGradient", () => attention.Backward<float>(shape, x, x, x, o, o, dq, new float[13], dv));
        Refused("queryGradient", () => attention.Backward<float>(shape, x, x, x, o, o, x, dk, dv));
        Refused("keyGradient", () => attention.Backward<float>(shape, x, x, x, o, o, dq, dq, dv));
        AttentionState state = attention.CreateState(1, 1, 3, 3);
        Refused("states", () => attention.Backward<float>(
            shape, x, x, x, o, o, dq, dk, dv, new StateGradients { FinalStateGradient = new AttentionStateGradient(state) }));
        Refused("states", () => attention.Backward<float>(
            shape, x, x, x, o, o, dq, dk, dv, new StateGradients { InitialState = attention.CreateState(2, 1, 3, 3) }));
        using var function = new LinearAttention(device, FeatureMap.FromFunction("softplus", y => MathF.Log(1 + MathF.Exp(y))));
        Assert.Contains(
            "derivative", Assert.Throws<NotSupportedException>(() => function.Backward<float>(shape, x, x, x, o, o, dq, dk, dv)).Message,
            StringComparison.Ordinal);
        Assert.True(attention.BackwardWorkspaceBytes(new AttentionShape(1, 1 << 20, 8, 64)) < 1L << 30);
    }

    private static void Refused(string parameter, Action call) => Assert.Throws<ArgumentException>(parameter, call);

    private sealed class Operation : IDisposable
    {
        private readonly SoftmaxAttention? _softmax;

        public Operation(string map, ComputeDevice device, bool causal, int dimension = 5)
        {
            if (map == "softmax")
            {
                _softmax = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = causal });
            }
            else
            {
                FeatureMap features = map == "elu" ? FeatureMap.EluPlusOne : Maps.Create(map, dimension);
                Linear = new LinearAttention(device, features, new LinearAttentionOptions { Causal = causal });
            }
        }

        public LinearAttention? Linear { get; }

        public float[] Forward(AttentionShape shape, float[] q, float[] k, float[] v, SequenceLayout? layout)
        {
            float[] output = new float[shape.OutputElements];
            if (_softmax is not null)
            {
                _softmax.Forward<float>(shape, q, k, v, output, layout);
            }
            else
            {
                Linear!.Forward<float>(shape, q, k, v, output, layout);
            }

            return output;
        }

        public float[][] Gradients(AttentionShape shape, float[] q, float[] k, float[] v, float[] outputGradient, SequenceLayout? layout)
        {
            float[] output = Forward(shape, q, k, v, layout);
            float[][] gradients = [new float[q.Length], new float[k.Length], new float[v.Length]];
            if (_softmax is not null)
            {
                _softmax.Backward<float>(shape, q, k, v, output, outputGradient, gradients[0], gradients[1], gradients[2], layout);
            }
            else
            {
                Linear!.Backward<float>(shape, q, k, v, output, outputGradient, gradients[0], gradients[1], gradients[2], default, layout);
            }

            return gradients;
        }

        public void Dispose()
        {
            _softmax?.Dispose();
            Linear?.Dispose();
        }
    }
}
