using ILGPU;

namespace Gpu.Attention;

/// <summary>Which of a key's gradients a group makes.</summary>
internal interface IGradientPart
{
    /// <summary>True for the gradient of keys, false for that of values.</summary>
    static abstract bool IsOfKeys { get; }
}

/// <summary><c>dK = scale · dSᵀ Q</c>.</summary>
internal struct KeyPart : IGradientPart
{
    /// <inheritdoc/>
    public static bool IsOfKeys => true;
}

/// <summary><c>dV = Pᵀ G</c>.</summary>
internal struct ValuePart : IGradientPart
{
    /// <inheritdoc/>
    public static bool IsOfKeys => false;
}

/// <summary>What <see cref="SoftmaxKeyKernel"/> reads and writes; offsets count floats of the workspace.</summary>
internal struct SoftmaxKeyArguments
{
    /// <summary>The workspace.</summary>
    public ArrayView<float> Workspace;

    /// <summary>Receives the gradients of keys, or of values.</summary>
    public KernelTensor Target;

    /// <summary>Which keys an item is.</summary>
    public ItemMap Items;

    /// <summary>Which queries are in the workspace.</summary>
    public ItemMap QueryItems;

    /// <summary>The sizes.</summary>
    public GradientSizes Sizes;

    /// <summary>What is known of each query.</summary>
    public GradientRows Rows;

    /// <summary>The factor on <c>q·k</c>.</summary>
    public float Scale;

    /// <summary>Non-zero when queries of a sequence see different numbers of its keys.</summary>
    public int IsCausal;

    /// <summary>Non-zero to begin, else what was gathered from earlier queries is taken up.</summary>
    public int IsFirst;

    /// <summary>Non-zero when there are no later queries: gradients are written, else what was gathered is left in the workspace.</summary>
    public int IsLast;

    /// <summary>Reads <c>Kᵀ</c>, <c>[item, d↑16, C]</c>.</summary>
    public long Keys;

    /// <summary>Reads <c>Vᵀ</c>, <c>[item, dv↑16, C]</c>.</summary>
    public long Values;

    /// <summary>Reads <c>Qᵀ</c>, <c>[chain, chunk, member, d↑16, C]</c>.</summary>
    public long Queries;

    /// <summary>Reads <c>Gᵀ</c>, <c>[chain, chunk, member, dv↑16, C]</c>.</summary>
    public long Gradients;

    /// <summary>Reads Q, <c>[chain, chunk, member, C, d↑C]</c>, for keys; G, <c>[chain, chunk, member, C, dv↑C]</c>, for values.</summary>
    public long QueryRows;

    /// <summary>Keeps what was gathered, <c>[item, C, d↑C]</c> or <c>[item, C, dv↑C]</c>.</summary>
    public long Outputs;
}

/// <summary>
/// The gradients of a chunk of keys or values over all chunks of queries that see one of them, each with the heads of the group in their order:
/// <c>P = e^{scale · Q Kᵀ − m} / l</c> (<c>[C, C]</c>, queries by keys), <c>dV += Pᵀ G</c>, and <c>dK += (P ∘ (G Vᵀ − δ))ᵀ Q</c>, times the scale in the end. A
/// group takes C columns of an item.
/// </summary>
/// <remarks>Shared memory, C = 64: two slices of 4 KB, the tile of 16 KB and 1 KB of rows.</remarks>
internal static class SoftmaxKeyKernel
{
    /// <summary>Explicitly grouped: <c>items · d↑C/C</c> groups for keys, <c>items · dv↑C/C</c> for values.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Run<TTile, TBlock, TDirection, TPart>(SoftmaxKeyArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
        where TDirection : unmanaged, IDirection
        where TPart : unmanaged, IGradientPart
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> tile = SharedMemory.Allocate<Float4>(TTile.Edge * TTile.Edge / 4);
        ArrayView<Float4> maxima = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<Float4> inverses = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<Float4> means = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<int> seen = TDirection.IsStaircase ? SharedMemory.Allocate<int>(TTile.Edge) : default;
        ArrayView<float> maximum = maxima.Cast<float>();
        ArrayView<float> inverse = inverses.Cast<float>();
        ArrayView<float> mean = means.Cast<float>();
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        GradientSizes sizes = arguments.Sizes;
        ItemMap queryItems = arguments.QueryItems;
        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        int tileQuad = ((row * TTile.Edge) + column) / 4;
        int outputWidth = TPart.IsOfKeys ? sizes.InputWidth : sizes.ValueWidth;

        // Causal chunks have the more to do the earlier they are: the first of all chains first.
        int lanes = Grid.DimX / arguments.Items.Chunks;
        int chunk = Grid.IdxX / lanes;
        int lane = Grid.IdxX % lanes;
        int tiles = outputWidth / TTile.Edge;
        int firstColumn = lane % tiles * TTile.Edge;
        int chain = lane / tiles;
        int item = (chain * arguments.Items.Chunks) + chunk;
        if (arguments.Items.IsMissing(item, TTile.Edge))
        {
            return;
        }

        // Queries see the more the later they are: those that see any of the item's keys come last.
        int firstKey = arguments.Items.Token(item, TTile.Edge);
        int begin = 0;
        int end = queryItems.Chunks;
        if (TDirection.IsStaircase)
        {
            int first = chain * queryItems.Chunks;
            while (end > 0 && queryItems.IsMissing(first + end - 1, TTile.Edge))
            {
                end--;
            }

            while (begin < end
                && queryItems.Tables[queryItems.Visible(first + begin, TTile.Edge) + queryItems.Tokens(first + begin, TTile.Edge) - 1] <= firstKey)
            {
                begin++;
            }
        }
        else if (TDirection.IsCausal)
        {
            int own = arguments.Items.FirstChunk + chunk - queryItems.FirstChunk;
            begin = own > 0 ? own : 0;
        }

        long outputs = (arguments.Outputs + ((long)item * TTile.Edge * outputWidth) + firstColumn) / 4;
        TBlock gradient = default;
        if (arguments.IsFirst == 0)
        {
            for (int i = Group.IdxX; i < TTile.Edge * TTile.Edge / 4; i += Group.DimX)
            {
                int token = i / (TTile.Edge / 4);
                tile[i] = quads[outputs + ((long)token * (outputWidth / 4)) + (i - (token * (TTile.Edge / 4)))];
            }

            Group.Barrier();
            gradient = TBlock.Load(tile, tileQuad, TTile.Edge / 4);
        }

        long keys = (arguments.Keys + ((long)item * sizes.InputDepth * TTile.Edge)) / 4;
        long values = (arguments.Values + ((long)item * sizes.ValueDepth * TTile.Edge)) / 4;
        for (int turn = begin * queryItems.HeadGroup; turn < end * queryItems.HeadGroup; turn++)
        {
            int queryChunk = turn / queryItems.HeadGroup;
            int queryItem = (chain * queryItems.Chunks) + queryChunk;
            long member = ((long)chain * queryItems.Chunks * queryItems.HeadGroup) + turn;
            int tokens = queryItems.Tokens(queryItem, TTile.Edge);
            long rows = arguments.Rows.At(queryItems, chain, turn, TTile.Edge);
            int least = 0;
            Group.Barrier();
            if (TDirection.IsStaircase)
            {
                int visible = queryItems.Visible(queryItem, TTile.Edge);
                least = queryItems.Tables[visible];
                for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
                {
                    seen[token] = queryItems.Tables[visible + (token < tokens ? token : tokens - 1)];
                }
            }

            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                maximum[token] = arguments.Workspace[arguments.Rows.Maxima + rows + token];
                inverse[token] = arguments.Workspace[arguments.Rows.Inverses + rows + token];
                mean[token] = arguments.Workspace[arguments.Rows.Means + rows + token];
            }

            long queries = (arguments.Queries + (member * sizes.InputDepth * TTile.Edge)) / 4;
            TBlock weights = TileProduct.Add<TTile, TBlock>(
                default, quads, queries, TTile.Edge / 4, quads, keys, TTile.Edge / 4, sizes.InputDepth, left, right);
            weights = TBlock.Scale(weights, arguments.Scale);
            weights = TBlock.ExpRowDifference(weights, maxima, row / 4);
            weights = TBlock.ScaleRows(weights, inverses, row / 4);
            TBlock.Store(weights, tile, tileQuad, TTile.Edge / 4);
            if (TPart.IsOfKeys)
            {
                long gradients = (arguments.Gradients + (member * sizes.ValueDepth * TTile.Edge)) / 4;
                TBlock products = TileProduct.Add<TTile, TBlock>(
                    default, quads, gradients, TTile.Edge / 4, quads, values, TTile.Edge / 4, sizes.ValueDepth, left, right);
                products = TBlock.WeighRowDifference(products, means, row / 4, tile, tileQuad, TTile.Edge / 4);
                TBlock.Store(products, tile, tileQuad, TTile.Edge / 4);
            }

            // Of keys that do not exist weights are no better than of those that a row does not see, but nobody reads their sums.
            int ahead = TDirection.IsCausal ? (queryItems.FirstChunk + queryChunk - arguments.Items.FirstChunk - chunk) * TTile.Edge : TTile.Edge;
            bool isEdge = tokens < TTile.Edge
                || (TDirection.IsStaircase ? arguments.IsCausal != 0 && least < firstKey + TTile.Edge : TDirection.IsCausal && ahead == 0);
            long queryRows = (arguments.QueryRows + (member * TTile.Edge * outputWidth) + firstColumn) / 4;
            gradient = SightProduct.AddQueries<TTile, TBlock, TDirection>(
                gradient, tile, quads, queryRows, outputWidth / 4, left, isEdge, tokens, seen, TDirection.IsStaircase ? firstKey : -ahead);
        }

        Group.Barrier();
        if (arguments.IsLast == 0)
        {
            TBlock.Store(gradient, quads, outputs + ((((long)row * outputWidth) + column) / 4), outputWidth / 4);
        }
        else
        {
            TBlock.Store(gradient, tile, tileQuad, TTile.Edge / 4);
            Group.Barrier();
            ArrayView<float> elements = tile.Cast<float>();
            int tokens = arguments.Items.Tokens(item, TTile.Edge);
            int gathered = arguments.Items.Gathered(item, TTile.Edge);
            long target = arguments.Items.Row(arguments.Target, item, 0, TTile.Edge) + firstColumn;
            int width = (TPart.IsOfKeys ? sizes.Inputs : sizes.Values) - firstColumn;

            // Over the whole tile: of a loop that some threads do not enter at all, PoCL 3.1 gave them the first turn nevertheless.
            for (int i = Group.IdxX; i < TTile.Edge * TTile.Edge; i += Group.DimX)
            {
                int token = i / TTile.Edge;
                int input = i - (token * TTile.Edge);
                if (token < tokens && input < width)
                {
                    int at = gathered < 0 ? token : arguments.Items.Tables[gathered + token];
                    arguments.Target.Store(target + (at * arguments.Target.TokenStride) + input, TPart.IsOfKeys ? arguments.Scale * elements[i] : elements[i]);
                }
            }
        }
    }
}
