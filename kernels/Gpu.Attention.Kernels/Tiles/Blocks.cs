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

    /// <summary>Adds <c>a bᵀ</c> to the rows that see a key: the others do not touch b, which may be NaN.</summary>
    /// <param name="block">The sums so far.</param>
    /// <param name="a">Holds a, an element for each row.</param>
    /// <param name="aQuad">The first quad of a.</param>
    /// <param name="b">Holds b, an element for each column.</param>
    /// <param name="bQuad">The first quad of b.</param>
    /// <param name="seen">Holds how many keys each row sees.</param>
    /// <param name="row">The block's first row there.</param>
    /// <param name="key">The key.</param>
    static abstract TSelf Step(TSelf block, ArrayView<Float4> a, int aQuad, ArrayView<Float4> b, int bQuad, ArrayView<int> seen, int row, int key);

    /// <summary>Adds <c>a bᵀ</c> to the first rows only: the others do not touch b, which may be NaN. Where sums run over queries, the mirror image of <see cref="Step"/>.</summary>
    /// <param name="block">The sums so far.</param>
    /// <param name="a">Holds a, an element for each row.</param>
    /// <param name="aQuad">The first quad of a.</param>
    /// <param name="b">Holds b, an element for each column.</param>
    /// <param name="bQuad">The first quad of b.</param>
    /// <param name="rows">How many rows; any number.</param>
    static abstract TSelf Prefix(TSelf block, ArrayView<Float4> a, int aQuad, ArrayView<Float4> b, int bQuad, int rows);

    /// <summary>Writes the rows.</summary>
    /// <param name="block">The sums.</param>
    /// <param name="target">Where they go.</param>
    /// <param name="quad">The first quad of row 0.</param>
    /// <param name="stride">Quads from a row to the next.</param>
    static abstract void Store(TSelf block, ArrayView<Float4> target, long quad, int stride);

    /// <summary>Reads the rows.</summary>
    /// <param name="source">Where they lie.</param>
    /// <param name="quad">The first quad of row 0.</param>
    /// <param name="stride">Quads from a row to the next.</param>
    static abstract TSelf Load(ArrayView<Float4> source, int quad, int stride);

    /// <summary>Multiplies all elements by one factor.</summary>
    /// <param name="block">The block.</param>
    /// <param name="factor">The factor.</param>
    static abstract TSelf Scale(TSelf block, float factor);

    /// <summary>Multiplies row i by a factor of its own.</summary>
    /// <param name="block">The block.</param>
    /// <param name="factors">Holds the factors.</param>
    /// <param name="quad">The first quad of them.</param>
    static abstract TSelf ScaleRows(TSelf block, ArrayView<Float4> factors, int quad);

    /// <summary>Puts −∞ in place of the elements of column j that lie below row <c>limit + j·step</c>, whatever they are.</summary>
    /// <param name="block">The block.</param>
    /// <param name="limit">The last row of column 0 that stays; negative for none.</param>
    /// <param name="step">How much further the next column reaches.</param>
    static abstract TSelf Mask(TSelf block, int limit, int step);

    /// <summary>Puts −∞ in place of the elements whose row is a key that their column does not see, whatever they are.</summary>
    /// <param name="block">The block.</param>
    /// <param name="seen">Holds how many keys each column sees.</param>
    /// <param name="column">The block's first column there.</param>
    /// <param name="key">The key that row 0 is.</param>
    static abstract TSelf Mask(TSelf block, ArrayView<int> seen, int column, int key);

    /// <summary><c>e^{x−s_j}</c> for every element x of column j.</summary>
    /// <param name="block">The block.</param>
    /// <param name="shifts">Holds the s_j.</param>
    /// <param name="quad">The first quad of them.</param>
    static abstract TSelf ExpDifference(TSelf block, ArrayView<Float4> shifts, int quad);

    /// <summary><c>e^{x−s_i}</c> for every element x of row i.</summary>
    /// <param name="block">The block.</param>
    /// <param name="shifts">Holds the s_i.</param>
    /// <param name="quad">The first quad of them.</param>
    static abstract TSelf ExpRowDifference(TSelf block, ArrayView<Float4> shifts, int quad);

    /// <summary><c>w (x − s_j)</c> for every element x of column j and the weight w at its place.</summary>
    /// <param name="block">The block.</param>
    /// <param name="shifts">Holds the s_j.</param>
    /// <param name="shiftQuad">The first quad of them.</param>
    /// <param name="weights">Holds the weights.</param>
    /// <param name="quad">The first quad of row 0.</param>
    /// <param name="stride">Quads from a row to the next.</param>
    static abstract TSelf WeighDifference(TSelf block, ArrayView<Float4> shifts, int shiftQuad, ArrayView<Float4> weights, int quad, int stride);

    /// <summary><c>w (x − s_i)</c> for every element x of row i and the weight w at its place.</summary>
    /// <param name="block">The block.</param>
    /// <param name="shifts">Holds the s_i.</param>
    /// <param name="shiftQuad">The first quad of them.</param>
    /// <param name="weights">Holds the weights.</param>
    /// <param name="quad">The first quad of row 0.</param>
    /// <param name="stride">Quads from a row to the next.</param>
    static abstract TSelf WeighRowDifference(TSelf block, ArrayView<Float4> shifts, int shiftQuad, ArrayView<Float4> weights, int quad, int stride);

    /// <summary>Writes each column's maximum, in which a NaN may be passed over.</summary>
    /// <param name="block">The block.</param>
    /// <param name="target">Where they go.</param>
    /// <param name="quad">The first quad of them.</param>
    static abstract void StoreMaxima(TSelf block, ArrayView<Float4> target, int quad);

    /// <summary>Writes each column's sum.</summary>
    /// <param name="block">The block.</param>
    /// <param name="target">Where they go.</param>
    /// <param name="quad">The first quad of them.</param>
    static abstract void StoreSums(TSelf block, ArrayView<Float4> target, int quad);
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

    /// <summary>Adds a_i b to row i if it sees a key.</summary>
    /// <param name="rows">The rows.</param>
    /// <param name="a">A factor for each row.</param>
    /// <param name="b">The row that is added.</param>
    /// <param name="seen">Holds how many keys each row sees.</param>
    /// <param name="row">Row 0 there.</param>
    /// <param name="key">The key.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> Step(Rows4<TVector> rows, Float4 a, TVector b, ArrayView<int> seen, int row, int key)
    {
        if (key < seen[row])
        {
            rows._r0 = TVector.MultiplyAdd(a.X, b, rows._r0);
        }

        if (key < seen[row + 1])
        {
            rows._r1 = TVector.MultiplyAdd(a.Y, b, rows._r1);
        }

        if (key < seen[row + 2])
        {
            rows._r2 = TVector.MultiplyAdd(a.Z, b, rows._r2);
        }

        if (key < seen[row + 3])
        {
            rows._r3 = TVector.MultiplyAdd(a.W, b, rows._r3);
        }

        return rows;
    }

    /// <summary>Adds a_i b to the first rows only.</summary>
    /// <param name="rows">The rows.</param>
    /// <param name="a">A factor for each row.</param>
    /// <param name="b">The row that is added.</param>
    /// <param name="count">How many rows; any number.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> Prefix(Rows4<TVector> rows, Float4 a, TVector b, int count)
    {
        if (count > 0)
        {
            rows._r0 = TVector.MultiplyAdd(a.X, b, rows._r0);
        }

        if (count > 1)
        {
            rows._r1 = TVector.MultiplyAdd(a.Y, b, rows._r1);
        }

        if (count > 2)
        {
            rows._r2 = TVector.MultiplyAdd(a.Z, b, rows._r2);
        }

        if (count > 3)
        {
            rows._r3 = TVector.MultiplyAdd(a.W, b, rows._r3);
        }

        return rows;
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

    /// <inheritdoc cref="IBlock{TSelf}.Scale"/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> Scale(Rows4<TVector> rows, float factor)
    {
        rows._r0 = TVector.Multiply(factor, rows._r0);
        rows._r1 = TVector.Multiply(factor, rows._r1);
        rows._r2 = TVector.Multiply(factor, rows._r2);
        rows._r3 = TVector.Multiply(factor, rows._r3);
        return rows;
    }

    /// <summary>Multiplies row i by a_i.</summary>
    /// <param name="rows">The rows.</param>
    /// <param name="a">A factor for each row.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> ScaleRows(Rows4<TVector> rows, Float4 a)
    {
        rows._r0 = TVector.Multiply(a.X, rows._r0);
        rows._r1 = TVector.Multiply(a.Y, rows._r1);
        rows._r2 = TVector.Multiply(a.Z, rows._r2);
        rows._r3 = TVector.Multiply(a.W, rows._r3);
        return rows;
    }

    /// <inheritdoc cref="IBlock{TSelf}.Mask(TSelf, int, int)"/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> Mask(Rows4<TVector> rows, int limit, int step)
    {
        rows._r0 = TVector.Mask(rows._r0, limit, step);
        rows._r1 = TVector.Mask(rows._r1, limit - 1, step);
        rows._r2 = TVector.Mask(rows._r2, limit - 2, step);
        rows._r3 = TVector.Mask(rows._r3, limit - 3, step);
        return rows;
    }

    /// <inheritdoc cref="IBlock{TSelf}.Mask(TSelf, ArrayView{int}, int, int)"/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> Mask(Rows4<TVector> rows, ArrayView<int> seen, int column, int key)
    {
        rows._r0 = TVector.Mask(rows._r0, seen, column, key);
        rows._r1 = TVector.Mask(rows._r1, seen, column, key + 1);
        rows._r2 = TVector.Mask(rows._r2, seen, column, key + 2);
        rows._r3 = TVector.Mask(rows._r3, seen, column, key + 3);
        return rows;
    }

    /// <summary><c>e^{x−s}</c>, s one for each column.</summary>
    /// <param name="rows">The rows.</param>
    /// <param name="shift">s.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> ExpDifference(Rows4<TVector> rows, TVector shift)
    {
        rows._r0 = TVector.ExpDifference(rows._r0, shift);
        rows._r1 = TVector.ExpDifference(rows._r1, shift);
        rows._r2 = TVector.ExpDifference(rows._r2, shift);
        rows._r3 = TVector.ExpDifference(rows._r3, shift);
        return rows;
    }

    /// <summary><c>e^{x−s}</c>, s one for each row.</summary>
    /// <param name="rows">The rows.</param>
    /// <param name="shift">s.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> ExpRowDifference(Rows4<TVector> rows, Float4 shift)
    {
        rows._r0 = TVector.ExpDifference(rows._r0, shift.X);
        rows._r1 = TVector.ExpDifference(rows._r1, shift.Y);
        rows._r2 = TVector.ExpDifference(rows._r2, shift.Z);
        rows._r3 = TVector.ExpDifference(rows._r3, shift.W);
        return rows;
    }

    /// <summary><c>w (x − s)</c>, s one for each column.</summary>
    /// <param name="rows">The rows.</param>
    /// <param name="shift">s.</param>
    /// <param name="weights">Holds the w.</param>
    /// <param name="quad">The first quad of row 0.</param>
    /// <param name="stride">Quads from a row to the next.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> WeighDifference(Rows4<TVector> rows, TVector shift, ArrayView<Float4> weights, int quad, int stride)
    {
        rows._r0 = TVector.WeighDifference(TVector.Load(weights, quad), rows._r0, shift);
        rows._r1 = TVector.WeighDifference(TVector.Load(weights, quad + stride), rows._r1, shift);
        rows._r2 = TVector.WeighDifference(TVector.Load(weights, quad + (2 * stride)), rows._r2, shift);
        rows._r3 = TVector.WeighDifference(TVector.Load(weights, quad + (3 * stride)), rows._r3, shift);
        return rows;
    }

    /// <summary><c>w (x − s)</c>, s one for each row.</summary>
    /// <param name="rows">The rows.</param>
    /// <param name="shift">s.</param>
    /// <param name="weights">Holds the w.</param>
    /// <param name="quad">The first quad of row 0.</param>
    /// <param name="stride">Quads from a row to the next.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> WeighRowDifference(Rows4<TVector> rows, Float4 shift, ArrayView<Float4> weights, int quad, int stride)
    {
        rows._r0 = TVector.WeighDifference(TVector.Load(weights, quad), rows._r0, shift.X);
        rows._r1 = TVector.WeighDifference(TVector.Load(weights, quad + stride), rows._r1, shift.Y);
        rows._r2 = TVector.WeighDifference(TVector.Load(weights, quad + (2 * stride)), rows._r2, shift.Z);
        rows._r3 = TVector.WeighDifference(TVector.Load(weights, quad + (3 * stride)), rows._r3, shift.W);
        return rows;
    }

    /// <summary>Each column's maximum.</summary>
    /// <param name="rows">The rows.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Maxima(Rows4<TVector> rows) => TVector.Max(TVector.Max(rows._r0, rows._r1), TVector.Max(rows._r2, rows._r3));

    /// <summary>Each column's sum.</summary>
    /// <param name="rows">The rows.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Sums(Rows4<TVector> rows) => TVector.Add(TVector.Add(rows._r0, rows._r1), TVector.Add(rows._r2, rows._r3));

    /// <inheritdoc cref="IBlock{TSelf}.Load"/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Rows4<TVector> Load(ArrayView<Float4> source, int quad, int stride)
    {
        Rows4<TVector> rows;
        rows._r0 = TVector.Load(source, quad);
        rows._r1 = TVector.Load(source, quad + stride);
        rows._r2 = TVector.Load(source, quad + (2 * stride));
        rows._r3 = TVector.Load(source, quad + (3 * stride));
        return rows;
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
    public static Block4 Step(
        Block4 block, ArrayView<Float4> a, int aQuad, ArrayView<Float4> b, int bQuad, ArrayView<int> seen, int row, int key)
    {
        block._rows = Rows4<Float4>.Step(block._rows, a[aQuad], b[bQuad], seen, row, key);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 Prefix(Block4 block, ArrayView<Float4> a, int aQuad, ArrayView<Float4> b, int bQuad, int rows)
    {
        block._rows = Rows4<Float4>.Prefix(block._rows, a[aQuad], b[bQuad], rows);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Block4 block, ArrayView<Float4> target, long quad, int stride) =>
        Rows4<Float4>.Store(block._rows, target, quad, stride);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 Load(ArrayView<Float4> source, int quad, int stride)
    {
        Block4 block;
        block._rows = Rows4<Float4>.Load(source, quad, stride);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 Scale(Block4 block, float factor)
    {
        block._rows = Rows4<Float4>.Scale(block._rows, factor);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 ScaleRows(Block4 block, ArrayView<Float4> factors, int quad)
    {
        block._rows = Rows4<Float4>.ScaleRows(block._rows, factors[quad]);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 Mask(Block4 block, int limit, int step)
    {
        block._rows = Rows4<Float4>.Mask(block._rows, limit, step);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 Mask(Block4 block, ArrayView<int> seen, int column, int key)
    {
        block._rows = Rows4<Float4>.Mask(block._rows, seen, column, key);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 ExpDifference(Block4 block, ArrayView<Float4> shifts, int quad)
    {
        block._rows = Rows4<Float4>.ExpDifference(block._rows, shifts[quad]);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 ExpRowDifference(Block4 block, ArrayView<Float4> shifts, int quad)
    {
        block._rows = Rows4<Float4>.ExpRowDifference(block._rows, shifts[quad]);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 WeighDifference(
        Block4 block, ArrayView<Float4> shifts, int shiftQuad, ArrayView<Float4> weights, int quad, int stride)
    {
        block._rows = Rows4<Float4>.WeighDifference(block._rows, shifts[shiftQuad], weights, quad, stride);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block4 WeighRowDifference(
        Block4 block, ArrayView<Float4> shifts, int shiftQuad, ArrayView<Float4> weights, int quad, int stride)
    {
        block._rows = Rows4<Float4>.WeighRowDifference(block._rows, shifts[shiftQuad], weights, quad, stride);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void StoreMaxima(Block4 block, ArrayView<Float4> target, int quad) =>
        target[quad] = Rows4<Float4>.Maxima(block._rows);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void StoreSums(Block4 block, ArrayView<Float4> target, int quad) =>
        target[quad] = Rows4<Float4>.Sums(block._rows);
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
    public static Block8 Step(
        Block8 block, ArrayView<Float4> a, int aQuad, ArrayView<Float4> b, int bQuad, ArrayView<int> seen, int row, int key)
    {
        Float8 vector = Float8.Load(b, bQuad);
        block._top = Rows4<Float8>.Step(block._top, a[aQuad], vector, seen, row, key);
        block._bottom = Rows4<Float8>.Step(block._bottom, a[aQuad + 1], vector, seen, row + 4, key);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 Prefix(Block8 block, ArrayView<Float4> a, int aQuad, ArrayView<Float4> b, int bQuad, int rows)
    {
        Float8 vector = Float8.Load(b, bQuad);
        block._top = Rows4<Float8>.Prefix(block._top, a[aQuad], vector, rows);
        block._bottom = Rows4<Float8>.Prefix(block._bottom, a[aQuad + 1], vector, rows - 4);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Block8 block, ArrayView<Float4> target, long quad, int stride)
    {
        Rows4<Float8>.Store(block._top, target, quad, stride);
        Rows4<Float8>.Store(block._bottom, target, quad + (4 * stride), stride);
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 Load(ArrayView<Float4> source, int quad, int stride)
    {
        Block8 block;
        block._top = Rows4<Float8>.Load(source, quad, stride);
        block._bottom = Rows4<Float8>.Load(source, quad + (4 * stride), stride);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 Scale(Block8 block, float factor)
    {
        block._top = Rows4<Float8>.Scale(block._top, factor);
        block._bottom = Rows4<Float8>.Scale(block._bottom, factor);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 ScaleRows(Block8 block, ArrayView<Float4> factors, int quad)
    {
        block._top = Rows4<Float8>.ScaleRows(block._top, factors[quad]);
        block._bottom = Rows4<Float8>.ScaleRows(block._bottom, factors[quad + 1]);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 Mask(Block8 block, int limit, int step)
    {
        block._top = Rows4<Float8>.Mask(block._top, limit, step);
        block._bottom = Rows4<Float8>.Mask(block._bottom, limit - 4, step);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 Mask(Block8 block, ArrayView<int> seen, int column, int key)
    {
        block._top = Rows4<Float8>.Mask(block._top, seen, column, key);
        block._bottom = Rows4<Float8>.Mask(block._bottom, seen, column, key + 4);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 ExpDifference(Block8 block, ArrayView<Float4> shifts, int quad)
    {
        Float8 shift = Float8.Load(shifts, quad);
        block._top = Rows4<Float8>.ExpDifference(block._top, shift);
        block._bottom = Rows4<Float8>.ExpDifference(block._bottom, shift);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 ExpRowDifference(Block8 block, ArrayView<Float4> shifts, int quad)
    {
        block._top = Rows4<Float8>.ExpRowDifference(block._top, shifts[quad]);
        block._bottom = Rows4<Float8>.ExpRowDifference(block._bottom, shifts[quad + 1]);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 WeighDifference(
        Block8 block, ArrayView<Float4> shifts, int shiftQuad, ArrayView<Float4> weights, int quad, int stride)
    {
        Float8 shift = Float8.Load(shifts, shiftQuad);
        block._top = Rows4<Float8>.WeighDifference(block._top, shift, weights, quad, stride);
        block._bottom = Rows4<Float8>.WeighDifference(block._bottom, shift, weights, quad + (4 * stride), stride);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Block8 WeighRowDifference(
        Block8 block, ArrayView<Float4> shifts, int shiftQuad, ArrayView<Float4> weights, int quad, int stride)
    {
        block._top = Rows4<Float8>.WeighRowDifference(block._top, shifts[shiftQuad], weights, quad, stride);
        block._bottom = Rows4<Float8>.WeighRowDifference(block._bottom, shifts[shiftQuad + 1], weights, quad + (4 * stride), stride);
        return block;
    }

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void StoreMaxima(Block8 block, ArrayView<Float4> target, int quad) =>
        Float8.Store(target, quad, Float8.Max(Rows4<Float8>.Maxima(block._top), Rows4<Float8>.Maxima(block._bottom)));

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void StoreSums(Block8 block, ArrayView<Float4> target, int quad) =>
        Float8.Store(target, quad, Float8.Add(Rows4<Float8>.Sums(block._top), Rows4<Float8>.Sums(block._bottom)));
}
