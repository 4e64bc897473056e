using System.Runtime.CompilerServices;

namespace Gpu.Attention;

/// <summary>
/// <c>exp</c> in float32, within one unit in the last place. The framework's vector <c>Exp</c> widens to float64 and back;
/// features and exact attention take so many exponentials that this shows in their total.
/// </summary>
/// <remarks>
/// <c>exp(x) = 2ⁿ · e^r</c> with <c>n = round(x / ln 2)</c>, <c>r = x − n ln 2</c> in two parts (Cody and Waite), and for <c>|r| ≤ ½ ln 2</c> the polynomial
/// <c>1 + r + C2 r² + … + C6 r⁶</c> of least relative error (3·10⁻⁹), in Horner's order: what counts is the number of instructions in flight, not how long one
/// exponential takes. Below −87.33, where the result would be subnormal, it is 0; above 88.72 it is +∞ (from 88.37 on where vectors are narrower than 512 bits);
/// NaN stays NaN.
/// </remarks>
internal static class SimdExp
{
    private const float Lowest = -87.336f;
    private const float Highest = 89;
    private const float Log2E = 1.44269504f;
    private const float Ln2High = 0.693359375f;
    private const float Ln2Low = -2.12194440e-4f;
    private const float C6 = 1.3814583640e-3f;
    private const float C5 = 8.3687239684e-3f;
    private const float C4 = 4.1668388738e-2f;
    private const float C3 = 1.6666520573e-1f;
    private const float C2 = 4.9999993444e-1f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TV Exp<TV>(TV x)
        where TV : struct, ISimdVector<TV>
    {
        TV y = TV.Min(TV.Broadcast(Highest), x);
        TV n = TV.Round(TV.Multiply(y, TV.Broadcast(Log2E)));
        TV r = TV.MultiplyAdd(n, TV.Broadcast(-Ln2High), y);
        r = TV.MultiplyAdd(n, TV.Broadcast(-Ln2Low), r);
        TV p = TV.MultiplyAdd(TV.Broadcast(C6), r, TV.Broadcast(C5));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(C4));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(C3));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(C2));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(1));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(1));
        return TV.SelectGreater(TV.Broadcast(Lowest), x, default, TV.ScaleByPowerOfTwo(p, n));
    }

    /// <summary>Four at a time, step by step beside each other: one alone waits for itself. The bits are those of <see cref="Exp{TV}(TV)"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Exp<TV>(ref TV x0, ref TV x1, ref TV x2, ref TV x3)
        where TV : struct, ISimdVector<TV>
    {
        TV k = TV.Broadcast(Highest);
        x0 = TV.Min(k, x0);
        x1 = TV.Min(k, x1);
        x2 = TV.Min(k, x2);
        x3 = TV.Min(k, x3);
        k = TV.Broadcast(Log2E);
        TV n0 = TV.Round(TV.Multiply(x0, k));
        TV n1 = TV.Round(TV.Multiply(x1, k));
        TV n2 = TV.Round(TV.Multiply(x2, k));
        TV n3 = TV.Round(TV.Multiply(x3, k));
        k = TV.Broadcast(-Ln2High);
        TV r0 = TV.MultiplyAdd(n0, k, x0);
        TV r1 = TV.MultiplyAdd(n1, k, x1);
        TV r2 = TV.MultiplyAdd(n2, k, x2);
        TV r3 = TV.MultiplyAdd(n3, k, x3);
        k = TV.Broadcast(-Ln2Low);
        r0 = TV.MultiplyAdd(n0, k, r0);
        r1 = TV.MultiplyAdd(n1, k, r1);
        r2 = TV.MultiplyAdd(n2, k, r2);
        r3 = TV.MultiplyAdd(n3, k, r3);
        k = TV.Broadcast(C6);
        TV l = TV.Broadcast(C5);
        TV p0 = TV.MultiplyAdd(k, r0, l);
        TV p1 = TV.MultiplyAdd(k, r1, l);
        TV p2 = TV.MultiplyAdd(k, r2, l);
        TV p3 = TV.MultiplyAdd(k, r3, l);
        k = TV.Broadcast(C4);
        p0 = TV.MultiplyAdd(p0, r0, k);
        p1 = TV.MultiplyAdd(p1, r1, k);
        p2 = TV.MultiplyAdd(p2, r2, k);
        p3 = TV.MultiplyAdd(p3, r3, k);
        k = TV.Broadcast(C3);
        p0 = TV.MultiplyAdd(p0, r0, k);
        p1 = TV.MultiplyAdd(p1, r1, k);
        p2 = TV.MultiplyAdd(p2, r2, k);
        p3 = TV.MultiplyAdd(p3, r3, k);
        k = TV.Broadcast(C2);
        p0 = TV.MultiplyAdd(p0, r0, k);
        p1 = TV.MultiplyAdd(p1, r1, k);
        p2 = TV.MultiplyAdd(p2, r2, k);
        p3 = TV.MultiplyAdd(p3, r3, k);
        k = TV.Broadcast(1);
        p0 = TV.MultiplyAdd(p0, r0, k);
        p1 = TV.MultiplyAdd(p1, r1, k);
        p2 = TV.MultiplyAdd(p2, r2, k);
        p3 = TV.MultiplyAdd(p3, r3, k);
        p0 = TV.ScaleByPowerOfTwo(TV.MultiplyAdd(p0, r0, k), n0);
        p1 = TV.ScaleByPowerOfTwo(TV.MultiplyAdd(p1, r1, k), n1);
        p2 = TV.ScaleByPowerOfTwo(TV.MultiplyAdd(p2, r2, k), n2);
        p3 = TV.ScaleByPowerOfTwo(TV.MultiplyAdd(p3, r3, k), n3);
        k = TV.Broadcast(Lowest);
        x0 = TV.SelectGreater(k, x0, default, p0);
        x1 = TV.SelectGreater(k, x1, default, p1);
        x2 = TV.SelectGreater(k, x2, default, p2);
        x3 = TV.SelectGreater(k, x3, default, p3);
    }
}
