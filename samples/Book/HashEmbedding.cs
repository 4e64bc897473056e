using System.Numerics.Tensors;

namespace Gpu.Attention.Samples.Book;

/// <summary>
/// Turns the characters before a position into a row, without any training: the last one, two, three and four of them are each hashed
/// to 64 bits, and bit <c>d</c> is the sign of that order's part of element <c>d</c>.
/// </summary>
/// <remarks>
/// Order <c>n</c> weighs <c>2^((1−n)/2)</c>, so that contexts whose last characters agree have a cosine near 0.53 (one), 0.80 (two),
/// 0.93 (three) and 1 (four or more); others are near 0, with a standard deviation of about 1/8 from the hash. Rows have the squared
/// length <see cref="Temperature"/>, so that <c>exp(q·k) = exp(temperature · cosine)</c>.
/// </remarks>
internal static class HashEmbedding
{
    public const int Dimension = 64;
    public const int Orders = 4;

    /// <summary>The squared length of a row. Sharper attention predicts better, but random features lose it sooner: see the report.</summary>
    public const float Temperature = 6;

    /// <summary>Writes row <c>i</c> from the characters before position <paramref name="first"/><c> + i</c>, and from no others.</summary>
    /// <param name="symbols">The whole text.</param>
    /// <param name="first">The position of the first row.</param>
    /// <param name="rows">Receives the rows, <c>[n, 64]</c>.</param>
    public static void Write(ReadOnlySpan<byte> symbols, int first, Span<float> rows)
    {
        for (int i = 0; i < rows.Length / Dimension; i++)
        {
            WriteRow(symbols[..(first + i)], rows.Slice(i * Dimension, Dimension));
        }
    }

    private static void WriteRow(ReadOnlySpan<byte> before, Span<float> row)
    {
        const ulong BeforeTheText = 256;
        row.Clear();
        ulong hash = 0;
        float weight = 1;
        for (int order = 1; order <= Orders; order++)
        {
            ulong symbol = order <= before.Length ? before[^order] : BeforeTheText;
            hash = Mix(hash ^ ((symbol + 1) * 0xD1B54A32D192ED03));
            uint magnitude = BitConverter.SingleToUInt32Bits(weight);
            for (int d = 0; d < Dimension; d++)
            {
                uint sign = (uint)(hash >> d) << 31;
                row[d] += BitConverter.UInt32BitsToSingle(magnitude | sign);
            }

            weight *= 0.70710678f;
        }

        float length = MathF.Sqrt(TensorPrimitives.SumOfSquares<float>(row));
        TensorPrimitives.Multiply(row, MathF.Sqrt(Temperature) / length, row);
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
