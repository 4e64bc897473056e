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
    public required double Ms { get; init; }

    [JsonPropertyName("fastestMs")]
    public required double FastestMs { get; init; }

    /// <summary>The median of the forward and the backward pass together; null where gradients were not timed.</summary>
    [JsonPropertyName("bothMs")]
    public double? BothMs { get; init; }

    [JsonPropertyName("fastestBothMs")]
    public double? FastestBothMs { get; init; }

    [JsonPropertyName("gflops")]
    public required double Gflops { get; init; }

    [JsonPropertyName("peakShare")]
    public required double PeakShare { get; init; }

    /// <summary>The peer's name of the case.</summary>
    public string Case => $"{(Features == "favor+" ? "favor" : Features)}-{Direction}";
}
