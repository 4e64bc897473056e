using System.Globalization;

namespace Gpu.Attention;

/// <summary>A number of 16 bits that are the upper half of a <see cref="float"/>: its range, with 8 bits of precision.</summary>
/// <param name="Bits">The bits.</param>
public readonly record struct BFloat16(ushort Bits)
{
    /// <summary>The nearest number, of two equally near the one whose last bit is 0; NaN stays NaN.</summary>
    /// <param name="value">A number.</param>
    public static explicit operator BFloat16(float value)
    {
        uint bits = BitConverter.SingleToUInt32Bits(value);

        // A NaN whose payload lies in the lower half alone must not become infinity.
        return new BFloat16(float.IsNaN(value) ? (ushort)((bits >> 16) | 0x40) : (ushort)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16));
    }

    /// <summary>The same number; every one is a <see cref="float"/> too.</summary>
    /// <param name="value">A number.</param>
    public static implicit operator float(BFloat16 value) => BitConverter.UInt32BitsToSingle((uint)value.Bits << 16);

    /// <inheritdoc/>
    public override string ToString() => ((float)this).ToString(CultureInfo.CurrentCulture);
}
