using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>What <see cref="SoftmaxKernel"/> reads and writes; offsets count floats of the workspace.</summary>
internal struct SoftmaxArguments
{
    /// <summary>The workspace.</summary>
    public ArrayView<float> Workspace;

    /// <summary>Receives the outputs.</summary>
    public KernelTensor Output;

    /// <summary>Which queries an item is.</summary>
    public ItemMap Items;

    /// <summary>The sizes.</summary>
    public PaddedSizes Sizes;

    /// <summary>The factor on <c>q·k</c>.</summary>
    public float Scale;

    /// <summary>The first chunk of keys in the workspace; 0 to begin, else what was gathered from the chunks before it is taken up.</summary>
    public int FirstKeyChunk;

    /// <summary>Chunks of keys of each chain in the workspace.</summary>
    public int KeyChunks;

    /// <summary>Keys in a sequence, where sequences fill their rows of the batch.</summary>
    public int KeyLength;

    /// <summary>Non-zero when queries of a sequence see different numbers of its keys.</summary>
    public int IsCausal;

    /// <summary>Non-zero when no item sees a later chunk of keys: outputs are written, else what was gathered is left in the workspace.</summary>
    public int IsLast;

    /// <summary>Reads <c>Qᵀ</c>, <c>[item, member, d↑, C]</c>.</summary>
    public long Queries;

    /// <summary>Reads <c>Kᵀ</c>, <c>[chain, key chunk, d↑, C]</c>.</summary>
    public long Keys;

    /// <summary>Reads V, <c>[chain, key chunk, C, dv↑]</c>.</summary>
    public long Values;

    /// <summary>Keeps m, <c>[item, member, dv↑ / C, C]</c>: value tiles do not share, for they run side by side.</summary>
    public long Maxima;

    /// <summary>Keeps l, <c>[item, member, dv↑ / C, C]</c>.</summary>
    public long Sums;

    /// <summary>Keeps O, <c>[item, member, C, dv↑]</c>.</summary>
    public long Outputs;
}

/// <summary>
/// Exact attention of a chunk of queries (<c>[C, d]</c>) over the chunks of keys that it sees, online: <c>Lᵀ = scale · K Qᵀ</c> (<c>[C, C]</c>, keys by
/// queries), <c>m' = max(m, max L)</c>, <c>P = e^{L−m'}</c>, <c>l ← e^{m−m'} l + Σ P</c>, <c>O ← e^{m−m'} O + P V</c>, and O / l in the end. A group takes C
/// values of a member of an item, and forms the logits for itself.
/// </summary>
/// <remarks>
/// Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao et al., "FlashAttention" (2022). Shared memory, C = 64: two slices
/// of 4 KB, the tile of 16 KB, 2 or 4 KB of partial sums and 1 KB of rows.
/// </remarks>
internal static class SoftmaxKernel
{
    /// <summary>Explicitly grouped: <c>items · members · dv↑/C</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Run<TTile, TBlock, TDirection>(SoftmaxArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
        where TDirection : unmanaged, IDirection
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> tile = SharedMemory.Allocate<Float4>(TTile.Edge * TTile.Edge / 4);
        ArrayView<Float4> partials = SharedMemory.Allocate<Float4>(TTile.Edge / TBlock.Edge * TTile.Edge / 4);
        ArrayView<Float4> shifts = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<Float4> factors = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<float> maximum = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<float> sum = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<int> seen = TDirection.IsStaircase ? SharedMemory.Allocate<int>(TTile.Edge) : default;
        ArrayView<float> partial = partials.Cast<float>();
        ArrayView<float> shift = shifts.Cast<float>();
        ArrayView<float> factor = factors.Cast<float>();
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        int partialQuad = ((row / TBlock.Edge * TTile.Edge) + column) / 4;

        // Causal chunks have the more to do the later they are: the last of all chains first.
        int lanes = Grid.DimX / arguments.Items.Chunks;
        int chunk = arguments.Items.Chunks - 1 - (Grid.IdxX / lanes);
        int lane = Grid.IdxX % lanes;
        int valueTiles = sizes.PaddedValues / TTile.Edge;
        int firstValue = lane % valueTiles * TTile.Edge;
        lane /= valueTiles;
        int chain = lane / arguments.Items.HeadGroup;
        int item = (chain * arguments.Items.Chunks) + chunk;
        int member = (item * arguments.Items.HeadGroup) + (lane % arguments.Items.HeadGroup);

        if (arguments.Items.IsMissing(item, TTile.Edge))
        {
            return;
        }

        // Rows of different lengths: how many keys each sees, the first one least and the last one most.
        int least = 0;
        int most = 0;
        if (TDirection.IsStaircase)
        {
            int last = arguments.Items.Tokens(item, TTile.Edge) - 1;
            int visible = arguments.Items.Visible(item, TTile.Edge);
            least = arguments.Items.Tables[visible];
            most = arguments.Items.Tables[visible + last];
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                seen[token] = arguments.Items.Tables[visible + (token < last ? token : last)];
            }
        }

        long kept = (((long)member * valueTiles) + (firstValue / TTile.Edge)) * TTile.Edge;
        long outputs = (arguments.Outputs + ((long)member * TTile.Edge * sizes.PaddedValues) + firstValue) / 4;
        TBlock output = default;
        if (arguments.FirstKeyChunk > 0)
        {
            for (int i = Group.IdxX; i < TTile.Edge * TTile.Edge / 4; i += Group.DimX)
            {
                int token = i / (TTile.Edge / 4);
                tile[i] = quads[outputs + ((long)token * (sizes.PaddedValues / 4)) + (i - (token * (TTile.Edge / 4)))];
            }

            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                maximum[token] = arguments.Workspace[arguments.Maxima + kept + token];
                sum[token] = arguments.Workspace[arguments.Sums + kept + token];
            }

            Group.Barrier();
            output = TBlock.Load(tile, ((row * TTile.Edge) + column) / 4, TTile.Edge / 4);
        }
        else
        {
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                maximum[token] = float.NegativeInfinity;
                sum[token] = 0;
            }
        }

        int ownChunk = arguments.Items.FirstChunk + chunk - arguments.FirstKeyChunk;
        int keyChunks = arguments.KeyChunks;
        if (TDirection.IsStaircase)
        {
            int chunks = (most / TTile.Edge) + (most % TTile.Edge == 0 ? 0 : 1) - arguments.FirstKeyChunk;
            keyChunks = chunks < keyChunks ? chunks : keyChunks;
        }
        else if (TDirection.IsCausal)
        {
            keyChunks = ownChunk < keyChunks ? ownChunk + 1 : keyChunks;
        }

        long queries = (arguments.Queries + ((long)member * sizes.PaddedInputs * TTile.Edge)) / 4;
        for (int keyChunk = 0; keyChunk < keyChunks; keyChunk++)
        {
            long keyItem = ((long)chain * arguments.KeyChunks) + keyChunk;
            long keys = (arguments.Keys + (keyItem * sizes.PaddedInputs * TTile.Edge)) / 4;
            TBlock weights = TileProduct.Add<TTile, TBlock>(
                default, quads, keys, TTile.Edge / 4, quads, queries, TTile.Edge / 4, sizes.PaddedInputs, left, right);
            weights = TBlock.Scale(weights, arguments.Scale);
            int firstKey = (arguments.FirstKeyChunk + keyChunk) * TTile.Edge;
            bool isDiagonal = TDirection.IsStaircase ? arguments.IsCausal != 0 && least < firstKey + TTile.Edge : TDirection.IsCausal && keyChunk == ownChunk;
            int keyCount = (TDirection.IsStaircase ? most : arguments.KeyLength) - firstKey;
            if (isDiagonal)
            {
                weights = TDirection.IsStaircase ? TBlock.Mask(weights, seen, column, firstKey + row) : TBlock.Mask(weights, column - row, 1);
            }
            else if (keyCount < TTile.Edge)
            {
                weights = TBlock.Mask(weights, keyCount - 1 - row, 0);
            }

            TBlock.StoreMaxima(weights, partials, partialQuad);
            Group.Barrier();
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                // A NaN may get lost on the way to the maximum; its own weight is NaN all the same, and the row's sum with it.
                float before = maximum[token];
                float top = before;
                for (int i = 0; i < TTile.Edge / TBlock.Edge; i++)
                {
                    float of = partial[(i * TTile.Edge) + token];
                    top = of > top ? of : top;
                }

                // Nothing but −∞ seen yet: any finite shift gives the weight 0.
                float by = top == float.NegativeInfinity ? 0 : top;
                shift[token] = by;
                factor[token] = XMath.Exp(before - by);
                maximum[token] = top;
            }

            Group.Barrier();
            weights = TBlock.ExpDifference(weights, shifts, column / 4);
            TBlock.StoreSums(weights, partials, partialQuad);
            TBlock.Store(weights, tile, ((row * TTile.Edge) + column) / 4, TTile.Edge / 4);
            output = TBlock.ScaleRows(output, factors, row / 4);
            Group.Barrier();
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                float total = sum[token] * factor[token];
                for (int i = 0; i < TTile.Edge / TBlock.Edge; i++)
                {
                    total += partial[(i * TTile.Edge) + token];
                }

                sum[token] = total;
            }

            long values = (arguments.Values + (keyItem * TTile.Edge * sizes.PaddedValues) + firstValue) / 4;
            output = SightProduct.AddKeys<TTile, TBlock, TDirection>(
                output, tile, quads, values, sizes.PaddedValues / 4, left, isDiagonal, seen, firstKey);
        }

        Group.Barrier();
        if (arguments.IsLast == 0)
        {
            TBlock.Store(output, quads, outputs + ((((long)row * sizes.PaddedValues) + column) / 4), sizes.PaddedValues / 4);
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                arguments.Workspace[arguments.Maxima + kept + token] = maximum[token];
                arguments.Workspace[arguments.Sums + kept + token] = sum[token];
            }
        }
        else
        {
            TBlock.Store(output, tile, ((row * TTile.Edge) + column) / 4, TTile.Edge / 4);
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                float of = sum[token];
                factor[token] = of == 0 ? 0 : 1 / of;
            }

            Group.Barrier();
            ArrayView<float> elements = tile.Cast<float>();
            int tokens = arguments.Items.Tokens(item, TTile.Edge);
            long target = arguments.Items.Row(arguments.Output, item, lane % arguments.Items.HeadGroup, TTile.Edge) + firstValue;
            int width = sizes.Values - firstValue;
            for (int i = Group.IdxX; i < tokens * TTile.Edge; i += Group.DimX)
            {
                int token = i / TTile.Edge;
                int value = i - (token * TTile.Edge);
                if (value < width)
                {
                    arguments.Output.Store(target + (token * arguments.Output.TokenStride) + value, elements[i] * factor[token]);
                }
            }
        }
    }
}
