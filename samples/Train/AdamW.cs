using System.Numerics.Tensors;

namespace Gpu.Attention.Samples.Training;

/// <summary>How fast a model learns.</summary>
/// <param name="Rate">The largest learning rate.</param>
/// <param name="WarmUp">Steps over which the rate rises to it.</param>
/// <param name="Steps">Steps over which it then falls, along a cosine, to a tenth.</param>
/// <param name="Decay">How much of a weight is taken away in a step, as a share of the rate.</param>
internal sealed record LearningSchedule(float Rate, int WarmUp, int Steps, float Decay = 0.01f)
{
    public float RateAt(int step)
    {
        double fall = Math.Clamp((step - WarmUp) / (double)Math.Max(1, Steps - WarmUp), 0, 1);
        return (float)(Rate * Math.Min(1, (step + 1.0) / Math.Max(1, WarmUp)) * (0.55 + (0.45 * Math.Cos(Math.PI * fall))));
    }
}

/// <summary>Adam with decoupled weight decay, of gradients whose length is limited to 1.</summary>
internal sealed class AdamW(Parameters parameters, LearningSchedule schedule)
{
    private const float Beta1 = 0.9f;
    private const float Beta2 = 0.98f;
    private const float Epsilon = 1e-8f;

    /// <summary>Running means of the gradients.</summary>
    public float[] First { get; } = new float[parameters.Values.Length];

    /// <summary>Running means of their squares.</summary>
    public float[] Second { get; } = new float[parameters.Values.Length];

    /// <summary>Moves the parameters against their gradients.</summary>
    /// <param name="step">Steps that were taken before.</param>
    public void Step(int step)
    {
        float rate = schedule.RateAt(step);
        float correction1 = 1 - MathF.Pow(Beta1, step + 1);
        float correction2 = 1 - MathF.Pow(Beta2, step + 1);
        float length = TensorPrimitives.Norm<float>(parameters.Gradients);
        float limit = length > 1 ? 1 / length : 1;
        foreach (Parameter parameter in parameters.All)
        {
            float kept = parameter.Decays ? 1 - (rate * schedule.Decay) : 1;
            Span<float> values = parameter.Values.Span;
            ReadOnlySpan<float> gradients = parameter.Gradients.Span;
            Span<float> first = First.AsSpan(parameter.Offset, values.Length);
            Span<float> second = Second.AsSpan(parameter.Offset, values.Length);
            for (int i = 0; i < values.Length; i++)
            {
                float gradient = limit * gradients[i];
                first[i] += (1 - Beta1) * (gradient - first[i]);
                second[i] += (1 - Beta2) * ((gradient * gradient) - second[i]);
                values[i] = (kept * values[i]) - (rate * (first[i] / correction1) / (MathF.Sqrt(second[i] / correction2) + Epsilon));
            }
        }
    }
}
