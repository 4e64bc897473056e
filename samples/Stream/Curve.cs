namespace Gpu.Attention.Samples.Streaming;

/// <summary>What one token cost at a position of the stream.</summary>
/// <param name="Position">Tokens so far, this one included.</param>
/// <param name="Seconds">Its time, a median.</param>
/// <param name="Bytes">What is kept of the stream: the state, or the cache.</param>
internal readonly record struct Cost(int Position, double Seconds, long Bytes);

/// <summary>A way of decoding, along the stream.</summary>
/// <param name="Name">Its name.</param>
/// <param name="Costs">What tokens cost, by position.</param>
/// <param name="Outputs">What came out at these positions.</param>
/// <param name="AllocatedBytes">Bytes that a token allocated, on average.</param>
/// <param name="RanOn">The device that ran it, which need not be the one asked for.</param>
/// <param name="Fallbacks">Why not.</param>
internal sealed record Curve(
    string Name, IReadOnlyList<Cost> Costs, IReadOnlyList<float[]> Outputs, double AllocatedBytes, DeviceInfo RanOn, IReadOnlyList<FallbackStep> Fallbacks)
{
    public IEnumerable<int> Positions => Costs.Select(c => c.Position);
}
