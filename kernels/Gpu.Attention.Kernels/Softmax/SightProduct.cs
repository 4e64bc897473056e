using System.Runtime.CompilerServices;
using ILGPU;

namespace Gpu.Attention;

/// <summary>
/// Products of a tile, which lies in shared memory, that stop where sight does, from either side: what a query does not see may be NaN, and is not even
/// multiplied by its weight of 0.
/// </summary>
internal static class SightProduct
{
    /// <summary>Adds <c>AᵀB</c> of a tile of keys by queries and of rows of keys: to each query the keys that it sees, in their order.</summary>
    /// <param name="block">The thread's sums so far, queries by columns of B.</param>
    /// <param name="tile">A.</param>
    /// <param name="memory">Holds B.</param>
    /// <param name="rows">The first quad of B's columns.</param>
    /// <param name="stride">Quads from a row of B to the next.</param>
    /// <param name="slice">Shared memory for a slice of B.</param>
    /// <param name="isEdge">False when every query sees every key.</param>
    /// <param name="seen">With a staircase, how many keys each query sees.</param>
    /// <param name="firstKey">With a staircase, the key that A's row 0 is; else A is on the diagonal when it is on the edge.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TBlock AddKeys<TTile, TBlock, TDirection>(
        TBlock block, ArrayView<Float4> tile, ArrayView<Float4> memory, long rows, int stride, ArrayView<Float4> slice, bool isEdge, ArrayView<int> seen,
        int firstKey)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
        where TDirection : unmanaged, IDirection
    {
        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        for (int start = 0; start < TTile.Edge; start += TileProduct.Depth)
        {
            Group.Barrier();
            TileProduct.Stage<TTile>(memory, rows + ((long)start * stride), stride, slice);
            Group.Barrier();
            if (!isEdge)
            {
                block = TileProduct.AddSlice<TTile, TBlock>(block, tile, ((start * TTile.Edge) + row) / 4, slice, column / 4);
            }
            else
            {
                int end = start + TileProduct.Depth;
                int whole = TDirection.IsStaircase ? seen[row] - firstKey : row;
                for (int key = start; key < end && key < whole; key++)
                {
                    block = TBlock.Outer(block, tile, ((key * TTile.Edge) + row) / 4, slice, (((key - start) * TTile.Edge) + column) / 4);
                }

                if (TDirection.IsStaircase)
                {
                    int last = seen[row + TBlock.Edge - 1] - firstKey;
                    for (int key = whole > start ? whole : start; key < end && key < last; key++)
                    {
                        block = TBlock.Step(
                            block, tile, ((key * TTile.Edge) + row) / 4, slice, (((key - start) * TTile.Edge) + column) / 4, seen, row, firstKey + key);
                    }
                }
                else if (row >= start && row < end)
                {
                    block = TBlock.Triangle(
                        block, tile, ((row * TTile.Edge) + row) / 4, TTile.Edge / 4, slice, (((row - start) * TTile.Edge) + column) / 4, TTile.Edge / 4);
                }
            }
        }

        return block;
    }

    /// <summary>Adds <c>AᵀB</c> of a tile of queries by keys and of rows of queries: to each key the queries that see it, in their order.</summary>
    /// <param name="block">The thread's sums so far, keys by columns of B.</param>
    /// <param name="tile">A.</param>
    /// <param name="memory">Holds B.</param>
    /// <param name="rows">The first quad of B's columns.</param>
    /// <param name="stride">Quads from a row of B to the next.</param>
    /// <param name="slice">Shared memory for a slice of B.</param>
    /// <param name="isEdge">False when there are C queries and each sees every key.</param>
    /// <param name="queries">The queries that there are.</param>
    /// <param name="seen">With a staircase, how many keys each query sees.</param>
    /// <param name="firstKey">With a staircase, the key that A's column 0 is; else less by one than what query 0 sees of A's keys, with a minus.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TBlock AddQueries<TTile, TBlock, TDirection>(
        TBlock block, ArrayView<Float4> tile, ArrayView<Float4> memory, long rows, int stride, ArrayView<Float4> slice, bool isEdge, int queries,
        ArrayView<int> seen, int firstKey)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
        where TDirection : unmanaged, IDirection
    {
        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        for (int start = 0; start < TTile.Edge; start += TileProduct.Depth)
        {
            Group.Barrier();
            TileProduct.Stage<TTile>(memory, rows + ((long)start * stride), stride, slice);
            Group.Barrier();
            if (!isEdge)
            {
                block = TileProduct.AddSlice<TTile, TBlock>(block, tile, ((start * TTile.Edge) + row) / 4, slice, column / 4);
            }
            else
            {
                int end = start + TileProduct.Depth < queries ? start + TileProduct.Depth : queries;
                for (int query = start; query < end; query++)
                {
                    int sight = (TDirection.IsStaircase ? seen[query] : query + 1) - firstKey;
                    if (sight > row)
                    {
                        block = TBlock.Prefix(
                            block, tile, ((query * TTile.Edge) + row) / 4, slice, (((query - start) * TTile.Edge) + column) / 4, sight - row);
                    }
                }
            }
        }

        return block;
    }
}
