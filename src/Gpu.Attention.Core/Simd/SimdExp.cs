using System.Runtime.CompilerServices;

namespace Gpu.Attention;

/// <summary>
/// <c>exp</c> in float32, within about one unit in the last place. The framework's vector <c>Exp</c> widens to float64 and back;
/// features and exact attention take so many exponentials that this shows in their total.
/// </summary>
/// <remarks>
/// <c>exp(x) = 2ⁿ · e^r</c> with <c>n = round(x / ln 2)</c>, <c>r = x − n ln 2</c> in two parts (Cody and Waite), and the polynomial of
/// the Cephes library for <c>|r| ≤ ½ ln 2</c>. Below −87.33, where the result would be subnormal, it is 0; above 88.37 it is +∞; NaN stays NaN.
/// </remarks>
internal static class SimdExp
{
    private const float Lowest = -87.336f;
    private const float Highest = 88.376f;
    private const float Log2E = 1.44269504f;
    private const float Ln2High = 0.693359375f;
    private const float Ln2Low = -2.12194440e-4f;
    private const float C7 = 1.9875691500e-4f;
    private const float C6 = 1.3981999507e-3f;
    private const float C5 = 8.3334519073e-3f;
    private const float C4 = 4.1665795894e-2f;
    private const float C3 = 1.6666665459e-1f;
    private const float C2 = 5.0000001201e-1f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TV Exp<TV>(TV x)
        where TV : struct, ISimdVector<TV>
    {
        TV n = TV.Round(TV.Multiply(x, TV.Broadcast(Log2E)));
        TV r = TV.MultiplyAdd(n, TV.Broadcast(-Ln2High), x);
        r = TV.MultiplyAdd(n, TV.Broadcast(-Ln2Low), r);
        TV s = TV.Multiply(r, r);
        TV a = TV.MultiplyAdd(TV.Broadcast(C7), r, TV.Broadcast(C6));
        TV b = TV.MultiplyAdd(TV.Broadcast(C5), r, TV.Broadcast(C4));
        TV c = TV.MultiplyAdd(TV.Broadcast(C3), r, TV.Broadcast(C2));
        TV p = TV.MultiplyAdd(TV.MultiplyAdd(a, s, b), s, c);
        p = TV.Add(TV.MultiplyAdd(p, s, r), TV.Broadcast(1));
        TV y = TV.ScaleByPowerOfTwo(p, n);
        y = TV.SelectGreater(TV.Broadcast(Lowest), x, default, y);
        return TV.SelectGreater(x, TV.Broadcast(Highest), TV.Broadcast(float.PositiveInfinity), y);
    }

    /// <summary>Four at a time, step by step beside each other: one alone waits for itself. The bits are those of <see cref="Exp{TV}(TV)"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Exp<TV>(ref TV x0, ref TV x1, ref TV x2, ref TV x3)
        where TV : struct, ISimdVector<TV>
    {
        TV k = TV.Broadcast(Log2E);
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
        TV s0 = TV.Multiply(r0, r0);
        TV s1 = TV.Multiply(r1, r1);
        TV s2 = TV.Multiply(r2, r2);
        TV s3 = TV.Multiply(r3, r3);
        k = TV.Broadcast(C7);
        TV l = TV.Broadcast(C6);
        TV p0 = TV.MultiplyAdd(k, r0, l);
        TV p1 = TV.MultiplyAdd(k, r1, l);
        TV p2 = TV.MultiplyAdd(k, r2, l);
        TV p3 = TV.MultiplyAdd(k, r3, l);
        k = TV.Broadcast(C5);
        l = TV.Broadcast(C4);
        p0 = TV.MultiplyAdd(p0, s0, TV.MultiplyAdd(k, r0, l));
        p1 = TV.MultiplyAdd(p1, s1, TV.MultiplyAdd(k, r1, l));
        p2 = TV.MultiplyAdd(p2, s2, TV.MultiplyAdd(k, r2, l));
        p3 = TV.MultiplyAdd(p3, s3, TV.MultiplyAdd(k, r3, l));
        k = TV.Broadcast(C3);
        l = TV.Broadcast(C2);
        p0 = TV.MultiplyAdd(p0, s0, TV.MultiplyAdd(k, r0, l));
        p1 = TV.MultiplyAdd(p1, s1, TV.MultiplyAdd(k, r1, l));
        p2 = TV.MultiplyAdd(p2, s2, TV.MultiplyAdd(k, r2, l));
        p3 = TV.MultiplyAdd(p3, s3, TV.MultiplyAdd(k, r3, l));
        k = TV.Broadcast(1);
        p0 = TV.ScaleByPowerOfTwo(TV.Add(TV.MultiplyAdd(p0, s0, r0), k), n0);
        p1 = TV.ScaleByPowerOfTwo(TV.Add(TV.MultiplyAdd(p1, s1, r1), k), n1);
        p2 = TV.ScaleByPowerOfTwo(TV.Add(TV.MultiplyAdd(p2, s2, r2), k), n2);
        p3 = TV.ScaleByPowerOfTwo(TV.Add(TV.MultiplyAdd(p3, s3, r3), k), n3);
        k = TV.Broadcast(Lowest);
        p0 = TV.SelectGreater(k, x0, default, p0);
        p1 = TV.SelectGreater(k, x1, default, p1);
        p2 = TV.SelectGreater(k, x2, default, p2);
        p3 = TV.SelectGreater(k, x3, default, p3);
        k = TV.Broadcast(Highest);
        l = TV.Broadcast(float.PositiveInfinity);
        x0 = TV.SelectGreater(x0, k, l, p0);
        x1 = TV.SelectGreater(x1, k, l, p1);
        x2 = TV.SelectGreater(x2, k, l, p2);
        x3 = TV.SelectGreater(x3, k, l, p3);
    }
}
