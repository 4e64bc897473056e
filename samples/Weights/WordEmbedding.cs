using System.Numerics.Tensors;
using System.Text.RegularExpressions;

namespace Gpu.Attention.Samples.Weights;

/// <summary>
/// Turns words into rows without any training: words with letters in common, and words that stand close together, have a cosine well above 0.
/// </summary>
/// <remarks>
/// Of a row's 64 elements 48 say which word it is, the sum of a sign vector for each three letters in a row, and 16 say where it stands, cosines and sines of
/// its position. Each part has a length of its own: the same word elsewhere has a cosine of about 0.64, and more if it is near; another word nearby has one
/// of up to 0.36.
/// </remarks>
internal static partial class WordEmbedding
{
    public const int Dimension = 64;
    public const int MaxWords = 500;

    private const int WordElements = 48;
    private const float WordLength = 0.8f;
    private const float PositionLength = 0.6f;

    /// <summary>The words of a text, in lower case.</summary>
    public static string[] Words(string text) => [.. Word().Matches(text).Select(match => match.Value.ToLowerInvariant())];

    /// <summary>A row for each word, <c>[n, 64]</c>.</summary>
    /// <param name="words">The words, in their order.</param>
    /// <param name="squaredLength">The squared length of every row.</param>
    public static float[] Rows(IReadOnlyList<string> words, float squaredLength)
    {
        float[] rows = new float[words.Count * Dimension];
        for (int i = 0; i < words.Count; i++)
        {
            Span<float> row = rows.AsSpan(i * Dimension, Dimension);
            WriteWord($"<{words[i]}>", row[..WordElements]);
            WritePosition(i, row[WordElements..]);
            TensorPrimitives.Multiply(row, MathF.Sqrt(squaredLength), row);
        }

        return rows;
    }

    [GeneratedRegex(@"[\p{L}\p{N}'’]+")]
    private static partial Regex Word();

    private static void WriteWord(string word, Span<float> part)
    {
        for (int i = 0; i + 3 <= word.Length; i++)
        {
            ulong signs = Mix(word[i] | ((ulong)word[i + 1] << 16) | ((ulong)word[i + 2] << 32));
            for (int d = 0; d < part.Length; d++)
            {
                part[d] += ((signs >> d) & 1) == 0 ? 1 : -1;
            }
        }

        float length = MathF.Sqrt(TensorPrimitives.SumOfSquares<float>(part));
        TensorPrimitives.Multiply(part, length == 0 ? 0 : WordLength / length, part);
    }

    private static void WritePosition(int position, Span<float> part)
    {
        float scale = PositionLength / MathF.Sqrt(part.Length / 2);
        for (int i = 0; i < part.Length; i += 2)
        {
            (float sine, float cosine) = MathF.SinCos(position * MathF.Pow(2, -i / 2f));
            (part[i], part[i + 1]) = (scale * cosine, scale * sine);
        }
    }

    // SplitMix64's finaliser: every input bit reaches every output bit.
    private static ulong Mix(ulong value)
    {
        value += 0x9E3779B97F4A7C15;
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
        return value ^ (value >> 31);
    }
}
