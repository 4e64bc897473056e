using System.Runtime.CompilerServices;

namespace Gpu.Attention;

/// <summary>
/// <c>exp</c> in float32, within one unit in the last place. The framework's vector <c>Exp</c> widens to float64 and back;
/// features and exact attention take so many exponentials that this shows in their total.
/// </summary>
/// <remarks>
/// <c>exp(x) = 2ⁿ⁻¹ · 2 e^r</c> with <c>n = round(x / ln 2)</c>, <c>r = x − n ln 2</c> in two parts (Cody and Waite), and for <c>|r| ≤ ½ ln 2</c> the polynomial
/// <c>1 + r + C2 r² + … + C6 r⁶</c> of least relative error (3·10⁻⁹), in Horner's order: what counts is the number of instructions in flight, not how long one
/// exponential takes. Twice the polynomial, so that 2ⁿ⁻¹ is a number for <c>n = 128</c> and 0 for <c>n = −126</c>: above 88.72 the result is +∞, below −86.98, where it
/// might be subnormal, it is 0, and nothing has to be chosen between in the end. NaN stays NaN.
/// </remarks>
internal static class SimdExp
{
    private const float Lowest = -87;
    private const float Highest = 89;
    private const float Log2E = 1.44269504f;
    private const float Ln2High = 0.693359375f;
    private const float Ln2Low = -2.12194440e-4f;

    // 1.5·2²³ added to a number leaves the nearest whole one, ties to even, in its lowest bits; and with 126 that of the exponent of 2ⁿ⁻¹.
    private const float Whole = 12582912 + 126;

    private const float C6 = 2 * 1.3814583640e-3f;
    private const float C5 = 2 * 8.3687239684e-3f;
    private const float C4 = 2 * 4.1668388738e-2f;
    private const float C3 = 2 * 1.6666520573e-1f;
    private const float C2 = 2 * 4.9999993444e-1f;
    private const float C1 = 2;
    private const float C0 = 2;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TV Exp<TV>(TV x)
        where TV : struct, ISimdVector<TV>
    {
        TV y = TV.Clamp(x, TV.Broadcast(Lowest), TV.Broadcast(Highest));
        TV t = TV.MultiplyAdd(y, TV.Broadcast(Log2E), TV.Broadcast(Whole));
        TV n = TV.Subtract(t, TV.Broadcast(Whole));
        TV r = TV.MultiplyAdd(n, TV.Broadcast(-Ln2High), y);
        r = TV.MultiplyAdd(n, TV.Broadcast(-Ln2Low), r);
        TV p = TV.MultiplyAdd(TV.Broadcast(C6), r, TV.Broadcast(C5));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(C4));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(C3));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(C2));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(C1));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(C0));
        return TV.Multiply(p, TV.ShiftToExponent(t));
    }

    /// <summary>Four at a time, step by step beside each other: one alone waits for itself. The bits are those of <see cref="Exp{TV}(TV)"/>.</summary>
    /// <remarks>Three values of each are alive at a time, and two constants: with sixteen registers none is put away. One more, and they would be at every step.</remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Exp<TV>(ref TV x0, ref TV x1, ref TV x2, ref TV x3)
        where TV : struct, ISimdVector<TV>
    {
        TV k = TV.Broadcast(Lowest);
        TV l = TV.Broadcast(Highest);
        x0 = TV.Clamp(x0, k, l);
        x1 = TV.Clamp(x1, k, l);
        x2 = TV.Clamp(x2, k, l);
        x3 = TV.Clamp(x3, k, l);
        k = TV.Broadcast(Log2E);
        l = TV.Broadcast(Whole);
        TV t0 = TV.MultiplyAdd(x0, k, l);
        TV t1 = TV.MultiplyAdd(x1, k, l);
        TV t2 = TV.MultiplyAdd(x2, k, l);
        TV t3 = TV.MultiplyAdd(x3, k, l);
        TV n0 = TV.Subtract(t0, l);
        TV n1 = TV.Subtract(t1, l);
        TV n2 = TV.Subtract(t2, l);
        TV n3 = TV.Subtract(t3, l);
        k = TV.Broadcast(-Ln2High);
        x0 = TV.MultiplyAdd(n0, k, x0);
        x1 = TV.MultiplyAdd(n1, k, x1);
        x2 = TV.MultiplyAdd(n2, k, x2);
        x3 = TV.MultiplyAdd(n3, k, x3);
        k = TV.Broadcast(-Ln2Low);
        x0 = TV.MultiplyAdd(n0, k, x0);
        x1 = TV.MultiplyAdd(n1, k, x1);
        x2 = TV.MultiplyAdd(n2, k, x2);
        x3 = TV.MultiplyAdd(n3, k, x3);
        k = TV.Broadcast(C6);
        l = TV.Broadcast(C5);
        TV p0 = TV.MultiplyAdd(k, x0, l);
        TV p1 = TV.MultiplyAdd(k, x1, l);
        TV p2 = TV.MultiplyAdd(k, x2, l);
        TV p3 = TV.MultiplyAdd(k, x3, l);
        k = TV.Broadcast(C4);
        p0 = TV.MultiplyAdd(p0, x0, k);
        p1 = TV.MultiplyAdd(p1, x1, k);
        p2 = TV.MultiplyAdd(p2, x2, k);
        p3 = TV.MultiplyAdd(p3, x3, k);
        k = TV.Broadcast(C3);
        p0 = TV.MultiplyAdd(p0, x0, k);
        p1 = TV.MultiplyAdd(p1, x1, k);
        p2 = TV.MultiplyAdd(p2, x2, k);
        p3 = TV.MultiplyAdd(p3, x3, k);
        k = TV.Broadcast(C2);
        p0 = TV.MultiplyAdd(p0, x0, k);
        p1 = TV.MultiplyAdd(p1, x1, k);
        p2 = TV.MultiplyAdd(p2, x2, k);
        p3 = TV.MultiplyAdd(p3, x3, k);
        k = TV.Broadcast(C1);
        p0 = TV.MultiplyAdd(p0, x0, k);
        p1 = TV.MultiplyAdd(p1, x1, k);
        p2 = TV.MultiplyAdd(p2, x2, k);
        p3 = TV.MultiplyAdd(p3, x3, k);
        k = TV.Broadcast(C0);
        x0 = TV.Multiply(TV.MultiplyAdd(p0, x0, k), TV.ShiftToExponent(t0));
        x1 = TV.Multiply(TV.MultiplyAdd(p1, x1, k), TV.ShiftToExponent(t1));
        x2 = TV.Multiply(TV.MultiplyAdd(p2, x2, k), TV.ShiftToExponent(t2));
        x3 = TV.Multiply(TV.MultiplyAdd(p3, x3, k), TV.ShiftToExponent(t3));
    }
}
