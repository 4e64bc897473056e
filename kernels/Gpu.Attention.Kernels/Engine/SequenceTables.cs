namespace Gpu.Attention;

/// <summary>
/// A <see cref="SequencePlan"/> as kernels read it, one array of integers: the places, the first block of each chunk, the blocks, how much each query sees,
/// and the tokens of keys. Whatever points into a table is an index of the whole array.
/// </summary>
internal static class SequenceTables
{
    /// <summary>Integers of a place.</summary>
    public const int PlaceSize = 10;

    /// <summary>Where the tokens of the place's keys begin.</summary>
    public const int FirstKey = 0;

    /// <summary>The number of its keys.</summary>
    public const int Keys = 1;

    /// <summary>Its row of the batch.</summary>
    public const int Batch = 2;

    /// <summary>The sequence that it is.</summary>
    public const int Sequence = 3;

    /// <summary>Its first query's token.</summary>
    public const int FirstQuery = 4;

    /// <summary>The number of its queries.</summary>
    public const int Queries = 5;

    /// <summary>Causal: the number of its first queries that see no key.</summary>
    public const int BlindQueries = 6;

    /// <summary>Where begins what its queries see.</summary>
    public const int FirstRow = 7;

    /// <summary>Chunks of its keys.</summary>
    public const int KeyChunks = 8;

    /// <summary>Causal: where the first block of each of its chunks begins to stand; one chunk beyond, the end of its blocks.</summary>
    public const int FirstBlocks = 9;

    /// <summary>Integers of a block.</summary>
    public const int BlockSize = 4;

    /// <summary>The block's first query's token.</summary>
    public const int BlockFirstQuery = 0;

    /// <summary>The number of its queries.</summary>
    public const int BlockQueries = 1;

    /// <summary>The chunk of keys that each of them sees a part of.</summary>
    public const int BlockChunk = 2;

    /// <summary>Where begins what they see.</summary>
    public const int BlockVisible = 3;

    /// <summary>Why a problem's tables are beyond 32-bit indices; null when they are not, or there are none.</summary>
    /// <param name="problem">A problem that is well posed.</param>
    public static string? WhyTooLarge(AttentionProblem problem)
    {
        if (problem.Layout is not { } layout)
        {
            return null;
        }

        // Each query a block of its own, each key a chunk: more than there can be.
        long queries = (long)problem.Shape.Batch * problem.Shape.QueryLength;
        long most = ((PlaceSize + 1L) * layout.Sequences) + (2L * layout.VisibleKeys) + ((BlockSize + 1) * queries);
        return most > Array.MaxLength ? $"a layout of {layout} and {queries} queries have more than {Array.MaxLength} places in the kernels' tables" : null;
    }

    /// <summary>A plan's tables.</summary>
    /// <param name="plan">The plan.</param>
    public static int[] Of(SequencePlan plan)
    {
        bool hasBlocks = Array.Exists(plan.Blocks, block => block.Chunk >= 0);
        int firstBlocks = plan.Sequences * PlaceSize;
        int blocks = firstBlocks + (hasBlocks ? plan.BlockOfChunk.Length + plan.Sequences : 0);
        int visible = blocks + (hasBlocks ? plan.Blocks.Length * BlockSize : 0);
        int keyTokens = visible + plan.Visible.Length;
        int[] tables = new int[keyTokens + plan.KeyTokens.Length];
        for (int place = 0; place < plan.Sequences; place++)
        {
            Span<int> row = tables.AsSpan(place * PlaceSize, PlaceSize);
            row[FirstKey] = keyTokens + plan.FirstKey[place];
            row[Keys] = plan.Keys(place);
            row[Batch] = plan.Batch[place];
            row[Sequence] = plan.Order[place];
            row[FirstQuery] = plan.FirstQuery[place];
            row[Queries] = plan.Queries(place);
            row[BlindQueries] = plan.Visible.AsSpan(plan.FirstRow[place], plan.Queries(place)).IndexOfAnyExcept(0) is >= 0 and int seeing
                ? seeing
                : plan.Queries(place);
            row[FirstRow] = visible + plan.FirstRow[place];
            row[KeyChunks] = plan.KeyChunks(place);
            row[FirstBlocks] = firstBlocks;
            for (int chunk = 0; hasBlocks && chunk <= plan.KeyChunks(place); chunk++)
            {
                int block = chunk < plan.KeyChunks(place) ? plan.BlocksOf(place, chunk).First : plan.FirstBlock[place + 1];
                tables[firstBlocks++] = blocks + (block * BlockSize);
            }

            for (int i = plan.FirstBlock[place]; hasBlocks && i < plan.FirstBlock[place + 1]; i++)
            {
                QueryBlock block = plan.Blocks[i];
                Span<int> entry = tables.AsSpan(blocks + (i * BlockSize), BlockSize);
                entry[BlockFirstQuery] = block.FirstQuery;
                entry[BlockQueries] = block.Queries;
                entry[BlockChunk] = block.Chunk;
                entry[BlockVisible] = visible + plan.FirstRow[place] + block.FirstQuery - plan.FirstQuery[place];
            }
        }

        plan.Visible.CopyTo(tables, visible);
        plan.KeyTokens.CopyTo(tables, keyTokens);
        return tables;
    }
}
