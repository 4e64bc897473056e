using System.Runtime.CompilerServices;
using ILGPU;

namespace Gpu.Attention;

/// <summary>
/// Products that stop where sight stops: what a row does not see is not even multiplied by zero, since it may be NaN. A row of queries sees the first
/// keys of a chunk, the next one no fewer; a row of keys is seen by the last queries.
/// </summary>
internal static class VisibleProduct
{
    /// <summary>Adds a slice of keys to rows of queries.</summary>
    /// <param name="block">The sums so far.</param>
    /// <param name="left">Holds, for each key of the slice, a factor for each query.</param>
    /// <param name="right">Holds, for each key of the slice, a row to add.</param>
    /// <param name="start">The slice's first key.</param>
    /// <param name="seen">How many keys each query sees: no fewer than the query before it, but from <paramref name="queries"/> on none.</param>
    /// <param name="queries">Queries that see a key.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TBlock AddKeys<TTile, TBlock>(TBlock block, ArrayView<Float4> left, ArrayView<Float4> right, int start, ArrayView<int> seen, int queries)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>() / 4;
        int end = start + TileProduct.Depth;
        int rows = queries - row;
        if (rows >= TBlock.Edge && seen[row] >= end)
        {
            return TileProduct.AddSlice<TTile, TBlock>(block, left, row / 4, right, column);
        }

        int any = rows > 0 ? seen[row + (rows < TBlock.Edge ? rows : TBlock.Edge) - 1] : 0;
        for (int key = start; key < end && key < any; key++)
        {
            int at = (key - start) * (TTile.Edge / 4);
            block = TBlock.Step(block, left, at + (row / 4), right, at + column, seen, row, key);
        }

        return block;
    }

    /// <summary>Adds a slice of queries to rows of keys.</summary>
    /// <param name="block">The sums so far.</param>
    /// <param name="left">Holds, for each query of the slice, a factor for each key.</param>
    /// <param name="right">Holds, for each query of the slice, a row to add.</param>
    /// <param name="start">The slice's first query.</param>
    /// <param name="queries">One beyond the last query that is there.</param>
    /// <param name="seeing">How many queries each key would be seen by, if there were C, see <see cref="Seeing"/>.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TBlock AddQueries<TTile, TBlock>(
        TBlock block, ArrayView<Float4> left, ArrayView<Float4> right, int start, int queries, ArrayView<int> seeing)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>() / 4;
        int end = start + TileProduct.Depth;
        if (start >= TTile.Edge - seeing[row + TBlock.Edge - 1] && end <= queries)
        {
            return TileProduct.AddSlice<TTile, TBlock>(block, left, row / 4, right, column);
        }

        int first = TTile.Edge - seeing[row];
        for (int query = first > start ? first : start; query < end && query < queries; query++)
        {
            // Counted from behind, queries are to a key what keys are to a query.
            int at = (query - start) * (TTile.Edge / 4);
            block = TBlock.Step(block, left, at + (row / 4), right, at + column, seeing, row, TTile.Edge - 1 - query);
        }

        return block;
    }

    /// <summary>Turns how many keys each query sees into how many queries, of C, see each key. Barriers before and after are the caller's.</summary>
    /// <param name="seen">How many keys each query sees.</param>
    /// <param name="seeing">Receives how many queries see each key.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Seeing<TTile>(ArrayView<int> seen, ArrayView<int> seeing)
        where TTile : unmanaged, ITileSize
    {
        for (int key = Group.IdxX; key < TTile.Edge; key += Group.DimX)
        {
            int blind = 0;
            while (blind < TTile.Edge && seen[blind] <= key)
            {
                blind++;
            }

            seeing[key] = TTile.Edge - blind;
        }
    }
}
