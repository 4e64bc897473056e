using System.Text.Json.Serialization;

namespace Gpu.Attention.Benchmarks;

/// <summary>What is read here of a line of <c>gpu-attention bench --json</c>.</summary>
internal sealed record ToolLine
{
    [JsonPropertyName("features")]
    public required string Features { get; init; }

    [JsonPropertyName("direction")]
    public required string Direction { get; init; }

    [JsonPropertyName("T")]
    public required int Length { get; init; }

    [JsonPropertyName("ms")]
    public required double ForwardMs { get; init; }

    [JsonPropertyName("fastestMs")]
    public required double FastestForwardMs { get; init; }

    [JsonPropertyName("gflops")]
    public required double ForwardGflops { get; init; }

    [JsonPropertyName("peakShare")]
    public required double ForwardPeakShare { get; init; }

    /// <summary>Forward and backward pass together, as the next three; null when there was no backward pass.</summary>
    [JsonPropertyName("bothMs")]
    public double? BothMs { get; init; }

    [JsonPropertyName("fastestBothMs")]
    public double? FastestBothMs { get; init; }

    [JsonPropertyName("bothGflops")]
    public double? BothGflops { get; init; }

    [JsonPropertyName("bothPeakShare")]
    public double? BothPeakShare { get; init; }

    /// <summary>Of the case: of both passes where both were timed.</summary>
    public double Ms => BothMs ?? ForwardMs;

    public double FastestMs => FastestBothMs ?? FastestForwardMs;

    public double Gflops => BothGflops ?? ForwardGflops;

    public double PeakShare => BothPeakShare ?? ForwardPeakShare;

    /// <summary>The peer's name of the case.</summary>
    public string Case => $"{(Features == "favor+" ? "favor" : Features)}-{Direction}{(BothMs is null ? "" : "-training")}";
}
