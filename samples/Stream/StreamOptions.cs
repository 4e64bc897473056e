namespace Gpu.Attention.Samples.Streaming;

/// <summary>How long the stream is, and where it is decoded.</summary>
internal sealed record StreamOptions
{
    public const int FewestTokens = 16;

    /// <summary>Their keys and values take 4 GiB.</summary>
    public const int MostTokens = 1 << 20;

    /// <summary>Tokens of the stream.</summary>
    public int Tokens { get; init; } = 131_072;

    /// <summary>The device, as <see cref="ComputeDevice.Open(string, ComputeDeviceOptions?)"/> takes it.</summary>
    public string Device { get; init; } = "cpu";

    /// <summary>The folder of the pictures.</summary>
    public string Output { get; init; } = Path.Combine("artifacts", "stream");
}
