using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>Enqueues the kernels of one forward pass of exact attention; <c>README.md</c> has the order and the formulas.</summary>
internal sealed class SoftmaxPass : KernelPass
{
    private readonly SoftmaxPlan _plan;
    private readonly SoftmaxLaunchers _kernels;

    public SoftmaxPass(
        Accelerator accelerator, AcceleratorStream stream, AttentionProblem problem, SoftmaxPlan plan, in AttentionBuffers buffers, UploadedPlan? tables,
        SoftmaxLaunchers kernels)
        : base(accelerator, stream, problem, plan, buffers, tables, kernels.GroupSize)
    {
        _plan = plan;
        _kernels = kernels;
    }

    public void Run()
    {
        for (int firstChain = 0; firstChain < _plan.Chains; firstChain += _plan.BlockChains)
        {
            int chains = Math.Min(_plan.BlockChains, _plan.Chains - firstChain);
            (int, int) packed = default;
            int queryChunks = Sequences is null ? _plan.QueryChunks : Largest(firstChain, chains, place => LinearLayout.Pieces(Sequences.Queries(place), _kernels.Chunk));
            for (int firstQuery = 0; firstQuery < queryChunks; firstQuery += _plan.BlockChunks)
            {
                ItemMap queries = QueryItems(firstChain, firstQuery, Math.Min(_plan.BlockChunks, queryChunks - firstQuery));
                _kernels.PackRows(Stream, Groups(chains * queries.Chunks, Shape.HeadGroup), Pack(Query, queries, _plan.Queries));

                // Blocks of keys end where blocks of queries do: a causal query sees a key at least of each that it meets.
                int keyEnd = KeyEnd(chains, queries);
                int firstKey = 0;
                do
                {
                    ItemMap keys = KeyItems(firstChain, firstKey, Math.Min(_plan.BlockChunks, keyEnd - firstKey));
                    if (keys.Chunks > 0 && packed != (firstKey, keys.Chunks))
                    {
                        _kernels.PackRows(Stream, Groups(chains, keys.Chunks), Pack(Key, keys, _plan.Keys));
                        _kernels.PackValues(Stream, Groups(chains, keys.Chunks), Pack(Value, keys, _plan.Values));
                        packed = (firstKey, keys.Chunks);
                    }

                    Attend(chains, queries, keys, isLast: firstKey + keys.Chunks == keyEnd);
                    firstKey += _plan.BlockChunks;
                }
                while (firstKey < keyEnd);
            }
        }
    }

    /// <summary>One beyond the last chunk of keys that a block of queries sees anything of.</summary>
    private int KeyEnd(int chains, ItemMap queries)
    {
        int end = queries.FirstChunk + queries.Chunks;
        return Sequences is null
            ? Problem.Causal ? end : _plan.KeyChunks
            : Largest(queries.FirstChain, chains, place =>
                (int)Math.Min((long)end * _kernels.Chunk, Sequences.Queries(place)) is > 0 and var last ? LinearLayout.Pieces(Sequences.Visible[Sequences.FirstRow[place] + last - 1], _kernels.Chunk) : 0);
    }

    private void Attend(int chains, ItemMap queries, ItemMap keys, bool isLast) =>
        _kernels.Attend(
            Stream,
            Groups(checked(chains * queries.Chunks * queries.HeadGroup), _plan.Sizes.PaddedValues / _kernels.Chunk),
            new SoftmaxArguments
            {
                Workspace = Workspace,
                Output = Output,
                Items = queries,
                Sizes = _plan.Sizes,
                Scale = Problem.Scale,
                FirstKeyChunk = keys.FirstChunk,
                KeyChunks = keys.Chunks,
                KeyLength = keys.Length,
                IsCausal = Problem.Causal ? 1 : 0,
                IsLast = isLast ? 1 : 0,
                Queries = At(_plan.Queries),
                Keys = At(_plan.Keys),
                Values = At(_plan.Values),
                Maxima = At(_plan.Maxima),
                Sums = At(_plan.Sums),
                Outputs = At(_plan.Outputs),
            });

    private PackArguments Pack(KernelTensor source, ItemMap items, long target) => new()
    {
        Workspace = Workspace,
        Source = source,
        Items = items,
        Form = new DeviceForm { Elements = Workspace, PreMatrix = -1, PreOffset = -1, Linear = -1 },
        Sizes = _plan.Sizes,
        Target = At(target),
        RowTerms = At(_plan.RowTerms),
    };
}
