using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>What <see cref="KeyKernel"/> reads and writes; offsets count floats of the workspace.</summary>
internal struct KeyArguments
{
    /// <summary>The workspace.</summary>
    public ArrayView<float> Workspace;

    /// <summary>Which tokens an item is.</summary>
    public ItemMap Items;

    /// <summary>The keys' form.</summary>
    public DeviceForm Form;

    /// <summary>The sizes.</summary>
    public PaddedSizes Sizes;

    /// <summary>ε, added to every direct feature.</summary>
    public float Epsilon;

    /// <summary>Reads <c>X'ᵀ</c>, <c>[item, d↑, C]</c>.</summary>
    public long Inputs;

    /// <summary>Reads the rows' terms, <c>[item, C]</c>.</summary>
    public long RowTerms;

    /// <summary>Reads V, <c>[item, C, dv↑]</c>.</summary>
    public long Values;

    /// <summary>Causal: receives log features, or direct features, <c>[item, r↑, C]</c>.</summary>
    public long Features;

    /// <summary>Receives Δ, <c>[item, r↑, dv↑]</c>, at the scale of <see cref="Reference"/>.</summary>
    public long Sums;

    /// <summary>Receives Δ's normalisers, <c>[item, r↑]</c>.</summary>
    public long Normalizers;

    /// <summary>Receives the scale that readers of the chunk may know, <c>[item, r↑]</c>.</summary>
    public long First;

    /// <summary>Receives the scale of Δ, <c>[item, r↑]</c>.</summary>
    public long Reference;

    /// <summary>Receives the largest log feature, <c>[item, r↑]</c>.</summary>
    public long Top;

    /// <summary>Causal: receives the first token that lies too far above its chunk's first, C if none does, <c>[item, r↑ / C]</c>.</summary>
    public long Steep;
}

/// <summary>
/// Projects a chunk's keys, makes features of them and sums those over the chunk: <c>L = X' Wᵀ + b + t</c> (<c>[C, r]</c>),
/// <c>K̂ = e^{L−ρ}</c> or <c>activation(L) + ε</c>, <c>Δ = K̂ᵀ[V 1]</c> (<c>[r, dv + 1]</c>). A group takes C features of an item.
/// </summary>
/// <remarks>Shared memory, C = 64: two slices of 4 KB and the tile of 16 KB.</remarks>
internal static class KeyKernel
{
    /// <summary>How far above its chunk's first key a log feature may lie: <c>e^60</c>, summed over any length, stays finite.</summary>
    public const float MaxLogRange = 60;

    /// <summary>Explicitly grouped: <c>items · r↑/C</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Run<TTile, TBlock, TActivation, TDirection>(KeyArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
        where TActivation : unmanaged, IActivation
        where TDirection : unmanaged, IDirection
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> tile = SharedMemory.Allocate<Float4>(TTile.Edge * TTile.Edge / 4);
        ArrayView<float> steep = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int tiles = sizes.PaddedFeatures / TTile.Edge;
        int item = Grid.IdxX / tiles;
        int firstFeature = Grid.IdxX % tiles * TTile.Edge;
        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();

        TBlock logs = TileProduct.Add<TTile, TBlock>(
            default, quads, (arguments.Inputs + ((long)item * sizes.PaddedInputs * TTile.Edge)) / 4, TTile.Edge / 4,
            arguments.Form.Elements.Cast<Float4>(), (arguments.Form.Projection + firstFeature) / 4, sizes.PaddedFeatures / 4, sizes.PaddedInputs, left, right);
        TBlock.Store(logs, tile, ((row * TTile.Edge) + column) / 4, TTile.Edge / 4);
        Group.Barrier();

        ArrayView<float> elements = tile.Cast<float>();
        int tokens = arguments.Items.Tokens(item, TTile.Edge);
        for (int i = Group.IdxX; i < TTile.Edge; i += Group.DimX)
        {
            int feature = firstFeature + i;
            long at = ((long)item * sizes.PaddedFeatures) + feature;
            bool isPadding = feature >= sizes.Features;
            float offset = arguments.Form.Elements[arguments.Form.Offset + feature];
            long terms = arguments.RowTerms + ((long)item * TTile.Edge);
            long target = (arguments.Features + (at * TTile.Edge)) / 4;
            float reference = 0;
            float first = 0;
            float top = 0;
            int cut = TTile.Edge;
            if (TActivation.IsLogarithmic && !isPadding)
            {
                first = elements[i] + arguments.Workspace[terms];
                top = float.NegativeInfinity;
                for (int token = 0; token < tokens; token++)
                {
                    float log = elements[(token * TTile.Edge) + i] + arguments.Workspace[terms + token];
                    top = log > top ? log : top;
                    cut = log - first > MaxLogRange && token < cut ? token : cut;
                }

                reference = TDirection.IsCausal && cut == TTile.Edge ? first : top;
            }

            float sum = 0;
            for (int token = 0; token < TTile.Edge; token += 4)
            {
                Float4 kept;
                kept.X = Feature<TTile, TActivation>(arguments, elements, token, i, tokens, isPadding, terms, offset, reference);
                kept.Y = Feature<TTile, TActivation>(arguments, elements, token + 1, i, tokens, isPadding, terms, offset, reference);
                kept.Z = Feature<TTile, TActivation>(arguments, elements, token + 2, i, tokens, isPadding, terms, offset, reference);
                kept.W = Feature<TTile, TActivation>(arguments, elements, token + 3, i, tokens, isPadding, terms, offset, reference);
                int place = (token * TTile.Edge) + i;
                sum += elements[place];
                sum += elements[place + TTile.Edge];
                sum += elements[place + (2 * TTile.Edge)];
                sum += elements[place + (3 * TTile.Edge)];
                if (TDirection.IsCausal)
                {
                    quads[target + (token / 4)] = kept;
                }
            }

            arguments.Workspace[arguments.Normalizers + at] = sum;
            if (TActivation.IsLogarithmic)
            {
                arguments.Workspace[arguments.First + at] = isPadding ? 0 : (TDirection.IsCausal ? first : top) + offset;
                arguments.Workspace[arguments.Reference + at] = isPadding ? 0 : reference + offset;
                arguments.Workspace[arguments.Top + at] = isPadding ? 0 : top + offset;
                steep[i] = cut;
            }
        }

        Group.Barrier();
        if (TActivation.IsLogarithmic && TDirection.IsCausal && Group.IdxX == 0)
        {
            float cut = TTile.Edge;
            for (int i = 0; i < TTile.Edge; i++)
            {
                cut = steep[i] < cut ? steep[i] : cut;
            }

            arguments.Workspace[arguments.Steep + Grid.IdxX] = cut;
        }

        long values = (arguments.Values + ((long)item * TTile.Edge * sizes.PaddedValues)) / 4;
        long sums = (arguments.Sums + ((((long)item * sizes.PaddedFeatures) + firstFeature + row) * sizes.PaddedValues) + column) / 4;
        for (int firstValue = 0; firstValue < sizes.PaddedValues; firstValue += TTile.Edge)
        {
            TBlock delta = default;
            for (int start = 0; start < TTile.Edge; start += TileProduct.Depth)
            {
                Group.Barrier();
                TileProduct.Stage<TTile>(quads, values + ((((long)start * sizes.PaddedValues) + firstValue) / 4), sizes.PaddedValues / 4, right);
                Group.Barrier();
                delta = TileProduct.AddSlice<TTile, TBlock>(delta, tile, ((start * TTile.Edge) + row) / 4, right, column / 4);
            }

            TBlock.Store(delta, quads, sums + (firstValue / 4), sizes.PaddedValues / 4);
        }
    }

    /// <summary>Puts a feature in place of its argument, and returns what a causal reader is to have of it.</summary>
    private static float Feature<TTile, TActivation>(
        KeyArguments arguments, ArrayView<float> elements, int token, int column, int tokens, bool isPadding, long terms, float offset, float reference)
        where TTile : unmanaged, ITileSize
        where TActivation : unmanaged, IActivation
    {
        int at = (token * TTile.Edge) + column;
        bool isThere = token < tokens && !isPadding;
        float feature = 0;
        float kept = TActivation.IsLogarithmic ? float.NegativeInfinity : 0;
        if (isThere)
        {
            float argument = elements[at] + arguments.Workspace[terms + token];
            if (TActivation.IsLogarithmic)
            {
                feature = XMath.Exp(argument - reference);
                kept = argument + offset;
            }
            else
            {
                feature = TActivation.Apply(argument + offset) + arguments.Epsilon;
                kept = feature;
            }
        }

        elements[at] = feature;
        return kept;
    }
}
