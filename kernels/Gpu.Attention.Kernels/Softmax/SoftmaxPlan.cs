namespace Gpu.Attention;

/// <summary>
/// What exact attention keeps in its workspace: a block's keys, values and queries, and what the queries have gathered when their keys come in several blocks.
/// </summary>
internal sealed class SoftmaxPlan : WorkspacePlan
{
    /// <summary>Plans a problem.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="chunk">C.</param>
    /// <param name="blockItems">Chunks, over all heads, that are worked on at once.</param>
    public SoftmaxPlan(AttentionProblem problem, int chunk, int blockItems)
        : base(problem, chunk)
    {
        AttentionShape shape = problem.Shape;
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
        Bytes = (Floats * sizeof(float)) + Alignment;
    }

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
}
