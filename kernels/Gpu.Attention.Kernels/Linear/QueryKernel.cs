using ILGPU;

namespace Gpu.Attention;

/// <summary>What <see cref="QueryKernel"/> reads and writes; offsets count floats of the workspace.</summary>
internal struct QueryArguments
{
    /// <summary>The workspace.</summary>
    public ArrayView<float> Workspace;

    /// <summary>Which tokens an item is.</summary>
    public ItemMap Items;

    /// <summary>The queries' form.</summary>
    public DeviceForm Form;

    /// <summary>The sizes.</summary>
    public PaddedSizes Sizes;

    /// <summary>ε, added to every direct feature.</summary>
    public float Epsilon;

    /// <summary>Reads <c>X'ᵀ</c>, <c>[item, member, d↑, C]</c>.</summary>
    public long Inputs;

    /// <summary>Reads the rows' terms, <c>[item, member, C]</c>; the direct family's only, for in the other they cancel.</summary>
    public long RowTerms;

    /// <summary>Reads the scale s of the state that the item reads, <c>[item or chain, r↑]</c>.</summary>
    public long Scale;

    /// <summary>1 when states belong to items, 0 when to chains.</summary>
    public int StatePerItem;

    /// <summary>Receives log features, or direct features, <c>[item, member, r↑, C]</c>.</summary>
    public long Features;

    /// <summary>Exponential family: receives each row's maximum of <c>l + s</c> over a tile's features, <c>[item, member, r↑ / C, C]</c>.</summary>
    public long Maxima;
}

/// <summary>
/// Projects a chunk's queries: <c>Lᵀ = W X'ᵀ + b</c> (<c>[r, C]</c>), direct features activated. A group takes C features of a member of an item.
/// </summary>
/// <remarks>Shared memory, C = 64: two slices of 4 KB and the tile of 16 KB.</remarks>
internal static class QueryKernel
{
    /// <summary>Explicitly grouped: <c>items · members · r↑/C</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Run<TTile, TBlock, TActivation>(QueryArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
        where TActivation : unmanaged, IActivation
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> tile = SharedMemory.Allocate<Float4>(TTile.Edge * TTile.Edge / 4);
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int tiles = sizes.PaddedFeatures / TTile.Edge;
        int member = Grid.IdxX / tiles;
        int firstFeature = Grid.IdxX % tiles * TTile.Edge;

        TBlock logs = TileProduct.Add<TTile, TBlock>(
            default, arguments.Form.Elements.Cast<Float4>(), (arguments.Form.Projection + firstFeature) / 4, sizes.PaddedFeatures / 4,
            quads, (arguments.Inputs + ((long)member * sizes.PaddedInputs * TTile.Edge)) / 4, TTile.Edge / 4, sizes.PaddedInputs, left, right);
        TBlock.Store(
            logs, tile, ((TileProduct.Row<TTile, TBlock>() * TTile.Edge) + TileProduct.Column<TTile, TBlock>()) / 4, TTile.Edge / 4);
        Group.Barrier();

        int item = member / arguments.Items.HeadGroup;
        int state = arguments.StatePerItem != 0 ? item : arguments.Items.Chain(item);
        ArrayView<float> elements = tile.Cast<float>();
        long scale = arguments.Scale + ((long)state * sizes.PaddedFeatures);
        for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
        {
            float term = arguments.Workspace[arguments.RowTerms + ((long)member * TTile.Edge) + token];
            float maximum = float.NegativeInfinity;
            for (int i = 0; i < TTile.Edge; i++)
            {
                int feature = firstFeature + i;
                float value = TActivation.IsLogarithmic ? float.NegativeInfinity : 0;
                if (feature < sizes.Features)
                {
                    float argument = elements[(i * TTile.Edge) + token] + arguments.Form.Elements[arguments.Form.Offset + feature];
                    if (TActivation.IsLogarithmic)
                    {
                        value = argument;
                        float log = argument + arguments.Workspace[scale + feature];
                        maximum = log > maximum ? log : maximum;
                    }
                    else
                    {
                        value = TActivation.Apply(argument + term) + arguments.Epsilon;
                    }
                }

                arguments.Workspace[arguments.Features + ((((long)member * sizes.PaddedFeatures) + feature) * TTile.Edge) + token] = value;
            }

            if (TActivation.IsLogarithmic)
            {
                arguments.Workspace[arguments.Maxima + ((long)Grid.IdxX * TTile.Edge) + token] = maximum;
            }
        }
    }
}
