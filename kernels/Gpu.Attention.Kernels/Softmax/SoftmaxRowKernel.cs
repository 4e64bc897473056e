using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>The sizes of a backward pass: either of a row's is the inner dimension of one product and the columns of another.</summary>
internal struct GradientSizes
{
    /// <summary>d.</summary>
    public int Inputs;

    /// <summary>d↑16, a multiple of <see cref="TileProduct.Depth"/>.</summary>
    public int InputDepth;

    /// <summary>d↑C, a multiple of C.</summary>
    public int InputWidth;

    /// <summary>dv.</summary>
    public int Values;

    /// <summary>dv↑16, a multiple of <see cref="TileProduct.Depth"/>.</summary>
    public int ValueDepth;

    /// <summary>dv↑C, a multiple of C.</summary>
    public int ValueWidth;
}

/// <summary>What a backward pass knows of each query of a block of chains, all of their chunks: offsets of the workspace, <c>[chain, chunk, member, C]</c>.</summary>
internal struct GradientRows
{
    /// <summary>Chunks of queries of each chain, those that do not exist included.</summary>
    public int Chunks;

    /// <summary>m, the largest logit; 0 where none is above −∞.</summary>
    public long Maxima;

    /// <summary>1 / l; 0 where nothing is seen.</summary>
    public long Inverses;

    /// <summary>δ = g·o.</summary>
    public long Means;

    /// <summary>Where a member's numbers begin in each of the arrays.</summary>
    /// <param name="items">Which queries its item is.</param>
    /// <param name="chain">The item's chain.</param>
    /// <param name="turn">Its chunk and member, members running fastest.</param>
    /// <param name="edge">C.</param>
    public readonly long At(ItemMap items, int chain, int turn, int edge) =>
        (((((long)chain * Chunks) + items.FirstChunk) * items.HeadGroup) + turn) * edge;
}

/// <summary>What <see cref="SoftmaxRowKernel"/> reads and writes; offsets count floats of the workspace.</summary>
internal struct SoftmaxRowArguments
{
    /// <summary>The workspace.</summary>
    public ArrayView<float> Workspace;

    /// <summary>Receives the gradients of queries.</summary>
    public KernelTensor Target;

    /// <summary>Which queries an item is.</summary>
    public ItemMap Items;

    /// <summary>The sizes.</summary>
    public GradientSizes Sizes;

    /// <summary>What is known of each query.</summary>
    public GradientRows Rows;

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

    /// <summary>Non-zero when no item sees a later chunk of keys: results are written, else what was gathered is left in the workspace.</summary>
    public int IsLast;

    /// <summary>Non-zero when query gradients are wanted; else what is known of each query is all that is.</summary>
    public int WantsQueries;

    /// <summary>Reads <c>Qᵀ</c>, <c>[item, member, d↑16, C]</c>.</summary>
    public long Queries;

    /// <summary>Reads <c>Gᵀ</c>, <c>[item, member, dv↑16, C]</c>.</summary>
    public long Gradients;

    /// <summary>Reads <c>Kᵀ</c>, <c>[chain, key chunk, d↑16, C]</c>.</summary>
    public long Keys;

    /// <summary>Reads <c>Vᵀ</c>, <c>[chain, key chunk, dv↑16, C]</c>.</summary>
    public long Values;

    /// <summary>Reads K, <c>[chain, key chunk, C, d↑C]</c>.</summary>
    public long KeyRows;

    /// <summary>Keeps m, <c>[item, member, d↑C / C, C]</c>: tiles do not share, for they run side by side.</summary>
    public long Maxima;

    /// <summary>Keeps l, <c>[item, member, d↑C / C, C]</c>.</summary>
    public long Sums;

    /// <summary>Keeps dQ, <c>[item, member, C, d↑C]</c>.</summary>
    public long Outputs;
}

/// <summary>
/// The gradient of a chunk of queries (<c>[C, d]</c>) over the chunks of keys that they see, online as <see cref="SoftmaxKernel"/> is: with
/// <c>P = e^{L−m'}</c>, <c>dQ ← e^{m−m'} dQ + (P ∘ (G Vᵀ − δ)) K</c>, and <c>scale · dQ / l</c> in the end. A group takes C columns of a member of an item, and
/// forms the logits and their gradients for itself. It leaves each row's m and 1 / l for <see cref="SoftmaxKeyKernel"/>.
/// </summary>
/// <remarks>Shared memory, C = 64: two slices of 4 KB, the tile of 16 KB, 2 or 4 KB of partial sums and 1.5 KB of rows.</remarks>
internal static class SoftmaxRowKernel
{
    /// <summary>Explicitly grouped: <c>items · members · d↑C/C</c> groups, or of one tile when query gradients are not wanted.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Run<TTile, TBlock, TDirection>(SoftmaxRowArguments arguments)
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
        ArrayView<Float4> means = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<float> maximum = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<float> sum = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<int> seen = TDirection.IsStaircase ? SharedMemory.Allocate<int>(TTile.Edge) : default;
        ArrayView<float> partial = partials.Cast<float>();
        ArrayView<float> shift = shifts.Cast<float>();
        ArrayView<float> factor = factors.Cast<float>();
        ArrayView<float> mean = means.Cast<float>();
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        GradientSizes sizes = arguments.Sizes;
        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        int partialQuad = ((row / TBlock.Edge * TTile.Edge) + column) / 4;
        int tileQuad = ((row * TTile.Edge) + column) / 4;

        // Causal chunks have the more to do the later they are: the last of all chains first.
        int lanes = Grid.DimX / arguments.Items.Chunks;
        int chunk = arguments.Items.Chunks - 1 - (Grid.IdxX / lanes);
        int lane = Grid.IdxX % lanes;
        int tiles = arguments.WantsQueries != 0 ? sizes.InputWidth / TTile.Edge : 1;
        int firstColumn = lane % tiles * TTile.Edge;
        lane /= tiles;
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

        long rows = arguments.Rows.At(arguments.Items, chain, member - (chain * arguments.Items.Chunks * arguments.Items.HeadGroup), TTile.Edge);
        for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
        {
            mean[token] = arguments.Workspace[arguments.Rows.Means + rows + token];
        }

        long kept = (((long)member * tiles) + (firstColumn / TTile.Edge)) * TTile.Edge;
        long outputs = (arguments.Outputs + ((long)member * TTile.Edge * sizes.InputWidth) + firstColumn) / 4;
        TBlock gradient = default;
        if (arguments.FirstKeyChunk > 0)
        {
            for (int i = Group.IdxX; i < TTile.Edge * TTile.Edge / 4; i += Group.DimX)
            {
                int token = i / (TTile.Edge / 4);
                tile[i] = quads[outputs + ((long)token * (sizes.InputWidth / 4)) + (i - (token * (TTile.Edge / 4)))];
            }

            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                maximum[token] = arguments.Workspace[arguments.Maxima + kept + token];
                sum[token] = arguments.Workspace[arguments.Sums + kept + token];
            }

            Group.Barrier();
            gradient = TBlock.Load(tile, tileQuad, TTile.Edge / 4);
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

        long queries = (arguments.Queries + ((long)member * sizes.InputDepth * TTile.Edge)) / 4;
        long gradients = (arguments.Gradients + ((long)member * sizes.ValueDepth * TTile.Edge)) / 4;
        for (int keyChunk = 0; keyChunk < keyChunks; keyChunk++)
        {
            long keyItem = ((long)chain * arguments.KeyChunks) + keyChunk;
            long keys = (arguments.Keys + (keyItem * sizes.InputDepth * TTile.Edge)) / 4;
            TBlock weights = TileProduct.Add<TTile, TBlock>(
                default, quads, keys, TTile.Edge / 4, quads, queries, TTile.Edge / 4, sizes.InputDepth, left, right);
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
            TBlock.Store(weights, tile, tileQuad, TTile.Edge / 4);
            gradient = TBlock.ScaleRows(gradient, factors, row / 4);
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

            // Weights wait in the tile meanwhile: three blocks are more than registers hold.
            long values = (arguments.Values + (keyItem * sizes.ValueDepth * TTile.Edge)) / 4;
            TBlock products = TileProduct.Add<TTile, TBlock>(
                default, quads, values, TTile.Edge / 4, quads, gradients, TTile.Edge / 4, sizes.ValueDepth, left, right);
            products = TBlock.WeighDifference(products, means, column / 4, tile, tileQuad, TTile.Edge / 4);
            TBlock.Store(products, tile, tileQuad, TTile.Edge / 4);
            long keyRows = (arguments.KeyRows + (keyItem * TTile.Edge * sizes.InputWidth) + firstColumn) / 4;
            gradient = SightProduct.AddKeys<TTile, TBlock, TDirection>(
                gradient, tile, quads, keyRows, sizes.InputWidth / 4, left, isDiagonal, seen, firstKey);
        }

        Group.Barrier();
        if (arguments.IsLast == 0)
        {
            TBlock.Store(gradient, quads, outputs + ((((long)row * sizes.InputWidth) + column) / 4), sizes.InputWidth / 4);
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                arguments.Workspace[arguments.Maxima + kept + token] = maximum[token];
                arguments.Workspace[arguments.Sums + kept + token] = sum[token];
            }
        }
        else
        {
            TBlock.Store(gradient, tile, tileQuad, TTile.Edge / 4);
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                float of = sum[token];
                float inverse = of == 0 ? 0 : 1 / of;
                factor[token] = arguments.Scale * inverse;
                if (firstColumn == 0)
                {
                    float top = maximum[token];
                    arguments.Workspace[arguments.Rows.Maxima + rows + token] = top == float.NegativeInfinity ? 0 : top;
                    arguments.Workspace[arguments.Rows.Inverses + rows + token] = inverse;
                }
            }

            Group.Barrier();
            ArrayView<float> elements = tile.Cast<float>();
            int tokens = arguments.WantsQueries != 0 ? arguments.Items.Tokens(item, TTile.Edge) : 0;
            long target = arguments.Items.Row(arguments.Target, item, lane % arguments.Items.HeadGroup, TTile.Edge) + firstColumn;
            int width = sizes.Inputs - firstColumn;
            for (int i = Group.IdxX; i < tokens * TTile.Edge; i += Group.DimX)
            {
                int token = i / TTile.Edge;
                int input = i - (token * TTile.Edge);
                if (input < width)
                {
                    arguments.Target.Store(target + (token * arguments.Target.TokenStride) + input, elements[i] * factor[token]);
                }
            }
        }
    }
}
