using System.Runtime.CompilerServices;
using ILGPU;

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

    /// <summary>The larger elements; those of <paramref name="other"/> beside a NaN in <paramref name="quad"/>.</summary>
    /// <param name="quad">Elements.</param>
    /// <param name="other">Elements, no NaN among them.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 Larger(Float4 quad, Float4 other)
    {
        quad.X = quad.X > other.X ? quad.X : other.X;
        quad.Y = quad.Y > other.Y ? quad.Y : other.Y;
        quad.Z = quad.Z > other.Z ? quad.Z : other.Z;
        quad.W = quad.W > other.W ? quad.W : other.W;
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
}
