using System.Runtime.CompilerServices;
using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>
/// What queries and the keys of their chunk make of one another: scores <c>A = Q̂K̂ᵀ</c> with the normalisers <c>D̂ = Q̂ẑ</c> + row sums of what is seen, and
/// the scores' gradient <c>P = Ĝ[V 1]ᵀ</c>. Both have a row for each key. A group takes a member of an item of queries.
/// </summary>
/// <remarks>What a row does not see is written too, whatever it is, and read by nobody.</remarks>
internal static class ScoreKernels
{
    /// <summary>Explicitly grouped: <c>items · members</c> groups. Shared memory, C = 64: two slices of 4 KB and a tile of 16 KB.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Scores<TTile, TBlock>(LinearBackwardArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> tile = SharedMemory.Allocate<Float4>(TTile.Edge * TTile.Edge / 4);
        ArrayView<float> denominators = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<float> w = arguments.Workspace;
        ArrayView<Float4> quads = w.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int member = Grid.IdxX;
        int item = member / arguments.Items.HeadGroup;
        int tokens = arguments.Items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        int keyItem = arguments.Items.KeyItem(item);
        long queries = (arguments.Queries + ((long)member * sizes.PaddedFeatures * TTile.Edge)) / 4;
        long keys = (arguments.KeysRead + ((long)keyItem * sizes.PaddedFeatures * TTile.Edge)) / 4;
        long normalizers = arguments.Normalizers + ((long)(arguments.HasKeys != 0 ? keyItem : arguments.Items.Chain(item)) * sizes.PaddedFeatures);
        for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
        {
            denominators[token] = 0;
        }

        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        ArrayView<float> staged = right.Cast<float>();
        TBlock scores = default;
        for (int start = 0; start < sizes.Features; start += TileProduct.Depth)
        {
            Group.Barrier();
            TileProduct.Stage<TTile>(quads, queries + (start * TTile.Edge / 4), TTile.Edge / 4, right);
            if (arguments.HasKeys != 0)
            {
                TileProduct.Stage<TTile>(quads, keys + (start * TTile.Edge / 4), TTile.Edge / 4, left);
            }

            Group.Barrier();
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                float sum = denominators[token];
                for (int k = 0; k < TileProduct.Depth; k++)
                {
                    sum += staged[(k * TTile.Edge) + token] * w[normalizers + start + k];
                }

                denominators[token] = sum;
            }

            if (arguments.HasKeys != 0)
            {
                scores = TileProduct.AddSlice<TTile, TBlock>(scores, left, row / 4, right, column / 4);
            }
        }

        if (arguments.HasKeys != 0)
        {
            int at = ((row * TTile.Edge) + column) / 4;
            TBlock.Store(scores, tile, at, TTile.Edge / 4);
            TBlock.Store(scores, quads, ((arguments.Scores + ((long)member * TTile.Edge * TTile.Edge)) / 4) + at, TTile.Edge / 4);
        }

        Group.Barrier();
        ArrayView<float> elements = tile.Cast<float>();
        for (int token = Group.IdxX; token < tokens; token += Group.DimX)
        {
            float own = 0;
            int seen = arguments.HasKeys != 0 ? arguments.Items.Seen(item, token, TTile.Edge) : 0;
            for (int key = 0; key < seen; key++)
            {
                own += elements[(key * TTile.Edge) + token];
            }

            w[arguments.Denominators + ((long)member * TTile.Edge) + token] = denominators[token] + own;
        }
    }

    /// <summary>Explicitly grouped: <c>items · members</c> groups. Shared memory, C = 64: two slices of 4 KB.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Products<TTile, TBlock>(LinearBackwardArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> ones = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<Float4> rows = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        int width = arguments.Sizes.PaddedValues;
        int member = Grid.IdxX;
        int item = member / arguments.Items.HeadGroup;
        if (arguments.Items.IsMissing(item, TTile.Edge))
        {
            return;
        }

        for (int i = Group.IdxX; i < TTile.Edge / 4; i += Group.DimX)
        {
            ones[i] = Float4.Of(1);
            rows[i] = quads[((arguments.RowGradients + ((long)member * TTile.Edge)) / 4) + i];
        }

        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        TBlock products = TileProduct.AddTransposed<TTile, TBlock>(
            default, quads, (arguments.Values + ((long)arguments.Items.KeyItem(item) * TTile.Edge * width)) / 4, width / 4,
            (arguments.Gradients + ((long)member * TTile.Edge * width)) / 4, width / 4, arguments.Sizes.Values, left, right);
        products = TBlock.Outer(products, ones, row / 4, rows, column / 4);
        TBlock.Store(
            products, quads, (arguments.Products + ((((long)member * TTile.Edge) + row) * TTile.Edge) + column) / 4, TTile.Edge / 4);
    }

    /// <summary>
    /// Rows of a steep chunk again, as <see cref="SteepReadKernel"/> reads them: M, Q̂, A and D̂. Explicitly grouped: <c>items · members</c> groups, of which
    /// most leave at once.
    /// </summary>
    /// <param name="arguments">The arguments.</param>
    public static void Steep<TTile>(LinearBackwardArguments arguments)
        where TTile : unmanaged, ITileSize
    {
        ArrayView<float> weights = SharedMemory.Allocate<float>(TTile.Edge);
        PaddedSizes sizes = arguments.Sizes;
        ArrayView<float> w = arguments.Workspace;
        int member = Grid.IdxX;
        int item = member / arguments.Items.HeadGroup;
        int tokens = arguments.Items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        int keyItem = arguments.Items.KeyItem(item);
        long logs = arguments.QueryFeatures + ((long)member * sizes.PaddedFeatures * TTile.Edge);
        long queries = arguments.Queries + ((long)member * sizes.PaddedFeatures * TTile.Edge);
        long keys = arguments.KeyFeatures + ((long)keyItem * sizes.PaddedFeatures * TTile.Edge);
        long scores = arguments.Scores + ((long)member * TTile.Edge * TTile.Edge);
        long state = (long)keyItem * sizes.PaddedFeatures;
        for (int token = FirstSteep<TTile>(arguments, item, tokens); token < tokens; token++)
        {
            int seen = arguments.Items.Seen(item, token, TTile.Edge);
            Group.Barrier();
            for (int key = Group.IdxX; key < seen; key += Group.DimX)
            {
                float largest = float.NegativeInfinity;
                for (int f = 0; f < sizes.Features; f++)
                {
                    float log = w[logs + ((long)f * TTile.Edge) + token] + w[keys + ((long)f * TTile.Edge) + key];
                    largest = log > largest ? log : largest;
                }

                weights[key] = largest;
            }

            Group.Barrier();
            float maximum = StateMaximum<TTile>(arguments, member, token);
            for (int key = 0; key < seen; key++)
            {
                maximum = weights[key] > maximum ? weights[key] : maximum;
            }

            Group.Barrier();
            for (int key = Group.IdxX; key < seen; key += Group.DimX)
            {
                float sum = 0;
                for (int f = 0; f < sizes.Features; f++)
                {
                    sum += XMath.Exp(w[logs + ((long)f * TTile.Edge) + token] + w[keys + ((long)f * TTile.Edge) + key] - maximum);
                }

                weights[key] = sum;
                w[scores + ((long)key * TTile.Edge) + token] = sum;
            }

            for (int f = Group.IdxX; f < sizes.Features; f += Group.DimX)
            {
                w[queries + ((long)f * TTile.Edge) + token] = XMath.Exp(w[logs + ((long)f * TTile.Edge) + token] + w[arguments.Scale + state + f] - maximum);
            }

            Group.Barrier();
            if (Group.IdxX == 0)
            {
                float denominator = 0;
                for (int f = 0; f < sizes.Features; f++)
                {
                    // Not from memory, where other threads have only just written it.
                    denominator += XMath.Exp(w[logs + ((long)f * TTile.Edge) + token] + w[arguments.Scale + state + f] - maximum)
                        * w[arguments.Normalizers + state + f];
                }

                for (int key = 0; key < seen; key++)
                {
                    denominator += weights[key];
                }

                w[arguments.RowMaxima + ((long)member * TTile.Edge) + token] = maximum;
                w[arguments.Denominators + ((long)member * TTile.Edge) + token] = denominator;
            }
        }
    }

    /// <summary>The first row that sees a steep token; no later row sees less. As many rows as there are when none does.</summary>
    /// <param name="arguments">The arguments.</param>
    /// <param name="item">An item of queries that see a part of a chunk of keys.</param>
    /// <param name="tokens">Its rows.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static int FirstSteep<TTile>(LinearBackwardArguments arguments, int item, int tokens)
        where TTile : unmanaged, ITileSize
    {
        if (arguments.IsLogarithmic == 0)
        {
            return tokens;
        }

        int steep = SteepToken<TTile>(arguments, arguments.Items.KeyItem(item));
        int first = steep == TTile.Edge ? tokens : 0;
        while (first < tokens && arguments.Items.Seen(item, first, TTile.Edge) <= steep)
        {
            first++;
        }

        return first;
    }

    /// <summary>The first steep token of a chunk of keys, C if there is none.</summary>
    /// <param name="arguments">The arguments.</param>
    /// <param name="keyItem">The item of keys.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static int SteepToken<TTile>(LinearBackwardArguments arguments, int keyItem)
        where TTile : unmanaged, ITileSize
    {
        int tiles = arguments.Sizes.PaddedFeatures / TTile.Edge;
        int first = TTile.Edge;
        for (int i = 0; i < tiles; i++)
        {
            int of = (int)arguments.Workspace[arguments.Steep + ((long)keyItem * tiles) + i];
            first = of < first ? of : first;
        }

        return first;
    }

    // Not the maximum that is replaced here.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float StateMaximum<TTile>(LinearBackwardArguments arguments, int member, int token)
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
}
