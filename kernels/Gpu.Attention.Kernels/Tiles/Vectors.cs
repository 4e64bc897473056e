using System.Runtime.CompilerServices;
using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>A few floats in registers, one name each: an array that a loop indexes would lie in memory.</summary>
/// <typeparam name="TSelf">The vector itself.</typeparam>
internal interface IVector<TSelf>
    where TSelf : unmanaged, IVector<TSelf>
{
    /// <summary>Reads a vector.</summary>
    /// <param name="source">Quads of floats.</param>
    /// <param name="quad">The vector's first quad.</param>
    static abstract TSelf Load(ArrayView<Float4> source, int quad);

    /// <summary>Writes a vector.</summary>
    /// <param name="target">Quads of floats.</param>
    /// <param name="quad">The vector's first quad.</param>
    /// <param name="value">The vector.</param>
    static abstract void Store(ArrayView<Float4> target, long quad, TSelf value);

    /// <summary><c>a·b + c</c>.</summary>
    /// <param name="a">A factor for every element.</param>
    /// <param name="b">A vector.</param>
    /// <param name="c">A vector.</param>
    static abstract TSelf MultiplyAdd(float a, TSelf b, TSelf c);

    /// <summary><c>a·b</c>.</summary>
    /// <param name="a">A factor for every element.</param>
    /// <param name="b">A vector.</param>
    static abstract TSelf Multiply(float a, TSelf b);

    /// <summary><c>a + b</c>.</summary>
    /// <param name="a">A vector.</param>
    /// <param name="b">A vector.</param>
    static abstract TSelf Add(TSelf a, TSelf b);

    /// <summary>The larger of each two elements; that of <paramref name="b"/>, where one is NaN.</summary>
    /// <param name="a">A vector.</param>
    /// <param name="b">A vector.</param>
    static abstract TSelf Max(TSelf a, TSelf b);

    /// <summary><c>e^{a−b}</c>.</summary>
    /// <param name="a">A vector.</param>
    /// <param name="b">A vector.</param>
    static abstract TSelf ExpDifference(TSelf a, TSelf b);

    /// <summary><c>e^{a−b}</c>, b the same for every element.</summary>
    /// <param name="a">A vector.</param>
    /// <param name="b">A number.</param>
    static abstract TSelf ExpDifference(TSelf a, float b);

    /// <summary><c>w (a − b)</c>.</summary>
    /// <param name="w">A vector.</param>
    /// <param name="a">A vector.</param>
    /// <param name="b">A vector.</param>
    static abstract TSelf WeighDifference(TSelf w, TSelf a, TSelf b);

    /// <summary><c>w (a − b)</c>, b the same for every element.</summary>
    /// <param name="w">A vector.</param>
    /// <param name="a">A vector.</param>
    /// <param name="b">A number.</param>
    static abstract TSelf WeighDifference(TSelf w, TSelf a, float b);

    /// <summary>Puts −∞ in place of every element i with <c>limit + i·step &lt; 0</c>, whatever it is.</summary>
    /// <param name="value">A vector.</param>
    /// <param name="limit">The bound of element 0.</param>
    /// <param name="step">By how much the bound grows from an element to the next.</param>
    static abstract TSelf Mask(TSelf value, int limit, int step);

    /// <summary>Puts −∞ in place of every element that does not see a key, whatever it is.</summary>
    /// <param name="value">A vector.</param>
    /// <param name="seen">Holds how many keys each element sees.</param>
    /// <param name="first">Element 0 there.</param>
    /// <param name="key">The key.</param>
    static abstract TSelf Mask(TSelf value, ArrayView<int> seen, int first, int key);
}

/// <summary>Four floats, 16-byte aligned in memory: what a thread loads and stores at once.</summary>
internal struct Float4 : IVector<Float4>
{
    /// <summary>Element 0.</summary>
    public float X;

    /// <summary>Element 1.</summary>
    public float Y;

    /// <summary>Element 2.</summary>
    public float Z;

    /// <summary>Element 3.</summary>
    public float W;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 Load(ArrayView<Float4> source, int quad) => source[quad];

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(ArrayView<Float4> target, long quad, Float4 value) => target[quad] = value;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 MultiplyAdd(float a, Float4 b, Float4 c)
    {
        c.X += a * b.X;
        c.Y += a * b.Y;
        c.Z += a * b.Z;
        c.W += a * b.W;
        return c;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 Multiply(float a, Float4 b)
    {
        b.X *= a;
        b.Y *= a;
        b.Z *= a;
        b.W *= a;
        return b;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 Add(Float4 a, Float4 b)
    {
        a.X += b.X;
        a.Y += b.Y;
        a.Z += b.Z;
        a.W += b.W;
        return a;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 Max(Float4 a, Float4 b)
    {
        a.X = a.X > b.X ? a.X : b.X;
        a.Y = a.Y > b.Y ? a.Y : b.Y;
        a.Z = a.Z > b.Z ? a.Z : b.Z;
        a.W = a.W > b.W ? a.W : b.W;
        return a;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 ExpDifference(Float4 a, Float4 b)
    {
        a.X = XMath.Exp(a.X - b.X);
        a.Y = XMath.Exp(a.Y - b.Y);
        a.Z = XMath.Exp(a.Z - b.Z);
        a.W = XMath.Exp(a.W - b.W);
        return a;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 ExpDifference(Float4 a, float b) => ExpDifference(a, Of(b));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 WeighDifference(Float4 w, Float4 a, Float4 b)
    {
        w.X *= a.X - b.X;
        w.Y *= a.Y - b.Y;
        w.Z *= a.Z - b.Z;
        w.W *= a.W - b.W;
        return w;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 WeighDifference(Float4 w, Float4 a, float b) => WeighDifference(w, a, Of(b));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 Mask(Float4 value, int limit, int step)
    {
        value.X = limit < 0 ? float.NegativeInfinity : value.X;
        value.Y = limit + step < 0 ? float.NegativeInfinity : value.Y;
        value.Z = limit + (2 * step) < 0 ? float.NegativeInfinity : value.Z;
        value.W = limit + (3 * step) < 0 ? float.NegativeInfinity : value.W;
        return value;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 Mask(Float4 value, ArrayView<int> seen, int first, int key)
    {
        value.X = key < seen[first] ? value.X : float.NegativeInfinity;
        value.Y = key < seen[first + 1] ? value.Y : float.NegativeInfinity;
        value.Z = key < seen[first + 2] ? value.Z : float.NegativeInfinity;
        value.W = key < seen[first + 3] ? value.W : float.NegativeInfinity;
        return value;
    }

    /// <summary>Four times the same.</summary>
    /// <param name="value">Every element.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 Of(float value)
    {
        Float4 quad;
        quad.X = value;
        quad.Y = value;
        quad.Z = value;
        quad.W = value;
        return quad;
    }

    /// <summary>Adds a number to every element.</summary>
    /// <param name="quad">The elements.</param>
    /// <param name="value">The number.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 Add(Float4 quad, float value)
    {
        quad.X += value;
        quad.Y += value;
        quad.Z += value;
        quad.W += value;
        return quad;
    }
}

/// <summary>Eight floats.</summary>
internal struct Float8 : IVector<Float8>
{
    private Float4 _low;
    private Float4 _high;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float8 Load(ArrayView<Float4> source, int quad)
    {
        Float8 value;
        value._low = source[quad];
        value._high = source[quad + 1];
        return value;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(ArrayView<Float4> target, long quad, Float8 value)
    {
        target[quad] = value._low;
        target[quad + 1] = value._high;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float8 MultiplyAdd(float a, Float8 b, Float8 c)
    {
        c._low = Float4.MultiplyAdd(a, b._low, c._low);
        c._high = Float4.MultiplyAdd(a, b._high, c._high);
        return c;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float8 Multiply(float a, Float8 b)
    {
        b._low = Float4.Multiply(a, b._low);
        b._high = Float4.Multiply(a, b._high);
        return b;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float8 Add(Float8 a, Float8 b)
    {
        a._low = Float4.Add(a._low, b._low);
        a._high = Float4.Add(a._high, b._high);
        return a;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float8 Max(Float8 a, Float8 b)
    {
        a._low = Float4.Max(a._low, b._low);
        a._high = Float4.Max(a._high, b._high);
        return a;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float8 ExpDifference(Float8 a, Float8 b)
    {
        a._low = Float4.ExpDifference(a._low, b._low);
        a._high = Float4.ExpDifference(a._high, b._high);
        return a;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float8 ExpDifference(Float8 a, float b)
    {
        a._low = Float4.ExpDifference(a._low, b);
        a._high = Float4.ExpDifference(a._high, b);
        return a;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float8 WeighDifference(Float8 w, Float8 a, Float8 b)
    {
        w._low = Float4.WeighDifference(w._low, a._low, b._low);
        w._high = Float4.WeighDifference(w._high, a._high, b._high);
        return w;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float8 WeighDifference(Float8 w, Float8 a, float b)
    {
        w._low = Float4.WeighDifference(w._low, a._low, b);
        w._high = Float4.WeighDifference(w._high, a._high, b);
        return w;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float8 Mask(Float8 value, int limit, int step)
    {
        value._low = Float4.Mask(value._low, limit, step);
        value._high = Float4.Mask(value._high, limit + (4 * step), step);
        return value;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float8 Mask(Float8 value, ArrayView<int> seen, int first, int key)
    {
        value._low = Float4.Mask(value._low, seen, first, key);
        value._high = Float4.Mask(value._high, seen, first + 4, key);
        return value;
    }
}
