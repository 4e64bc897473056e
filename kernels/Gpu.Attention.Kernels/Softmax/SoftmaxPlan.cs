namespace Gpu.Attention;

/// <summary>
/// Sizes and places of everything that exact attention keeps in its workspace, in floats: keys, values and queries in blocks of chunks, and what
/// the queries have gathered when their keys come in several blocks. Depends on neither the length nor the batch once they fill a block.
/// </summary>
internal sealed class SoftmaxPlan : IWorkspacePlan
{
    private long _floats;

    /// <summary>Plans a problem.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="chunk">C.</param>
    /// <param name="blockItems">Chunks, over all heads, that are worked on at once.</param>
    public SoftmaxPlan(AttentionProblem problem, int chunk, int blockItems)
    {
        AttentionShape shape = problem.Shape;
        Sizes = new PaddedSizes
        {
            Inputs = shape.KeyDimension,
            PaddedInputs = LinearPlan.RoundUp(shape.KeyDimension, TileProduct.Depth),
            Values = shape.ValueDimension,
            PaddedValues = LinearPlan.RoundUp(shape.ValueDimension, chunk),
        };
        Chains = checked(shape.Batch * shape.KeyHeads);
        KeyChunks = LinearPlan.Chunks(shape.KeyLength, chunk);
        QueryChunks = LinearPlan.Chunks(shape.QueryLength, chunk);

        // Chunks before chains: the more queries a block of keys meets, the less often it is packed.
        int items = Math.Max(1, blockItems / shape.HeadGroup);
        BlockChunks = Math.Clamp(items, 1, Math.Max(1, Math.Max(KeyChunks, QueryChunks)));
        BlockChains = Math.Min(Chains, items / BlockChunks);

        long keyItems = (long)BlockChains * Math.Min(BlockChunks, KeyChunks);
        long members = (long)BlockChains * Math.Min(BlockChunks, QueryChunks) * shape.HeadGroup;
        Keys = Take(keyItems * Sizes.PaddedInputs * chunk);
        Values = Take(keyItems * chunk * Sizes.PaddedValues);
        Queries = Take(members * Sizes.PaddedInputs * chunk);
        RowTerms = Take(Math.Max(keyItems, members) * chunk);
        Maxima = Take(members * Sizes.PaddedValues);
        Sums = Take(members * Sizes.PaddedValues);
        Outputs = Take(members * chunk * Sizes.PaddedValues);
        Bytes = (_floats * sizeof(float)) + LinearPlan.Alignment;
    }

    /// <summary>The sizes; there are no features.</summary>
    public PaddedSizes Sizes { get; }

    /// <summary>Key heads of all sequences.</summary>
    public int Chains { get; }

    /// <summary>Chains that are worked on at once.</summary>
    public int BlockChains { get; }

    /// <summary>Chunks of each of them that are worked on at once, of keys and of queries.</summary>
    public int BlockChunks { get; }

    /// <summary>Chunks of keys.</summary>
    public int KeyChunks { get; }

    /// <summary>Chunks of queries.</summary>
    public int QueryChunks { get; }

    /// <inheritdoc/>
    public long Bytes { get; }

    /// <summary><c>Kᵀ</c>, <c>[item, d↑, C]</c>.</summary>
    public long Keys { get; }

    /// <summary>V, <c>[item, C, dv↑]</c>.</summary>
    public long Values { get; }

    /// <summary><c>Qᵀ</c>, <c>[item, member, d↑, C]</c>.</summary>
    public long Queries { get; }

    /// <summary>What packing leaves beside rows, and nobody reads.</summary>
    public long RowTerms { get; }

    /// <summary>m, <c>[item, member, dv↑ / C, C]</c>.</summary>
    public long Maxima { get; }

    /// <summary>l, <c>[item, member, dv↑ / C, C]</c>.</summary>
    public long Sums { get; }

    /// <summary>O, <c>[item, member, C, dv↑]</c>, not divided by l yet.</summary>
    public long Outputs { get; }

    private long Take(long floats)
    {
        long start = _floats;
        _floats += LinearPlan.Align(floats);
        return start;
    }
}
