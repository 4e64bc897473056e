using System.Runtime.CompilerServices;
using ILGPU;

namespace Gpu.Attention;

/// <summary>A thread's square of a tile's sums, in registers.</summary>
/// <typeparam name="TSelf">The block itself.</typeparam>
internal interface IBlock<TSelf>
    where TSelf : unmanaged, IBlock<TSelf>
{
    /// <summary>Rows, and columns.</summary>
    static abstract int Edge { get; }

    /// <summary><c>block + a bᵀ</c>.</summary>
    /// <param name="block">The sums so far.</param>
    /// <param name="a">Holds a, an element for each row.</param>
    /// <param name="aQuad">The first quad of a.</param>
    /// <param name="b">Holds b, an element for each column.</param>
    /// <param name="bQuad">The first quad of b.</param>
    static abstract TSelf Outer(TSelf block, ArrayView<Float4> a, int aQuad, ArrayView<Float4> b, int bQuad);

    /// <summary>
    /// Adds <c>a_i b_iᵀ</c> for as many i as there are rows, to the rows from i on: the rows before it do not touch b_i, which may be NaN.
    /// </summary>
    /// <param name="block">The sums so far.</param>
    /// <param name="a">Holds the a_i.</param>
    /// <param name="aQuad">The first quad of a_0.</param>
    /// <param name="aStride">Quads from a_i to the next.</param>
    /// <param name="b">Holds the b_i.</param>
    /// <param name="bQuad">The first quad of b_0.</param>
    /// <param name="bStride">Quads from b_i to the next.</param>
    static abstract TSelf Triangle(TSelf block, ArrayView<Float4> a, int aQuad, int aStride, ArrayView<Float4> b, int bQuad, int bStride);

    /// <summary>Writes the rows.</summary>
    /// <param name="block">The sums.</param>
    /// <param name="target">Where they go.</param>
    /// <param name="quad">The first quad of row 0.</param>
    /// <param name="stride">Quads from a row to the next.</param>
    static abstract void Store(TSelf block, ArrayView<Float4> target, long quad, int stride);
}

/// <summary>Four rows.</summary>
/// <typeparam name="TVector">A row.</typeparam>
internal struct Rows4<TVector>
    where TVector : unmanaged, IVector<TVector>
{
    private TVector _r0;
    private TVector _r1;
    private TVector _r2;
    private TVector _r3;

    /// <summary>Adds a_i b to row i.</summary>
    /// <param name="rows">The rows.</param>
    /// <param name="a">A factor for each row.</param>
    /// <param name="b">The row that is added.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> Outer(Rows4<TVector> rows, Float4 a, TVector b)
    {
        rows._r0 = TVector.MultiplyAdd(a.X, b, rows._r0);
        rows._r1 = TVector.MultiplyAdd(a.Y, b, rows._r1);
        rows._r2 = TVector.MultiplyAdd(a.Z, b, rows._r2);
        rows._r3 = TVector.MultiplyAdd(a.W, b, rows._r3);
        return rows;
    }

    /// <inheritdoc cref="IBlock{TSelf}.Triangle"/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> Triangle(
        Rows4<TVector> block, ArrayView<Float4> a, int aQuad, int aStride, ArrayView<Float4> b, int bQuad, int bStride)
    {
        block = Outer(block, a[aQuad], TVector.Load(b, bQuad));

        Float4 factors = a[aQuad + aStride];
        TVector row = TVector.Load(b, bQuad + bStride);
        block._r1 = TVector.MultiplyAdd(factors.Y, row, block._r1);
        block._r2 = TVector.MultiplyAdd(factors.Z, row, block._r2);
        block._r3 = TVector.MultiplyAdd(factors.W, row, block._r3);

        factors = a[aQuad + (2 * aStride)];
        row = TVector.Load(b, bQuad + (2 * bStride));
        block._r2 = TVector.MultiplyAdd(factors.Z, row, block._r2);
        block._r3 = TVector.MultiplyAdd(factors.W, row, block._r3);

        factors = a[aQuad + (3 * aStride)];
        row = TVector.Load(b, bQuad + (3 * bStride));
        block._r3 = TVector.MultiplyAdd(factors.W, row, block._r3);
        return block;
    }

    /// <inheritdoc cref="IBlock{TSelf}.Store"/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Rows4<TVector> block, ArrayView<Float4> target, long quad, int stride)
    {
        TVector.Store(target, quad, block._r0);
        TVector.Store(target, quad + stride, block._r1);
        TVector.Store(target, quad + (2 * stride), block._r2);
        TVector.Store(target, quad + (3 * stride), block._r3);
    }
}

/// <summary>4 × 4 sums: 16 multiply-adds for two 16-byte loads.</summary>
internal struct Block4 : IBlock<Block4>
{
    private Rows4<Float4> _rows;

    /// <inheritdoc/>
    public static int Edge => 4;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 Outer(Block4 block, ArrayView<Float4> a, int aQuad, ArrayView<Float4> b, int bQuad)
    {
        block._rows = Rows4<Float4>.Outer(block._rows, a[aQuad], b[bQuad]);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 Triangle(Block4 block, ArrayView<Float4> a, int aQuad, int aStride, ArrayView<Float4> b, int bQuad, int bStride)
    {
        block._rows = Rows4<Float4>.Triangle(block._rows, a, aQuad, aStride, b, bQuad, bStride);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Block4 block, ArrayView<Float4> target, long quad, int stride) =>
        Rows4<Float4>.Store(block._rows, target, quad, stride);
}

/// <summary>8 × 8 sums: 64 multiply-adds for four 16-byte loads.</summary>
internal struct Block8 : IBlock<Block8>
{
    private Rows4<Float8> _top;
    private Rows4<Float8> _bottom;

    /// <inheritdoc/>
    public static int Edge => 8;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 Outer(Block8 block, ArrayView<Float4> a, int aQuad, ArrayView<Float4> b, int bQuad)
    {
        Float8 row = Float8.Load(b, bQuad);
        block._top = Rows4<Float8>.Outer(block._top, a[aQuad], row);
        block._bottom = Rows4<Float8>.Outer(block._bottom, a[aQuad + 1], row);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 Triangle(Block8 block, ArrayView<Float4> a, int aQuad, int aStride, ArrayView<Float4> b, int bQuad, int bStride)
    {
        block._top = Rows4<Float8>.Triangle(block._top, a, aQuad, aStride, b, bQuad, bStride);
        for (int i = 0; i < 4; i++)
        {
            block._bottom = Rows4<Float8>.Outer(block._bottom, a[aQuad + (i * aStride) + 1], Float8.Load(b, bQuad + (i * bStride)));
        }

        block._bottom = Rows4<Float8>.Triangle(
            block._bottom, a, aQuad + (4 * aStride) + 1, aStride, b, bQuad + (4 * bStride), bStride);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Block8 block, ArrayView<Float4> target, long quad, int stride)
    {
        Rows4<Float8>.Store(block._top, target, quad, stride);
        Rows4<Float8>.Store(block._bottom, target, quad + (4 * stride), stride);
    }
}
