namespace Gpu.Attention.Cli.Benchmarking;

/// <summary>How far sampled rows are from the float64 oracle, and how far they may be.</summary>
/// <param name="MaxAbsError">The largest absolute error.</param>
/// <param name="MaxAbsLimit">The most it may be.</param>
/// <param name="RmsRatio">The root mean square of the errors over that of the oracle.</param>
/// <param name="RmsLimit">The most it may be.</param>
internal sealed record GateResult(double MaxAbsError, double MaxAbsLimit, double RmsRatio, double RmsLimit)
{
    // Written so that NaN fails.
    public bool Passed => MaxAbsError <= MaxAbsLimit && RmsRatio <= RmsLimit;
}

/// <summary>
/// Lets a result pass when it errs at most twice what plain float32 arithmetic of the same formula errs, plus what rounding may amount to
/// where that happens to be exact.
/// </summary>
internal static class Gate
{
    private const int SampledRows = 16;

    public static GateResult Check(BenchCase problem, float[] output)
    {
        AttentionShape shape = problem.Shape;
        (int Batch, int Head)[] heads = [.. new[] { (0, 0), (shape.Batch - 1, shape.Heads - 1) }.Distinct()];
        int[] rows = SpreadRows(shape.QueryLength, SampledRows / heads.Length);
        double[][][] right = new double[heads.Length][][];
        double[][][] rounding = new double[heads.Length][][];
        float[][][] plain = new float[heads.Length][][];
        Parallel.For(0, 2 * heads.Length, i =>
        {
            (int batch, int head) = heads[i / 2];
            if (i % 2 == 0)
            {
                (right[i / 2], rounding[i / 2]) = RowOracle.Compute<double>(problem, batch, head, rows);
            }
            else
            {
                plain[i / 2] = RowOracle.Compute<float>(problem, batch, head, rows).Rows;
            }
        });

        var actualError = default(Deviation);
        var plainError = default(Deviation);
        var roundingError = default(Deviation);
        var magnitude = default(Deviation);
        for (int h = 0; h < heads.Length; h++)
        {
            for (int i = 0; i < rows.Length; i++)
            {
                long start = ((((long)heads[h].Batch * shape.QueryLength) + rows[i]) * shape.Heads + heads[h].Head) * shape.ValueDimension;
                for (int c = 0; c < shape.ValueDimension; c++)
                {
                    double expected = right[h][i][c];
                    actualError.Add(output[start + c] - expected);
                    plainError.Add(plain[h][i][c] - expected);
                    roundingError.Add(rounding[h][i][c]);
                    magnitude.Add(expected);
                }
            }
        }

        double scale = magnitude.Rms > 0 ? magnitude.Rms : 1;
        return new GateResult(
            actualError.Max,
            (2 * plainError.Max) + roundingError.Max,
            actualError.Rms / scale,
            ((2 * plainError.Rms) + roundingError.Rms) / scale);
    }

    /// <summary>The first row, the last, and others evenly between them.</summary>
    private static int[] SpreadRows(int length, int count) =>
        [.. Enumerable.Range(0, count).Select(i => (int)((long)i * (length - 1) / Math.Max(1, count - 1))).Distinct()];

    private struct Deviation
    {
        private double _squares;
        private long _count;

        public double Max { get; private set; }

        public readonly double Rms => _count == 0 ? 0 : Math.Sqrt(_squares / _count);

        public void Add(double value)
        {
            // Math.Max hands NaN on.
            Max = Math.Max(Max, Math.Abs(value));
            _squares += value * value;
            _count++;
        }
    }
}
