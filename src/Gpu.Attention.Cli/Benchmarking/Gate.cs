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
/// Lets a result pass when it errs at most twice (gradients: three times) what plain float32 arithmetic of the same formula errs, plus what rounding may
/// amount to where that happens to be exact.
/// </summary>
internal static class Gate
{
    private const int SampledRows = 16;
    private const double OutputFactor = 2;
    private const double GradientFactor = 3;

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

        var comparison = new Comparison();
        for (int h = 0; h < heads.Length; h++)
        {
            for (int i = 0; i < rows.Length; i++)
            {
                long start = ((((long)heads[h].Batch * shape.QueryLength) + rows[i]) * shape.Heads + heads[h].Head) * shape.ValueDimension;
                comparison.Add(output.AsSpan((int)start, shape.ValueDimension), right[h][i], plain[h][i], rounding[h][i]);
            }
        }

        return comparison.Result(OutputFactor);
    }

    /// <summary>Checks rows of the gradients, given an output that has been checked.</summary>
    /// <returns>Of queries, keys and values the one that errs the most, as a share of what it may.</returns>
    public static (string Name, GateResult Result) Check(BenchCase problem, float[] output, BenchGradients gradients)
    {
        AttentionShape shape = problem.Shape;
        (int Batch, int KeyHead)[] heads = [.. new[] { (0, 0), (shape.Batch - 1, shape.KeyHeads - 1) }.Distinct()];
        int[] rows = SpreadRows(shape.QueryLength, SampledRows / heads.Length);
        var comparisons = new (string Name, Comparison Of)[] { ("query", new()), ("key", new()), ("value", new()) };
        foreach ((int batch, int keyHead) in heads)
        {
            int[] queryHeads = [.. Enumerable.Range(keyHead * shape.HeadGroup, shape.HeadGroup)];
            double[][] normalizers = [.. queryHeads.AsParallel().AsOrdered().Select(head => GradientOracle.Normalizers(problem, batch, head))];
            Task<(GradientRows<float> Rows, GradientRows<float>)> plainTask =
                Task.Run(() => GradientOracle.Compute<float>(problem, output, normalizers, batch, keyHead, rows));
            (GradientRows<double> right, GradientRows<double> rounding) = GradientOracle.Compute<double>(problem, output, normalizers, batch, keyHead, rows);
            GradientRows<float> plain = plainTask.GetAwaiter().GetResult().Rows;
            for (int n = 0; n < rows.Length; n++)
            {
                int keyRow = (((batch * shape.KeyLength) + rows[n]) * shape.KeyHeads) + keyHead;
                comparisons[1].Of.Add(Row(gradients.Key, keyRow, shape.KeyDimension), right.Key[n], plain.Key[n], rounding.Key[n]);
                comparisons[2].Of.Add(Row(gradients.Value, keyRow, shape.ValueDimension), right.Value[n], plain.Value[n], rounding.Value[n]);
                for (int h = 0; h < queryHeads.Length; h++)
                {
                    int at = (h * rows.Length) + n;
                    int queryRow = (((batch * shape.QueryLength) + rows[n]) * shape.Heads) + queryHeads[h];
                    comparisons[0].Of.Add(Row(gradients.Query, queryRow, shape.KeyDimension), right.Query[at], plain.Query[at], rounding.Query[at]);
                }
            }
        }

        // NaN is the worst of all, and no number compares with it.
        return comparisons.Select(c => (c.Name, Result: c.Of.Result(GradientFactor)))
            .OrderBy(c => c.Result.Passed).ThenByDescending(c => c.Result.RmsRatio / c.Result.RmsLimit).First();

        static ReadOnlySpan<float> Row(float[] tensor, int row, int width) => tensor.AsSpan(row * width, width);
    }

    /// <summary>The first row, the last, and others evenly between them.</summary>
    private static int[] SpreadRows(int length, int count) =>
        [.. Enumerable.Range(0, count).Select(i => (int)((long)i * (length - 1) / Math.Max(1, count - 1))).Distinct()];

    /// <summary>Errors of results and of plain float32, and what rounding may amount to.</summary>
    private sealed class Comparison
    {
        private Deviation _actual;
        private Deviation _plain;
        private Deviation _rounding;
        private Deviation _magnitude;

        public void Add(ReadOnlySpan<float> actual, double[] right, float[] plain, double[] rounding)
        {
            for (int i = 0; i < right.Length; i++)
            {
                _actual.Add(actual[i] - right[i]);
                _plain.Add(plain[i] - right[i]);
                _rounding.Add(rounding[i]);
                _magnitude.Add(right[i]);
            }
        }

        public GateResult Result(double factor)
        {
            double scale = _magnitude.Rms > 0 ? _magnitude.Rms : 1;
            return new GateResult(
                _actual.Max, (factor * _plain.Max) + _rounding.Max, _actual.Rms / scale, ((factor * _plain.Rms) + _rounding.Rms) / scale);
        }
    }

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
