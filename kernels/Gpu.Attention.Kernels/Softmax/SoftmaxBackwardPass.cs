using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>Enqueues the kernels of one backward pass of exact attention; <c>README.md</c> has the order and the formulas.</summary>
internal sealed class SoftmaxBackwardPass : BackwardPass
{
    private readonly SoftmaxBackwardPlan _plan;
    private readonly SoftmaxBackwardLaunchers _kernels;

    // What of the block of chains lies packed in the workspace: first chunk, and chunks.
    private (int First, int Chunks) _keys;
    private (int First, int Chunks) _keyRows;
    private (int First, int Chunks) _queries;
    private (int First, int Chunks) _queryRows;

    public SoftmaxBackwardPass(
        Accelerator accelerator, AcceleratorStream stream, AttentionProblem problem, SoftmaxBackwardPlan plan, in AttentionBuffers buffers,
        in GradientBuffers gradients, UploadedPlan? tables, SoftmaxBackwardLaunchers kernels)
        : base(accelerator, stream, problem, plan, buffers, gradients, tables, kernels.GroupSize)
    {
        _plan = plan;
        _kernels = kernels;
    }

    public void Run()
    {
        if (!HasOutputGradient)
        {
            Clear(QueryGradient, WantsQueries, Shape.QueryLength, Shape.Heads, Shape.KeyDimension);
        }

        if (!HasOutputGradient || HasMaskedKeys)
        {
            Clear(KeyGradient, WantsKeys, Shape.KeyLength, Shape.KeyHeads, Shape.KeyDimension);
            Clear(ValueGradient, WantsValues, Shape.KeyLength, Shape.KeyHeads, Shape.ValueDimension);
        }

        for (int firstChain = 0; HasOutputGradient && firstChain < _plan.Chains; firstChain += _plan.BlockChains)
        {
            int chains = Math.Min(_plan.BlockChains, _plan.Chains - firstChain);
            (_keys, _keyRows, _queries, _queryRows) = (default, default, default, default);
            OverQueries(firstChain, chains);
            if (WantsKeys || WantsValues)
            {
                OverKeys(firstChain, chains);
            }
        }
    }

    private bool HasMaskedKeys => Problem.Layout is { } layout && layout.VisibleKeys < (long)Shape.Batch * Shape.KeyLength;

    /// <summary>What is known of each query, and its gradient.</summary>
    private void OverQueries(int firstChain, int chains)
    {
        int queryChunks = QueryChunks(firstChain, chains);
        for (int firstQuery = 0; firstQuery < queryChunks; firstQuery += _plan.BlockChunks)
        {
            ItemMap queries = QueryItems(firstChain, firstQuery, Math.Min(_plan.BlockChunks, queryChunks - firstQuery));
            PackQueries(queries, chains);
            _kernels.Means(Stream, Groups(chains * queries.Chunks, Shape.HeadGroup), new SoftmaxMeanArguments
            {
                Workspace = Workspace,
                Output = Output,
                Gradient = OutputGradient,
                Items = queries,
                Rows = RowNumbers,
                Values = Shape.ValueDimension,
            });

            // Blocks of keys end where blocks of queries do: a causal query sees a key at least of each that it meets.
            int keyEnd = KeyEnd(chains, queries);
            int firstKey = 0;
            do
            {
                ItemMap keys = KeyItems(firstChain, firstKey, Math.Min(_plan.BlockChunks, keyEnd - firstKey));
                PackKeys(keys, chains);
                if (IsToBePacked(ref _keyRows, keys))
                {
                    PackValues(Key, keys, chains, Shape.KeyDimension, _plan.GradientSizes.InputWidth, _plan.KeyRows);
                }

                int tiles = WantsQueries ? _plan.GradientSizes.InputWidth / _kernels.Chunk : 1;
                _kernels.Rows(
                    Stream, Groups(checked(chains * queries.Chunks * queries.HeadGroup), tiles), Rows(queries, keys, firstKey + keys.Chunks == keyEnd));
                firstKey += _plan.BlockChunks;
            }
            while (firstKey < keyEnd);
        }
    }

    /// <summary>Gradients of keys and values, of those that no query sees too.</summary>
    private void OverKeys(int firstChain, int chains)
    {
        int queryChunks = QueryChunks(firstChain, chains);
        int keyChunks = Sequences is null ? _plan.KeyChunks : Largest(firstChain, chains, Sequences.KeyChunks);
        for (int firstKey = 0; firstKey < keyChunks; firstKey += _plan.BlockChunks)
        {
            ItemMap keys = KeyItems(firstChain, firstKey, Math.Min(_plan.BlockChunks, keyChunks - firstKey));
            PackKeys(keys, chains);
            int first = FirstQueryChunk(firstChain, chains, firstKey) / _plan.BlockChunks * _plan.BlockChunks;
            int firstQuery = first;
            do
            {
                ItemMap queries = QueryItems(firstChain, firstQuery, Math.Clamp(queryChunks - firstQuery, 0, _plan.BlockChunks));
                PackQueries(queries, chains);
                if (IsToBePacked(ref _queryRows, queries))
                {
                    PackValues(Query, queries, chains, Shape.KeyDimension, _plan.GradientSizes.InputWidth, _plan.QueryRows);
                    PackValues(OutputGradient, queries, chains, Shape.ValueDimension, _plan.GradientSizes.ValueWidth, _plan.GradientRows);
                }

                SoftmaxKeyArguments arguments = Keys(keys, queries, firstQuery == first, firstQuery + queries.Chunks >= queryChunks);
                if (WantsKeys)
                {
                    _kernels.Keys(
                        Stream, Groups(chains * keys.Chunks, _plan.GradientSizes.InputWidth / _kernels.Chunk),
                        arguments with { Target = KeyGradient, QueryRows = At(_plan.QueryRows), Outputs = At(_plan.KeyOutputs) });
                }

                if (WantsValues)
                {
                    _kernels.Values(
                        Stream, Groups(chains * keys.Chunks, _plan.GradientSizes.ValueWidth / _kernels.Chunk),
                        arguments with { Target = ValueGradient, QueryRows = At(_plan.GradientRows), Outputs = At(_plan.ValueOutputs) });
                }

                firstQuery += _plan.BlockChunks;
            }
            while (firstQuery < queryChunks);
        }
    }

    private int QueryChunks(int firstChain, int chains) =>
        Sequences is null ? _plan.QueryChunks : Largest(firstChain, chains, place => LinearLayout.Pieces(Sequences.Queries(place), _kernels.Chunk));

    /// <summary>One beyond the last chunk of keys that a block of queries sees anything of.</summary>
    private int KeyEnd(int chains, ItemMap queries)
    {
        int end = queries.FirstChunk + queries.Chunks;
        return Sequences is null
            ? Problem.Causal ? end : _plan.KeyChunks
            : Largest(queries.FirstChain, chains, place =>
                (int)Math.Min((long)end * _kernels.Chunk, Sequences.Queries(place)) is > 0 and var last
                    ? LinearLayout.Pieces(Sequences.Visible[Sequences.FirstRow[place] + last - 1], _kernels.Chunk)
                    : 0);
    }

    /// <summary>The first chunk of queries that see anything of a chunk of keys or of a later one.</summary>
    private int FirstQueryChunk(int firstChain, int chains, int keyChunk)
    {
        if (Sequences is null || !Problem.Causal)
        {
            return Problem.Causal ? keyChunk : 0;
        }

        int first = int.MaxValue;
        for (int place = firstChain / Shape.KeyHeads; place <= (firstChain + chains - 1) / Shape.KeyHeads; place++)
        {
            ReadOnlySpan<int> visible = Sequences.Visible.AsSpan(Sequences.FirstRow[place], Sequences.Queries(place));
            first = Math.Min(first, ~visible.BinarySearch(new Sight(keyChunk * _kernels.Chunk)) / _kernels.Chunk);
        }

        return first;
    }

    private void PackKeys(ItemMap keys, int chains)
    {
        if (IsToBePacked(ref _keys, keys))
        {
            PackRows(Key, keys, chains, Shape.KeyDimension, _plan.GradientSizes.InputDepth, _plan.Keys);
            PackRows(Value, keys, chains, Shape.ValueDimension, _plan.GradientSizes.ValueDepth, _plan.Values);
        }
    }

    private void PackQueries(ItemMap queries, int chains)
    {
        if (IsToBePacked(ref _queries, queries))
        {
            PackRows(Query, queries, chains, Shape.KeyDimension, _plan.GradientSizes.InputDepth, _plan.Queries);
            PackRows(OutputGradient, queries, chains, Shape.ValueDimension, _plan.GradientSizes.ValueDepth, _plan.Gradients);
        }
    }

    private static bool IsToBePacked(ref (int First, int Chunks) packed, ItemMap items)
    {
        if (items.Chunks == 0 || packed == (items.FirstChunk, items.Chunks))
        {
            return false;
        }

        packed = (items.FirstChunk, items.Chunks);
        return true;
    }

    private void PackRows(KernelTensor source, ItemMap items, int chains, int width, int depth, long target) =>
        _kernels.PackRows(
            Stream, Groups(chains * items.Chunks, items.HeadGroup),
            Pack(source, items, target) with { Sizes = new PaddedSizes { Inputs = width, PaddedInputs = depth } });

    private void PackValues(KernelTensor source, ItemMap items, int chains, int width, int paddedWidth, long target) =>
        _kernels.PackValues(
            Stream, Groups(chains * items.Chunks, items.HeadGroup),
            Pack(source, items, target) with { Sizes = new PaddedSizes { Values = width, PaddedValues = paddedWidth } });

    private PackArguments Pack(KernelTensor source, ItemMap items, long target) => new()
    {
        Workspace = Workspace,
        Source = source,
        Items = items,
        Form = new DeviceForm { Elements = Workspace, PreMatrix = -1, PreOffset = -1, Linear = -1 },
        Target = At(target),
        RowTerms = At(_plan.RowTerms),
    };

    private SoftmaxRowArguments Rows(ItemMap queries, ItemMap keys, bool isLast) => new()
    {
        Workspace = Workspace,
        Target = QueryGradient,
        Items = queries,
        Sizes = _plan.GradientSizes,
        Rows = RowNumbers,
        Scale = Problem.Scale,
        FirstKeyChunk = keys.FirstChunk,
        KeyChunks = keys.Chunks,
        KeyLength = Shape.KeyLength,
        IsCausal = Problem.Causal ? 1 : 0,
        IsLast = isLast ? 1 : 0,
        WantsQueries = WantsQueries ? 1 : 0,
        Queries = At(_plan.Queries),
        Gradients = At(_plan.Gradients),
        Keys = At(_plan.Keys),
        Values = At(_plan.Values),
        KeyRows = At(_plan.KeyRows),
        Maxima = At(_plan.Maxima),
        Sums = At(_plan.Sums),
        Outputs = At(_plan.QueryOutputs),
    };

    private SoftmaxKeyArguments Keys(ItemMap keys, ItemMap queries, bool isFirst, bool isLast) => new()
    {
        Workspace = Workspace,
        Items = keys,
        QueryItems = queries,
        Sizes = _plan.GradientSizes,
        Rows = RowNumbers,
        Scale = Problem.Scale,
        IsCausal = Problem.Causal ? 1 : 0,
        IsFirst = isFirst ? 1 : 0,
        IsLast = isLast ? 1 : 0,
        Keys = At(_plan.Keys),
        Values = At(_plan.Values),
        Queries = At(_plan.Queries),
        Gradients = At(_plan.Gradients),
    };

    private GradientRows RowNumbers => new()
    {
        Chunks = _plan.QueryChunks,
        Maxima = At(_plan.RowMaxima),
        Inverses = At(_plan.RowInverses),
        Means = At(_plan.RowMeans),
    };

    private void Clear(KernelTensor tensor, bool isWanted, int tokens, int heads, int width)
    {
        long elements = (long)Shape.Batch * tokens * heads * width;
        if (isWanted && elements > 0)
        {
            var arguments = new ClearArguments { Target = tensor, Batch = Shape.Batch, Tokens = tokens, Heads = heads, Width = width };
            _kernels.Clear(Stream, new KernelConfig(IlgpuEngine.ScanGroups(Accelerator, elements, _kernels.GroupSize), _kernels.GroupSize), arguments);
        }
    }

    /// <summary>What lies between the rows that see no more than a number of keys and those that see more.</summary>
    private readonly struct Sight(int keys) : IComparable<int>
    {
        public int CompareTo(int visible) => visible <= keys ? 1 : -1;
    }
}
