namespace Gpu.Attention.TestKit;

/// <summary>Random choices that a seed repeats on every machine and every version of the runtime.</summary>
public sealed class SeededRandom(ulong seed)
{
    private const uint Stream = 0x50524F50;
    private uint _next;

    public uint NextWord() => Philox.Words(seed, _next++, 0, 0, Stream).X0;

    public double NextDouble() => NextWord() / 4294967296.0;

    /// <summary>A number from <paramref name="min"/> to <paramref name="max"/>, both included.</summary>
    public int Next(int min, int max) => min + (int)(NextWord() % (uint)(max - min + 1));

    public bool NextBool() => (NextWord() & 1) != 0;

    public T Choose<T>(params ReadOnlySpan<T> choices) => choices[Next(0, choices.Length - 1)];

    /// <summary>A length that is often one of those where loops over vectors, tiles and chunks go wrong.</summary>
    public int NextLength(int max)
    {
        int edge = Choose(0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129);
        return edge <= max && NextBool() ? edge : Next(0, max);
    }
}
