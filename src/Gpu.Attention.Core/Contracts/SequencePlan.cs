namespace Gpu.Attention;

/// <summary>Queries of one sequence that are taken together: they see the same whole chunks of keys, and a part of one more.</summary>
/// <param name="FirstQuery">The first one's token, in its row of the batch.</param>
/// <param name="Queries">How many, at most a chunk.</param>
/// <param name="Chunk">
/// Causal: the chunk of the sequence's keys that each of them sees a part of, one key at least, and all chunks before it; −1 when they see no key.
/// </param>
internal readonly record struct QueryBlock(int FirstQuery, int Queries, int Chunk);

/// <summary>
/// What an engine makes of a <see cref="SequenceLayout"/>: the keys that take part, gathered in chunks from each sequence's first one on, and for every
/// query how many of them it sees. Padding, packing, holes and blocks are all said by that.
/// </summary>
/// <remarks>
/// Sequences stand in order of falling numbers of keys, so that those that are worked on together have about as much to do; a place is a position in
/// that order. Since a chunk begins with a key that takes part and every query of a block sees it, scales that come from it betray nothing of the future.
/// </remarks>
internal sealed class SequencePlan
{
    private readonly AttentionShape _shape;
    private readonly bool _causal;
    private readonly int _causalBlock;

    public SequencePlan(SequenceLayout layout, AttentionProblem problem, int chunk)
    {
        AttentionShape shape = problem.Shape;
        (_shape, _causal, _causalBlock, Chunk, IsPacked) = (shape, problem.Causal, problem.CausalBlock, chunk, layout.IsPacked);
        bool hasKeys = shape.KeyLength > 0;
        Sequences = layout.Sequences;
        Order = [.. Enumerable.Range(0, Sequences).OrderByDescending(n => hasKeys ? layout.KeyTokens(n).Length : 0)];
        Batch = new int[Sequences];
        FirstKey = new int[Sequences + 1];
        FirstQuery = new int[Sequences];
        FirstRow = new int[Sequences + 1];
        FirstChunk = new int[Sequences + 1];
        FirstBlock = new int[Sequences + 1];
        KeyTokens = new int[hasKeys ? layout.VisibleKeys : 0];
        var blocks = new List<QueryBlock>();
        var blockOfChunk = new List<int>();
        var visible = new List<int>();
        for (int place = 0; place < Sequences; place++)
        {
            int sequence = Order[place];
            ReadOnlySpan<int> tokens = hasKeys ? layout.KeyTokens(sequence) : default;
            (int firstQuery, int queries) = layout.Queries(sequence, shape.QueryLength);
            tokens.CopyTo(KeyTokens.AsSpan(FirstKey[place]));
            Batch[place] = layout.IsPacked ? 0 : sequence;
            FirstKey[place + 1] = FirstKey[place] + tokens.Length;
            FirstQuery[place] = firstQuery;
            FirstRow[place + 1] = FirstRow[place] + queries;
            int chunks = LinearLayout.Pieces(tokens.Length, chunk);
            FirstChunk[place + 1] = FirstChunk[place] + chunks;
            AddVisible(layout, sequence, tokens, queries, visible);
            AddBlocks(visible, FirstRow[place], firstQuery, queries, chunks, blocks, blockOfChunk);
            FirstBlock[place + 1] = blocks.Count;
            MaxKeyChunks = Math.Max(MaxKeyChunks, chunks);
            MaxKeys = Math.Max(MaxKeys, tokens.Length);
            MaxQueries = Math.Max(MaxQueries, queries);
            MaxBlocks = Math.Max(MaxBlocks, blocks.Count - FirstBlock[place]);
        }

        Blocks = [.. blocks];
        BlockOfChunk = [.. blockOfChunk];
        Visible = [.. visible];
        HasBlindQueries = _causal && Array.Exists(Blocks, block => block.Chunk < 0);
    }

    /// <summary>C, tokens in a chunk.</summary>
    public int Chunk { get; }

    /// <summary>True when sequences stand one after the other.</summary>
    public bool IsPacked { get; }

    /// <summary>N.</summary>
    public int Sequences { get; }

    /// <summary>The sequence at each place: whose state it is.</summary>
    public int[] Order { get; }

    /// <summary>The row of the batch at each place.</summary>
    public int[] Batch { get; }

    /// <summary>Where the keys of each place begin in <see cref="KeyTokens"/>, and where those of the last one end.</summary>
    public int[] FirstKey { get; }

    /// <summary>Tokens of the keys that take part, in their row of the batch.</summary>
    public int[] KeyTokens { get; }

    /// <summary>The first query's token of each place, in its row of the batch.</summary>
    public int[] FirstQuery { get; }

    /// <summary>Where the queries of each place begin in <see cref="Visible"/>, and where those of the last one end.</summary>
    public int[] FirstRow { get; }

    /// <summary>How many of its sequence's keys each query sees: the first ones. Never falls within a sequence.</summary>
    public int[] Visible { get; }

    /// <summary>Where the blocks of each place begin in <see cref="Blocks"/>, and where those of the last one end.</summary>
    public int[] FirstBlock { get; }

    /// <summary>Blocks of queries. Causal: first those that see nothing, then chunk by chunk.</summary>
    public QueryBlock[] Blocks { get; }

    /// <summary>Where the chunks of each place begin in <see cref="BlockOfChunk"/>, one place beyond being the end; see <see cref="BlocksOf"/>.</summary>
    public int[] FirstChunk { get; }

    /// <summary>Causal: the first block of each chunk, counted over all places; with none, where it would stand.</summary>
    public int[] BlockOfChunk { get; }

    /// <summary>The most chunks of keys that a sequence has.</summary>
    public int MaxKeyChunks { get; }

    /// <summary>The most keys that a sequence has.</summary>
    public int MaxKeys { get; }

    /// <summary>The most queries that a sequence has.</summary>
    public int MaxQueries { get; }

    /// <summary>The most blocks of queries that a sequence has.</summary>
    public int MaxBlocks { get; }

    /// <summary>True when causal queries see no key, but for what an initial state has seen.</summary>
    public bool HasBlindQueries { get; }

    /// <summary>A problem's plan; null when there is nothing to say: sequences fill their tensors, and causal queries see the keys up to their own.</summary>
    /// <param name="problem">The problem.</param>
    /// <param name="chunk">Tokens in a chunk of the engine.</param>
    public static SequencePlan? Of(AttentionProblem problem, int chunk) => problem.Layout?.Plan(problem, chunk);

    /// <summary>True when the plan is that of a problem.</summary>
    /// <param name="problem">A problem with the plan's layout.</param>
    /// <param name="chunk">Tokens in a chunk of the engine.</param>
    public bool IsFor(AttentionProblem problem, int chunk)
    {
        AttentionShape s = problem.Shape;
        return (_shape.QueryLength, _shape.KeyLength, _causal, _causalBlock, Chunk)
            == (s.QueryLength, s.KeyLength, problem.Causal, problem.CausalBlock, chunk);
    }

    /// <summary>Keys of a place.</summary>
    /// <param name="place">Which.</param>
    public int Keys(int place) => FirstKey[place + 1] - FirstKey[place];

    /// <summary>Chunks of a place's keys.</summary>
    /// <param name="place">Which.</param>
    public int KeyChunks(int place) => FirstChunk[place + 1] - FirstChunk[place];

    /// <summary>Queries of a place.</summary>
    /// <param name="place">Which.</param>
    public int Queries(int place) => FirstRow[place + 1] - FirstRow[place];

    /// <summary>Causal: the blocks of a chunk's queries, or with chunk −1 of those that see no key.</summary>
    /// <param name="place">The sequence.</param>
    /// <param name="chunk">The chunk of its keys.</param>
    public (int First, int End) BlocksOf(int place, int chunk)
    {
        int first = chunk < 0 ? FirstBlock[place] : BlockOfChunk[FirstChunk[place] + chunk];
        int end = chunk + 1 < KeyChunks(place) ? BlockOfChunk[FirstChunk[place] + chunk + 1] : FirstBlock[place + 1];
        return (first, end);
    }

    private void AddVisible(SequenceLayout layout, int sequence, ReadOnlySpan<int> tokens, int queries, List<int> visible)
    {
        (int firstKey, int keys) = layout.Keys(sequence);
        int seen = 0;
        for (int query = 0; query < queries; query++)
        {
            if (!_causal)
            {
                visible.Add(tokens.Length);
                continue;
            }

            // The end of the query's block, the ends of queries and keys being aligned.
            long end = firstKey + (((query / (long)_causalBlock) + 1) * _causalBlock) + keys - queries;
            while (seen < tokens.Length && tokens[seen] < end)
            {
                seen++;
            }

            visible.Add(seen);
        }
    }

    private void AddBlocks(
        List<int> visible, int firstRow, int firstQuery, int queries, int chunks, List<QueryBlock> blocks, List<int> blockOfChunk)
    {
        int known = -1;
        for (int query = 0; query < queries;)
        {
            int chunk = _causal ? ChunkOf(visible[firstRow + query]) : -1;
            int count = 1;
            while (count < Chunk && query + count < queries && (!_causal || ChunkOf(visible[firstRow + query + count]) == chunk))
            {
                count++;
            }

            for (; known < chunk; known++)
            {
                blockOfChunk.Add(blocks.Count);
            }

            blocks.Add(new QueryBlock(firstQuery + query, count, chunk));
            query += count;
        }

        for (; known < chunks - 1; known++)
        {
            blockOfChunk.Add(blocks.Count);
        }
    }

    private int ChunkOf(int visible) => visible == 0 ? -1 : (visible - 1) / Chunk;
}
