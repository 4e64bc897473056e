namespace Gpu.Attention;

/// <summary>
/// What exact attention's backward pass keeps in its workspace: a block's keys, values, queries and gradients, what they have gathered when others come in
/// several blocks, and three numbers for each query of the block's chains.
/// </summary>
internal sealed class SoftmaxBackwardPlan : WorkspacePlan
{
    /// <summary>The most tiles of a chunk in all of its heads: as many groups, and their indices, stay within 32 bits.</summary>
    private const int MaxTiles = 1 << 30;

    /// <summary>Plans a problem.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="chunk">C.</param>
    /// <param name="blockItems">Chunks, over all heads, that are worked on at once.</param>
    public SoftmaxBackwardPlan(AttentionProblem problem, int chunk, int blockItems)
        : base(problem, chunk)
    {
        AttentionShape shape = problem.Shape;
        GradientSizes = new GradientSizes
        {
            Inputs = shape.KeyDimension,
            InputDepth = Sizes.PaddedInputs,
            InputWidth = RoundUp(shape.KeyDimension, chunk),
            Values = shape.ValueDimension,
            ValueDepth = RoundUp(shape.ValueDimension, TileProduct.Depth),
            ValueWidth = Sizes.PaddedValues,
        };

        // Chunks before chains: the more queries a block of keys meets, the less often it is packed.
        int items = Math.Max(1, blockItems / shape.HeadGroup);
        BlockChunks = Math.Clamp(items, 1, Math.Max(1, Math.Max(KeyChunks, QueryChunks)));
        BlockChains = Math.Min(Chains, items / BlockChunks);

        long keyItems = (long)BlockChains * Math.Min(BlockChunks, KeyChunks);
        long members = (long)BlockChains * Math.Min(BlockChunks, QueryChunks) * shape.HeadGroup;
        long rows = (long)BlockChains * QueryChunks * shape.HeadGroup;
        Keys = Take(keyItems * GradientSizes.InputDepth * chunk);
        Values = Take(keyItems * GradientSizes.ValueDepth * chunk);
        Queries = Take(members * GradientSizes.InputDepth * chunk);
        Gradients = Take(members * GradientSizes.ValueDepth * chunk);
        RowTerms = Take(Math.Max(keyItems, members) * chunk);
        RowMaxima = Take(rows * chunk);
        RowInverses = Take(rows * chunk);
        RowMeans = Take(rows * chunk);

        long shared = Floats;
        KeyRows = Take(keyItems * chunk * GradientSizes.InputWidth);
        long waiting = BlockChunks < KeyChunks ? members * GradientSizes.InputWidth : 0;
        Maxima = Take(waiting);
        Sums = Take(waiting);
        QueryOutputs = Take(waiting * chunk);
        long afterQueries = Floats;

        // When it comes to its keys, a block of chains has done with its queries.
        Floats = shared;
        QueryRows = Take(members * chunk * GradientSizes.InputWidth);
        GradientRows = Take(members * chunk * GradientSizes.ValueWidth);
        waiting = BlockChunks < QueryChunks ? keyItems * chunk : 0;
        KeyOutputs = Take(waiting * GradientSizes.InputWidth);
        ValueOutputs = Take(waiting * GradientSizes.ValueWidth);
        Bytes = (Math.Max(afterQueries, Floats) * sizeof(float)) + Alignment;
    }

    /// <summary>Why a problem's sizes are beyond the kernels' indices; null when they are not.</summary>
    /// <param name="problem">A problem of exact attention that the forward pass takes.</param>
    /// <param name="chunk">C.</param>
    public static string? WhyTooLarge(AttentionProblem problem, int chunk)
    {
        AttentionShape shape = problem.Shape;
        long tiles = (Math.Max(shape.KeyDimension, shape.ValueDimension) + (long)chunk - 1) / chunk;
        return shape.HeadGroup * tiles > MaxTiles ? $"{shape.HeadGroup} heads to a key head, of {tiles} tiles each, are more than {MaxTiles} tiles" : null;
    }

    /// <summary>The sizes.</summary>
    public GradientSizes GradientSizes { get; }

    /// <summary><c>Kᵀ</c>, <c>[item, d↑16, C]</c>.</summary>
    public long Keys { get; }

    /// <summary><c>Vᵀ</c>, <c>[item, dv↑16, C]</c>.</summary>
    public long Values { get; }

    /// <summary><c>Qᵀ</c>, <c>[item, member, d↑16, C]</c>.</summary>
    public long Queries { get; }

    /// <summary><c>Gᵀ</c>, <c>[item, member, dv↑16, C]</c>.</summary>
    public long Gradients { get; }

    /// <summary>What packing leaves beside rows, and nobody reads.</summary>
    public long RowTerms { get; }

    /// <summary>m of every query of the chains, <c>[chain, chunk, member, C]</c>.</summary>
    public long RowMaxima { get; }

    /// <summary>1 / l, likewise.</summary>
    public long RowInverses { get; }

    /// <summary>δ, likewise.</summary>
    public long RowMeans { get; }

    /// <summary>K, <c>[item, C, d↑C]</c>.</summary>
    public long KeyRows { get; }

    /// <summary>m, <c>[item, member, d↑C / C, C]</c>, when keys come in several blocks.</summary>
    public long Maxima { get; }

    /// <summary>l, likewise.</summary>
    public long Sums { get; }

    /// <summary>dQ, <c>[item, member, C, d↑C]</c>, not divided by l yet, when keys come in several blocks.</summary>
    public long QueryOutputs { get; }

    /// <summary>Q, <c>[item, member, C, d↑C]</c>.</summary>
    public long QueryRows { get; }

    /// <summary>G, <c>[item, member, C, dv↑C]</c>.</summary>
    public long GradientRows { get; }

    /// <summary>dK, <c>[item, C, d↑C]</c>, when queries come in several blocks.</summary>
    public long KeyOutputs { get; }

    /// <summary>dV, <c>[item, C, dv↑C]</c>, when queries come in several blocks.</summary>
    public long ValueOutputs { get; }
}
