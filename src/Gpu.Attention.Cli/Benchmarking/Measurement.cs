using System.Diagnostics;
using System.Globalization;

namespace Gpu.Attention.Cli.Benchmarking;

/// <summary>Checks a computation, then times it; what is wrong is not timed.</summary>
internal static class Measurement
{
    // Code that is still being compiled, and clocks that are still rising, are not what is measured.
    private const double WarmUpSeconds = 0.3;

    /// <summary>Runs one case.</summary>
    /// <param name="problem">The case.</param>
    /// <param name="forward">Computes its output.</param>
    /// <param name="output">Where <paramref name="forward"/> leaves it.</param>
    /// <param name="repeats">Timed calls.</param>
    /// <param name="backward">
    /// Computes the gradients after <paramref name="forward"/>, to be checked and timed as well, and where it leaves them; null for none.
    /// </param>
    /// <param name="cancellationToken">Looked at between calls.</param>
    public static BenchResult Run(
        BenchCase problem, Action forward, float[] output, int repeats, (Action Compute, BenchGradients Gradients)? backward,
        CancellationToken cancellationToken)
    {
        AttentionShape shape = problem.Shape;
        forward();
        GateResult gate = Gate.Check(problem, output);
        var result = new BenchResult
        {
            Case = problem.Name,
            Batch = shape.Batch,
            Length = shape.QueryLength,
            Heads = shape.Heads,
            KeyDimension = shape.KeyDimension,
            ValueDimension = shape.ValueDimension,
            Features = problem.Features,
            FeatureDimension = problem.FeatureDimension,
            Direction = problem.Direction,
            MaxAbsError = FiniteOrNull(gate.MaxAbsError),
            RmsRatio = FiniteOrNull(gate.RmsRatio),
        };
        if (!gate.Passed)
        {
            return result with { Refusal = Refusal("it", gate) };
        }

        if (backward is { } pass)
        {
            cancellationToken.ThrowIfCancellationRequested();
            pass.Compute();
            (string name, GateResult gradientGate) = Gate.Check(problem, output, pass.Gradients);
            result = result with { GradientMaxAbsError = FiniteOrNull(gradientGate.MaxAbsError), GradientRmsRatio = FiniteOrNull(gradientGate.RmsRatio) };
            if (!gradientGate.Passed)
            {
                return result with { Refusal = Refusal($"the {name} gradient", gradientGate) };
            }
        }

        return Time(problem, forward, backward?.Compute, repeats, result, cancellationToken);
    }

    private static BenchResult Time(
        BenchCase problem, Action forward, Action? backward, int repeats, BenchResult result, CancellationToken cancellationToken)
    {
        long warmUp = Stopwatch.GetTimestamp();
        do
        {
            cancellationToken.ThrowIfCancellationRequested();
            forward();
            backward?.Invoke();
        }
        while (Stopwatch.GetElapsedTime(warmUp).TotalSeconds < WarmUpSeconds);

        double[] forwards = new double[repeats];
        double[] backwards = new double[repeats];
        double[] both = new double[repeats];
        for (int i = 0; i < repeats; i++)
        {
            // In turn, so that both meet what else the machine does.
            cancellationToken.ThrowIfCancellationRequested();
            long start = Stopwatch.GetTimestamp();
            forward();
            forwards[i] = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
            if (backward is not null)
            {
                long middle = Stopwatch.GetTimestamp();
                backward();
                backwards[i] = Stopwatch.GetElapsedTime(middle).TotalMilliseconds;
                both[i] = forwards[i] + backwards[i];
            }
        }

        double milliseconds = Median(forwards);
        result = result with
        {
            Repeats = repeats,
            Ms = milliseconds,
            FastestMs = forwards.Min(),
            Gflops = problem.Flops() / milliseconds / 1e6,
            TokensPerSecond = (double)problem.Shape.Batch * problem.Shape.QueryLength / (milliseconds / 1e3),
        };
        double bothMilliseconds = Median(both);
        double backwardMilliseconds = Median(backwards);
        return backward is null ? result : result with
        {
            BackwardMs = backwardMilliseconds,
            BothMs = bothMilliseconds,
            FastestBothMs = both.Min(),
            TimesForward = (milliseconds + backwardMilliseconds) / milliseconds,
            BothGflops = (problem.Flops() + problem.BackwardFlops()) / bothMilliseconds / 1e6,
        };
    }

    private static string Refusal(string what, GateResult gate) => string.Create(
        CultureInfo.InvariantCulture,
        $"not timed, for {what} is wrong: largest error {gate.MaxAbsError:g2} (limit {gate.MaxAbsLimit:g2}), " +
        $"RMS ratio {gate.RmsRatio:g2} (limit {gate.RmsLimit:g2})");

    private static double Median(double[] values)
    {
        Array.Sort(values);
        int middle = values.Length / 2;
        return values.Length % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
    }

    private static double? FiniteOrNull(double value) => double.IsFinite(value) ? value : null;
}
