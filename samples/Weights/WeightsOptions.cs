namespace Gpu.Attention.Samples.Weights;

/// <summary>What is looked at.</summary>
internal sealed record WeightsOptions
{
    /// <summary>The text; its words are the tokens.</summary>
    public string Text { get; init; } = """
        Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and nothing particular to interest
        me on shore, I thought I would sail about a little and see the watery part of the world.
        """;

    /// <summary>Feature counts of FAVOR+.</summary>
    public IReadOnlyList<int> Features { get; init; } = [64, 1024];

    /// <summary>The squared length of a row: exact weights are proportional to <c>exp(temperature · cosine)</c>.</summary>
    public float Temperature { get; init; } = 1.5f;

    /// <summary>The picture.</summary>
    public string Output { get; init; } = Path.Combine("artifacts", "weights", "weights.png");
}
