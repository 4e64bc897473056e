using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>A sequence cut at random into blocks of all sizes, from single tokens to several chunks.</summary>
internal static class Blocks
{
    public static IReadOnlyList<(int First, int Count)> Of(int length, ulong seed, int multiple = 1)
    {
        var random = new SeededRandom(seed);
        var blocks = new List<(int, int)>();
        for (int first = 0; first < length;)
        {
            int size = multiple > 1 ? multiple * random.Next(1, 3) : random.Next(0, 3) == 0 ? 1 + random.NextLength(100) : random.Next(1, 9);
            int count = Math.Min(size, length - first);
            blocks.Add((first, count));
            first += count;
        }

        return blocks;
    }

    /// <summary>Tokens of every sequence of a tensor <c>[B, T, row]</c>.</summary>
    public static float[] Tokens(float[] tensor, int batch, int row, int first, int count)
    {
        int length = batch * row == 0 ? 0 : tensor.Length / (batch * row);
        return [.. Enumerable.Range(0, batch).SelectMany(b => tensor.AsSpan(((b * length) + first) * row, count * row).ToArray())];
    }

    /// <summary>Puts tokens of every sequence back into a tensor <c>[B, T, row]</c>.</summary>
    public static void Place(float[] tokens, float[] tensor, int batch, int row, int first, int count)
    {
        int length = tensor.Length / (batch * row);
        for (int b = 0; b < batch; b++)
        {
            tokens.AsSpan(b * count * row, count * row).CopyTo(tensor.AsSpan(((b * length) + first) * row));
        }
    }

    public static AttentionShape With(this AttentionShape s, int queries, int keys) =>
        new(s.Batch, queries, keys, s.Heads, s.KeyHeads, s.KeyDimension, s.ValueDimension);
}
