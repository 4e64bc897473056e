using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>Enqueues the kernels of one backward pass; <c>README.md</c> has the order and the formulas.</summary>
internal sealed class LinearBackwardPass : BackwardPass
{
    private readonly LinearBackwardPlan _plan;
    private readonly LinearBackwardLaunchers _keys;
    private readonly LinearBackwardLaunchers _queries;
    private readonly DeviceForm _queryForm;
    private readonly DeviceForm _keyForm;
    private readonly DeviceState _initial;
    private readonly DeviceState _initialGradient;
    private readonly DeviceState _finalGradient;
    private readonly bool _hasInitial;
    private readonly bool _wantsInitial;
    private readonly bool _hasFinal;

    public LinearBackwardPass(
        Accelerator accelerator, AcceleratorStream stream, AttentionProblem problem, LinearBackwardPlan plan, in AttentionBuffers buffers,
        in GradientBuffers gradients, UploadedPlan? tables, LinearBackwardLaunchers keys, LinearBackwardLaunchers queries, UploadedForm queryForm,
        UploadedForm keyForm)
        : base(accelerator, stream, problem, plan, buffers, gradients, tables, keys.GroupSize)
    {
        _plan = plan;
        _keys = keys;
        _queries = queries;
        _queryForm = queryForm.View;
        _keyForm = keyForm.View;
        _hasInitial = !buffers.InitialState.IsEmpty;
        _wantsInitial = !gradients.InitialStateGradient.IsEmpty;
        _hasFinal = !gradients.FinalStateGradient.IsEmpty;
        _initial = State(buffers.InitialState, "initial state");
        _initialGradient = State(gradients.InitialStateGradient, "initial state's gradient", hasScale: false);
        _finalGradient = State(gradients.FinalStateGradient, "final state's gradient");
    }

    private bool IsLogarithmic => Problem.Features!.Family == FeatureFamily.Exponential;

    private bool WantsReverse => WantsKeys || WantsValues || _wantsInitial;

    private int FeatureTiles => _plan.Sizes.PaddedFeatures / _keys.Chunk;

    private int ValueTiles => _plan.Sizes.PaddedValues / _keys.Chunk;

    private LinearBackwardArguments Arguments => new()
    {
        Workspace = Workspace,
        Sizes = _plan.Sizes,
        IsLogarithmic = IsLogarithmic ? 1 : 0,
        Normalize = Problem.Normalize ? 1 : 0,
        Factor = Problem.Scale,
        Epsilon = Problem.FeatureEpsilon,
        KeyFeatures = At(_plan.KeyFeatures),
        KeysRead = At(_plan.KeysRead),
        KeysBehind = At(_plan.KeysBehind),
        Values = At(_plan.Values),
        Reference = At(_plan.Reference),
        Steep = At(_plan.Steep),
        Scale = At(_plan.ReadScale),
        Sums = At(_plan.ReadSums),
        Normalizers = At(_plan.ReadNormalizers),
        StateScale = At(_plan.StateScale),
        QueryFeatures = At(_plan.QueryFeatures),
        QueryTerms = At(_plan.QueryTerms),
        Maxima = At(_plan.Maxima),
        RowMaxima = At(_plan.RowMaxima),
        Queries = At(_plan.Queries),
        QueryDerivatives = At(_plan.QueryDerivatives),
        Denominators = At(_plan.Denominators),
        Gradients = At(_plan.Gradients),
        RowGradients = At(_plan.RowGradients),
        Scores = At(_plan.Scores),
        Products = At(_plan.Products),
        AskedSums = At(_plan.Sums),
        AskedNormalizers = At(_plan.Normalizers),
        ReverseSums = At(_plan.ReverseSums),
        ReverseNormalizers = At(_plan.ReverseNormalizers),
        KeyParts = At(_plan.KeyParts),
        SteepParts = At(_plan.SteepParts),
        ValueParts = At(_plan.ValueParts),
        LogGradients = At(_plan.LogGradients),
    };

    public void Run()
    {
        ClearWhatNobodyReaches();
        if (!WantsReverse && !(WantsQueries && HasOutputGradient))
        {
            return;
        }

        for (int firstChain = 0; firstChain < _plan.Chains; firstChain += _plan.BlockChains)
        {
            int chains = Math.Min(_plan.BlockChains, _plan.Chains - firstChain);
            ScanArguments scan = Scan(KeyItems(firstChain, 0, 0), chains);
            _keys.Import(Stream, Strided(StateElements(chains)), scan with { Caller = _initial, HasCaller = _hasInitial ? 1 : 0 });
            if (Problem.Causal)
            {
                RunCausal(firstChain, chains);
            }
            else
            {
                RunBidirectional(firstChain, chains);
            }

            if (_wantsInitial)
            {
                _keys.ExportReverse(Stream, Strided(StateElements(chains)), Reverse(KeyItems(firstChain, 0, 0), chains) with
                {
                    Caller = _initialGradient,
                    IsBehind = Problem.Causal ? 0 : 1,
                });
            }
        }
    }

    /// <summary>Keys that take no part and queries that see nothing have gradients of zero.</summary>
    private void ClearWhatNobodyReaches()
    {
        if (WantsQueries && (!HasOutputGradient || (Sequences is { HasBlindQueries: true } && !_hasInitial)))
        {
            Clear(QueryGradient, Shape.QueryLength, Shape.Heads, Shape.KeyDimension);
        }

        if (Sequences is null || Sequences.KeyTokens.Length == (long)Shape.Batch * Shape.KeyLength)
        {
            return;
        }

        if (WantsKeys)
        {
            Clear(KeyGradient, Shape.KeyLength, Shape.KeyHeads, Shape.KeyDimension);
        }

        if (WantsValues)
        {
            Clear(ValueGradient, Shape.KeyLength, Shape.KeyHeads, Shape.ValueDimension);
        }
    }

    private void RunCausal(int firstChain, int chains)
    {
        int chunks = KeyChunks(firstChain, chains);
        int blocks = LinearLayout.Pieces(chunks, _plan.BlockChunks);
        if (blocks == 0)
        {
            Copy(_plan.StateScale, Boundary(0));
        }

        for (int block = 0; block < blocks; block++)
        {
            Copy(_plan.StateScale, Boundary(block));
            Reduce(KeyBlock(firstChain, block, chunks), chains);
        }

        ImportReverse(firstChain, chains);
        for (int block = blocks - 1; block >= 0; block--)
        {
            ItemMap keys = KeyBlock(firstChain, block, chunks);
            if (block < blocks - 1)
            {
                Copy(Boundary(block), _plan.StateScale);
                Reduce(keys, chains);
            }

            RunBlock(keys, chains);
        }

        if (Sequences is { HasBlindQueries: true } && _hasInitial)
        {
            Copy(Boundary(0), _plan.StateScale);
            int blind = Largest(firstChain, chains, place => Sequences!.BlocksOf(place, -1) is var (first, end) ? end - first : 0);
            ReadStates(firstChain, chains, blind, SequenceTables.BlindQueries);
        }
    }

    private void RunBidirectional(int firstChain, int chains)
    {
        int chunks = KeyChunks(firstChain, chains);
        int blocks = LinearLayout.Pieces(chunks, _plan.BlockChunks);
        for (int block = 0; block < blocks; block++)
        {
            Reduce(KeyBlock(firstChain, block, chunks), chains);
        }

        ImportReverse(firstChain, chains);
        int queryChunks = Sequences is null
            ? _plan.QueryChunks : Largest(firstChain, chains, place => LinearLayout.Pieces(Sequences.Queries(place), _keys.Chunk));
        ReadStates(firstChain, chains, queryChunks, SequenceTables.Queries);
        for (int block = 0; block < blocks && (WantsKeys || WantsValues); block++)
        {
            ItemMap keys = KeyBlock(firstChain, block, chunks);
            PackKeys(keys, chains);
            WriteKeyFeatures(keys, chains);
            FinishKeys(Arguments with { Items = keys }, chains);
        }
    }

    /// <summary>A block of chunks of keys and the queries that see a part of them; brings R̂ from behind the block to before it.</summary>
    private void RunBlock(ItemMap keys, int chains)
    {
        WriteKeyFeatures(keys, chains);
        LinearBackwardArguments pass = Arguments with { HasKeys = 1, IsFirst = 1 };
        int keyItems = chains * keys.Chunks;
        if (Sequences is null)
        {
            RunQueries(pass with { Items = keys with { HeadGroup = Shape.HeadGroup } }, keyItems, keyItems);
        }
        else
        {
            int end = keys.FirstChunk + keys.Chunks;
            int blocks = Largest(keys.FirstChain, chains, place => Math.Min(end, Sequences.KeyChunks(place)) is var last && last > keys.FirstChunk
                ? Sequences.BlocksOf(place, last - 1).End - Sequences.BlocksOf(place, keys.FirstChunk).First
                : 0);
            if (blocks == 0)
            {
                // Nobody reads these keys: what is asked of them is zero, and their tables say nothing of blocks.
                RunQueries(pass with { Items = keys }, 0, keyItems);
            }

            for (int first = 0; first < blocks; first += _plan.BlockChunks)
            {
                ItemMap items = QueryItems(keys.FirstChain, first, Math.Min(_plan.BlockChunks, blocks - first)) with
                {
                    Kind = ItemMap.Staircase,
                    FirstKeyChunk = keys.FirstChunk,
                    EndKeyChunk = end,
                };
                RunQueries(pass with { Items = items, IsFirst = first == 0 ? 1 : 0 }, chains * items.Chunks, keyItems);
            }
        }

        if (WantsReverse)
        {
            ReverseScanArguments reverse = Reverse(keys, chains);
            _keys.ReverseSums(Stream, Strided(StateElements(chains) / 4), reverse);
            _keys.ReverseNormalizers(Stream, Strided((long)chains * _plan.Sizes.PaddedFeatures), reverse);
        }

        FinishKeys(pass with { Items = keys, ReverseSums = At(_plan.ReadSums), ReverseNormalizers = At(_plan.ReadNormalizers) }, chains);
    }

    /// <summary>Queries that read the states of their chains, and what they ask of them.</summary>
    private void ReadStates(int firstChain, int chains, int queryChunks, int count)
    {
        LinearBackwardArguments pass = Arguments with
        {
            IsFirst = 1,
            Scale = At(_plan.StateScale),
            Sums = At(_plan.StateSums),
            Normalizers = At(_plan.StateNormalizers),
            Blank = _hasInitial ? 0 : Shape.KeyLength == 0 ? 1 : Sequences is null ? 0 : 2,
        };
        for (int first = 0; HasOutputGradient && first < queryChunks; first += _plan.BlockChunks)
        {
            ItemMap items = QueryItems(firstChain, first, Math.Min(_plan.BlockChunks, queryChunks - first)) with { Count = count };
            RunQueries(pass with { Items = items }, chains * items.Chunks, chains * items.Chunks);
            if (WantsReverse)
            {
                ReverseScanArguments reverse = Reverse(items, chains);
                _keys.CollectSums(Stream, Strided(StateElements(chains) / 4), reverse);
                _keys.CollectNormalizers(Stream, Strided((long)chains * _plan.Sizes.PaddedFeatures), reverse);
            }
        }
    }

    /// <summary>Gradients of some queries, and what they give the keys that they see and ask of the state before these.</summary>
    /// <param name="pass">Says which queries.</param>
    /// <param name="items">How many items of queries.</param>
    /// <param name="owners">How many items what they ask is kept for.</param>
    private void RunQueries(LinearBackwardArguments pass, int items, int owners)
    {
        int members = HasOutputGradient ? checked(items * pass.Items.HeadGroup) : 0;
        if (members > 0)
        {
            _queries.PackRows(Stream, Groups(members, 1), new PackArguments
            {
                Workspace = Workspace,
                Source = Query,
                Items = pass.Items,
                Blank = pass.Blank,
                Form = _queryForm,
                Sizes = _plan.Sizes,
                Target = At(_plan.QueryInputs),
                RowTerms = At(_plan.QueryTerms),
            });
            _queries.Queries(Stream, Groups(members, FeatureTiles), new QueryArguments
            {
                Workspace = Workspace,
                Items = pass.Items,
                Form = _queryForm,
                Sizes = _plan.Sizes,
                Inputs = At(_plan.QueryInputs),
                RowTerms = At(_plan.QueryTerms),
                Scale = pass.Scale,
                StatePerItem = pass.HasKeys,
                Features = At(_plan.QueryFeatures),
                Maxima = At(_plan.Maxima),
            });
            _queries.QueryFeatures(Stream, Groups(members, FeatureTiles), pass);
            _queries.Scores(Stream, Groups(members, 1), pass);
            if (pass.HasKeys != 0 && IsLogarithmic)
            {
                _queries.SteepScores(Stream, Groups(members, 1), pass);
            }

            _queries.Gradients(Stream, Groups(members, 1), new GradientArguments { Pass = pass, OutputGradient = OutputGradient, Output = Output });
            if (pass.HasKeys != 0 && (WantsQueries || WantsKeys))
            {
                _queries.Products(Stream, Groups(members, 1), pass);
            }

            if (WantsQueries)
            {
                _queries.QueryGradients(Stream, Groups(members, FeatureTiles), pass);
            }
        }
        else
        {
            pass.Items.HeadGroup = 0;
        }

        if (WantsReverse)
        {
            _keys.Asked(Stream, Groups(owners, checked(FeatureTiles * ValueTiles)), pass);
        }

        if (pass.HasKeys != 0 && WantsKeys)
        {
            _keys.KeyParts(Stream, Groups(owners, FeatureTiles), pass);
        }

        if (pass.HasKeys != 0 && WantsValues)
        {
            _keys.ValueParts(Stream, Groups(owners, ValueTiles), pass);
        }

        if (pass.HasKeys != 0 && IsLogarithmic && (WantsQueries || WantsKeys))
        {
            _keys.SteepParts(Stream, Groups(owners, 1), pass);
        }

        if (members > 0 && WantsQueries)
        {
            // Under the normaliser a row's own term has no part in the output: the sum of its log features' gradients is 0.
            StoreRows(_queries, pass.Items, members, _queryForm, !(Problem.Normalize && IsLogarithmic), QueryGradient, _plan.QueryInputs);
        }
    }

    private void FinishKeys(LinearBackwardArguments pass, int chains)
    {
        int items = chains * pass.Items.Chunks;
        if (WantsKeys)
        {
            _keys.KeyGradients(Stream, Groups(items, FeatureTiles), pass);
            StoreRows(_keys, pass.Items, items, _keyForm, hasRowTerm: true, KeyGradient, _plan.KeyInputs);
        }

        if (WantsValues)
        {
            _keys.ValueGradients(Stream, Groups(items, ValueTiles), new ValueGradientArguments { Pass = pass, Target = ValueGradient });
        }
    }

    private void StoreRows(
        LinearBackwardLaunchers launchers, ItemMap items, int members, DeviceForm form, bool hasRowTerm, KernelTensor target, long inputs)
    {
        var rows = new RowGradientArguments
        {
            Workspace = Workspace,
            Items = items,
            Form = form,
            Sizes = _plan.Sizes,
            HasRowTerm = hasRowTerm ? 1 : 0,
            Target = target,
            Inputs = At(inputs),
            LogGradients = At(_plan.LogGradients),
            LogSums = At(_plan.LogSums),
            InputGradients = At(_plan.InputGradients),
            InputStride = _plan.InputStride,
        };
        launchers.ProjectRows(Stream, Groups(members, _plan.InputStride / _keys.Chunk), rows);
        launchers.StoreRows(Stream, Groups(members, 1), rows);
    }

    /// <summary>Adds a block of chunks to the states, and leaves the state before each.</summary>
    private void Reduce(ItemMap items, int chains)
    {
        PackKeys(items, chains);
        _keys.Keys(Stream, Groups(chains * items.Chunks, FeatureTiles), new KeyArguments
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
        ScanArguments scan = Scan(items, chains);
        _keys.Scales(Stream, Strided((long)chains * _plan.Sizes.PaddedFeatures), scan);
        _keys.Sums(Stream, Strided(StateElements(chains) / 4), scan);
    }

    private void PackKeys(ItemMap items, int chains)
    {
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
        _keys.PackRows(Stream, Groups(chains * items.Chunks, 1), pack);
        _keys.PackValues(Stream, Groups(chains * items.Chunks, 1), pack with { Source = Value, Target = At(_plan.Values) });
    }

    private void WriteKeyFeatures(ItemMap items, int chains)
    {
        // Log features of causal keys are there already.
        if (!Problem.Causal || !IsLogarithmic)
        {
            _keys.Arguments(Stream, Groups(chains * items.Chunks, FeatureTiles), new QueryArguments
            {
                Workspace = Workspace,
                Items = items,
                Form = _keyForm,
                Sizes = _plan.Sizes,
                Inputs = At(_plan.KeyInputs),
                RowTerms = At(_plan.KeyTerms),
                Features = At(_plan.KeyFeatures),
            });
        }

        _keys.KeyFeatures(Stream, Groups(chains * items.Chunks, FeatureTiles), Arguments with { Items = items, HasKeys = Problem.Causal ? 1 : 0 });
    }

    private void ImportReverse(int firstChain, int chains)
    {
        if (WantsReverse)
        {
            _keys.ImportReverse(Stream, Strided(StateElements(chains)), Reverse(KeyItems(firstChain, 0, 0), chains) with
            {
                Caller = _finalGradient,
                HasCaller = _hasFinal ? 1 : 0,
            });
        }
    }

    private int KeyChunks(int firstChain, int chains) => Sequences is null ? _plan.KeyChunks : Largest(firstChain, chains, Sequences.KeyChunks);

    private ItemMap KeyBlock(int firstChain, int block, int chunks) =>
        KeyItems(firstChain, block * _plan.BlockChunks, Math.Min(_plan.BlockChunks, chunks - (block * _plan.BlockChunks)));

    private long Boundary(int block) => _plan.Boundaries + (block * _plan.StateFloats);

    private void Copy(long source, long target) => _keys.Copy(Stream, Strided(_plan.StateFloats / 4), Workspace, At(source), At(target), _plan.StateFloats);

    private void Clear(KernelTensor tensor, int tokens, int heads, int width) => _keys.Clear(
        Stream, Strided((long)Shape.Batch * tokens * heads * width),
        new ClearArguments { Target = tensor, Batch = Shape.Batch, Tokens = tokens, Heads = heads, Width = width });

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

    private ReverseScanArguments Reverse(ItemMap items, int chains) => new()
    {
        Workspace = Workspace,
        Caller = NoState,
        Initial = _initial,
        IsLogarithmic = IsLogarithmic ? 1 : 0,
        Items = items,
        Chunk = _keys.Chunk,
        Chains = chains,
        Sizes = _plan.Sizes,
        StateScale = At(_plan.StateScale),
        StateSums = At(_plan.ReverseSums),
        StateNormalizers = At(_plan.ReverseNormalizers),
        Before = At(_plan.Before),
        After = At(_plan.After),
        AskedSums = At(_plan.Sums),
        AskedNormalizers = At(_plan.Normalizers),
        BehindSums = At(_plan.ReadSums),
        BehindNormalizers = At(_plan.ReadNormalizers),
    };

    private long StateElements(int chains) => (long)chains * _plan.Sizes.PaddedFeatures * _plan.Sizes.PaddedValues;

    private KernelConfig Strided(long elements) => new(IlgpuEngine.ScanGroups(Accelerator, elements, _keys.GroupSize), _keys.GroupSize);
}
