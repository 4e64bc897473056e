using ILGPU;

namespace Gpu.Attention;

/// <summary>What <see cref="KeyGradientKernels.Values"/> writes beside the workspace.</summary>
internal struct ValueGradientArguments
{
    /// <summary>The pass.</summary>
    public LinearBackwardArguments Pass;

    /// <summary>Receives the values' gradient.</summary>
    public KernelTensor Target;
}

/// <summary>
/// Gradients of a chunk's keys and values: what its own queries gave, and what all later ones ask of the state behind it. A group takes C columns of an item
/// of keys.
/// </summary>
/// <remarks>Shared memory, C = 64: two slices of 4 KB and a tile of 16 KB.</remarks>
internal static class KeyGradientKernels
{
    /// <summary>
    /// Gradients of log features or arguments: <c>[V 1]R̂ᵀ</c> at the scale behind the chunk, which no key lies far above, and <c>PᵀQ̂</c> at the one that it
    /// is read at. Explicitly grouped: <c>items · r↑/C</c> groups.
    /// </summary>
    /// <param name="arguments">The arguments.</param>
    public static void Keys<TTile, TBlock>(LinearBackwardArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> tile = SharedMemory.Allocate<Float4>(TTile.Edge * TTile.Edge / 4);
        ArrayView<Float4> ones = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<Float4> normalizers = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int tiles = sizes.PaddedFeatures / TTile.Edge;
        int item = Grid.IdxX / tiles;
        int firstFeature = Grid.IdxX % tiles * TTile.Edge;
        if (arguments.Items.IsMissing(item, TTile.Edge))
        {
            return;
        }

        long state = ((long)(arguments.HasKeys != 0 ? item : arguments.Items.Chain(item)) * sizes.PaddedFeatures) + firstFeature;
        for (int i = Group.IdxX; i < TTile.Edge / 4; i += Group.DimX)
        {
            ones[i] = Float4.Of(1);
            normalizers[i] = quads[((arguments.ReverseNormalizers + state) / 4) + i];
        }

        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        TBlock gradient = TileProduct.AddTransposed<TTile, TBlock>(
            default, quads, (arguments.Values + ((long)item * TTile.Edge * sizes.PaddedValues)) / 4, sizes.PaddedValues / 4,
            (arguments.ReverseSums + (state * sizes.PaddedValues)) / 4, sizes.PaddedValues / 4, sizes.Values, left, right);
        gradient = TBlock.Outer(gradient, ones, row / 4, normalizers, column / 4);
        TBlock.Store(gradient, tile, ((row * TTile.Edge) + column) / 4, TTile.Edge / 4);
        Group.Barrier();
        bool isSteep = arguments.HasKeys != 0 && arguments.IsLogarithmic != 0 && ScoreKernels.SteepToken<TTile>(arguments, item) < TTile.Edge;
        long square4 = (long)Grid.IdxX * (TTile.Edge * TTile.Edge / 4);
        long behind = (arguments.KeysBehind / 4) + square4;
        long read = arguments.IsLogarithmic != 0 ? (arguments.KeysRead / 4) + square4 : behind;
        long at = (((long)item * TTile.Edge * sizes.PaddedFeatures) + firstFeature) / 4;
        int stride = sizes.PaddedFeatures / 4;
        for (int i = Group.IdxX; i < TTile.Edge * TTile.Edge / 16; i += Group.DimX)
        {
            Square square = Square.Of<TTile>(i);
            Square.Load<TTile>(quads, behind, square, out Float4 f0, out Float4 f1, out Float4 f2, out Float4 f3);
            int from = square.Tile<TTile>();
            long to = at + ((long)square.Token * stride) + (square.Feature / 4);
            Float4 t0 = Square.Multiply(tile[from], f0.X, f1.X, f2.X, f3.X);
            Float4 t1 = Square.Multiply(tile[from + (TTile.Edge / 4)], f0.Y, f1.Y, f2.Y, f3.Y);
            Float4 t2 = Square.Multiply(tile[from + (TTile.Edge / 2)], f0.Z, f1.Z, f2.Z, f3.Z);
            Float4 t3 = Square.Multiply(tile[from + (TTile.Edge / 4 * 3)], f0.W, f1.W, f2.W, f3.W);
            if (arguments.HasKeys != 0)
            {
                long part = (arguments.KeyParts / 4) + to;
                Square.Load<TTile>(quads, read, square, out f0, out f1, out f2, out f3);
                t0 = Float4.Add(t0, Square.Multiply(quads[part], f0.X, f1.X, f2.X, f3.X));
                t1 = Float4.Add(t1, Square.Multiply(quads[part + stride], f0.Y, f1.Y, f2.Y, f3.Y));
                t2 = Float4.Add(t2, Square.Multiply(quads[part + (2L * stride)], f0.Z, f1.Z, f2.Z, f3.Z));
                t3 = Float4.Add(t3, Square.Multiply(quads[part + (3L * stride)], f0.W, f1.W, f2.W, f3.W));
            }

            if (isSteep)
            {
                long part = (arguments.SteepParts / 4) + to;
                t0 = Float4.Add(t0, quads[part]);
                t1 = Float4.Add(t1, quads[part + stride]);
                t2 = Float4.Add(t2, quads[part + (2L * stride)]);
                t3 = Float4.Add(t3, quads[part + (3L * stride)]);
            }

            long target = (arguments.LogGradients / 4) + to;
            quads[target] = t0;
            quads[target + stride] = t1;
            quads[target + (2L * stride)] = t2;
            quads[target + (3L * stride)] = t3;
        }
    }

    /// <summary>Gradients of values, <c>K̂R̂ + AᵀĜ</c>. Explicitly grouped: <c>items · dv↑/C</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Values<TTile, TBlock>(ValueGradientArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> tile = SharedMemory.Allocate<Float4>(TTile.Edge * TTile.Edge / 4);
        LinearBackwardArguments pass = arguments.Pass;
        PaddedSizes sizes = pass.Sizes;
        ArrayView<Float4> quads = pass.Workspace.Cast<Float4>();
        int tiles = sizes.PaddedValues / TTile.Edge;
        int item = Grid.IdxX / tiles;
        int firstValue = Grid.IdxX % tiles * TTile.Edge;
        int tokens = pass.Items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        long keys = (pass.IsLogarithmic != 0 ? pass.KeysBehind : pass.KeysRead) + ((long)item * sizes.PaddedFeatures * TTile.Edge);
        long state = (long)(pass.HasKeys != 0 ? item : pass.Items.Chain(item)) * sizes.PaddedFeatures * sizes.PaddedValues;
        TBlock gradient = TileProduct.Add<TTile, TBlock>(
            default, quads, keys / 4, TTile.Edge / 4, quads, (pass.ReverseSums + state + firstValue) / 4, sizes.PaddedValues / 4, sizes.Features, left, right);
        int column = TileProduct.Column<TTile, TBlock>();
        TBlock.Store(gradient, tile, ((TileProduct.Row<TTile, TBlock>() * TTile.Edge) + column) / 4, TTile.Edge / 4);
        Group.Barrier();
        ArrayView<float> elements = tile.Cast<float>();
        long parts = pass.ValueParts + ((long)item * TTile.Edge * sizes.PaddedValues) + firstValue;
        long target = pass.Items.Row(arguments.Target, item, 0, TTile.Edge) + firstValue;
        int gathered = pass.Items.Gathered(item, TTile.Edge);
        int width = sizes.Values - firstValue;
        for (int i = Group.IdxX; i < tokens * TTile.Edge; i += Group.DimX)
        {
            int token = i / TTile.Edge;
            int value = i - (token * TTile.Edge);
            if (value < width)
            {
                float sum = elements[i];
                if (pass.HasKeys != 0)
                {
                    sum += pass.Workspace[parts + ((long)token * sizes.PaddedValues) + value];
                }

                int at = gathered < 0 ? token : pass.Items.Tables[gathered + token];
                arguments.Target.Store(target + (at * arguments.Target.TokenStride) + value, sum);
            }
        }
    }
}
