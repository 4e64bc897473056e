using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>What a launch is part of.</summary>
internal enum LinearStage
{
    /// <summary>Rows and values out of the caller's tensors.</summary>
    Pack,

    /// <summary>Features of keys, and their sums.</summary>
    Keys,

    /// <summary>The scan of those sums; states in and out.</summary>
    Scan,

    /// <summary>Features of queries.</summary>
    Queries,

    /// <summary>Outputs.</summary>
    Read,
}

/// <summary>Enqueues the kernels of one forward pass; <c>README.md</c> has the order and the formulas.</summary>
internal sealed class LinearPass
{
    // Of the constructor and of the engine's methods, which are where a caller sees it.
    private static readonly string BuffersParameter = "buffers";

    private readonly Accelerator _accelerator;
    private readonly AcceleratorStream _stream;
    private readonly AttentionProblem _problem;
    private readonly LinearPlan _plan;
    private readonly LinearLaunchers _keys;
    private readonly LinearLaunchers _queries;
    private readonly DeviceForm _queryForm;
    private readonly DeviceForm _keyForm;
    private readonly KernelTensor _query;
    private readonly KernelTensor _key;
    private readonly KernelTensor _value;
    private readonly KernelTensor _output;
    private readonly ArrayView<float> _workspace;
    private readonly long _start;
    private readonly DeviceState _initial;
    private readonly DeviceState _final;
    private readonly Action<LinearStage>? _launched;

    public LinearPass(
        Accelerator accelerator, AcceleratorStream stream, AttentionProblem problem, LinearPlan plan, in AttentionBuffers buffers, LinearLaunchers keys,
        LinearLaunchers queries, UploadedForm queryForm, UploadedForm keyForm, Action<LinearStage>? launched)
    {
        _launched = launched;
        _accelerator = accelerator;
        _stream = stream;
        _problem = problem;
        _plan = plan;
        _keys = keys;
        _queries = queries;
        _queryForm = queryForm.View;
        _keyForm = keyForm.View;
        AttentionShape shape = problem.Shape;
        if (problem.HasInitialState == buffers.InitialState.IsEmpty || problem.WantsFinalState == buffers.FinalState.IsEmpty)
        {
            throw new ArgumentException("The problem and its buffers disagree on whether there is an initial or a final state.", nameof(buffers));
        }

        if (!buffers.Normalizer.IsEmpty)
        {
            throw new NotSupportedException("The device engine does not hand out normalisers for a backward pass yet.");
        }

        if (buffers.Workspace.Length * sizeof(float) < plan.Bytes)
        {
            throw new ArgumentException(
                $"The workspace has {buffers.Workspace.Length * sizeof(float)} bytes where {shape} takes {plan.Bytes}.", nameof(buffers));
        }

        ArrayView<float> workspace = View(buffers.Workspace, "workspace", out long start);
        start = (start + (LinearPlan.Alignment / sizeof(float)) - 1) / (LinearPlan.Alignment / sizeof(float)) * (LinearPlan.Alignment / sizeof(float));
        _workspace = workspace;
        _start = start;
        _query = Tensor(buffers.Query, "query", shape.QueryElements);
        _key = Tensor(buffers.Key, "key", shape.KeyElements);
        _value = Tensor(buffers.Value, "value", shape.ValueElements);
        _output = Tensor(buffers.Output, "output", shape.OutputElements);
        _initial = State(buffers.InitialState, "initial state");
        _final = State(buffers.FinalState, "final state");
        HasInitial = !buffers.InitialState.IsEmpty;
        HasFinal = !buffers.FinalState.IsEmpty;
    }

    private bool HasInitial { get; }

    private bool HasFinal { get; }

    private bool IsLogarithmic => _problem.Features!.Family == FeatureFamily.Exponential;

    private AttentionShape Shape => _problem.Shape;

    public void Run()
    {
        for (int firstChain = 0; firstChain < _plan.Chains; firstChain += _plan.BlockChains)
        {
            int chains = Math.Min(_plan.BlockChains, _plan.Chains - firstChain);
            ScanArguments scan = Scan(firstChain, chains);
            long stateElements = (long)chains * _plan.Sizes.PaddedFeatures * _plan.Sizes.PaddedValues;
            _keys.Import(_stream, Strided(stateElements), scan with { Caller = _initial, HasCaller = HasInitial ? 1 : 0 });
            _launched?.Invoke(LinearStage.Scan);
            for (int firstChunk = 0; firstChunk < _plan.KeyChunks; firstChunk += _plan.BlockChunks)
            {
                ItemMap items = Items(firstChain, firstChunk, Math.Min(_plan.BlockChunks, _plan.KeyChunks - firstChunk), 1, Shape.KeyLength);
                Reduce(items, chains);
                ScanArguments block = scan with { Chunks = items.Chunks };
                _keys.Scales(_stream, Strided((long)chains * _plan.Sizes.PaddedFeatures), block);
                _launched?.Invoke(LinearStage.Scan);
                _keys.Sums(_stream, Strided(stateElements / 4), block);
                _launched?.Invoke(LinearStage.Scan);
                if (_problem.Causal)
                {
                    Read(items with { HeadGroup = Shape.HeadGroup }, chains);
                }
            }

            for (int firstChunk = 0; !_problem.Causal && firstChunk < _plan.QueryChunks; firstChunk += _plan.BlockChunks)
            {
                Read(Items(firstChain, firstChunk, Math.Min(_plan.BlockChunks, _plan.QueryChunks - firstChunk), Shape.HeadGroup, Shape.QueryLength), chains);
            }

            if (HasFinal)
            {
                _keys.Export(_stream, Strided(stateElements), scan with { Caller = _final });
                _launched?.Invoke(LinearStage.Scan);
            }
        }
    }

    private void Reduce(ItemMap items, int chains)
    {
        int count = chains * items.Chunks;
        var pack = new PackArguments
        {
            Workspace = _workspace,
            Source = _key,
            Items = items,
            Form = _keyForm,
            Sizes = _plan.Sizes,
            Target = At(_plan.KeyInputs),
            RowTerms = At(_plan.KeyTerms),
        };
        _keys.PackRows(_stream, Groups(count, 1), pack);
        _launched?.Invoke(LinearStage.Pack);
        _keys.PackValues(_stream, Groups(count, 1), pack with { Source = _value, Target = At(_plan.Values) });
        _launched?.Invoke(LinearStage.Pack);
        _keys.Keys(_stream, Groups(count, _plan.Sizes.PaddedFeatures / _keys.Chunk), new KeyArguments
        {
            Workspace = _workspace,
            Items = items,
            Form = _keyForm,
            Sizes = _plan.Sizes,
            Epsilon = _problem.FeatureEpsilon,
            Inputs = At(_plan.KeyInputs),
            RowTerms = At(_plan.KeyTerms),
            Values = At(_plan.Values),
            Features = At(_plan.KeyFeatures),
            Sums = At(_plan.Sums),
            Normalizers = At(_plan.Normalizers),
            First = At(_plan.First),
            Reference = At(_plan.Reference),
            Top = At(_plan.Top),
            Steep = At(_plan.Steep),
        });
        _launched?.Invoke(LinearStage.Keys);
    }

    private void Read(ItemMap items, int chains)
    {
        int members = checked(chains * items.Chunks * items.HeadGroup);
        bool perItem = _problem.Causal;
        _queries.PackRows(_stream, Groups(members, 1), new PackArguments
        {
            Workspace = _workspace,
            Source = _query,
            Items = items,
            Form = _queryForm,
            Sizes = _plan.Sizes,
            Target = At(_plan.QueryInputs),
            RowTerms = At(_plan.QueryTerms),
        });
        _launched?.Invoke(LinearStage.Pack);
        _queries.Queries(_stream, Groups(members, _plan.Sizes.PaddedFeatures / _queries.Chunk), new QueryArguments
        {
            Workspace = _workspace,
            Items = items,
            Form = _queryForm,
            Sizes = _plan.Sizes,
            Epsilon = _problem.FeatureEpsilon,
            Inputs = At(_plan.QueryInputs),
            RowTerms = At(_plan.QueryTerms),
            Scale = At(perItem ? _plan.ReadScale : _plan.StateScale),
            StatePerItem = perItem ? 1 : 0,
            Features = At(_plan.QueryFeatures),
            Maxima = At(_plan.Maxima),
        });
        _launched?.Invoke(LinearStage.Queries);
        var read = new ReadArguments
        {
            Workspace = _workspace,
            Output = _output,
            Items = items,
            Sizes = _plan.Sizes,
            Normalize = _problem.Normalize ? 1 : 0,
            Factor = _problem.Scale,
            StatePerItem = perItem ? 1 : 0,
            Queries = At(_plan.QueryFeatures),
            RowTerms = At(_plan.QueryTerms),
            Maxima = At(_plan.Maxima),
            Scale = At(perItem ? _plan.ReadScale : _plan.StateScale),
            Sums = At(perItem ? _plan.ReadSums : _plan.StateSums),
            Normalizers = At(perItem ? _plan.ReadNormalizers : _plan.StateNormalizers),
            Keys = At(_plan.KeyFeatures),
            Values = At(_plan.Values),
            Steep = At(_plan.Steep),
        };
        _queries.Read(_stream, Groups(members, _plan.Sizes.PaddedValues / _queries.Chunk), read);
        _launched?.Invoke(LinearStage.Read);
        _queries.SteepRead?.Invoke(_stream, Groups(members, 1), read);
        _launched?.Invoke(LinearStage.Read);
    }

    private ScanArguments Scan(int firstChain, int chains) => new()
    {
        Workspace = _workspace,
        Caller = NoState,
        IsLogarithmic = IsLogarithmic ? 1 : 0,
        FirstChain = firstChain,
        Chains = chains,
        Sizes = _plan.Sizes,
        StateScale = At(_plan.StateScale),
        StateTop = At(_plan.StateTop),
        StateNormalizers = At(_plan.StateNormalizers),
        StateSums = At(_plan.StateSums),
        First = At(_plan.First),
        Reference = At(_plan.Reference),
        Top = At(_plan.Top),
        Normalizers = At(_plan.Normalizers),
        Sums = At(_plan.Sums),
        ReadScale = At(_plan.ReadScale),
        Before = At(_plan.Before),
        After = At(_plan.After),
        Factor = At(_plan.Factor),
        ReadNormalizers = At(_plan.ReadNormalizers),
        ReadSums = At(_plan.ReadSums),
        IsCausal = _problem.Causal ? 1 : 0,
    };

    // A kernel's view must be one, used or not.
    private DeviceState NoState => new() { LogScale = _workspace, Maximum = _workspace, Sums = _workspace, Normalizers = _workspace };

    private ItemMap Items(int firstChain, int firstChunk, int chunks, int headGroup, int length) => new()
    {
        FirstChain = firstChain,
        FirstChunk = firstChunk,
        Chunks = chunks,
        KeyHeads = Shape.KeyHeads,
        HeadGroup = headGroup,
        Length = length,
    };

    private long At(long offset) => _start + offset;

    private KernelConfig Groups(int items, int tiles) => new(checked(items * tiles), _keys.GroupSize);

    private KernelConfig Strided(long elements) => new(IlgpuEngine.ScanGroups(_accelerator, elements, _keys.GroupSize), _keys.GroupSize);

    private KernelTensor Tensor(TensorBuffer buffer, string name, long elements)
    {
        if (elements == 0)
        {
            return new KernelTensor { Elements = _workspace };
        }

        ArrayView<float> view = View(buffer.Memory, name, out long start);
        return new KernelTensor
        {
            Elements = view,
            Start = start,
            BatchStride = buffer.BatchStride,
            TokenStride = buffer.TokenStride,
            HeadStride = buffer.HeadStride,
        };
    }

    private DeviceState State(StateBuffers state, string name)
    {
        if (state.IsEmpty)
        {
            return NoState;
        }

        DeviceState device = NoState;
        device.Sums = View(state.Sums, name, out device.SumsStart);
        device.Normalizers = View(state.Normalizers, name, out device.NormalizersStart);
        if (IsLogarithmic)
        {
            device.LogScale = View(state.LogScale, name, out device.LogScaleStart);
            if (!state.Maximum.IsEmpty)
            {
                device.Maximum = View(state.Maximum, name, out device.MaximumStart);
                device.HasMaximum = 1;
            }
        }

        return device;
    }

    /// <summary>The allocation that a region lies in, whole: kernels take views to be aligned as allocations are.</summary>
    private ArrayView<float> View(MemoryRegion region, string name, out long start)
    {
        if (region.Owner is not MemoryBuffer buffer || buffer.Accelerator != _accelerator)
        {
            throw new ArgumentException($"The {name} is not in memory of {_accelerator.Name}.", BuffersParameter);
        }

        long floats = buffer.LengthInBytes / sizeof(float);
        (start, long rest) = Math.DivRem(region.Address, sizeof(float));
        if (region.Type != ElementType.Single || rest != 0 || start < 0 || region.Length > floats - start)
        {
            throw new ArgumentException(
                $"The {name} is not {region.Length} float32 elements within its buffer of {buffer.LengthInBytes} bytes.", BuffersParameter);
        }

        return buffer.AsArrayView<float>(0, floats);
    }
}
