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

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TV Exp<TV>(TV x)
        where TV : struct, ISimdVector<TV>
    {
        TV n = TV.Round(TV.Multiply(x, TV.Broadcast(1.44269504f)));
        TV r = TV.MultiplyAdd(n, TV.Broadcast(-0.693359375f), x);
        r = TV.MultiplyAdd(n, TV.Broadcast(2.12194440e-4f), r);
        TV p = TV.MultiplyAdd(TV.Broadcast(1.9875691500e-4f), r, TV.Broadcast(1.3981999507e-3f));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(8.3334519073e-3f));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(4.1665795894e-2f));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(1.6666665459e-1f));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(5.0000001201e-1f));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(1f));
        p = TV.MultiplyAdd(p, r, TV.Broadcast(1f));
        TV y = TV.ScaleByPowerOfTwo(p, n);
        y = TV.SelectGreater(TV.Broadcast(Lowest), x, default, y);
        return TV.SelectGreater(x, TV.Broadcast(Highest), TV.Broadcast(float.PositiveInfinity), y);
    }
}
