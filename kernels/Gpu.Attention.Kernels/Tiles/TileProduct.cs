using System.Runtime.CompilerServices;
using ILGPU;

namespace Gpu.Attention;

/// <summary>
/// <c>Aᵀ B</c> of one tile: A is <c>[inner, C]</c> and B <c>[inner, C]</c>, both read in slices of <see cref="Depth"/> rows through shared
/// memory, and every thread of the group keeps a block of the <c>C × C</c> sums. Each sum runs over the inner dimension in order. What lies the other way
/// round is turned on its way into shared memory.
/// </summary>
internal static class TileProduct
{
    /// <summary>Rows of a slice.</summary>
    public const int Depth = 16;

    /// <summary>Adds <c>AᵀB</c> to the thread's block.</summary>
    /// <param name="block">The sums so far.</param>
    /// <param name="memory">Holds A and B.</param>
    /// <param name="a">The first quad of A's columns.</param>
    /// <param name="aStride">Quads from a row of A to the next.</param>
    /// <param name="b">The first quad of B's columns.</param>
    /// <param name="bMemory">Holds B.</param>
    /// <param name="bStride">Quads from a row of B to the next.</param>
    /// <param name="inner">The inner dimension, a multiple of <see cref="Depth"/>.</param>
    /// <param name="left">Shared memory for a slice of A.</param>
    /// <param name="right">Shared memory for a slice of B.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TBlock Add<TTile, TBlock>(
        TBlock block, ArrayView<Float4> memory, long a, int aStride, ArrayView<Float4> bMemory, long b, int bStride, int inner,
        ArrayView<Float4> left, ArrayView<Float4> right)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        int row = Row<TTile, TBlock>() / 4;
        int column = Column<TTile, TBlock>() / 4;
        for (int start = 0; start < inner; start += Depth)
        {
            Group.Barrier();
            Stage<TTile>(memory, a + ((long)start * aStride), aStride, left);
            Stage<TTile>(bMemory, b + ((long)start * bStride), bStride, right);
            Group.Barrier();
            block = AddSlice<TTile, TBlock>(block, left, row, right, column);
        }

        return block;
    }

    /// <summary>Adds <c>A Bᵀ</c> to the thread's block, both <c>[C, inner]</c>.</summary>
    /// <param name="block">The sums so far.</param>
    /// <param name="memory">Holds A and B.</param>
    /// <param name="a">The first quad of A.</param>
    /// <param name="aStride">Quads from a row of A to the next.</param>
    /// <param name="b">The first quad of B.</param>
    /// <param name="bStride">Quads from a row of B to the next.</param>
    /// <param name="inner">The inner dimension; what pads it to a multiple of <see cref="Depth"/> is there and 0.</param>
    /// <param name="left">Shared memory for a slice of A.</param>
    /// <param name="right">Shared memory for a slice of B.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TBlock AddTransposed<TTile, TBlock>(
        TBlock block, ArrayView<Float4> memory, long a, int aStride, long b, int bStride, int inner, ArrayView<Float4> left, ArrayView<Float4> right)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        int row = Row<TTile, TBlock>() / 4;
        int column = Column<TTile, TBlock>() / 4;
        for (int start = 0; start < inner; start += Depth)
        {
            Group.Barrier();
            StageTransposed<TTile>(memory, a + (start / 4), aStride, TTile.Edge, left);
            StageTransposed<TTile>(memory, b + (start / 4), bStride, TTile.Edge, right);
            Group.Barrier();
            block = AddSlice<TTile, TBlock>(block, left, row, right, column);
        }

        return block;
    }

    /// <summary>Adds the product of two slices in shared memory to the thread's block.</summary>
    /// <remarks>
    /// Eight rows an iteration, written out: nobody unrolls it later, and sums change registers from one iteration to the next. On processors PoCL
    /// makes a barrier of every iteration, at which all threads' sums go to memory and back.
    /// </remarks>
    /// <param name="block">The sums so far.</param>
    /// <param name="left">Holds a slice of A.</param>
    /// <param name="leftQuad">The first quad of the block's rows.</param>
    /// <param name="right">Holds a slice of B.</param>
    /// <param name="rightQuad">The first quad of the block's columns.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TBlock AddSlice<TTile, TBlock>(TBlock block, ArrayView<Float4> left, int leftQuad, ArrayView<Float4> right, int rightQuad)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        for (int k = 0; k < Depth; k += 8)
        {
            int a = leftQuad + (k * (TTile.Edge / 4));
            int b = rightQuad + (k * (TTile.Edge / 4));
            block = AddFourRows<TTile, TBlock>(block, left, a, right, b);
            block = AddFourRows<TTile, TBlock>(block, left, a + TTile.Edge, right, b + TTile.Edge);
        }

        return block;
    }

    /// <summary>Copies <see cref="Depth"/> rows of C columns into shared memory.</summary>
    /// <param name="source">Where they lie.</param>
    /// <param name="quad">The first quad.</param>
    /// <param name="stride">Quads from a row to the next.</param>
    /// <param name="target">Shared memory.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Stage<TTile>(ArrayView<Float4> source, long quad, int stride, ArrayView<Float4> target)
        where TTile : unmanaged, ITileSize
    {
        for (int i = Group.IdxX; i < Depth * TTile.Edge / 4; i += Group.DimX)
        {
            int row = i / (TTile.Edge / 4);
            target[i] = source[quad + ((long)row * stride) + (i - (row * (TTile.Edge / 4)))];
        }
    }

    /// <summary>Copies <see cref="Depth"/> columns of C rows into shared memory, where they are rows.</summary>
    /// <param name="source">Where they lie.</param>
    /// <param name="quad">The first quad.</param>
    /// <param name="stride">Quads from a row to the next.</param>
    /// <param name="rows">Rows that are there; the others are taken for 0.</param>
    /// <param name="target">Shared memory.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void StageTransposed<TTile>(ArrayView<Float4> source, long quad, int stride, int rows, ArrayView<Float4> target)
        where TTile : unmanaged, ITileSize
    {
        ArrayView<float> elements = target.Cast<float>();
        for (int i = Group.IdxX; i < Depth * TTile.Edge / 4; i += Group.DimX)
        {
            // Neighbours read 32 bytes of a row, what memory gives at once; further along it they would write to the same banks.
            int row = i / 2 % TTile.Edge;
            int column = (i % 2) + (i / (2 * TTile.Edge) * 2);
            Float4 value = default;
            if (row < rows)
            {
                value = source[quad + ((long)row * stride) + column];
            }

            int at = (4 * column * TTile.Edge) + row;
            elements[at] = value.X;
            elements[at + TTile.Edge] = value.Y;
            elements[at + (2 * TTile.Edge)] = value.Z;
            elements[at + (3 * TTile.Edge)] = value.W;
        }
    }

    /// <summary>The tile's row that the thread's block begins at.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Row<TTile, TBlock>()
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock> =>
        Group.IdxX / (TTile.Edge / TBlock.Edge) * TBlock.Edge;

    /// <summary>The tile's column that the thread's block begins at.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Column<TTile, TBlock>()
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock> =>
        Group.IdxX % (TTile.Edge / TBlock.Edge) * TBlock.Edge;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TBlock AddFourRows<TTile, TBlock>(TBlock block, ArrayView<Float4> left, int a, ArrayView<Float4> right, int b)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        block = TBlock.Outer(block, left, a, right, b);
        block = TBlock.Outer(block, left, a + (TTile.Edge / 4), right, b + (TTile.Edge / 4));
        block = TBlock.Outer(block, left, a + (2 * (TTile.Edge / 4)), right, b + (2 * (TTile.Edge / 4)));
        return TBlock.Outer(block, left, a + (3 * (TTile.Edge / 4)), right, b + (3 * (TTile.Edge / 4)));
    }
}
