namespace Gpu.Attention;

/// <summary>The edge C of a tile, which is also the tokens of a chunk. A group has <c>(C / block edge)²</c> threads.</summary>
internal interface ITileSize
{
    /// <summary>C, a multiple of <see cref="TileProduct.Depth"/>.</summary>
    static abstract int Edge { get; }
}

/// <summary>64 × 64: what devices run.</summary>
internal struct Tile64 : ITileSize
{
    /// <inheritdoc/>
    public static int Edge => 64;
}

/// <summary>16 × 16: small enough for a simulator that has a thread of the host for each of a group's.</summary>
internal struct Tile16 : ITileSize
{
    /// <inheritdoc/>
    public static int Edge => 16;
}
