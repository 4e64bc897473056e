namespace Gpu.Attention.Samples.Streaming;

/// <summary>A stream of random tokens, each a query, a key and a value of every head. Any of them can be made at any time, and is the same each time.</summary>
/// <param name="seed">Which stream.</param>
internal sealed class TokenStream(ulong seed)
{
    public const int Heads = 8;
    public const int Dimension = 64;

    /// <summary>Elements of a token's queries, and as many of its keys and of its values.</summary>
    public const int Width = Heads * Dimension;

    // Rows of moderate length, as trained models have them: the random features of FAVOR+ are of use there.
    private const float RowDeviation = 0.5f;

    /// <summary>The sizes of some tokens of some streams.</summary>
    public static AttentionShape Shape(int streams, int tokens) => new(streams, tokens, Heads, Dimension);

    /// <summary>Makes tokens, from the one with a number on: as many as the memory holds.</summary>
    public void Fill(int first, Span<float> query, Span<float> key, Span<float> value)
    {
        Fill(0, first, RowDeviation, query);
        FillKeys(first, key, value);
    }

    /// <summary>Makes keys and values alone.</summary>
    public void FillKeys(int first, Span<float> key, Span<float> value)
    {
        Fill(1, first, RowDeviation, key);
        Fill(2, first, 1, value);
    }

    // Uniform numbers of mean 0: a hash (SplitMix64) of where they stand, so that making them takes neither memory nor much time.
    private void Fill(ulong part, int first, float deviation, Span<float> numbers)
    {
        float range = deviation * MathF.Sqrt(12);
        ulong counter = (((seed * 3) + part) << 40) + ((ulong)first * Width);
        for (int i = 0; i < numbers.Length; i++)
        {
            ulong hash = (counter + (ulong)i + 1) * 0x9E3779B97F4A7C15;
            hash = (hash ^ (hash >> 30)) * 0xBF58476D1CE4E5B9;
            hash = (hash ^ (hash >> 27)) * 0x94D049BB133111EB;
            numbers[i] = range * (((hash >> 40) * (1f / (1 << 24))) - 0.5f);
        }
    }
}
