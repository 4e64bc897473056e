using System.Runtime.CompilerServices;
using ILGPU;

namespace Gpu.Attention;

/// <summary>Four tokens by four features: what a thread takes of a tile that meets another one lying the other way round.</summary>
internal struct Square
{
    /// <summary>The first token.</summary>
    public int Token;

    /// <summary>The first feature.</summary>
    public int Feature;

    /// <summary>A tile's square; of the two tiles that neighbours read or write, each gives or takes 32 bytes at once.</summary>
    /// <param name="i">Its number.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Square Of<TTile>(int i)
        where TTile : unmanaged, ITileSize
    {
        Square square;
        square.Feature = i / 2 % (TTile.Edge / 4) * 4;
        square.Token = ((i % 2) + (i / 2 / (TTile.Edge / 4) * 2)) * 4;
        return square;
    }

    /// <summary>The first quad of the square in a tile with a row for each token.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int Tile<TTile>()
        where TTile : unmanaged, ITileSize =>
        ((Token * TTile.Edge) + Feature) / 4;

    /// <summary>Reads the square of a tile with a row for each feature.</summary>
    /// <param name="source">Holds the tile.</param>
    /// <param name="quad">The tile's first quad.</param>
    /// <param name="square">The square.</param>
    /// <param name="f0">The tokens of feature 0.</param>
    /// <param name="f1">Of feature 1.</param>
    /// <param name="f2">Of feature 2.</param>
    /// <param name="f3">Of feature 3.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Load<TTile>(ArrayView<Float4> source, long quad, Square square, out Float4 f0, out Float4 f1, out Float4 f2, out Float4 f3)
        where TTile : unmanaged, ITileSize
    {
        long at = quad + (((square.Feature * TTile.Edge) + square.Token) / 4);
        f0 = source[at];
        f1 = source[at + (TTile.Edge / 4)];
        f2 = source[at + (TTile.Edge / 2)];
        f3 = source[at + (TTile.Edge / 4 * 3)];
    }

    /// <summary>A factor for each of a token's features.</summary>
    /// <param name="value">The token's features.</param>
    /// <param name="x">The factor of feature 0.</param>
    /// <param name="y">Of feature 1.</param>
    /// <param name="z">Of feature 2.</param>
    /// <param name="w">Of feature 3.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Float4 Multiply(Float4 value, float x, float y, float z, float w)
    {
        value.X *= x;
        value.Y *= y;
        value.Z *= z;
        value.W *= w;
        return value;
    }
}
