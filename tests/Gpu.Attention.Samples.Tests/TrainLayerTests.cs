using Gpu.Attention.Samples.Training;
using Xunit;

namespace Gpu.Attention.Samples.Tests;

/// <summary>Every layer's gradient against differences of its output.</summary>
public sealed class TrainLayerTests
{
    private const double Step = 1e-5;
    private const double Tolerance = 1e-8;

    [Fact]
    public void LayerNorm_GradientIsThatOfDifferences()
    {
        const int Width = 13;
        double[] x = Normal(Width, 1), gain = Normal(Width, 2), bias = Normal(Width, 3), outputGradient = Normal(Width, 4);
        double[] dx = new double[Width], dGain = new double[Width], dBias = new double[Width];
        LayerNorm.Backward(x, gain, outputGradient, dx, dGain, dBias, new double[2 * Width]);

        double Loss()
        {
            double[] y = new double[Width];
            LayerNorm.Forward<double>(x, gain, bias, y);
            return y.Zip(outputGradient, (a, b) => a * b).Sum();
        }

        RequireDifferences(x, dx, Loss);
        RequireDifferences(gain, dGain, Loss);
        RequireDifferences(bias, dBias, Loss);
    }

    [Fact]
    public void Gelu_GradientIsThatOfDifferences()
    {
        double[] x = [.. Normal(29, 5).Select(value => 2 * value)];
        double[] outputGradient = Normal(29, 6);
        double[] dx = [.. outputGradient];
        Gelu.Backward(x, dx, new double[29]);
        RequireDifferences(x, dx, () =>
        {
            double[] y = new double[29];
            Gelu.Forward<double>(x, y);
            return y.Zip(outputGradient, (a, b) => a * b).Sum();
        });
    }

    [Fact]
    public void CrossEntropy_GradientIsThatOfDifferences()
    {
        double[] logits = Normal(17, 7);
        double[] gradient = [.. logits];
        double loss = CrossEntropy.LossAndGradient(gradient, 5, 0.25);
        Assert.Equal(Math.Log(logits.Sum(Math.Exp)) - logits[5], loss, 1e-12);
        RequireDifferences(logits, gradient, () => 0.25 * CrossEntropy.LossAndGradient([.. logits], 5, 0.25));
    }

    [Theory]
    [InlineData(1, 3, 5)]
    [InlineData(67, 16, 32)]
    [InlineData(130, 35, 83)]
    [InlineData(600, 300, 11)]
    public void Matrix_ProductsAreThoseOfDoubles(int rows, int inputs, int outputs)
    {
        float[] x = Floats(rows * inputs, 8), w = Floats(inputs * outputs, 9), b = Floats(outputs, 10), dy = Floats(rows * outputs, 11);
        float[] y = new float[rows * outputs], dx = Floats(rows * inputs, 12), dw = Floats(inputs * outputs, 13), db = Floats(outputs, 14);
        float[] dx0 = [.. dx], dw0 = [.. dw], db0 = [.. db];
        Matrix.Apply(x, w, b, y, rows);
        Matrix.AddInputGradient(dy, w, dx, rows);
        Matrix.AddWeightGradient(x, dy, dw, db, rows);
        RequireSums(y, inputs, i => (b[i % outputs], t => (x[(i / outputs * inputs) + t], w[(t * outputs) + (i % outputs)])));
        RequireSums(dx, outputs, i => (dx0[i], t => (dy[(i / inputs * outputs) + t], w[(i % inputs * outputs) + t])));
        RequireSums(dw, rows, i => (dw0[i], t => (x[(t * inputs) + (i / outputs)], dy[(t * outputs) + (i % outputs)])));
        RequireSums(db, rows, i => (db0[i], t => (1, dy[(t * outputs) + i])));
    }

    [Theory]
    [InlineData("softmax")]
    [InlineData("elu+1")]
    [InlineData("FAVOR+")]
    public void Transformer_GradientOfEveryTensorIsThatOfDifferences(string name)
    {
        AttentionMethod method = name switch
        {
            "softmax" => AttentionMethod.Softmax,
            "elu+1" => AttentionMethod.EluPlusOne,
            _ => AttentionMethod.FavorPlus(32),
        };
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        var task = new CopyTask(12, shortest: 1, measured: 1);
        using var model = new Transformer(device, new ModelSize(task.Symbols, 12, 16, 2, 2), method, seed: 15);
        Batch batch = task.Draw(3, new RandomSource(16));

        // Larger embeddings than at the start of training: layer norm is less curved then.
        foreach (ref float value in model.Parameters.Tokens.Values.Span)
        {
            value *= 25;
        }

        model.LossAndGradients(batch);
        float[] values = [.. model.Parameters.Values];
        float[] gradients = [.. model.Parameters.Gradients];
        foreach (Parameter parameter in model.Parameters.All)
        {
            // Along a tensor's own gradient the loss changes by the gradient's length, and no part of it can hide.
            ReadOnlySpan<float> gradient = gradients.AsSpan(parameter.Offset, parameter.Values.Length);
            double length = Math.Sqrt(Dot(gradient, gradient));
            const double Distance = 0.02;
            double Along(double distance)
            {
                Span<float> moved = model.Parameters.Values.AsSpan(parameter.Offset, parameter.Values.Length);
                for (int i = 0; i < moved.Length; i++)
                {
                    moved[i] = (float)(values[parameter.Offset + i] + (distance * gradients[parameter.Offset + i] / length));
                }

                double loss = model.Loss(batch);
                values.AsSpan(parameter.Offset, moved.Length).CopyTo(moved);
                return loss;
            }

            // Two widths cancel the third derivative.
            double wide = (Along(Distance) - Along(-Distance)) / (2 * Distance);
            double narrow = (Along(Distance / 2) - Along(-Distance / 2)) / Distance;
            double difference = ((4 * narrow) - wide) / 3;
            Assert.True(
                Math.Abs(difference - length) <= (2e-3 * length) + 2e-5, $"{parameter.Name}: the gradient's length is {length}, by differences {difference}");
        }
    }

    [Theory]
    [InlineData(1e-3)]
    [InlineData(1)]
    public void AdamW_TakesTheStepsOfItsFormulas(double size)
    {
        var parameters = new Parameters(new ModelSize(3, 4, 8, 2, 1), seed: 17);
        var schedule = new LearningSchedule(0.01f, WarmUp: 2, Steps: 5, Decay: 0.1f);
        var optimizer = new AdamW(parameters, schedule);
        int count = parameters.Values.Length;
        double[] values = [.. parameters.Values], first = new double[count], second = new double[count];
        bool[] decays = new bool[count];
        foreach (Parameter parameter in parameters.All)
        {
            decays.AsSpan(parameter.Offset, parameter.Values.Length).Fill(parameter.Decays);
        }

        Assert.Contains(true, decays);
        Assert.Contains(false, decays);
        for (int step = 0; step < 5; step++)
        {
            double[] gradient = [.. Normal(count, 18 + (ulong)step).Select(value => (float)(value * size))];
            gradient.Select(value => (float)value).ToArray().CopyTo(parameters.Gradients, 0);
            optimizer.Step(step);
            double limit = Math.Min(1, 1 / Math.Sqrt(gradient.Sum(g => g * g)));
            double rate = schedule.RateAt(step);
            for (int i = 0; i < count; i++)
            {
                double g = limit * gradient[i];
                first[i] = (0.9 * first[i]) + (0.1 * g);
                second[i] = (0.98 * second[i]) + (0.02 * g * g);
                double mean = first[i] / (1 - Math.Pow(0.9, step + 1)), square = second[i] / (1 - Math.Pow(0.98, step + 1));
                values[i] -= (decays[i] ? rate * 0.1 * values[i] : 0) + (rate * mean / (Math.Sqrt(square) + 1e-8));
                Assert.Equal(values[i], parameters.Values[i], 1e-5);
            }
        }
    }

    [Fact]
    public void Rate_RisesAndFalls()
    {
        var schedule = new LearningSchedule(1, WarmUp: 10, Steps: 110);
        Assert.Equal(0.1f, schedule.RateAt(0), 1e-6f);
        Assert.Equal(1, schedule.RateAt(10), 1e-6f);
        Assert.Equal(0.55f, schedule.RateAt(60), 1e-6f);
        Assert.Equal(0.1f, schedule.RateAt(110), 1e-6f);
    }

    private static double Dot(ReadOnlySpan<float> a, ReadOnlySpan<float> b)
    {
        double sum = 0;
        for (int i = 0; i < a.Length; i++)
        {
            sum += (double)a[i] * b[i];
        }

        return sum;
    }

    private static void RequireDifferences(double[] at, double[] gradient, Func<double> loss)
    {
        for (int i = 0; i < at.Length; i++)
        {
            double value = at[i];
            at[i] = value + Step;
            double above = loss();
            at[i] = value - Step;
            double below = loss();
            at[i] = value;
            Assert.Equal((above - below) / (2 * Step), gradient[i], Tolerance);
        }
    }

    private static void RequireSums(float[] actual, int terms, Func<int, (double Start, Func<int, (double, double)> Term)> expected)
    {
        for (int i = 0; i < actual.Length; i++)
        {
            (double sum, Func<int, (double, double)> term) = expected(i);
            double size = Math.Abs(sum);
            for (int t = 0; t < terms; t++)
            {
                (double a, double b) = term(t);
                sum += a * b;
                size += Math.Abs(a * b);
            }

            Assert.Equal(sum, actual[i], size * terms * Math.Pow(2, -24));
        }
    }

    private static double[] Normal(int count, ulong seed)
    {
        var random = new RandomSource(seed);
        return [.. Enumerable.Range(0, count).Select(_ => (double)random.Normal())];
    }

    private static float[] Floats(int count, ulong seed) => [.. Normal(count, seed).Select(value => (float)value)];
}
