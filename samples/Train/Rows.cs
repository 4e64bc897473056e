namespace Gpu.Attention.Samples.Training;

/// <summary>Work on many rows, in blocks that are the same however many threads share them: sums over a block have one order, and so one result.</summary>
internal static class Rows
{
    /// <summary>Rows of a block.</summary>
    public const int Block = 64;

    /// <summary>Blocks that so many rows make.</summary>
    public static int Blocks(int rows) => (rows + Block - 1) / Block;

    /// <summary>Calls <paramref name="body"/> for every block, with its number, first row and row count.</summary>
    public static void ForEachBlock(int rows, Action<int, int, int> body) =>
        Parallel.For(0, Blocks(rows), block => body(block, block * Block, Math.Min(Block, rows - (block * Block))));
}
