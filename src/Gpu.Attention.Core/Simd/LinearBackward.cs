using Keys = Gpu.Attention.LinearLayout.Keys;
using Room = Gpu.Attention.LinearBackwardLayout.Room;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;
using Tile = Gpu.Attention.LinearBackwardLayout.Tile;

namespace Gpu.Attention;

/// <summary>One backward pass on the host, kept and run again.</summary>
internal interface IBackwardPass
{
    /// <summary>Runs a problem.</summary>
    void Run(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients);
}

/// <summary>The backward pass of linear attention on the host; "Backward" in <c>Simd/README.md</c> derives it.</summary>
/// <remarks>
/// Forward over the keys, then over chunks in reverse; chains in one thread each, or a chain's chunks in all threads. Shape tags: C tokens of a chunk, r features,
/// d inputs, dv values; strides round up to whole vectors.
/// </remarks>
internal sealed unsafe partial class LinearBackward<TV>(ParallelLoop loop) : LinearPass<TV>, IParallelBody, IBackwardPass
    where TV : struct, ISimdVector<TV>
{
    private const int BlockChunks = LinearBackwardLayout.BlockChunks;

    private GradientBuffers _gradients;
    private LinearBackwardLayout _rooms;
    private float* _start;
    private Phase _phase;
    private long _chain;
    private int _firstItem;
    private bool _wantsQueries;
    private bool _wantsKeys;
    private bool _wantsValues;
    private bool _wantsReverse;

    private enum Phase
    {
        Chain,
        Reduce,
        AskChunk,
        AnswerChunk,
        AskState,
        AnswerKeys,
    }

    /// <summary>The scratch memory that a problem takes.</summary>
    public static long WorkspaceBytes(AttentionProblem problem, int degree) => new LinearBackwardLayout(problem, degree, TV.Count).Bytes;

    /// <inheritdoc/>
    public void Run(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients)
    {
        _rooms = new LinearBackwardLayout(problem, loop.Degree, TV.Count);
        Start(problem, buffers, _rooms.Passes);
        _query.PrepareBackward();
        _key.PrepareBackward();
        _gradients = gradients;
        _wantsQueries = !gradients.QueryGradient.Memory.IsEmpty;
        _wantsKeys = !gradients.KeyGradient.Memory.IsEmpty;
        _wantsValues = !gradients.ValueGradient.Memory.IsEmpty;
        _wantsReverse = _wantsKeys || _wantsValues || !gradients.InitialStateGradient.IsEmpty;
        _start = (float*)(((nint)buffers.Workspace.HostPointer + 63) & ~(nint)63);
        _chunksApart = _layout.ByChain ? 1 : loop.Degree;
        if (_layout.ByChain)
        {
            Do(Phase.Chain, 0, _layout.Chains);
        }
        else
        {
            for (_chain = 0; _chain < _layout.Chains; _chain++)
            {
                RunByChunk(_chain, _rooms.RoomAt(_start, 0));
            }
        }

        (_buffers, _gradients) = (default, default);
    }

    /// <inheritdoc/>
    void IParallelBody.Run(long item, int slot)
    {
        Room room = _rooms.RoomAt(_start, slot);
        int index = _firstItem + (int)item;
        switch (_phase)
        {
            case Phase.Chain:
                RunChain(item, room);
                break;
            case Phase.Reduce:
                Reduce(_chain, index, room.KeysAt(index), room.Scratch);
                break;
            case Phase.AskChunk when *room.KeysAt(index).Irregular == 0:
                ScaleKeys(room.KeysAt(index));
                AskSeen(_chain, index, WholeChunk(_chain, index, room), room);
                break;
            case Phase.AnswerChunk when *room.KeysAt(index).Irregular == 0:
                View view = WholeChunk(_chain, index, room);
                TurnKeys(view, room);
                FinishKeys(_chain, view, view.Tile.Asked, room);
                break;
            case Phase.AskState:
                TransposeState(room.State.Sums, room.State.Normalizers, room);
                AskState(_chain, index, room.State, room.TileAt(index), room);
                break;
            case Phase.AnswerKeys:
                AnswerKeys(_chain, index, room.KeysAt(index), room.TileAt(index), room);
                break;
        }
    }

    private void Do(Phase phase, int first, long items)
    {
        (_phase, _firstItem) = (phase, first);
        loop.Run(this, items);
    }

    private void RunChain(long chain, in Room room)
    {
        ClearMasked(chain);
        Import(chain, room.State);
        if (_problem.Causal)
        {
            RunCausal(chain, room);
        }
        else
        {
            RunBidirectional(chain, room);
        }

        ExportInitial(chain, room);
    }

    private void RunByChunk(long chain, in Room room)
    {
        ClearMasked(chain);
        Import(chain, room.State);
        if (_problem.Causal)
        {
            RunCausalByChunk(chain, room);
        }
        else
        {
            RunBidirectionalByChunk(chain, room);
        }

        ExportInitial(chain, room);
    }

    private void RunCausal(long chain, in Room room)
    {
        int chunks = KeyChunks(Place(chain));
        int blocks = LinearLayout.Pieces(chunks, BlockChunks);
        for (int block = 0; block < blocks; block++)
        {
            Copy(room.State, room.Boundary(block));
            ReduceBlock(chain, block, room);
        }

        ImportFinal(chain, room);
        for (int block = blocks - 1; block >= 0; block--)
        {
            if (block < blocks - 1)
            {
                Copy(room.Boundary(block), room.State);
                ReduceBlock(chain, block, room);
            }

            for (int chunk = Math.Min(chunks, (block + 1) * BlockChunks) - 1; chunk >= block * BlockChunks; chunk--)
            {
                RunChunk(chain, chunk, room);
            }
        }

        RunStateQueries(chain, blocks > 0 ? room.Boundary(0) : room.State, room);
    }

    /// <summary>As <see cref="RunCausal"/>, with a block's chunks in all threads: what is asked of each is summed by itself, and then handed back in turn.</summary>
    private void RunCausalByChunk(long chain, in Room room)
    {
        int chunks = KeyChunks(Place(chain));
        int blocks = LinearLayout.Pieces(chunks, BlockChunks);
        for (int block = 0; block < blocks; block++)
        {
            Copy(room.State, room.Boundary(block));
            ReduceBlockByChunk(block, chunks, room);
        }

        ImportFinal(chain, room);
        for (int block = blocks - 1; block >= 0; block--)
        {
            if (block < blocks - 1)
            {
                Copy(room.Boundary(block), room.State);
                ReduceBlockByChunk(block, chunks, room);
            }

            int first = block * BlockChunks;
            int end = Math.Min(chunks, first + BlockChunks);
            Do(Phase.AskChunk, first, end - first);
            for (int chunk = end - 1; chunk >= first; chunk--)
            {
                Keys keys = room.KeysAt(chunk);
                if (*keys.Irregular != 0)
                {
                    RunChunk(chain, chunk, room);
                    continue;
                }

                AddAsked(room.TileAt(chunk).Asked, keepsReverse: true, room);
                LowerBehind(chunk, keys, room);
            }

            Do(Phase.AnswerChunk, first, end - first);
        }

        RunStateQueries(chain, blocks > 0 ? room.Boundary(0) : room.State, room);
    }

    private void ReduceBlockByChunk(int block, int chunks, in Room room)
    {
        int first = block * BlockChunks;
        int end = Math.Min(chunks, first + BlockChunks);
        Do(Phase.Reduce, first, end - first);
        for (int chunk = first; chunk < end; chunk++)
        {
            Keys keys = room.KeysAt(chunk);
            Raise(room.State, keys, room.Scratch);
            Absorb(room.State, keys, keepPrefix: true);
        }
    }

    /// <summary>Adds a block of chunks to the state, and keeps what came of each with the state before it.</summary>
    private void ReduceBlock(long chain, int block, in Room room)
    {
        int end = Math.Min(KeyChunks(Place(chain)), (block + 1) * BlockChunks);
        for (int chunk = block * BlockChunks; chunk < end; chunk++)
        {
            Keys keys = room.KeysAt(chunk);
            Reduce(chain, chunk, keys, room.Scratch);
            Raise(room.State, keys, room.Scratch);
            Absorb(room.State, keys, keepPrefix: true);
        }
    }

    private void RunBidirectional(long chain, in Room room)
    {
        int chunks = KeyChunks(Place(chain));
        Keys keys = room.KeysAt(0);
        for (int chunk = 0; chunk < chunks; chunk++)
        {
            Reduce(chain, chunk, keys, room.Scratch);
            Raise(room.State, keys, room.Scratch);
            Absorb(room.State, keys, keepPrefix: false);
        }

        ImportFinal(chain, room);
        RunStateQueries(chain, room.State, room);
        for (int chunk = 0; chunk < chunks && (_wantsKeys || _wantsValues); chunk++)
        {
            AnswerKeys(chain, chunk, keys, room.TileAt(0), room);
        }

        LowerToInitial(chain, room);
    }

    /// <summary>As <see cref="RunBidirectional"/>, with chunks and blocks of queries in all threads.</summary>
    private void RunBidirectionalByChunk(long chain, in Room room)
    {
        int place = Place(chain);
        int chunks = KeyChunks(place);
        int kept = _rooms.KeptChunks;
        for (int first = 0; first < chunks; first += kept)
        {
            int end = Math.Min(chunks, first + kept);
            Do(Phase.Reduce, first, end - first);
            for (int chunk = first; chunk < end; chunk++)
            {
                Raise(room.State, room.KeysAt(chunk), room.Scratch);
                Absorb(room.State, room.KeysAt(chunk), keepPrefix: false);
            }
        }

        ImportFinal(chain, room);
        (int firstBlock, int endBlock) = BlocksOf(place, -1);
        if (IsBlind(place))
        {
            RunStateQueries(chain, room.State, room);
            endBlock = firstBlock;
        }

        for (int first = firstBlock; first < endBlock; first += kept)
        {
            int end = Math.Min(endBlock, first + kept);
            Do(Phase.AskState, first, end - first);
            for (int block = first; block < end; block++)
            {
                AddAsked(room.TileAt(block).Asked, keepsReverse: false, room);
            }
        }

        for (int first = 0; first < chunks && (_wantsKeys || _wantsValues); first += kept)
        {
            Do(Phase.AnswerKeys, first, Math.Min(kept, chunks - first));
        }

        LowerToInitial(chain, room);
    }

    /// <summary>The gradients of a chunk's keys and values that all queries of the sequence see.</summary>
    private void AnswerKeys(long chain, int chunk, Keys keys, Tile tile, in Room room)
    {
        ReadKeys(chain, chunk, keys, room.Scratch);
        for (int feature = 0; feature < _layout.Features && _mode == FeatureMode.Logarithmic; feature++)
        {
            float scale = room.State.LogScale[feature];
            keys.Beta[feature] = keys.Reference[feature] == scale ? 0 : keys.Reference[feature] - scale;
        }

        ExponentiateInPlace(keys.Beta);
        ScaleKeys(keys);
        var view = new View
        {
            Keys = KeyTokens(Place(chain), chunk).Count, Before = chunk * Chunk, KeysTransposed = keys.Transposed, Values = keys.Values, Tile = tile,
        };
        StartKeys(view, room);
        ClearTile(view);
        FinishKeys(chain, view, room.Reverse, room);
    }

    private void LowerToInitial(long chain, in Room room)
    {
        if (_buffers.InitialState.IsEmpty || _mode != FeatureMode.Logarithmic)
        {
            return;
        }

        Copy(_buffers.InitialState.LogScale.HostPointer + (StateRow(chain) * _layout.Features), room.Before, _layout.Features);
        Lower(room.State.LogScale, room.Before, room);
    }

    /// <summary>A chunk's keys and the queries that see a part of them; brings R̂ from behind the chunk to before it.</summary>
    private void RunChunk(long chain, int chunk, in Room room)
    {
        Keys keys = room.KeysAt(chunk);
        int n = KeyTokens(Place(chain), chunk).Count;
        if (*keys.Irregular != 0)
        {
            RunSegments(chain, chunk, n, keys, room);
        }
        else
        {
            ScaleKeys(keys);
            RunSeen(chain, chunk, WholeChunk(chain, chunk, room), room);
        }

        LowerBehind(chunk, keys, room);
    }

    /// <summary>Brings R̂ from the scale that a chunk is read at to that of the state behind the chunk before it.</summary>
    private void LowerBehind(int chunk, Keys keys, in Room room)
    {
        if (_mode != FeatureMode.Logarithmic)
        {
            return;
        }

        if (chunk % BlockChunks == 0)
        {
            Lower(keys.Scale, room.Boundary(chunk / BlockChunks).LogScale, room);
            return;
        }

        // The scale of the state behind an irregular chunk is that of its sums, where that is larger.
        Keys previous = room.KeysAt(chunk - 1);
        for (int feature = 0; feature < _layout.Features; feature++)
        {
            room.Before[feature] = MathF.Max(previous.Scale[feature], previous.Reference[feature]);
        }

        Lower(keys.Scale, room.Before, room);
    }

    /// <summary>A chunk whose log features rise too far, as the small chunks that it is cut into; the states before them are made again for each.</summary>
    private void RunSegments(long chain, int chunk, int n, Keys keys, in Room room)
    {
        Scratch scratch = room.Scratch;
        State state = scratch.SegmentState;
        LogKeyFeatures(chain, chunk, scratch);
        int* starts = stackalloc int[Chunk + 1];
        int segments = 0;
        for (starts[0] = 0; starts[segments] < n; segments++)
        {
            starts[segments + 1] = SegmentEnd(starts[segments], n, scratch.LogFeatures);
        }

        for (int segment = segments - 1; segment >= 0; segment--)
        {
            Copy(keys.Delta, state.Sums, (long)_layout.Features * _layout.ValueStride);
            Copy(keys.DeltaZ, state.Normalizers, _layout.FeatureStride);
            Copy(keys.Scale, state.LogScale, _layout.FeatureStride);
            for (int earlier = 0; earlier < segment; earlier++)
            {
                Keys added = ReduceSegment(starts[earlier], starts[earlier + 1], keys.Values, scratch);
                Raise(state, added, scratch);
                Absorb(state, added, keepPrefix: false);
            }

            Copy(state.LogScale, room.Before, _layout.FeatureStride);
            int start = starts[segment];
            Keys own = ReduceSegment(start, starts[segment + 1], keys.Values, scratch);
            Raise(state, own, scratch);
            ScaleKeys(own);
            RunSeen(chain, chunk, new View
            {
                Keys = starts[segment + 1] - start, Before = (chunk * Chunk) + start, KeysTransposed = own.Transposed + start,
                Values = keys.Values + ((nint)start * _layout.ValueStride), Sums = state.Sums, Normalizers = state.Normalizers, Scale = own.Scale,
                Tile = room.TileAt(chunk),
            }, room);
            Lower(own.Scale, room.Before, room);
        }
    }

    private View WholeChunk(long chain, int chunk, in Room room)
    {
        Keys keys = room.KeysAt(chunk);
        return new View
        {
            Keys = KeyTokens(Place(chain), chunk).Count, Before = chunk * Chunk, KeysTransposed = keys.Transposed, Values = keys.Values, Sums = keys.Delta,
            Normalizers = keys.DeltaZ, Scale = keys.Scale, Tile = room.TileAt(chunk),
        };
    }

    /// <summary>Some keys of a chunk, and the chunk's queries of which the last key that they see is among them.</summary>
    private void RunSeen(long chain, int chunk, in View view, in Room room)
    {
        AskSeen(chain, chunk, view, room);
        FinishKeys(chain, view, room.Reverse, room);
        AddAsked(view.Tile.Asked, keepsReverse: false, room);
    }

    /// <summary>All of it but what later queries ask of the keys.</summary>
    private void AskSeen(long chain, int chunk, in View view, in Room room)
    {
        StartKeys(view, room);
        TransposeState(view.Sums, view.Normalizers, room);
        int place = Place(chain);
        bool isFirst = true;
        (int block, int endBlock) = BlocksOf(place, chunk);
        for (; block < endBlock; block++)
        {
            (int query, int n, _) = BlockAt(block);
            int endQuery = query + n;
            while (query < endQuery && Seen(place, query) <= view.Before)
            {
                query++;
            }

            int stop = query;
            while (stop < endQuery && Seen(place, stop) <= view.Before + view.Keys)
            {
                stop++;
            }

            if (stop > query)
            {
                RunQueries(chain, query, stop - query, view, isFirst, room);
                isFirst = false;
            }
        }

        if (isFirst)
        {
            ClearTile(view);
        }
    }

    /// <summary>The queries that read nothing but a state.</summary>
    private void RunStateQueries(long chain, State state, in Room room)
    {
        int place = Place(chain);
        bool isBlind = IsBlind(place);
        (int block, int end) = BlocksOf(place, -1);
        if (block < end && !isBlind)
        {
            TransposeState(state.Sums, state.Normalizers, room);
        }

        for (; block < end; block++)
        {
            if (isBlind)
            {
                (int query, int n, _) = BlockAt(block);
                ClearQueries(chain, query, n);
            }
            else
            {
                Tile tile = room.TileAt(0);
                AskState(chain, block, state, tile, room);
                AddAsked(tile.Asked, keepsReverse: false, room);
            }
        }
    }

    /// <summary>True when queries that read nothing but a state read nothing.</summary>
    private bool IsBlind(int place) => !_problem.HasInitialState && (_problem.Causal || KeysOf(place) == 0);

    /// <summary>A block of queries that reads nothing but a state, laid out for it already.</summary>
    private void AskState(long chain, int block, State state, Tile tile, in Room room)
    {
        (int query, int n, _) = BlockAt(block);
        RunQueries(chain, query, n, new View { Sums = state.Sums, Normalizers = state.Normalizers, Scale = state.LogScale, Tile = tile }, isFirst: true, room);
    }

    // ---- keys ----

    /// <summary>Keys in the layouts that products take.</summary>
    private void StartKeys(in View view, in Room room)
    {
        int n = view.Keys;
        int dv = _problem.Shape.ValueDimension;
        TurnKeys(view, room);
        SimdBlas<TV>.Transpose(n, dv, view.Values, _layout.ValueStride, room.ValuesTransposed, Chunk);
        new Span<float>(room.ValuesTransposed + ((nint)dv * Chunk), n).Fill(1);
    }

    /// <summary>Where no query asks anything.</summary>
    private void ClearTile(in View view)
    {
        if (_wantsReverse)
        {
            new Span<float>(view.Tile.Asked, checked((_problem.Shape.ValueDimension + 1) * _layout.FeatureStride)).Clear();
        }

        if (_wantsKeys)
        {
            new Span<float>(view.Tile.KeyFeatureGradient, checked(view.Keys * _layout.FeatureStride)).Clear();
        }

        if (_wantsValues)
        {
            new Span<float>(view.Tile.ValueGradient, checked(view.Keys * _layout.ValueStride)).Clear();
        }
    }

    /// <summary>K̂, a row for each key.</summary>
    private void TurnKeys(in View view, in Room room) =>
        SimdBlas<TV>.Transpose(_layout.Features, view.Keys, view.KeysTransposed, Chunk, room.KeyRows, _layout.FeatureStride);

    /// <summary>Adds what later queries ask to the gradients of keys and values, once all queries that see them have added theirs, and writes them.</summary>
    private void FinishKeys(long chain, in View view, float* reverse, in Room room)
    {
        int place = Place(chain);
        int batch = BatchRow(place);
        int head = KeyHead(chain);
        int n = view.Keys;
        int dv = _problem.Shape.ValueDimension;
        (int rs, int dvs) = (_layout.FeatureStride, _layout.ValueStride);
        TokenList tokens = TokenList.OfKeys(_plan, place, view.Before, n);
        if (_wantsValues)
        {
            // The rows that are about to be written.
            var ahead = new RowsAhead(
                new(_gradients.ValueGradient, batch, tokens[0], head, dv), new(_gradients.KeyGradient, batch, tokens[0], head, _layout.InputDimension),
                tokens.IsRun ? n : 0);
            MicroKernel<TV>.Multiply(
                dv, PackedForm<TV>.RoundUp(n), _layout.Features, reverse, rs, view.KeysTransposed, Chunk, room.ValueGradientTransposed, Chunk, false, &ahead);
            SimdBlas<TV>.Transpose(dv, n, room.ValueGradientTransposed, Chunk, room.ValueGradientPart, dvs);
            Add((long)n * dvs, room.ValueGradientPart, view.Tile.ValueGradient);
            StoredRows.Write(_gradients.ValueGradient, batch, head, tokens, dv, view.Tile.ValueGradient, dvs);
        }

        float* gradient = view.Tile.KeyFeatureGradient;
        for (int row = 0; _wantsKeys && row < n; row++)
        {
            Add(rs, reverse + ((nint)dv * rs), gradient + ((nint)row * rs));
        }

        if (_wantsKeys)
        {
            MicroKernel<TV>.Multiply(n, rs, dv, view.Values, dvs, reverse, rs, gradient, rs, true);
            float* x = StoredRows.Read(_buffers.Key, batch, head, tokens, _layout.InputDimension, room.Scratch.Rows, out nint stride);
            WriteRows(
                _key, tokens.Count, x, stride, room.KeyRows, gradient, _key.HasRowTerm, room, _gradients.KeyGradient, batch, head, tokens);
        }
    }

    /// <summary>Keys that take no part have no gradient.</summary>
    private void ClearMasked(long chain)
    {
        if (_plan is null || _problem.Shape.KeyLength == 0)
        {
            return;
        }

        int place = Place(chain);
        if (_wantsKeys)
        {
            StoredRows.ClearMasked(_gradients.KeyGradient, _problem.Layout!, _plan, place, KeyHead(chain), _layout.InputDimension);
        }

        if (_wantsValues)
        {
            StoredRows.ClearMasked(_gradients.ValueGradient, _problem.Layout!, _plan, place, KeyHead(chain), _problem.Shape.ValueDimension);
        }
    }

    // ---- the state's gradient ----

    /// <summary>Adds what some queries ask to R̂, and leaves R̂ before that in its place when it is to be kept.</summary>
    private void AddAsked(float* asked, bool keepsReverse, in Room room)
    {
        if (!_wantsReverse)
        {
            return;
        }

        float* reverse = room.Reverse;
        nint count = (nint)(_problem.Shape.ValueDimension + 1) * _layout.FeatureStride;
        for (nint i = 0; i < count; i += TV.Count)
        {
            TV before = TV.Load(reverse + i);
            TV.Store(TV.Add(before, TV.Load(asked + i)), reverse + i);
            if (keepsReverse)
            {
                TV.Store(before, asked + i);
            }
        }
    }

    private static void Add(long n, float* x, float* y)
    {
        for (long i = 0; i < n; i += TV.Count)
        {
            TV.Store(TV.Add(TV.Load(y + i), TV.Load(x + i)), y + i);
        }
    }

    /// <summary>R̂ behind the last key: the gradient of the final state, at the scale that the state ended at.</summary>
    private void ImportFinal(long chain, in Room room)
    {
        StateBuffers final = _gradients.FinalStateGradient;
        (int r, int rs, int dv) = (_layout.Features, _layout.FeatureStride, _problem.Shape.ValueDimension);
        float* normalizers = room.Reverse + ((nint)dv * rs);
        if (final.IsEmpty)
        {
            new Span<float>(room.Reverse, checked((dv + 1) * rs)).Clear();
            return;
        }

        nint row = StateRow(chain) * r;
        SimdBlas<TV>.Transpose(r, dv, final.Sums.HostPointer + (row * dv), dv, room.Reverse, rs);
        SimdBlas<TV>.CopyRows(1, r, final.Normalizers.HostPointer + row, r, normalizers, rs);
        if (_mode == FeatureMode.Logarithmic)
        {
            Lower(final.LogScale.HostPointer + row, room.State.LogScale, room);
        }
    }

    /// <summary>The gradient of the initial state, at whose scale R̂ has arrived.</summary>
    private void ExportInitial(long chain, in Room room)
    {
        StateBuffers initial = _gradients.InitialStateGradient;
        if (initial.IsEmpty)
        {
            return;
        }

        (int r, int rs, int dv) = (_layout.Features, _layout.FeatureStride, _problem.Shape.ValueDimension);
        nint row = StateRow(chain) * r;
        float* sums = room.State.Sums;
        SimdBlas<TV>.Transpose(dv, r, room.Reverse, rs, sums, _layout.ValueStride);
        for (int feature = 0; feature < r; feature++)
        {
            Copy(sums + ((nint)feature * _layout.ValueStride), initial.Sums.HostPointer + ((row + feature) * dv), dv);
        }

        Copy(room.Reverse + ((nint)dv * rs), initial.Normalizers.HostPointer + row, r);
    }

    /// <summary>Brings R̂ from one scale to an earlier one, which is never larger.</summary>
    private void Lower(float* from, float* to, in Room room)
    {
        if (!_wantsReverse)
        {
            return;
        }

        int rs = _layout.FeatureStride;
        float* factors = room.Scratch.Factors;
        bool changes = false;
        for (int feature = 0; feature < rs; feature++)
        {
            // Where nothing was seen yet there is nothing to ask of it: e^−∞, even from −∞.
            float factor = feature >= _layout.Features ? 0
                : float.IsNegativeInfinity(to[feature]) ? float.NegativeInfinity : to[feature] - from[feature];
            factors[feature] = factor;
            changes |= factor != 0;
        }

        if (!changes)
        {
            return;
        }

        ExponentiateInPlace(factors);
        for (int row = 0; row <= _problem.Shape.ValueDimension; row++)
        {
            float* reverse = room.Reverse + ((nint)row * rs);
            for (int i = 0; i < rs; i += TV.Count)
            {
                TV.Store(TV.Multiply(TV.Load(reverse + i), TV.Load(factors + i)), reverse + i);
            }
        }
    }

    private void Copy(State source, State target)
    {
        Copy(source.Sums, target.Sums, (long)_layout.Features * _layout.ValueStride);
        Copy(source.Normalizers, target.Normalizers, _layout.FeatureStride);
        Copy(source.LogScale, target.LogScale, _layout.FeatureStride);
        Copy(source.Maximum, target.Maximum, _layout.FeatureStride);
    }

    /// <summary>What some queries read: a state, and keys of which each sees some of the first.</summary>
    private readonly struct View
    {
        /// <summary>How many keys; 0 for a state alone.</summary>
        public int Keys { get; init; }

        /// <summary>How many keys of the sequence stand before them.</summary>
        public int Before { get; init; }

        /// <summary>K̂ᵀ at the scale of the state, <c>r × Chunk</c>.</summary>
        public float* KeysTransposed { get; init; }

        /// <summary>V, <c>Chunk × ValueStride</c>.</summary>
        public float* Values { get; init; }

        /// <summary>Ŝ.</summary>
        public float* Sums { get; init; }

        /// <summary>ẑ.</summary>
        public float* Normalizers { get; init; }

        /// <summary>The log scale of the state.</summary>
        public float* Scale { get; init; }

        /// <summary>Where the queries' part of the gradients goes.</summary>
        public Tile Tile { get; init; }
    }
}
