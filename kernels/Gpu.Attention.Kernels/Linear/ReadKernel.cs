using System.Runtime.CompilerServices;
using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>What <see cref="ReadKernel"/> and <see cref="SteepReadKernel"/> read and write; offsets count floats of the workspace.</summary>
internal struct ReadArguments
{
    /// <summary>The workspace.</summary>
    public ArrayView<float> Workspace;

    /// <summary>Receives the outputs.</summary>
    public KernelTensor Output;

    /// <summary>Which tokens an item is.</summary>
    public ItemMap Items;

    /// <summary>The sizes.</summary>
    public PaddedSizes Sizes;

    /// <summary>Non-zero to divide by the sum of the weights.</summary>
    public int Normalize;

    /// <summary>The factor on a direct output that is not normalised.</summary>
    public float Factor;

    /// <summary>1 when states belong to items, 0 when to chains.</summary>
    public int StatePerItem;

    /// <summary>Reads query features, <c>[item, member, r↑, C]</c>.</summary>
    public long Queries;

    /// <summary>Reads the rows' terms, <c>[item, member, C]</c>, for outputs that are not normalised.</summary>
    public long RowTerms;

    /// <summary>Reads the rows' maxima, <c>[item, member, r↑ / C, C]</c>.</summary>
    public long Maxima;

    /// <summary>Reads s, <c>[item or chain, r↑]</c>.</summary>
    public long Scale;

    /// <summary>Reads S, <c>[item or chain, r↑, dv↑]</c>.</summary>
    public long Sums;

    /// <summary>Reads z, <c>[item or chain, r↑]</c>.</summary>
    public long Normalizers;

    /// <summary>Causal: reads key features, <c>[item, r↑, C]</c>.</summary>
    public long Keys;

    /// <summary>Causal: reads V, <c>[item, C, dv↑]</c>.</summary>
    public long Values;

    /// <summary>Causal: reads the first steep token, <c>[item, r↑ / C]</c>.</summary>
    public long Steep;
}

/// <summary>
/// Outputs of a chunk: <c>Q̂ = e^{l+s−M}</c>, <c>O = Q̂ S + tril(Q̂ K̂ᵀ) V</c> with <c>K̂ = e^{l−s}</c>, over the normaliser <c>Q̂ z</c> + row sums. Direct
/// features are taken as they are. A group takes C values of a member of an item.
/// </summary>
/// <remarks>Shared memory, C = 64: three slices of 4 KB and the tile of 16 KB.</remarks>
internal static class ReadKernel
{
    /// <summary>Explicitly grouped: <c>items · members · dv↑/C</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Run<TTile, TBlock, TActivation, TDirection>(ReadArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
        where TActivation : unmanaged, IActivation
        where TDirection : unmanaged, IDirection
    {
        ArrayView<Float4> queries = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> sums = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> keys = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> tile = SharedMemory.Allocate<Float4>(TTile.Edge * TTile.Edge / 4);
        ArrayView<Float4> maxima = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<float> denominators = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<int> seen = TDirection.IsStaircase ? SharedMemory.Allocate<int>(TTile.Edge) : default;
        ArrayView<float> maximum = maxima.Cast<float>();
        ArrayView<float> elements = tile.Cast<float>();
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int valueTiles = sizes.PaddedValues / TTile.Edge;
        int member = Grid.IdxX / valueTiles;
        int firstValue = Grid.IdxX % valueTiles * TTile.Edge;
        int item = member / arguments.Items.HeadGroup;

        // Known when this is compiled, and all branches with it.
        bool isWhole = TDirection.IsCausal && !TDirection.IsStaircase;
        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        int tokens = isWhole ? arguments.Items.WholeTokens(item, TTile.Edge) : arguments.Items.Tokens(item, TTile.Edge);
        if (!isWhole && tokens <= 0)
        {
            return;
        }

        int keyItem = TDirection.IsStaircase ? arguments.Items.KeyItem(item) : item;
        int state = arguments.StatePerItem != 0 ? keyItem : arguments.Items.Chain(item);
        if (TDirection.IsStaircase)
        {
            // Rows that are not there see what the last one sees, so that the numbers never fall.
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                seen[token] = arguments.Items.Seen(item, token < tokens ? token : tokens - 1, TTile.Edge);
            }
        }

        for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
        {
            denominators[token] = 0;
            maximum[token] = TActivation.IsLogarithmic ? RowMaximum<TTile>(arguments, member, token) : 0;
        }

        long queryQuads = (arguments.Queries + ((long)member * sizes.PaddedFeatures * TTile.Edge)) / 4;
        long keyQuads = (arguments.Keys + ((long)keyItem * sizes.PaddedFeatures * TTile.Edge)) / 4;
        long stateRow = (long)state * sizes.PaddedFeatures;
        long sumQuads = (arguments.Sums + (stateRow * sizes.PaddedValues) + firstValue) / 4;
        TBlock output = default;
        TBlock weights = default;
        for (int start = 0; start < sizes.Features; start += TileProduct.Depth)
        {
            Group.Barrier();
            TileProduct.Stage<TTile>(quads, sumQuads + ((long)start * sizes.PaddedValues / 4), sizes.PaddedValues / 4, sums);
            for (int i = Group.IdxX; i < TileProduct.Depth * TTile.Edge / 4; i += Group.DimX)
            {
                int k = i / (TTile.Edge / 4);
                Float4 query = quads[queryQuads + (start * TTile.Edge / 4) + i];
                if (TActivation.IsLogarithmic)
                {
                    float scale = arguments.Workspace[arguments.Scale + stateRow + start + k];
                    Float4 top = maxima[i - (k * (TTile.Edge / 4))];
                    query.X = XMath.Exp(query.X + scale - top.X);
                    query.Y = XMath.Exp(query.Y + scale - top.Y);
                    query.Z = XMath.Exp(query.Z + scale - top.Z);
                    query.W = XMath.Exp(query.W + scale - top.W);
                    if (TDirection.IsCausal)
                    {
                        // At −∞ the feature is switched off: its queries are 0, its keys must be a number.
                        float keyScale = scale == float.NegativeInfinity ? 0 : scale;
                        Float4 key = quads[keyQuads + (start * TTile.Edge / 4) + i];
                        key.X = XMath.Exp(key.X - keyScale);
                        key.Y = XMath.Exp(key.Y - keyScale);
                        key.Z = XMath.Exp(key.Z - keyScale);
                        key.W = XMath.Exp(key.W - keyScale);
                        keys[i] = key;
                    }
                }
                else if (TDirection.IsCausal)
                {
                    keys[i] = quads[keyQuads + (start * TTile.Edge / 4) + i];
                }

                queries[i] = query;
            }

            Group.Barrier();
            ArrayView<float> staged = queries.Cast<float>();
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                float sum = denominators[token];
                for (int k = 0; k < TileProduct.Depth; k++)
                {
                    sum += staged[(k * TTile.Edge) + token] * arguments.Workspace[arguments.Normalizers + stateRow + start + k];
                }

                denominators[token] = sum;
            }

            output = TileProduct.AddSlice<TTile, TBlock>(output, queries, row / 4, sums, column / 4);
            if (TDirection.IsCausal && (TDirection.IsStaircase ? row < seen[column + TBlock.Edge - 1] : row <= column))
            {
                // Keys are rows here: those above the diagonal see no query.
                weights = TileProduct.AddSlice<TTile, TBlock>(weights, keys, row / 4, queries, column / 4);
            }
        }

        if (TDirection.IsCausal)
        {
            TBlock.Store(weights, tile, ((row * TTile.Edge) + column) / 4, TTile.Edge / 4);
            Group.Barrier();
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                float sum = 0;
                int keyCount = TDirection.IsStaircase ? seen[token] : token + 1;
                for (int key = 0; key < keyCount; key++)
                {
                    sum += elements[(key * TTile.Edge) + token];
                }

                denominators[token] += sum;
            }

            long values = (arguments.Values + ((long)keyItem * TTile.Edge * sizes.PaddedValues) + firstValue) / 4;
            for (int start = 0; start < TTile.Edge; start += TileProduct.Depth)
            {
                Group.Barrier();
                TileProduct.Stage<TTile>(quads, values + ((long)start * sizes.PaddedValues / 4), sizes.PaddedValues / 4, sums);
                Group.Barrier();
                int end = start + TileProduct.Depth;
                int whole = TDirection.IsStaircase ? seen[row] : row;
                for (int key = start; key < end && key < whole; key++)
                {
                    output = TBlock.Outer(output, tile, ((key * TTile.Edge) + row) / 4, sums, (((key - start) * TTile.Edge) + column) / 4);
                }

                if (TDirection.IsStaircase)
                {
                    int last = seen[row + TBlock.Edge - 1];
                    for (int key = whole > start ? whole : start; key < end && key < last; key++)
                    {
                        output = TBlock.Step(
                            output, tile, ((key * TTile.Edge) + row) / 4, sums, (((key - start) * TTile.Edge) + column) / 4, seen, row, key);
                    }
                }
                else if (row >= start && row < end)
                {
                    output = TBlock.Triangle(
                        output, tile, ((row * TTile.Edge) + row) / 4, TTile.Edge / 4, sums, (((row - start) * TTile.Edge) + column) / 4, TTile.Edge / 4);
                }
            }
        }

        Group.Barrier();
        TBlock.Store(output, tile, ((row * TTile.Edge) + column) / 4, TTile.Edge / 4);
        Group.Barrier();
        for (int token = Group.IdxX; token < tokens; token += Group.DimX)
        {
            denominators[token] = RowFactor<TTile, TActivation>(arguments, member, token, denominators[token], maximum[token]);
        }

        Group.Barrier();
        int head = member % arguments.Items.HeadGroup;
        long target = isWhole
            ? arguments.Items.WholeRow(arguments.Output, item, head, TTile.Edge) : arguments.Items.Row(arguments.Output, item, head, TTile.Edge);
        target += firstValue;
        int width = sizes.Values - firstValue;
        for (int i = Group.IdxX; i < tokens * TTile.Edge; i += Group.DimX)
        {
            int token = i / TTile.Edge;
            int value = i - (token * TTile.Edge);
            if (value < width)
            {
                arguments.Output.Store(
                    target + (token * arguments.Output.TokenStride) + value, Finish<TActivation>(arguments, elements[i], denominators[token]));
            }
        }
    }

    /// <summary>M of a row; 0 when the row sees nothing at all, whose features are then all 0.</summary>
    /// <param name="arguments">The arguments.</param>
    /// <param name="member">The item's member.</param>
    /// <param name="token">The row.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static float RowMaximum<TTile>(ReadArguments arguments, int member, int token)
        where TTile : unmanaged, ITileSize
    {
        int tiles = arguments.Sizes.PaddedFeatures / TTile.Edge;
        float maximum = float.NegativeInfinity;
        for (int i = 0; i < tiles; i++)
        {
            float of = arguments.Workspace[arguments.Maxima + ((((long)member * tiles) + i) * TTile.Edge) + token];
            maximum = of > maximum ? of : maximum;
        }

        return maximum == float.NegativeInfinity ? 0 : maximum;
    }

    /// <summary>What <see cref="Finish"/> takes a row's sums by.</summary>
    /// <param name="arguments">The arguments.</param>
    /// <param name="member">The item's member.</param>
    /// <param name="token">The row.</param>
    /// <param name="denominator">The row's normaliser.</param>
    /// <param name="maximum">M.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static float RowFactor<TTile, TActivation>(ReadArguments arguments, int member, int token, float denominator, float maximum)
        where TTile : unmanaged, ITileSize
        where TActivation : unmanaged, IActivation
    {
        if (arguments.Normalize != 0)
        {
            return denominator;
        }

        return TActivation.IsLogarithmic
            ? XMath.Exp((maximum + arguments.Workspace[arguments.RowTerms + ((long)member * TTile.Edge) + token]) / 2)
            : arguments.Factor;
    }

    /// <summary>An output.</summary>
    /// <param name="arguments">The arguments.</param>
    /// <param name="sum">The sum over keys.</param>
    /// <param name="factor">What <see cref="RowFactor"/> made for the row.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static float Finish<TActivation>(ReadArguments arguments, float sum, float factor)
        where TActivation : unmanaged, IActivation
    {
        if (arguments.Normalize != 0)
        {
            // Not times 1 / factor, which is infinite below 2.9e-39.
            return factor == 0 ? 0 : sum / factor;
        }

        // In two steps: e^M alone may overflow or vanish where its product with sums of e^(l − s) does neither.
        return TActivation.IsLogarithmic ? sum * factor * factor : sum * factor;
    }
}
