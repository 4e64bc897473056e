using ILGPU;

namespace Gpu.Attention;

/// <summary>
/// Gradients of query features, <c>dQ̂ = Ĝ[Ŝ ẑ]ᵀ + P K̂</c> of what a row sees, and of their logarithms or arguments. A group takes C features of a member.
/// </summary>
/// <remarks>Shared memory, C = 64: two slices of 4 KB and a tile of 16 KB.</remarks>
internal static class QueryGradientKernel
{
    /// <summary>Explicitly grouped: <c>items · members · r↑/C</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Run<TTile, TBlock>(LinearBackwardArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> tile = SharedMemory.Allocate<Float4>(TTile.Edge * TTile.Edge / 4);
        ArrayView<Float4> rows = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<Float4> normalizers = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<int> seen = SharedMemory.Allocate<int>(TTile.Edge);
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int tiles = sizes.PaddedFeatures / TTile.Edge;
        int member = Grid.IdxX / tiles;
        int firstFeature = Grid.IdxX % tiles * TTile.Edge;
        int item = member / arguments.Items.HeadGroup;
        int tokens = arguments.Items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        int keyItem = arguments.Items.KeyItem(item);
        long state = ((long)(arguments.HasKeys != 0 ? keyItem : arguments.Items.Chain(item)) * sizes.PaddedFeatures) + firstFeature;
        for (int i = Group.IdxX; i < TTile.Edge / 4; i += Group.DimX)
        {
            rows[i] = quads[((arguments.RowGradients + ((long)member * TTile.Edge)) / 4) + i];
            normalizers[i] = quads[((arguments.Normalizers + state) / 4) + i];
        }

        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        TBlock gradient = TileProduct.AddTransposed<TTile, TBlock>(
            default, quads, (arguments.Gradients + ((long)member * TTile.Edge * sizes.PaddedValues)) / 4, sizes.PaddedValues / 4,
            (arguments.Sums + (state * sizes.PaddedValues)) / 4, sizes.PaddedValues / 4, sizes.Values, left, right);
        gradient = TBlock.Outer(gradient, rows, row / 4, normalizers, column / 4);
        if (arguments.HasKeys != 0)
        {
            int plain = ScoreKernels.FirstSteep<TTile>(arguments, item, tokens);
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                seen[token] = token < plain ? arguments.Items.Seen(item, token, TTile.Edge) : 0;
            }

            long products = (arguments.Products + ((long)member * TTile.Edge * TTile.Edge)) / 4;
            long keys = (arguments.KeysRead + ((((long)keyItem * sizes.PaddedFeatures) + firstFeature) * TTile.Edge)) / 4;
            for (int start = 0; start < TTile.Edge; start += TileProduct.Depth)
            {
                Group.Barrier();
                TileProduct.Stage<TTile>(quads, products + (start * TTile.Edge / 4), TTile.Edge / 4, left);
                TileProduct.StageTransposed<TTile>(quads, keys + (start / 4), TTile.Edge / 4, TTile.Edge, right);
                Group.Barrier();
                gradient = VisibleProduct.AddKeys<TTile, TBlock>(gradient, left, right, start, seen, plain);
            }
        }

        TBlock.Store(gradient, tile, ((row * TTile.Edge) + column) / 4, TTile.Edge / 4);
        Group.Barrier();
        long factors = (arguments.QueryDerivatives / 4) + ((long)Grid.IdxX * (TTile.Edge * TTile.Edge / 4));
        long target = (arguments.LogGradients + ((long)member * TTile.Edge * sizes.PaddedFeatures) + firstFeature) / 4;
        for (int i = Group.IdxX; i < TTile.Edge * TTile.Edge / 16; i += Group.DimX)
        {
            Square square = Square.Of<TTile>(i);
            Square.Load<TTile>(quads, factors, square, out Float4 f0, out Float4 f1, out Float4 f2, out Float4 f3);
            int at = square.Tile<TTile>();
            int stride = sizes.PaddedFeatures / 4;
            long to = target + ((long)square.Token * stride) + (square.Feature / 4);
            quads[to] = Square.Multiply(tile[at], f0.X, f1.X, f2.X, f3.X);
            quads[to + stride] = Square.Multiply(tile[at + (TTile.Edge / 4)], f0.Y, f1.Y, f2.Y, f3.Y);
            quads[to + (2L * stride)] = Square.Multiply(tile[at + (TTile.Edge / 2)], f0.Z, f1.Z, f2.Z, f3.Z);
            quads[to + (3L * stride)] = Square.Multiply(tile[at + (TTile.Edge / 4 * 3)], f0.W, f1.W, f2.W, f3.W);
        }
    }
}
