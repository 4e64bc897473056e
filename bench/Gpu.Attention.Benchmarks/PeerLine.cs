using System.Text.Json.Serialization;

namespace Gpu.Attention.Benchmarks;

/// <summary>A line of bench/peers/torch_attention.py: one case, timed.</summary>
internal sealed record PeerLine
{
    /// <summary>The peer's name and version.</summary>
    [JsonPropertyName("peer")]
    public required string Peer { get; init; }

    [JsonPropertyName("threads")]
    public required int Threads { get; init; }

    [JsonPropertyName("case")]
    public required string Case { get; init; }

    [JsonPropertyName("L")]
    public required int Length { get; init; }

    /// <summary>The median of the timed calls.</summary>
    [JsonPropertyName("ms")]
    public required double Ms { get; init; }

    /// <summary>The fastest of the timed calls: what other work on the machine touches least.</summary>
    [JsonPropertyName("fastestMs")]
    public required double FastestMs { get; init; }
}
