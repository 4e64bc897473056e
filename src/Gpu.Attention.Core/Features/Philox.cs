namespace Gpu.Attention;

/// <summary>
/// Philox4x32-10, a counter-based generator: 128 random bits are a function of a 64-bit key and a 128-bit counter, with no state
/// between them, so that any part of a random matrix can be made alone and in any order.
/// </summary>
/// <remarks>Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).</remarks>
internal static class Philox
{
    private const uint Multiplier0 = 0xD2511F53;
    private const uint Multiplier1 = 0xCD9E8D57;
    private const uint Weyl0 = 0x9E3779B9;
    private const uint Weyl1 = 0xBB67AE85;
    private const int Rounds = 10;

    /// <summary>The four random words at one counter under one key; the low half of the key is word 0.</summary>
    public static (uint X0, uint X1, uint X2, uint X3) Words(ulong key, uint c0, uint c1, uint c2, uint c3)
    {
        uint k0 = (uint)key;
        uint k1 = (uint)(key >> 32);
        for (int round = 0; round < Rounds; round++)
        {
            ulong product0 = (ulong)Multiplier0 * c0;
            ulong product1 = (ulong)Multiplier1 * c2;
            (c0, c1, c2, c3) = ((uint)(product1 >> 32) ^ c1 ^ k0, (uint)product1, (uint)(product0 >> 32) ^ c3 ^ k1, (uint)product0);
            k0 += Weyl0;
            k1 += Weyl1;
        }

        return (c0, c1, c2, c3);
    }

    /// <summary>Fills a row with independent standard normal numbers.</summary>
    /// <param name="seed">The key.</param>
    /// <param name="stream">Tells uses of one seed apart.</param>
    /// <param name="row">Tells rows of one stream apart.</param>
    /// <param name="destination">Receives the numbers; a shorter row of the same seed, stream and row is a prefix of a longer one.</param>
    /// <remarks>
    /// Marsaglia's polar method: of the usual methods the one whose only function beyond <c>+ − × ÷ √</c> is a logarithm, which
    /// <see cref="Log"/> makes of these. A rejected pair tries again at the next value of a counter word of its own, so one
    /// rejection does not shift the numbers after it.
    /// </remarks>
    public static void Normal(ulong seed, uint stream, uint row, Span<double> destination)
    {
        for (int i = 0; i < destination.Length; i += 2)
        {
            (double first, double second) = NormalPair(seed, stream, row, (uint)(i / 2));
            destination[i] = first;
            if (i + 1 < destination.Length)
            {
                destination[i + 1] = second;
            }
        }
    }

    private static (double First, double Second) NormalPair(ulong seed, uint stream, uint row, uint pair)
    {
        for (uint attempt = 0; ; attempt++)
        {
            (uint x0, uint x1, uint x2, uint x3) = Words(seed, pair, attempt, row, stream);
            double u = Symmetric(x0, x1);
            double v = Symmetric(x2, x3);
            double squared = (u * u) + (v * v);
            if (squared > 0 && squared < 1)
            {
                double factor = Math.Sqrt(-2 * Log(squared) / squared);
                return (u * factor, v * factor);
            }
        }
    }

    /// <summary>A multiple of 2⁻⁵² in [−1, 1), exact at every step.</summary>
    private static double Symmetric(uint low, uint high)
    {
        const double Step = 1.0 / (1L << 52);
        long bits = (long)((((ulong)high << 32) | low) >> 11);
        return (bits - (1L << 52)) * Step;
    }

    /// <summary>The natural logarithm of a positive normal number, to a few units in the last place.</summary>
    /// <remarks>
    /// <see cref="Math.Log(double)"/> is the platform's, and platforms differ in the last bit. Here
    /// <c>x = 2ᵏ f</c> with <c>f</c> in [√½, √2) and <c>log f = 2 artanh(t)</c>, <c>t = (f − 1)/(f + 1)</c>, by its series;
    /// <c>t² &lt; 0.0295</c>, so the first term left out is below 2⁻⁵⁶ of the sum. Only operations that IEEE 754 rounds correctly, in a fixed order.
    /// </remarks>
    internal static double Log(double x)
    {
        const double SqrtHalf = 0.70710678118654752;
        // ln 2 in two parts, the first with enough trailing zero bits that its product with an exponent is exact.
        const double Ln2High = 0.693147180369123816490;
        const double Ln2Low = 1.90821492927058770002e-10;
        ulong bits = BitConverter.DoubleToUInt64Bits(x);
        int exponent = (int)(bits >> 52) - 1022;
        double fraction = BitConverter.UInt64BitsToDouble((bits & 0x000F_FFFF_FFFF_FFFF) | 0x3FE0_0000_0000_0000);
        if (fraction < SqrtHalf)
        {
            fraction *= 2;
            exponent--;
        }

        double t = (fraction - 1) / (fraction + 1);
        double z = t * t;
        double series = 1.0 / 21;
        for (int odd = 19; odd >= 3; odd -= 2)
        {
            series = (series * z) + (1.0 / odd);
        }

        double correction = 2 * t * (z * series);
        return (exponent * Ln2High) + ((2 * t) + (correction + (exponent * Ln2Low)));
    }
}
