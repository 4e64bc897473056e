namespace Gpu.Attention.Benchmarks;

/// <summary>One device and length, timed: a line of the table and of the JSON.</summary>
internal sealed record DeviceLine
{
    public required string Device { get; init; }

    public required int Length { get; init; }

    public required int Heads { get; init; }

    public required int Dimension { get; init; }

    public required int NumFeatures { get; init; }

    public required bool Causal { get; init; }

    /// <summary>Between any output and the host engine's.</summary>
    public required double LargestDifference { get; init; }

    /// <summary>The median call.</summary>
    public double Ms { get; init; } = double.NaN;

    public double FastestMs { get; init; } = double.NaN;

    /// <summary>Each stage, from calls that wait after every launch: together they take longer than a call that does not.</summary>
    public IReadOnlyDictionary<LinearStage, double> StageMs { get; init; } = new Dictionary<LinearStage, double>();

    /// <summary>Of the median call, counted as <c>bench/README.md</c> says.</summary>
    public double Gflops => Flops / Ms / 1e6;

    /// <summary>Of the fastest call, which other work on the machine touches least.</summary>
    public double FastestGflops => Flops / FastestMs / 1e6;

    public double TokensPerSecond => Length / Ms * 1e3;

    private double Flops
    {
        get
        {
            double perToken = (4.0 * Dimension * NumFeatures) + (4.0 * NumFeatures * Dimension);
            double insideChunk = Causal ? (LinearLayout.Chunk + 1.0) * (NumFeatures + Dimension) : 0;
            return (perToken + insideChunk) * Length * Heads;
        }
    }
}
