using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>Random features drawn anew under an operator that goes on.</summary>
public sealed class ReplaceFeaturesTests : IDisposable
{
    private readonly ComputeDevice _host = ComputeDevice.Open(DeviceKind.Cpu);
    private readonly FakeDevice _fake = new(1L << 30, QueueTiming.Lazy);
    private readonly ComputeDevice _device;

    public ReplaceFeaturesTests() => _device = _fake.Open(new ComputeDeviceOptions { AllowFallback = false });

    private static RandomProjection First => RandomProjection.Orthogonal(24, 12, seed: 42);

    public void Dispose()
    {
        _host.Dispose();
        _device.Dispose();
        Assert.Equal(0, _fake.Allocated);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void An_operator_with_new_features_is_a_new_operator(bool onHost)
    {
        var shape = new AttentionShape(2, 100, 2, 12);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1);
        var schedule = ProjectionSchedule.Every(1, First);
        using LinearAttention attention = Open(schedule.Projection, onHost);
        var outputs = new List<float[]>();
        for (int step = 0; step < 4; step++)
        {
            if (schedule.Advance())
            {
                attention.ReplaceFeatures(FeatureMap.FavorPlus(schedule.Projection));
            }

            using LinearAttention fresh = Open(schedule.Projection, onHost);
            outputs.Add(Forward(attention, shape, q, k, v));
            Assert.Equal(Forward(fresh, shape, q, k, v), outputs[^1]);
            Assert.DoesNotContain(outputs[..^1], outputs[^1].SequenceEqual);
            if (onHost)
            {
                Assert.Equal(Backward(fresh, shape, q, k, v, outputs[^1]), Backward(attention, shape, q, k, v, outputs[^1]));
            }
        }
    }

    [Fact]
    public void States_of_the_old_features_are_refused_and_take_no_harm()
    {
        var shape = new AttentionShape(1, 5, 2, 12);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1);
        var schedule = ProjectionSchedule.OnCall(First);
        using LinearAttention attention = Open(schedule.Projection, onHost: true);
        AttentionState state = attention.CreateState(1, 2, 12);
        attention.Append(state, shape, k, v);
        float[] expected = new float[shape.OutputElements], actual = new float[shape.OutputElements];
        attention.Read(state, shape, q, expected);

        schedule.Redraw();
        attention.ReplaceFeatures(FeatureMap.FavorPlus(schedule.Projection));
        foreach (Action use in new Action[]
        {
            () => attention.Append(state, shape, k, v), () => attention.Read(state, shape, q, actual), () => attention.Step(state, shape, q, k, v, actual),
            () => attention.Forward(shape, q, k, v, actual, state, null), () => attention.Forward(shape, q, k, v, actual, null, state),
            () => attention.Backward(shape, q, k, v, actual, actual, q, k, v, new StateGradients { InitialState = state }),
        })
        {
            Assert.Contains("draw", Assert.Throws<ArgumentException>(use).Message, StringComparison.Ordinal);
        }

        using var file = new MemoryStream();
        state.Save(file);
        file.Position = 0;
        Assert.Throws<InvalidDataException>(() => attention.LoadState(file));

        // The projection is a value: with the old one back in place, the state is good again.
        attention.ReplaceFeatures(FeatureMap.FavorPlus(schedule.DrawAt(0)));
        attention.Read(state, shape, q, actual);
        Assert.Equal(expected, actual);
    }

    [Fact]
    public void No_pass_and_no_step_draws_anew()
    {
        var shape = new AttentionShape(1, 5, 2, 12);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1);
        var schedule = ProjectionSchedule.Every(1, First);
        FeatureMap features = FeatureMap.FavorPlus(schedule.Projection);
        using var attention = new LinearAttention(_host, features, new LinearAttentionOptions { Causal = true });
        float[] output = Forward(attention, shape, q, k, v);
        AttentionState state = attention.CreateState(1, 2, 12);
        for (int i = 0; i < 5; i++)
        {
            Backward(attention, shape, q, k, v, output);
            attention.Step(state, shape, q, k, v, new float[output.Length]);
            Assert.Equal(output, Forward(attention, shape, q, k, v));
        }

        Assert.Same(features, attention.Features);
        Assert.Equal(new ProjectionPosition(42, 0, 0), schedule.Position);
    }

    [Fact]
    public void Features_of_other_sizes_are_refused_and_the_old_ones_stay()
    {
        using LinearAttention attention = Open(First, onHost: true);
        FeatureMap before = attention.Features;
        foreach (FeatureMap other in new[]
        {
            FeatureMap.FavorPlus(RandomProjection.Orthogonal(25, 12, 1)), FeatureMap.FavorPlus(RandomProjection.Orthogonal(24, 13, 1)), FeatureMap.EluPlusOne,
            FeatureMap.Relu(RandomProjection.Orthogonal(24, 12, 1)),
        })
        {
            Assert.Throws<ArgumentException>("features", () => attention.ReplaceFeatures(other));
            Assert.Same(before, attention.Features);
        }

        Assert.Throws<ArgumentNullException>("features", () => attention.ReplaceFeatures(null!));
        attention.Dispose();
        Assert.Throws<ObjectDisposedException>(() => attention.ReplaceFeatures(before));
    }

    [Fact]
    public void Maps_of_any_dimension_are_replaced_too()
    {
        var shape = new AttentionShape(1, 5, 2, 12);
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 1);
        using var attention = new LinearAttention(_host, FeatureMap.EluPlusOne);
        using var relu = new LinearAttention(_host, FeatureMap.Relu());
        attention.ReplaceFeatures(FeatureMap.Identity);
        attention.ReplaceFeatures(FeatureMap.EluPlusOne);
        Forward(attention, shape, q, k, v);
        attention.ReplaceFeatures(FeatureMap.Relu());
        Assert.Equal(Forward(relu, shape, q, k, v), Forward(attention, shape, q, k, v));
    }

    private static float[] Forward(LinearAttention attention, AttentionShape shape, float[] q, float[] k, float[] v)
    {
        float[] output = new float[shape.OutputElements];
        attention.Forward<float>(shape, q, k, v, output);
        return output;
    }

    private static float[] Backward(LinearAttention attention, AttentionShape shape, float[] q, float[] k, float[] v, float[] output)
    {
        (float[] dQ, float[] dK, float[] dV) = (new float[q.Length], new float[k.Length], new float[v.Length]);
        attention.Backward<float>(shape, q, k, v, output, output, dQ, dK, dV);
        return [.. dQ, .. dK, .. dV];
    }

    private LinearAttention Open(RandomProjection projection, bool onHost) =>
        new(onHost ? _host : _device, FeatureMap.FavorPlus(projection), new LinearAttentionOptions { Causal = true });
}
