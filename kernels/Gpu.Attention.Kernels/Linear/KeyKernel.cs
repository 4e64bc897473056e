using System.Runtime.CompilerServices;
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
/// <remarks>Shared memory, C = 64: two slices of 4 KB, the tile of 16 KB and four rows.</remarks>
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
        ArrayView<float> terms = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<Float4> offsets = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<Float4> references = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<float> steep = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int tiles = sizes.PaddedFeatures / TTile.Edge;
        int item = Grid.IdxX / tiles;
        int firstFeature = Grid.IdxX % tiles * TTile.Edge;
        int tokens = arguments.Items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        ArrayView<float> offsetElements = offsets.Cast<float>();
        for (int i = Group.IdxX; i < TTile.Edge; i += Group.DimX)
        {
            terms[i] = arguments.Workspace[arguments.RowTerms + ((long)item * TTile.Edge) + i];
            offsetElements[i] = arguments.Form.Elements[arguments.Form.Offset + firstFeature + i];
        }

        TBlock logs = TileProduct.Add<TTile, TBlock>(
            default, quads, (arguments.Inputs + ((long)item * sizes.PaddedInputs * TTile.Edge)) / 4, TTile.Edge / 4,
            arguments.Form.Elements.Cast<Float4>(), (arguments.Form.Projection + firstFeature) / 4, sizes.PaddedFeatures / 4, sizes.PaddedInputs, left, right);
        TBlock.Store(logs, tile, ((row * TTile.Edge) + column) / 4, TTile.Edge / 4);
        Group.Barrier();

        // A group is whole rows of quads, so that a thread's quads are all of the same four features.
        int quad = Group.IdxX % (TTile.Edge / 4);
        if (TActivation.IsLogarithmic)
        {
            Float4 first = Float4.Add(tile[quad], terms[0]);
            Float4 top = Float4.Of(float.NegativeInfinity);
            Float4 cut = Float4.Of(TTile.Edge);
            for (int at = Group.IdxX; at < tokens * (TTile.Edge / 4); at += Group.DimX)
            {
                int token = at / (TTile.Edge / 4);
                Float4 log = Float4.Add(tile[at], terms[token]);
                top = Float4.Max(log, top);
                cut.X = log.X - first.X > MaxLogRange && token < cut.X ? token : cut.X;
                cut.Y = log.Y - first.Y > MaxLogRange && token < cut.Y ? token : cut.Y;
                cut.Z = log.Z - first.Z > MaxLogRange && token < cut.Z ? token : cut.Z;
                cut.W = log.W - first.W > MaxLogRange && token < cut.W ? token : cut.W;
            }

            left[Group.IdxX] = top;
            right[Group.IdxX] = cut;
        }

        if (TDirection.IsCausal)
        {
            Keep<TTile, TActivation>(arguments, tile, terms, offsetElements, tokens, sizes.Features - firstFeature);
        }

        Group.Barrier();
        if (TActivation.IsLogarithmic)
        {
            Refer<TTile, TDirection>(arguments, tile.Cast<float>(), terms, offsetElements, left.Cast<float>(), right.Cast<float>(), references.Cast<float>(), steep, firstFeature);
        }

        Float4 shift = TActivation.IsLogarithmic ? references[quad] : offsets[quad];
        int width = sizes.Features - firstFeature - (4 * quad);
        Float4 sum = default;
        for (int at = Group.IdxX; at < TTile.Edge * TTile.Edge / 4; at += Group.DimX)
        {
            int token = at / (TTile.Edge / 4);
            bool isThere = token < tokens;
            Float4 feature = Float4.Add(tile[at], terms[token]);
            feature.X = Feature<TActivation>(arguments, feature.X, shift.X, isThere && width > 0);
            feature.Y = Feature<TActivation>(arguments, feature.Y, shift.Y, isThere && width > 1);
            feature.Z = Feature<TActivation>(arguments, feature.Z, shift.Z, isThere && width > 2);
            feature.W = Feature<TActivation>(arguments, feature.W, shift.W, isThere && width > 3);
            tile[at] = feature;
            sum = Float4.MultiplyAdd(1, feature, sum);
        }

        left[Group.IdxX] = sum;
        Group.Barrier();
        ArrayView<float> partial = left.Cast<float>();
        for (int i = Group.IdxX; i < TTile.Edge; i += Group.DimX)
        {
            float total = 0;
            for (int of = i; of < 4 * Group.DimX; of += TTile.Edge)
            {
                total += partial[of];
            }

            arguments.Workspace[arguments.Normalizers + ((long)Grid.IdxX * TTile.Edge) + i] = total;
        }

        long values = (arguments.Values + ((long)item * TTile.Edge * sizes.PaddedValues)) / 4;
        long sums = (arguments.Sums + ((((long)Grid.IdxX * TTile.Edge) + row) * sizes.PaddedValues) + column) / 4;
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

    /// <summary>Writes what a causal reader is to have of the features, transposed, in squares of 4 × 4.</summary>
    private static void Keep<TTile, TActivation>(
        KeyArguments arguments, ArrayView<Float4> tile, ArrayView<float> terms, ArrayView<float> offsets, int tokens, int features)
        where TTile : unmanaged, ITileSize
        where TActivation : unmanaged, IActivation
    {
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        long target = (arguments.Features / 4) + ((long)Grid.IdxX * (TTile.Edge * TTile.Edge / 4));
        for (int i = Group.IdxX; i < TTile.Edge * TTile.Edge / 16; i += Group.DimX)
        {
            // Neighbours write 32 bytes of a feature, what memory takes at once; further along tokens they would read the same banks of the tile.
            int column = i / 2 % (TTile.Edge / 4);
            int row = (i % 2) + (i / 2 / (TTile.Edge / 4) * 2);
            int at = (row * TTile.Edge) + column;
            Float4 r0 = Float4.Add(tile[at], terms[4 * row]);
            Float4 r1 = Float4.Add(tile[at + (TTile.Edge / 4)], terms[(4 * row) + 1]);
            Float4 r2 = Float4.Add(tile[at + (TTile.Edge / 2)], terms[(4 * row) + 2]);
            Float4 r3 = Float4.Add(tile[at + (TTile.Edge / 4 * 3)], terms[(4 * row) + 3]);
            int feature = 4 * column;
            long to = target + (column * TTile.Edge) + row;
            int there = tokens - (4 * row);
            quads[to] = Kept<TActivation>(arguments, r0.X, r1.X, r2.X, r3.X, offsets[feature], feature < features ? there : 0);
            quads[to + (TTile.Edge / 4)] =
                Kept<TActivation>(arguments, r0.Y, r1.Y, r2.Y, r3.Y, offsets[feature + 1], feature + 1 < features ? there : 0);
            quads[to + (TTile.Edge / 2)] =
                Kept<TActivation>(arguments, r0.Z, r1.Z, r2.Z, r3.Z, offsets[feature + 2], feature + 2 < features ? there : 0);
            quads[to + (TTile.Edge / 4 * 3)] =
                Kept<TActivation>(arguments, r0.W, r1.W, r2.W, r3.W, offsets[feature + 3], feature + 3 < features ? there : 0);
        }
    }

    /// <summary>Four tokens of a feature; those from <paramref name="there"/> on are not there.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Float4 Kept<TActivation>(KeyArguments arguments, float x, float y, float z, float w, float offset, int there)
        where TActivation : unmanaged, IActivation
    {
        Float4 kept;
        kept.X = Kept<TActivation>(arguments, x + offset, there > 0);
        kept.Y = Kept<TActivation>(arguments, y + offset, there > 1);
        kept.Z = Kept<TActivation>(arguments, z + offset, there > 2);
        kept.W = Kept<TActivation>(arguments, w + offset, there > 3);
        return kept;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Kept<TActivation>(KeyArguments arguments, float argument, bool isThere)
        where TActivation : unmanaged, IActivation
    {
        if (TActivation.IsLogarithmic)
        {
            return isThere ? argument : float.NegativeInfinity;
        }

        float feature = TActivation.Apply(argument) + arguments.Epsilon;
        return isThere ? feature : 0;
    }

    /// <summary>The scales of each feature, and the first token at which any is steep.</summary>
    private static void Refer<TTile, TDirection>(
        KeyArguments arguments, ArrayView<float> logs, ArrayView<float> terms, ArrayView<float> offsets, ArrayView<float> tops, ArrayView<float> cuts,
        ArrayView<float> references, ArrayView<float> steep, int firstFeature)
        where TTile : unmanaged, ITileSize
        where TDirection : unmanaged, IDirection
    {
        for (int i = Group.IdxX; i < TTile.Edge; i += Group.DimX)
        {
            float top = float.NegativeInfinity;
            float cut = TTile.Edge;
            for (int of = i; of < 4 * Group.DimX; of += TTile.Edge)
            {
                top = tops[of] > top ? tops[of] : top;
                cut = cuts[of] < cut ? cuts[of] : cut;
            }

            bool isPadding = firstFeature + i >= arguments.Sizes.Features;
            float offset = offsets[i];
            float first = logs[i] + terms[0];
            float reference = TDirection.IsCausal && cut == TTile.Edge ? first : top;
            references[i] = reference;
            steep[i] = isPadding ? TTile.Edge : cut;
            long at = ((long)Grid.IdxX * TTile.Edge) + i;
            arguments.Workspace[arguments.First + at] = isPadding ? 0 : (TDirection.IsCausal ? first : top) + offset;
            arguments.Workspace[arguments.Reference + at] = isPadding ? 0 : reference + offset;
            arguments.Workspace[arguments.Top + at] = isPadding ? 0 : top + offset;
        }

        Group.Barrier();
        if (TDirection.IsCausal && Group.IdxX == 0)
        {
            float cut = TTile.Edge;
            for (int i = 0; i < TTile.Edge; i++)
            {
                cut = steep[i] < cut ? steep[i] : cut;
            }

            arguments.Workspace[arguments.Steep + Grid.IdxX] = cut;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Feature<TActivation>(KeyArguments arguments, float argument, float shift, bool isThere)
        where TActivation : unmanaged, IActivation
    {
        float feature = TActivation.IsLogarithmic ? XMath.Exp(argument - shift) : TActivation.Apply(argument + shift) + arguments.Epsilon;
        return isThere ? feature : 0;
    }
}
