namespace Gpu.Attention.TestKit;

/// <summary>Masks and packings that laws are held at.</summary>
public static class Sequences
{
    /// <summary>A mask <c>[B, S]</c>: padding on either side or both, holes, nothing masked, or everything.</summary>
    public static bool[] Mask(SeededRandom random, int batch, int keyLength)
    {
        ArgumentNullException.ThrowIfNull(random);
        bool[] mask = new bool[batch * keyLength];
        for (int sequence = 0; sequence < batch; sequence++)
        {
            Span<bool> row = mask.AsSpan(sequence * keyLength, keyLength);
            int kind = random.Next(0, 6);
            int left = kind is 1 or 3 ? random.Next(0, keyLength) : 0;
            int right = kind is 2 or 3 ? random.Next(0, keyLength - left) : 0;
            row[left..(keyLength - right)].Fill(kind != 6 || random.NextBool());
            for (int i = 0; kind >= 4 && i < keyLength; i++)
            {
                row[i] &= random.Next(0, 9) < (kind == 4 ? 5 : 9);
            }
        }

        return mask;
    }

    /// <summary>Offsets of sequences of random lengths, empty ones among them.</summary>
    public static int[] Offsets(SeededRandom random, int sequences, int maxLength)
    {
        ArgumentNullException.ThrowIfNull(random);
        int[] offsets = new int[sequences + 1];
        for (int i = 0; i < sequences; i++)
        {
            offsets[i + 1] = offsets[i] + random.NextLength(maxLength);
        }

        return offsets;
    }

    /// <summary>The mask as oracles take it.</summary>
    public static byte[] Bytes(bool[] mask) => Array.ConvertAll(mask, visible => (byte)(visible ? 1 : 0));

    /// <summary>A copy in which the tokens of <c>[B, S, ...]</c> that are masked hold something that must reach nothing.</summary>
    public static float[] Spoiled(float[] tensor, bool[] mask, float with)
    {
        ArgumentNullException.ThrowIfNull(tensor);
        ArgumentNullException.ThrowIfNull(mask);
        float[] copy = [.. tensor];
        int width = mask.Length == 0 ? 0 : tensor.Length / mask.Length;
        for (int token = 0; token < mask.Length; token++)
        {
            if (!mask[token])
            {
                copy.AsSpan(token * width, width).Fill(with);
            }
        }

        return copy;
    }

    /// <summary>Some tokens of a tensor <c>[tokens, ...]</c>, one after the other.</summary>
    public static float[] Gather(ReadOnlySpan<float> tensor, int width, IEnumerable<int> tokens)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        var gathered = new List<float>();
        foreach (int token in tokens)
        {
            gathered.AddRange(tensor.Slice(token * width, width));
        }

        return [.. gathered];
    }
}
