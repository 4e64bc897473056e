namespace Gpu.Attention.TestKit;

/// <summary>
/// The tolerance of every comparison with an oracle. An engine may err at most twice (gradients three times) what a plain float32 implementation of
/// the same formula errs, plus what rounding alone may amount to; in the root mean square and in the largest error.
/// </summary>
public static class Tolerance
{
    /// <summary>How much worse than plain float32 an output may be.</summary>
    public const double Outputs = 2;

    /// <summary>How much worse than plain float32 a gradient may be.</summary>
    public const double Gradients = 3;

    /// <summary>Half a unit in the last place, relative: float32.</summary>
    public const double SingleRoundoff = 1.0 / (1 << 24);

    /// <summary>Runs the oracle and the plain implementation of a problem and holds an engine's output against them.</summary>
    /// <exception cref="VerificationException">The output errs too much; the message has both errors.</exception>
    public static void Require(
        AttentionProblem problem, float[] query, float[] key, float[] value, ReadOnlySpan<float> actual, byte[]? keyMask = null)
    {
        PlainResult plain = PlainAttention.Run(problem, query, key, value, keyMask);
        Require(actual, Oracles.Output(problem, query, key, value, keyMask), plain);
    }

    /// <summary>Holds an engine's output against an oracle's and a plain implementation's.</summary>
    /// <param name="actual">The engine's output.</param>
    /// <param name="oracle">The oracle's.</param>
    /// <param name="plain">The plain implementation's.</param>
    /// <param name="factor">How much worse than the plain implementation it may be.</param>
    /// <param name="storageRoundoff">Half a unit in the last place, relative, of the type that the output is stored in, where that isn't float32.</param>
    /// <exception cref="VerificationException">The output errs too much; the message has both errors.</exception>
    public static void Require(
        ReadOnlySpan<float> actual, double[] oracle, PlainResult plain, double factor = Outputs, double storageRoundoff = 0)
    {
        ArgumentNullException.ThrowIfNull(oracle);
        ArgumentNullException.ThrowIfNull(plain);
        double[] rounding = [.. plain.Rounding.Zip(oracle, (r, o) => r + (storageRoundoff * Math.Abs(o)))];
        Require(actual, oracle, plain.Forward, plain.Backward, rounding, factor);
    }

    /// <summary>Runs the oracle and the plain implementation of a problem's gradients and holds an engine's against them.</summary>
    /// <exception cref="VerificationException">A gradient errs too much; the message has both errors.</exception>
    public static void RequireGradients(
        AttentionProblem problem, float[] query, float[] key, float[] value, float[] outputGradient, AttentionGradients actual, byte[]? keyMask = null)
    {
        ArgumentNullException.ThrowIfNull(actual);
        ReferenceGradient oracle = Oracles.Gradients(problem, query, key, value, outputGradient, keyMask);
        PlainGradientResult plain = PlainGradients.Run(problem, query, key, value, outputGradient, keyMask);
        RequireGradient("query", actual.Query, oracle.Query, plain.Forward.Query, plain.Backward.Query, plain.QueryRounding);
        RequireGradient("key", actual.Key, oracle.Key, plain.Forward.Key, plain.Backward.Key, plain.KeyRounding);
        RequireGradient("value", actual.Value, oracle.Value, plain.Forward.Value, plain.Backward.Value, plain.ValueRounding);
    }

    /// <summary>Holds results against an oracle's, given plain results in two orders of summation and what rounding may amount to.</summary>
    /// <exception cref="VerificationException">The results err too much; the message has both errors.</exception>
    public static void Require(
        ReadOnlySpan<float> actual,
        ReadOnlySpan<double> oracle,
        ReadOnlySpan<float> plainForward,
        ReadOnlySpan<float> plainBackward,
        ReadOnlySpan<double> rounding,
        double factor)
    {
        Errors engine = Errors.Of(actual, oracle);
        Errors plain = Errors.Of(plainForward, oracle).Worse(Errors.Of(plainBackward, oracle));
        double roundingRms = 0;
        double roundingMax = 0;
        foreach (double r in rounding)
        {
            roundingRms += r * r / rounding.Length;
            roundingMax = Math.Max(roundingMax, r);
        }

        roundingRms = Math.Sqrt(roundingRms);

        // Not "larger than": a NaN has to fail.
        bool rmsHolds = engine.Rms <= (factor * plain.Rms) + roundingRms;
        bool maxHolds = engine.Max <= (factor * plain.Max) + roundingMax;
        if (!rmsHolds || !maxHolds)
        {
            throw new VerificationException(
                $"RMS error {engine.Rms:g4}, {engine.Rms / plain.Rms:g3} times plain float32's {plain.Rms:g4} " +
                $"(allowed: {factor} times and {roundingRms:g3} of rounding); largest error {engine.Max:g4} at element {engine.Worst} of {actual.Length} " +
                $"({Element(actual, engine.Worst)} for {Element(oracle, engine.Worst)}), plain {plain.Max:g4} (rounding {roundingMax:g3}).");
        }
    }

    private static void RequireGradient(string name, float[] actual, double[] oracle, float[] plainForward, float[] plainBackward, double[] rounding)
    {
        try
        {
            Require(actual, oracle, plainForward, plainBackward, rounding, Gradients);
        }
        catch (VerificationException exception)
        {
            throw new VerificationException($"The {name} gradient: {exception.Message}", exception);
        }
    }

    private static string Element<T>(ReadOnlySpan<T> values, int index) => index < values.Length ? $"{values[index]:g9}" : "nothing";

    private readonly record struct Errors(double Rms, double Max, int Worst)
    {
        public static Errors Of(ReadOnlySpan<float> actual, ReadOnlySpan<double> oracle)
        {
            if (actual.Length != oracle.Length)
            {
                throw new VerificationException($"{actual.Length} results where the oracle has {oracle.Length}.");
            }

            double sum = 0;
            double max = 0;
            int worst = 0;
            for (int i = 0; i < actual.Length; i++)
            {
                // Where the oracle isn't finite, the same infinity or NaN is the right answer and no error.
                bool same = !double.IsFinite(oracle[i]) && actual[i].Equals((float)oracle[i]);
                double error = same ? 0 : Math.Abs(actual[i] - oracle[i]);
                sum += error * error;
                if (!(error <= max))
                {
                    (max, worst) = (error, i);
                }

                if (double.IsNaN(max))
                {
                    break;
                }
            }

            return new Errors(Math.Sqrt(sum / Math.Max(1, actual.Length)), max, worst);
        }

        public Errors Worse(Errors other) => new(Math.Max(Rms, other.Rms), Math.Max(Max, other.Max), Max >= other.Max ? Worst : other.Worst);
    }
}
