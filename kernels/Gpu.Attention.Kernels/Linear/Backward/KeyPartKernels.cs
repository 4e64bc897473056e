using System.Runtime.CompilerServices;
using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>
/// What the queries that see a part of a chunk give the gradients of its keys, <c>PᵀQ̂</c>, and of its values, <c>AᵀĜ</c>, over the blocks of queries and the
/// heads that read it, in their order. Only rows that see a key are multiplied.
/// </summary>
/// <remarks>Shared memory, C = 64: two slices of 4 KB.</remarks>
internal static class KeyPartKernels
{
    /// <summary>Of keys; steep rows left out. Explicitly grouped: <c>items of keys · r↑/C</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Keys<TTile, TBlock>(LinearBackwardArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock> =>
        Run<TTile, TBlock>(arguments, arguments.KeyParts, arguments.Sizes.PaddedFeatures, ofKeys: true);

    /// <summary>Of values. Explicitly grouped: <c>items of keys · dv↑/C</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Values<TTile, TBlock>(LinearBackwardArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock> =>
        Run<TTile, TBlock>(arguments, arguments.ValueParts, arguments.Sizes.PaddedValues, ofKeys: false);

    /// <summary>
    /// What steep rows give the gradients of log features: of each key <c>Σ_i P_ij e^{l_i + l_j − M_i}</c>, and of their own, to which it is added,
    /// <c>Σ_j P_ij e^{l_i + l_j − M_i}</c>. Explicitly grouped: a group for each item of keys, of which most leave at once.
    /// </summary>
    /// <param name="arguments">The arguments.</param>
    public static void Steep<TTile>(LinearBackwardArguments arguments)
        where TTile : unmanaged, ITileSize
    {
        ArrayView<float> w = arguments.Workspace;
        PaddedSizes sizes = arguments.Sizes;
        int item = Grid.IdxX;
        int end = arguments.Items.EndReader(item);
        int reader = arguments.Items.FirstReader(item);
        if (ScoreKernels.SteepToken<TTile>(arguments, item) == TTile.Edge)
        {
            return;
        }

        long keys = arguments.KeyFeatures + ((long)item * sizes.PaddedFeatures * TTile.Edge);
        long parts = arguments.SteepParts + ((long)item * TTile.Edge * sizes.PaddedFeatures);

        // A feature is one thread's, whose sums no other touches.
        for (int f = Group.IdxX; arguments.IsFirst != 0 && f < sizes.PaddedFeatures; f += Group.DimX)
        {
            for (int key = 0; key < TTile.Edge; key++)
            {
                w[parts + ((long)key * sizes.PaddedFeatures) + f] = 0;
            }
        }

        for (; reader < end; reader++)
        {
            int tokens = arguments.Items.Tokens(reader, TTile.Edge);
            int first = ScoreKernels.FirstSteep<TTile>(arguments, reader, tokens);
            for (int head = 0; head < arguments.Items.HeadGroup; head++)
            {
                long member = ((long)reader * arguments.Items.HeadGroup) + head;
                long logs = arguments.QueryFeatures + (member * sizes.PaddedFeatures * TTile.Edge);
                long products = arguments.Products + (member * TTile.Edge * TTile.Edge);
                long maxima = arguments.RowMaxima + (member * TTile.Edge);
                long target = arguments.LogGradients + (member * TTile.Edge * sizes.PaddedFeatures);
                for (int f = Group.IdxX; f < sizes.Features; f += Group.DimX)
                {
                    for (int token = first; token < tokens; token++)
                    {
                        int seen = arguments.Items.Seen(reader, token, TTile.Edge);
                        float log = w[logs + ((long)f * TTile.Edge) + token];
                        float maximum = w[maxima + token];
                        float sum = 0;
                        for (int key = 0; key < seen; key++)
                        {
                            sum += w[products + ((long)key * TTile.Edge) + token] * XMath.Exp(log + w[keys + ((long)f * TTile.Edge) + key] - maximum);
                        }

                        w[target + ((long)token * sizes.PaddedFeatures) + f] += sum;
                    }

                    int last = first < tokens ? arguments.Items.Seen(reader, tokens - 1, TTile.Edge) : 0;
                    for (int key = 0; key < last; key++)
                    {
                        float log = w[keys + ((long)f * TTile.Edge) + key];
                        float sum = 0;
                        for (int token = first; token < tokens; token++)
                        {
                            if (key < arguments.Items.Seen(reader, token, TTile.Edge))
                            {
                                sum += w[products + ((long)key * TTile.Edge) + token]
                                    * XMath.Exp(w[logs + ((long)f * TTile.Edge) + token] + log - w[maxima + token]);
                            }
                        }

                        w[parts + ((long)key * sizes.PaddedFeatures) + f] += sum;
                    }
                }
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Run<TTile, TBlock>(LinearBackwardArguments arguments, long parts, int width, bool ofKeys)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<int> seen = SharedMemory.Allocate<int>(TTile.Edge);
        ArrayView<int> seeing = SharedMemory.Allocate<int>(TTile.Edge);
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int tiles = width / TTile.Edge;
        int item = Grid.IdxX / tiles;
        int firstColumn = Grid.IdxX % tiles * TTile.Edge;
        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        long target = (parts + ((((long)item * TTile.Edge) + row) * width) + firstColumn + column) / 4;
        TBlock sums = default;
        if (arguments.IsFirst == 0)
        {
            sums = TBlock.Load(quads.SubView(target, ((TBlock.Edge - 1L) * (width / 4)) + (TBlock.Edge / 4)), 0, width / 4);
        }

        int end = arguments.Items.EndReader(item);
        for (int reader = arguments.Items.FirstReader(item); reader < end; reader++)
        {
            int tokens = arguments.Items.Tokens(reader, TTile.Edge);
            int queries = ofKeys ? ScoreKernels.FirstSteep<TTile>(arguments, reader, tokens) : tokens;
            Group.Barrier();
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                seen[token] = arguments.Items.Seen(reader, token < tokens ? token : tokens - 1, TTile.Edge);
            }

            Group.Barrier();
            VisibleProduct.Seeing<TTile>(seen, seeing);
            for (int head = 0; head < arguments.Items.HeadGroup; head++)
            {
                long member = ((long)reader * arguments.Items.HeadGroup) + head;
                long factors = ((ofKeys ? arguments.Products : arguments.Scores) + (member * TTile.Edge * TTile.Edge)) / 4;
                long rows = ofKeys
                    ? (arguments.Queries + (((member * sizes.PaddedFeatures) + firstColumn) * TTile.Edge)) / 4
                    : (arguments.Gradients + (member * TTile.Edge * sizes.PaddedValues) + firstColumn) / 4;
                for (int start = 0; start < queries; start += TileProduct.Depth)
                {
                    Group.Barrier();
                    TileProduct.StageTransposed<TTile>(quads, factors + (start / 4), TTile.Edge / 4, TTile.Edge, left);
                    if (ofKeys)
                    {
                        TileProduct.StageTransposed<TTile>(quads, rows + (start / 4), TTile.Edge / 4, TTile.Edge, right);
                    }
                    else
                    {
                        TileProduct.Stage<TTile>(quads, rows + ((long)start * width / 4), width / 4, right);
                    }

                    Group.Barrier();
                    sums = VisibleProduct.AddQueries<TTile, TBlock>(sums, left, right, start, queries, seeing);
                }
            }
        }

        TBlock.Store(sums, quads, target, width / 4);
    }
}
