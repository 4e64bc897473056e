using System.Runtime.InteropServices;

namespace Gpu.Attention.TestKit;

/// <summary>A tensor as it is stored, in whole 32-bit words.</summary>
public sealed class StoredTensor
{
    // What the half of a word that is beyond the last element holds.
    private const ushort Filler = 0x7E5A;

    private readonly float[] _words;

    private StoredTensor(float[] words) => _words = words;

    /// <summary>The words.</summary>
    public ReadOnlySpan<float> Words => _words;

    /// <summary>Stores elements, each rounded to the nearest of the type.</summary>
    public static StoredTensor Of(float[] elements, ElementType type)
    {
        ArgumentNullException.ThrowIfNull(elements);
        float[] words = new float[WordsOf(elements.Length, type)];
        if (type == ElementType.Single)
        {
            elements.CopyTo(words, 0);
            return new StoredTensor(words);
        }

        Span<ushort> stored = MemoryMarshal.Cast<float, ushort>(words.AsSpan());
        stored.Fill(Filler);
        for (int i = 0; i < elements.Length; i++)
        {
            stored[i] = type == ElementType.Half ? BitConverter.HalfToUInt16Bits((Half)elements[i]) : ((BFloat16)elements[i]).Bits;
        }

        return new StoredTensor(words);
    }

    /// <summary>Elements rounded to the nearest of a type.</summary>
    public static float[] Round(float[] elements, ElementType type) =>
        Read(Of(elements, type).Words, elements?.Length ?? 0, type);

    /// <summary>Words that a tensor takes.</summary>
    public static long WordsOf(long elements, ElementType type) => type == ElementType.Single ? elements : (elements + 1) / 2;

    /// <summary>Stored elements.</summary>
    public static float[] Read(ReadOnlySpan<float> words, long count, ElementType type)
    {
        float[] elements = new float[count];
        if (type == ElementType.Single)
        {
            words[..elements.Length].CopyTo(elements);
            return elements;
        }

        ReadOnlySpan<ushort> stored = MemoryMarshal.Cast<float, ushort>(words);
        for (int i = 0; i < elements.Length; i++)
        {
            elements[i] = type == ElementType.Half ? (float)BitConverter.UInt16BitsToHalf(stored[i]) : new BFloat16(stored[i]);
        }

        return elements;
    }

    /// <summary>Throws when the words are not those that were stored.</summary>
    public void RequireUnchanged(ReadOnlySpan<float> words)
    {
        if (!MemoryMarshal.AsBytes(words).SequenceEqual(MemoryMarshal.AsBytes(_words.AsSpan())))
        {
            throw new VerificationException("An input was written to.");
        }
    }
}
