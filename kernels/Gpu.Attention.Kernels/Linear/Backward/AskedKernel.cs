using ILGPU;

namespace Gpu.Attention;

/// <summary>
/// What the queries of an item ask of the sums and normalisers before it, <c>Q̂ᵀĜ</c>, over the blocks of queries and the heads that read it, in their order.
/// A group takes C features by C values of an item: of keys where queries see a part of them, else of queries.
/// </summary>
/// <remarks>Shared memory, C = 64: two slices of 4 KB.</remarks>
internal static class AskedKernel
{
    /// <summary>Explicitly grouped: <c>items · r↑/C · dv↑/C</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Run<TTile, TBlock>(LinearBackwardArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<float> normalizers = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<float> staged = left.Cast<float>();
        ArrayView<float> w = arguments.Workspace;
        ArrayView<Float4> quads = w.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int valueTiles = sizes.PaddedValues / TTile.Edge;
        int featureTiles = sizes.PaddedFeatures / TTile.Edge;
        int firstValue = Grid.IdxX % valueTiles * TTile.Edge;
        int firstFeature = Grid.IdxX / valueTiles % featureTiles * TTile.Edge;
        int item = Grid.IdxX / valueTiles / featureTiles;
        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        long state = ((long)item * sizes.PaddedFeatures) + firstFeature;
        long target = (arguments.AskedSums + ((state + row) * sizes.PaddedValues) + firstValue + column) / 4;
        TBlock sums = default;
        if (arguments.IsFirst == 0)
        {
            sums = TBlock.Load(quads.SubView(target, ((TBlock.Edge - 1L) * (sizes.PaddedValues / 4)) + (TBlock.Edge / 4)), 0, sizes.PaddedValues / 4);
        }

        for (int i = Group.IdxX; i < TTile.Edge; i += Group.DimX)
        {
            normalizers[i] = arguments.IsFirst == 0 ? w[arguments.AskedNormalizers + state + i] : 0;
        }

        int end = arguments.Items.EndReader(item);
        for (int reader = arguments.Items.FirstReader(item); reader < end; reader++)
        {
            int tokens = arguments.Items.Tokens(reader, TTile.Edge);
            for (int head = 0; head < arguments.Items.HeadGroup; head++)
            {
                long member = ((long)reader * arguments.Items.HeadGroup) + head;
                long queries = (arguments.Queries + (((member * sizes.PaddedFeatures) + firstFeature) * TTile.Edge)) / 4;
                long gradients = (arguments.Gradients + (member * TTile.Edge * sizes.PaddedValues) + firstValue) / 4;
                long rows = arguments.RowGradients + (member * TTile.Edge);
                for (int start = 0; start < tokens; start += TileProduct.Depth)
                {
                    Group.Barrier();
                    TileProduct.StageTransposed<TTile>(quads, queries + (start / 4), TTile.Edge / 4, TTile.Edge, left);
                    TileProduct.Stage<TTile>(quads, gradients + ((long)start * sizes.PaddedValues / 4), sizes.PaddedValues / 4, right);
                    Group.Barrier();
                    if (firstValue == 0)
                    {
                        for (int i = Group.IdxX; i < TTile.Edge; i += Group.DimX)
                        {
                            float sum = normalizers[i];
                            for (int k = 0; k < TileProduct.Depth; k++)
                            {
                                sum += staged[(k * TTile.Edge) + i] * w[rows + start + k];
                            }

                            normalizers[i] = sum;
                        }
                    }

                    sums = TileProduct.AddSlice<TTile, TBlock>(sums, left, row / 4, right, column / 4);
                }
            }
        }

        TBlock.Store(sums, quads, target, sizes.PaddedValues / 4);
        if (firstValue == 0)
        {
            for (int i = Group.IdxX; i < TTile.Edge; i += Group.DimX)
            {
                w[arguments.AskedNormalizers + state + i] = normalizers[i];
            }
        }
    }
}
