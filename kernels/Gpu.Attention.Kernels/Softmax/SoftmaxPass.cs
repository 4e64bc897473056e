using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>Enqueues the kernels of one forward pass of exact attention; <c>README.md</c> has the order and the formulas.</summary>
internal sealed class SoftmaxPass
{
    private readonly AcceleratorStream _stream;
    private readonly AttentionProblem _problem;
    private readonly SoftmaxPlan _plan;
    private readonly SoftmaxLaunchers _kernels;
    private readonly KernelTensor _query;
    private readonly KernelTensor _key;
    private readonly KernelTensor _value;
    private readonly KernelTensor _output;
    private readonly ArrayView<float> _workspace;
    private readonly long _start;

    public SoftmaxPass(
        Accelerator accelerator, AcceleratorStream stream, AttentionProblem problem, SoftmaxPlan plan, in AttentionBuffers buffers, SoftmaxLaunchers kernels)
    {
        _stream = stream;
        _problem = problem;
        _plan = plan;
        _kernels = kernels;
        AttentionShape shape = problem.Shape;
        _workspace = BufferViews.Workspace(accelerator, problem, buffers, plan.Bytes, out _start);
        _query = BufferViews.Tensor(accelerator, buffers.Query, "query", shape.QueryElements, _workspace);
        _key = BufferViews.Tensor(accelerator, buffers.Key, "key", shape.KeyElements, _workspace);
        _value = BufferViews.Tensor(accelerator, buffers.Value, "value", shape.ValueElements, _workspace);
        _output = BufferViews.Tensor(accelerator, buffers.Output, "output", shape.OutputElements, _workspace);
    }

    private AttentionShape Shape => _problem.Shape;

    public void Run()
    {
        for (int firstChain = 0; firstChain < _plan.Chains; firstChain += _plan.BlockChains)
        {
            int chains = Math.Min(_plan.BlockChains, _plan.Chains - firstChain);
            int packed = -1;
            for (int firstQuery = 0; firstQuery < _plan.QueryChunks; firstQuery += _plan.BlockChunks)
            {
                ItemMap queries = Items(
                    firstChain, firstQuery, Math.Min(_plan.BlockChunks, _plan.QueryChunks - firstQuery), Shape.HeadGroup, Shape.QueryLength);
                _kernels.PackRows(_stream, Groups(chains * queries.Chunks, Shape.HeadGroup), Pack(_query, queries, _plan.Queries));

                // Blocks of keys end where blocks of queries do: a causal query sees a key at least of each that it meets.
                int keyEnd = _problem.Causal ? firstQuery + queries.Chunks : _plan.KeyChunks;
                int firstKey = 0;
                do
                {
                    ItemMap keys = Items(firstChain, firstKey, Math.Min(_plan.BlockChunks, keyEnd - firstKey), 1, Shape.KeyLength);
                    if (keys.Chunks > 0 && firstKey != packed)
                    {
                        _kernels.PackRows(_stream, Groups(chains, keys.Chunks), Pack(_key, keys, _plan.Keys));
                        _kernels.PackValues(_stream, Groups(chains, keys.Chunks), Pack(_value, keys, _plan.Values));
                        packed = firstKey;
                    }

                    Attend(chains, queries, keys, isLast: firstKey + keys.Chunks == keyEnd);
                    firstKey += _plan.BlockChunks;
                }
                while (firstKey < keyEnd);
            }
        }
    }

    private void Attend(int chains, ItemMap queries, ItemMap keys, bool isLast) =>
        _kernels.Attend(
            _stream,
            Groups(checked(chains * queries.Chunks * queries.HeadGroup), _plan.Sizes.PaddedValues / _kernels.Chunk),
            new SoftmaxArguments
            {
                Workspace = _workspace,
                Output = _output,
                Items = queries,
                Sizes = _plan.Sizes,
                Scale = _problem.Scale,
                FirstKeyChunk = keys.FirstChunk,
                KeyChunks = keys.Chunks,
                KeyLength = keys.Length,
                IsLast = isLast ? 1 : 0,
                Queries = _start + _plan.Queries,
                Keys = _start + _plan.Keys,
                Values = _start + _plan.Values,
                Maxima = _start + _plan.Maxima,
                Sums = _start + _plan.Sums,
                Outputs = _start + _plan.Outputs,
            });

    private PackArguments Pack(KernelTensor source, ItemMap items, long target) => new()
    {
        Workspace = _workspace,
        Source = source,
        Items = items,
        Form = new DeviceForm { Elements = _workspace, PreMatrix = -1, PreOffset = -1, Linear = -1 },
        Sizes = _plan.Sizes,
        Target = _start + target,
        RowTerms = _start + _plan.RowTerms,
    };

    private ItemMap Items(int firstChain, int firstChunk, int chunks, int headGroup, int length) => new()
    {
        FirstChain = firstChain,
        FirstChunk = firstChunk,
        Chunks = chunks,
        KeyHeads = Shape.KeyHeads,
        HeadGroup = headGroup,
        Length = length,
    };

    private KernelConfig Groups(int items, int tiles) => new(checked(items * tiles), _kernels.GroupSize);
}
