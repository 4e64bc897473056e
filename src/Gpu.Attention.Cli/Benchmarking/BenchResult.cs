using System.Text.Json.Serialization;

namespace Gpu.Attention.Cli.Benchmarking;

/// <summary>One line of results; the timings are null when the gate failed.</summary>
internal sealed record BenchResult
{
    /// <summary>The device that ran it, which need not be the one asked for.</summary>
    public string? Device { get; init; }

    public string? DeviceId { get; init; }

    /// <summary>Why another device than the one asked for ran it, or that one in smaller segments than planned.</summary>
    public IReadOnlyList<string> Fallbacks { get; init; } = [];

    public required string Case { get; init; }

    [JsonPropertyName("B")]
    public required int Batch { get; init; }

    [JsonPropertyName("T")]
    public required int Length { get; init; }

    [JsonPropertyName("H")]
    public required int Heads { get; init; }

    [JsonPropertyName("D")]
    public required int KeyDimension { get; init; }

    [JsonPropertyName("Dv")]
    public required int ValueDimension { get; init; }

    public required string Features { get; init; }

    /// <summary>r; 0 for exact attention.</summary>
    public required int FeatureDimension { get; init; }

    public required string Direction { get; init; }

    public int Repeats { get; init; }

    /// <summary>The median of the repeats.</summary>
    public double? Ms { get; init; }

    /// <summary>The fastest of the repeats: what other work on the machine touches least.</summary>
    public double? FastestMs { get; init; }

    public double? Gflops { get; init; }

    /// <summary>The share of the host's measured peak; null on other devices.</summary>
    public double? PeakShare { get; init; }

    public double? TokensPerSecond { get; init; }

    public long WorkspaceBytes { get; init; }

    public double? MaxAbsError { get; init; }

    public double? RmsRatio { get; init; }

    /// <summary>The device that ran the backward pass; null, as all that follows, where there is none.</summary>
    public string? BackwardDeviceId { get; init; }

    /// <summary>The median of the backward passes, which take turns with the forward passes.</summary>
    public double? BackwardMs { get; init; }

    /// <summary>The median of both together.</summary>
    public double? BothMs { get; init; }

    public double? FastestBothMs { get; init; }

    /// <summary>The medians of both, added, over that of the forward pass.</summary>
    public double? TimesForward { get; init; }

    public double? BothGflops { get; init; }

    public double? BothPeakShare { get; init; }

    public long? BackwardWorkspaceBytes { get; init; }

    /// <summary>Of the gradient, among the three, that comes closest to what it may err.</summary>
    public double? GradientMaxAbsError { get; init; }

    public double? GradientRmsRatio { get; init; }

    public bool Passed => Refusal is null;

    /// <summary>Why it was not timed; null when it was.</summary>
    public string? Refusal { get; init; }
}
