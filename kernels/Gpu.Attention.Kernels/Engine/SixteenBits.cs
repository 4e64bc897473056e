using System.Runtime.CompilerServices;
using ILGPU;

namespace Gpu.Attention;

/// <summary>Numbers of 16 bits and float32, from one to the other by integer arithmetic: few devices have both types, and some drop subnormal numbers.</summary>
internal static class SixteenBits
{
    private const uint Infinity = 0x7F800000;

    /// <summary>The value of IEEE's 16 bits; every one is a float32 too, and a normal one but for 0.</summary>
    /// <param name="bits">The bits.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float FromHalf(uint bits)
    {
        uint magnitude = bits & 0x7FFF;

        // Subnormal numbers are whole multiples of 2^-24.
        uint value = magnitude >= 0x7C00 ? Infinity | (magnitude << 13)
            : magnitude >= 0x400 ? (magnitude << 13) + (112 << 23)
            : Interop.FloatAsInt((int)magnitude * 5.9604645e-8f);
        return Interop.IntAsFloat(value | ((bits & 0x8000) << 16));
    }

    /// <summary>The nearest number of IEEE's 16 bits, of two equally near the one whose last bit is 0; NaN stays NaN.</summary>
    /// <param name="value">A number.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint ToHalf(float value)
    {
        uint bits = Interop.FloatAsInt(value);
        uint sign = (bits >> 16) & 0x8000;
        uint magnitude = bits & 0x7FFFFFFF;
        if (magnitude > Infinity)
        {
            return sign | 0x7E00 | ((magnitude >> 13) & 0x1FF);
        }

        // From 65520 on, halfway beyond the largest.
        if (magnitude >= 0x477FF000)
        {
            return sign | 0x7C00;
        }

        // From 2^-14 on.
        if (magnitude >= 0x38800000)
        {
            return sign | ((magnitude - (112 << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13);
        }

        // Up to 2^-25, halfway to the smallest.
        if (magnitude <= 0x33000000)
        {
            return sign;
        }

        // In multiples of 2^-24.
        int shift = 126 - (int)(magnitude >> 23);
        uint mantissa = (magnitude & 0x7FFFFF) | 0x800000;
        uint whole = mantissa >> shift;
        return sign | ((mantissa + (1u << (shift - 1)) - 1 + (whole & 1)) >> shift);
    }

    /// <summary>The value of a float32's upper half.</summary>
    /// <param name="bits">The bits.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float FromBFloat16(uint bits) => Interop.IntAsFloat(bits << 16);

    /// <summary>As <see cref="BFloat16"/> rounds.</summary>
    /// <param name="value">A number.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint ToBFloat16(float value)
    {
        uint bits = Interop.FloatAsInt(value);
        return (bits & 0x7FFFFFFF) > Infinity ? (bits >> 16) | 0x40 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    }
}
