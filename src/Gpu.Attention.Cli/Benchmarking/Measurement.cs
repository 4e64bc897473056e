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
    /// <param name="cancellationToken">Looked at between calls.</param>
    public static BenchResult Run(BenchCase problem, Action forward, float[] output, int repeats, CancellationToken cancellationToken)
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
            return result with
            {
                Refusal = string.Create(
                    CultureInfo.InvariantCulture,
                    $"not timed, for it is wrong: largest error {gate.MaxAbsError:g2} (limit {gate.MaxAbsLimit:g2}), " +
                    $"RMS ratio {gate.RmsRatio:g2} (limit {gate.RmsLimit:g2})"),
            };
        }

        long warmUp = Stopwatch.GetTimestamp();
        do
        {
            cancellationToken.ThrowIfCancellationRequested();
            forward();
        }
        while (Stopwatch.GetElapsedTime(warmUp).TotalSeconds < WarmUpSeconds);

        double[] times = new double[repeats];
        for (int i = 0; i < times.Length; i++)
        {
            cancellationToken.ThrowIfCancellationRequested();
            long start = Stopwatch.GetTimestamp();
            forward();
            times[i] = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
        }

        double milliseconds = Median(times);
        return result with
        {
            Repeats = repeats,
            Ms = milliseconds,
            FastestMs = times.Min(),
            Gflops = problem.Flops() / milliseconds / 1e6,
            TokensPerSecond = (double)shape.Batch * shape.QueryLength / (milliseconds / 1e3),
        };
    }

    private static double Median(double[] values)
    {
        Array.Sort(values);
        int middle = values.Length / 2;
        return values.Length % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
    }

    private static double? FiniteOrNull(double value) => double.IsFinite(value) ? value : null;
}
