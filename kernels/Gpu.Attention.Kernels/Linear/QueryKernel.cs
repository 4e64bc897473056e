using System.Runtime.CompilerServices;
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
/// <remarks>Shared memory, C = 64: two slices of 4 KB, the tile of 16 KB and two rows.</remarks>
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
        ArrayView<float> offsets = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<float> scales = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int tiles = sizes.PaddedFeatures / TTile.Edge;
        int member = Grid.IdxX / tiles;
        int firstFeature = Grid.IdxX % tiles * TTile.Edge;
        int item = member / arguments.Items.HeadGroup;
        if (arguments.Items.IsMissing(item, TTile.Edge))
        {
            return;
        }

        int state = arguments.StatePerItem != 0 ? arguments.Items.KeyItem(item) : arguments.Items.Chain(item);
        for (int i = Group.IdxX; i < TTile.Edge; i += Group.DimX)
        {
            offsets[i] = arguments.Form.Elements[arguments.Form.Offset + firstFeature + i];
            if (TActivation.IsLogarithmic)
            {
                scales[i] = arguments.Workspace[arguments.Scale + ((long)state * sizes.PaddedFeatures) + firstFeature + i];
            }
        }

        TBlock logs = TileProduct.Add<TTile, TBlock>(
            default, arguments.Form.Elements.Cast<Float4>(), (arguments.Form.Projection + firstFeature) / 4, sizes.PaddedFeatures / 4,
            quads, (arguments.Inputs + ((long)member * sizes.PaddedInputs * TTile.Edge)) / 4, TTile.Edge / 4, sizes.PaddedInputs, left, right);
        TBlock.Store(
            logs, tile, ((TileProduct.Row<TTile, TBlock>() * TTile.Edge) + TileProduct.Column<TTile, TBlock>()) / 4, TTile.Edge / 4);
        Group.Barrier();

        // A group is whole rows of quads, so that a thread's quads are all of the same four tokens.
        int column = Group.IdxX % (TTile.Edge / 4);
        Float4 terms = default;
        if (!TActivation.IsLogarithmic)
        {
            terms = quads[((arguments.RowTerms + ((long)member * TTile.Edge)) / 4) + column];
        }

        Float4 maxima = Float4.Of(float.NegativeInfinity);
        long target = (arguments.Features / 4) + ((long)Grid.IdxX * (TTile.Edge * TTile.Edge / 4));
        for (int at = Group.IdxX; at < TTile.Edge * TTile.Edge / 4; at += Group.DimX)
        {
            int row = at / (TTile.Edge / 4);
            bool isThere = firstFeature + row < sizes.Features;
            float offset = offsets[row];
            Float4 value = tile[at];
            value.X = Feature<TActivation>(arguments, value.X + offset, terms.X, isThere);
            value.Y = Feature<TActivation>(arguments, value.Y + offset, terms.Y, isThere);
            value.Z = Feature<TActivation>(arguments, value.Z + offset, terms.Z, isThere);
            value.W = Feature<TActivation>(arguments, value.W + offset, terms.W, isThere);
            quads[target + at] = value;
            if (TActivation.IsLogarithmic)
            {
                maxima = Float4.Max(Float4.Add(value, scales[row]), maxima);
            }
        }

        if (TActivation.IsLogarithmic)
        {
            left[Group.IdxX] = maxima;
            Group.Barrier();
            ArrayView<float> partial = left.Cast<float>();
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                float maximum = float.NegativeInfinity;
                for (int i = token; i < 4 * Group.DimX; i += TTile.Edge)
                {
                    float of = partial[i];
                    maximum = of > maximum ? of : maximum;
                }

                arguments.Workspace[arguments.Maxima + ((long)Grid.IdxX * TTile.Edge) + token] = maximum;
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Feature<TActivation>(QueryArguments arguments, float argument, float term, bool isThere)
        where TActivation : unmanaged, IActivation
    {
        if (TActivation.IsLogarithmic)
        {
            return isThere ? argument : float.NegativeInfinity;
        }

        float feature = TActivation.Apply(argument + term) + arguments.Epsilon;
        return isThere ? feature : 0;
    }
}
