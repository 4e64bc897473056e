namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>How much a report measures.</summary>
internal sealed record ReportScale
{
    /// <summary>Seconds: that everything works, not what it costs.</summary>
    public static readonly ReportScale Quick = new()
    {
        Name = "quick", MinLength = 64, MaxLength = 1_024, LongestCallSeconds = 1, SampleSeconds = 0.002, Rounds = 3, BudgetSeconds = 3,
        MapLength = 256, MaxPosition = 256, DecodeRounds = 3, StepBytes = 64 << 20, MemoryLengths = [1_024], LimitsOnce = true, PeerLengths = [256], PeerRounds = 1,
    };

    /// <summary>Three minutes at most.</summary>
    public static readonly ReportScale Short = new()
    {
        Name = "short", MinLength = 64, MaxLength = 65_536, LongestCallSeconds = 0.7, SampleSeconds = 0.015, Rounds = 7, BudgetSeconds = 60,
        MapLength = 4_096, MaxPosition = 16_384, DecodeRounds = 7, StepBytes = 256 << 20, MillionRounds = 2, MemoryLengths = [1_024, 4_096, 16_384, 65_536],
        PeerLengths = [1_024, 4_096], PeerRounds = 2,
    };

    /// <summary>Twenty minutes at most.</summary>
    public static readonly ReportScale Full = new()
    {
        Name = "full", MinLength = 64, MaxLength = 262_144, LongestCallSeconds = 6, SampleSeconds = 0.05, Rounds = 11, BudgetSeconds = 600,
        MapLength = 16_384, MaxPosition = 131_072, DecodeRounds = 15, StepBytes = 512 << 20, MillionRounds = 5, MemoryLengths = [1_024, 4_096, 16_384, 65_536, 262_144],
        PeerLengths = [1_024, 4_096, 16_384], PeerRounds = 3,
    };

    public required string Name { get; init; }

    /// <summary>The curves begin here and double their length.</summary>
    public required int MinLength { get; init; }

    public required int MaxLength { get; init; }

    /// <summary>A curve ends before the length at which a call is expected to take longer.</summary>
    public required double LongestCallSeconds { get; init; }

    /// <summary>A sample is as many calls as take so long, one at least.</summary>
    public required double SampleSeconds { get; init; }

    /// <summary>Samples of a case, but for calls that take long.</summary>
    public required int Rounds { get; init; }

    /// <summary>When samples of curves have taken so long, no round beyond the third is begun.</summary>
    public required double BudgetSeconds { get; init; }

    /// <summary>The length at which every feature map and both directions are timed.</summary>
    public required int MapLength { get; init; }

    /// <summary>The last position of a stream at which a token is timed.</summary>
    public required int MaxPosition { get; init; }

    /// <summary>The tokens that a report's tensors have room for.</summary>
    public int LongestTensors => Math.Max(MaxLength, MaxPosition);

    public required int DecodeRounds { get; init; }

    /// <summary>Of the states that a token of a stream finds in memory, together.</summary>
    public required int StepBytes { get; init; }

    /// <summary>Samples of a million tokens; 0 for none.</summary>
    public int MillionRounds { get; init; }

    /// <summary>True to measure the host's limits at the beginning alone.</summary>
    public bool LimitsOnce { get; init; }

    /// <summary>Where the process's memory is measured.</summary>
    public required int[] MemoryLengths { get; init; }

    public required int[] PeerLengths { get; init; }

    public required int PeerRounds { get; init; }
}
