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
internal sealed class LinearPass : KernelPass
{
    private readonly LinearPlan _plan;
    private readonly LinearLaunchers _keys;
    private readonly LinearLaunchers _queries;
    private readonly DeviceForm _queryForm;
    private readonly DeviceForm _keyForm;
    private readonly DeviceState _initial;
    private readonly DeviceState _final;
    private readonly Action<LinearStage>? _launched;

    public LinearPass(
        Accelerator accelerator, AcceleratorStream stream, AttentionProblem problem, LinearPlan plan, in AttentionBuffers buffers, UploadedPlan? tables,
        LinearLaunchers keys, LinearLaunchers queries, UploadedForm queryForm, UploadedForm keyForm, Action<LinearStage>? launched)
        : base(accelerator, stream, problem, plan, buffers, tables, keys.GroupSize)
    {
        _launched = launched;
        _plan = plan;
        _keys = keys;
        _queries = queries;
        _queryForm = queryForm.View;
        _keyForm = keyForm.View;
        _initial = State(buffers.InitialState, "initial state");
        _final = State(buffers.FinalState, "final state");
        HasInitial = !buffers.InitialState.IsEmpty;
        HasFinal = !buffers.FinalState.IsEmpty;
    }

    private bool HasInitial { get; }

    private bool HasFinal { get; }

    private bool IsLogarithmic => Problem.Features!.Family == FeatureFamily.Exponential;

    public void Run()
    {
        for (int firstChain = 0; firstChain < _plan.Chains; firstChain += _plan.BlockChains)
        {
            int chains = Math.Min(_plan.BlockChains, _plan.Chains - firstChain);
            ScanArguments scan = Scan(KeyItems(firstChain, 0, 0), chains);
            long stateElements = (long)chains * _plan.Sizes.PaddedFeatures * _plan.Sizes.PaddedValues;
            _keys.Import(Stream, Strided(stateElements), scan with { Caller = _initial, HasCaller = HasInitial ? 1 : 0 });
            _launched?.Invoke(LinearStage.Scan);
            if (Sequences is { HasBlindQueries: true })
            {
                ReadBlind(firstChain, chains);
            }

            int keyChunks = Sequences is null ? _plan.KeyChunks : Largest(firstChain, chains, Sequences.KeyChunks);
            for (int firstChunk = 0; firstChunk < keyChunks; firstChunk += _plan.BlockChunks)
            {
                ItemMap items = KeyItems(firstChain, firstChunk, Math.Min(_plan.BlockChunks, keyChunks - firstChunk));
                Reduce(items, chains);
                ScanArguments block = scan with { Items = items };
                _keys.Scales(Stream, Strided((long)chains * _plan.Sizes.PaddedFeatures), block);
                _launched?.Invoke(LinearStage.Scan);
                _keys.Sums(Stream, Strided(stateElements / 4), block);
                _launched?.Invoke(LinearStage.Scan);
                if (Problem.Causal)
                {
                    ReadChunks(items, chains);
                }
            }

            if (!Problem.Causal)
            {
                int queryChunks = Sequences is null ? _plan.QueryChunks : Largest(firstChain, chains, place => LinearLayout.Pieces(Sequences.Queries(place), _keys.Chunk));
                for (int firstChunk = 0; firstChunk < queryChunks; firstChunk += _plan.BlockChunks)
                {
                    Read(QueryItems(firstChain, firstChunk, Math.Min(_plan.BlockChunks, queryChunks - firstChunk)), chains, _queries.Read, perItem: false);
                }
            }

            if (HasFinal)
            {
                _keys.Export(Stream, Strided(stateElements), scan with { Caller = _final });
                _launched?.Invoke(LinearStage.Scan);
            }
        }
    }

    /// <summary>Causal queries that see no key read what the initial state has seen, before a scale of the keys joins it.</summary>
    private void ReadBlind(int firstChain, int chains)
    {
        int blocks = Largest(firstChain, chains, place => Sequences!.BlocksOf(place, -1) is var (first, end) ? end - first : 0);
        for (int first = 0; first < blocks; first += _plan.BlockChunks)
        {
            ItemMap items = QueryItems(firstChain, first, Math.Min(_plan.BlockChunks, blocks - first)) with { Count = SequenceTables.BlindQueries };
            Read(items, chains, _queries.BlindRead!, perItem: false);
        }
    }

    /// <summary>Causal queries that see a part of the chunks of keys that are in the workspace.</summary>
    private void ReadChunks(ItemMap keys, int chains)
    {
        if (Sequences is null)
        {
            Read(keys with { HeadGroup = Shape.HeadGroup }, chains, _queries.Read, perItem: true);
            return;
        }

        int end = keys.FirstChunk + keys.Chunks;
        int blocks = Largest(keys.FirstChain, chains, place => Math.Min(end, Sequences.KeyChunks(place)) is var last && last > keys.FirstChunk
            ? Sequences.BlocksOf(place, last - 1).End - Sequences.BlocksOf(place, keys.FirstChunk).First
            : 0);
        for (int first = 0; first < blocks; first += _plan.BlockChunks)
        {
            ItemMap items = QueryItems(keys.FirstChain, first, Math.Min(_plan.BlockChunks, blocks - first)) with
            {
                Kind = ItemMap.Staircase,
                FirstKeyChunk = keys.FirstChunk,
                EndKeyChunk = end,
            };
            Read(items, chains, _queries.Read, perItem: true);
        }
    }

    private void Reduce(ItemMap items, int chains)
    {
        int count = chains * items.Chunks;
        var pack = new PackArguments
        {
            Workspace = Workspace,
            Source = Key,
            Items = items,
            Form = _keyForm,
            Sizes = _plan.Sizes,
            Target = At(_plan.KeyInputs),
            RowTerms = At(_plan.KeyTerms),
        };
        _keys.PackRows(Stream, Groups(count, 1), pack);
        _launched?.Invoke(LinearStage.Pack);
        _keys.PackValues(Stream, Groups(count, 1), pack with { Source = Value, Target = At(_plan.Values) });
        _launched?.Invoke(LinearStage.Pack);
        _keys.Keys(Stream, Groups(count, _plan.Sizes.PaddedFeatures / _keys.Chunk), new KeyArguments
        {
            Workspace = Workspace,
            Items = items,
            Form = _keyForm,
            Sizes = _plan.Sizes,
            Epsilon = Problem.FeatureEpsilon,
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

    private void Read(ItemMap items, int chains, Action<AcceleratorStream, KernelConfig, ReadArguments> kernel, bool perItem)
    {
        int members = checked(chains * items.Chunks * items.HeadGroup);
        _queries.PackRows(Stream, Groups(members, 1), new PackArguments
        {
            Workspace = Workspace,
            Source = Query,
            Items = items,
            Blank = HasInitial || perItem ? 0 : items.Count == SequenceTables.BlindQueries || Shape.KeyLength == 0 ? 1 : Sequences is null ? 0 : 2,
            Form = _queryForm,
            Sizes = _plan.Sizes,
            Target = At(_plan.QueryInputs),
            RowTerms = At(_plan.QueryTerms),
        });
        _launched?.Invoke(LinearStage.Pack);
        _queries.Queries(Stream, Groups(members, _plan.Sizes.PaddedFeatures / _queries.Chunk), new QueryArguments
        {
            Workspace = Workspace,
            Items = items,
            Form = _queryForm,
            Sizes = _plan.Sizes,
            Epsilon = Problem.FeatureEpsilon,
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
            Workspace = Workspace,
            Output = Output,
            Items = items,
            Sizes = _plan.Sizes,
            Normalize = Problem.Normalize ? 1 : 0,
            Factor = Problem.Scale,
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
        kernel(Stream, Groups(members, _plan.Sizes.PaddedValues / _queries.Chunk), read);
        _launched?.Invoke(LinearStage.Read);
        if (perItem)
        {
            _queries.SteepRead?.Invoke(Stream, Groups(members, 1), read);
            _launched?.Invoke(LinearStage.Read);
        }
    }

    private ScanArguments Scan(ItemMap items, int chains) => new()
    {
        Workspace = Workspace,
        Caller = NoState,
        IsLogarithmic = IsLogarithmic ? 1 : 0,
        Items = items,
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
        IsCausal = Problem.Causal ? 1 : 0,
    };

    private KernelConfig Strided(long elements) => new(IlgpuEngine.ScanGroups(Accelerator, elements, _keys.GroupSize), _keys.GroupSize);
}
