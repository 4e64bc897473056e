using System.Runtime.CompilerServices;
using Keys = Gpu.Attention.LinearBackwardLayout.Keys;
using Room = Gpu.Attention.LinearBackwardLayout.Room;
using State = Gpu.Attention.LinearBackwardLayout.State;
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
    private int _endItem;
    private bool _wantsQueries;
    private bool _wantsKeys;
    private bool _wantsValues;
    private bool _wantsReverse;

    /// <summary>Rows of Ŝᵀ or R̂ᵀ.</summary>
    private int SumRows => _problem.Shape.ValueDimension + 1;

    /// <summary>Floats of Ŝᵀ or R̂ᵀ.</summary>
    private nint SumFloats => (nint)SumRows * _layout.FeatureStride;

    private enum Phase
    {
        Chain,
        Reduce,
        Ask,
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
        _chunksApart = _layout.ByChain ? 1 : _rooms.ChunkThreads;
        if (_layout.ByChain)
        {
            Do(Phase.Chain, _layout.Chains);
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
        switch (_phase)
        {
            case Phase.Chain:
                RunChain(item, room);
                break;
            case Phase.AnswerKeys:
                AnswerKeys(_chain, (int)item, room.KeysAt(slot), room.TileAt(slot), room);
                break;
            default:
                RunChunks(slot, room);
                break;
        }
    }

    private void Do(Phase phase, long items)
    {
        _phase = phase;
        loop.Run(this, items);
    }

    /// <summary>Some chunks of a chain, or blocks of its queries, in all threads.</summary>
    private void Relay(Phase phase, int first, int end)
    {
        (_firstItem, _endItem) = (first, end);
        _chunkRelay.Start(_rooms.ChunkThreads, _rooms.ChunksOfThread, chains: 1, _rooms.StatePieces,
            hasScales: phase == Phase.Reduce && _mode == FeatureMode.Logarithmic, hasBehind: phase == Phase.Ask && _wantsReverse);
        _chunkRelay.Add(end - first);
        Do(phase, _rooms.ChunkThreads);
    }

    private void RunChunks(int slot, in Room room)
    {
        try
        {
            while (_chunkRelay.TryTake(slot, out ChunkTask task))
            {
                bool isCut = _phase switch
                {
                    Phase.Reduce => Reduce(task, _firstItem + task.Chunk, room),
                    Phase.Ask => Ask(task, _endItem - 1 - task.Chunk, room),
                    _ => AskState(task, _firstItem + task.Chunk, room),
                };
                _chunkRelay.Return(task, isCut);
            }
        }
        catch
        {
            _chunkRelay.Stop();
            throw;
        }
    }

    /// <summary>The rows of Ŝᵀ or R̂ᵀ that a chunk is added to.</summary>
    private (int First, int End) RowsOf(in ChunkTask task) => task.Piece < 0
        ? (0, SumRows)
        : ((int)((long)SumRows * task.Piece / _rooms.StatePieces), (int)((long)SumRows * (task.Piece + 1) / _rooms.StatePieces));

    /// <summary>A chunk's keys, and the state. True where the chunk was cut.</summary>
    private bool Reduce(in ChunkTask task, int chunk, in Room room)
    {
        Keys keys = room.KeysAt(_problem.Causal ? chunk : task.Slot);
        switch (task.Work)
        {
            case ChunkWork.Project:
                ProjectKeys(_chain, chunk, keys, room);
                break;
            case ChunkWork.Ahead when _mode == FeatureMode.Logarithmic:
                ExpectScale(task.Chain, room.Expected, keys.First, keys.Before);
                Copy(keys.Before, keys.Scale, _layout.FeatureWidth);
                RaiseTo(keys.First, keys.Scale);
                ReduceProjected(chunk, keys, room);
                break;
            case ChunkWork.Ahead:
                ProjectKeys(_chain, chunk, keys, room);
                ReduceProjected(chunk, keys, room);
                break;
            case ChunkWork.InTurn:
                AddReduced(task, chunk, keys, room);
                break;
        }

        return *keys.Irregular != 0;
    }

    /// <summary>What the queries of a chunk ask, R̂ from behind it to before it, and what R̂ asks of its keys. One that was cut is done in its turn. True where it was.</summary>
    private bool Ask(in ChunkTask task, int chunk, in Room room)
    {
        Keys keys = room.KeysAt(chunk);
        Tile tile = room.TileAt(task.Slot);
        if (*keys.Irregular != 0)
        {
            if (task.Work == ChunkWork.InTurn)
            {
                RunChunk(_chain, chunk, tile, room);
            }

            return true;
        }

        switch (task.Work)
        {
            case ChunkWork.Ahead:
                AskSeen(_chain, chunk, WholeChunk(_chain, chunk, tile, room), leavesProduct: false, room);
                break;
            case ChunkWork.InTurn when _wantsReverse:
                (int first, int end) = RowsOf(task);
                AddAskedBehind(keys, tile.Asked, first, end, room);
                break;
            case ChunkWork.Behind:
                View view = WholeChunk(_chain, chunk, tile, room);
                TurnKeys(view, room);
                FinishKeys(_chain, view, tile.Asked, room);
                break;
        }

        return false;
    }

    /// <summary>What a block of queries asks of a state that nothing is added to any more. Nothing is cut.</summary>
    private bool AskState(in ChunkTask task, int block, in Room room)
    {
        Tile tile = room.TileAt(task.Slot);
        if (task.Work == ChunkWork.Ahead)
        {
            AskState(_chain, block, room.State, tile, room);
        }
        else if (_wantsReverse)
        {
            (int first, int end) = RowsOf(task);
            AddAsked(tile.Asked, first, end, room);
        }

        return false;
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
                RunChunk(chain, chunk, room.TileAt(0), room);
            }
        }

        RunStateQueries(chain, blocks > 0 ? room.Boundary(0) : room.State, room);
    }

    /// <summary>
    /// As <see cref="RunCausal"/>, with chunks in all threads: what is asked of each is summed by itself, and then handed back in turn.
    /// </summary>
    private void RunCausalByChunk(long chain, in Room room)
    {
        int chunks = KeyChunks(Place(chain));
        int blocks = LinearLayout.Pieces(chunks, BlockChunks);
        for (int block = 0; block < blocks; block++)
        {
            Copy(room.State, room.Boundary(block));
            ReduceByChunk(block * BlockChunks, Math.Min(chunks, (block + 1) * BlockChunks), room);
        }

        ImportFinal(chain, room);
        for (int block = blocks - 1; block >= 0; block--)
        {
            int first = block * BlockChunks;
            int end = Math.Min(chunks, first + BlockChunks);
            if (block < blocks - 1)
            {
                Copy(room.Boundary(block), room.State);
                ReduceByChunk(first, end, room);
            }

            Relay(Phase.Ask, first, end);
        }

        RunStateQueries(chain, blocks > 0 ? room.Boundary(0) : room.State, room);
    }

    private void RunBidirectional(long chain, in Room room)
    {
        int chunks = KeyChunks(Place(chain));
        Keys keys = room.KeysAt(0);
        for (int chunk = 0; chunk < chunks; chunk++)
        {
            ProjectKeys(chain, chunk, keys, room);
            AddChunk(chain, chunk, keys, room.State.Sums, room.State.Sums, room);
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
        ReduceByChunk(0, chunks, room);
        ImportFinal(chain, room);
        (int firstBlock, int endBlock) = BlocksOf(place, -1);
        if (IsBlind(place))
        {
            RunStateQueries(chain, room.State, room);
        }
        else
        {
            Relay(Phase.AskState, firstBlock, endBlock);
        }

        if (_wantsKeys || _wantsValues)
        {
            Do(Phase.AnswerKeys, chunks);
        }

        LowerToInitial(chain, room);
    }

    /// <summary>The gradients of a chunk's keys and values that all queries of the sequence see.</summary>
    private void AnswerKeys(long chain, int chunk, in Keys keys, Tile tile, in Room room)
    {
        int n = KeyTokens(Place(chain), chunk).Count;
        ProjectKeys(chain, chunk, keys, room);
        FinishKeyRows(n, keys, room.State.LogScale, room);
        var view = new View { Keys = n, Before = chunk * Chunk, KeyRows = keys.Rows, Values = keys.Values, Tile = tile };
        TurnKeys(view, room);
        ClearTile(view);
        FinishKeys(chain, view, room.Reverse, room);
    }

    private void LowerToInitial(long chain, in Room room)
    {
        if (_buffers.InitialState.IsEmpty || _mode != FeatureMode.Logarithmic)
        {
            return;
        }

        // Lower reads whole vectors.
        float* scale = room.Scratch.Bias;
        new Span<float>(scale, _layout.FeatureWidth).Fill(float.NegativeInfinity);
        Copy(_buffers.InitialState.LogScale.HostPointer + (StateRow(chain) * _layout.Features), scale, _layout.Features);
        Lower(room.State.LogScale, scale, room);
    }

    /// <summary>A chunk's keys and the queries that see a part of them; brings R̂ from behind the chunk to before it.</summary>
    private void RunChunk(long chain, int chunk, in Tile tile, in Room room)
    {
        Keys keys = room.KeysAt(chunk);
        int n = KeyTokens(Place(chain), chunk).Count;
        if (*keys.Irregular != 0)
        {
            RunSegments(chain, chunk, n, keys, tile, room);
        }
        else
        {
            RunSeen(chain, chunk, WholeChunk(chain, chunk, tile, room), room);
        }

        LowerBehind(keys, room);
    }

    /// <summary>Brings R̂ from the scale that a chunk is read at to that of the state behind the chunk before it.</summary>
    private void LowerBehind(in Keys keys, in Room room)
    {
        if (_mode == FeatureMode.Logarithmic)
        {
            Lower(keys.Scale, keys.Before, room);
        }
    }

    /// <summary>A chunk whose log features rise too far, as the small chunks that it is cut into; the states before them are made again for each.</summary>
    private void RunSegments(long chain, int chunk, int n, in Keys keys, in Tile tile, in Room room)
    {
        State state = room.SegmentState;
        int* starts = stackalloc int[Chunk + 1];
        int segments = 0;
        LogRows(chain, chunk, n, keys, room);
        Copy(keys.Scale, state.LogScale, _layout.FeatureWidth);
        for (starts[0] = 0; starts[segments] < n; segments++)
        {
            starts[segments + 1] = SegmentEnd(starts[segments], n, room.LogRows, state.LogScale);
            float* first = room.LogRows + ((nint)starts[segments] * _layout.FeatureStride);
            for (int i = 0; i < _layout.FeatureWidth; i += TV.Count)
            {
                TV.Store(TV.MaxOrNaN(TV.Load(state.LogScale + i), TV.Load(first + i)), state.LogScale + i);
            }
        }

        for (int segment = segments - 1; segment >= 0; segment--)
        {
            CopySums(keys.Sums, state.Sums);
            Copy(keys.Scale, state.LogScale, _layout.FeatureWidth);
            for (int earlier = 0; earlier < segment; earlier++)
            {
                AddSegment(starts[earlier], starts[earlier + 1], keys, state.Sums, state.LogScale, room);
            }

            int start = starts[segment];
            RaiseForSegment(start, starts[segment + 1], state.Sums, state.LogScale, room);
            RunSeen(chain, chunk, new View
            {
                Keys = starts[segment + 1] - start, Before = (chunk * Chunk) + start, KeyRows = room.SegmentRows + ((nint)start * _layout.FeatureStride),
                Values = keys.Values + ((nint)start * room.GradientStride), Sums = state.Sums, Scale = state.LogScale, Tile = tile,
            }, room);
            Lower(state.LogScale, room.Before, room);
        }
    }

    private View WholeChunk(long chain, int chunk, in Tile tile, in Room room)
    {
        Keys keys = room.KeysAt(chunk);
        return new View
        {
            Keys = KeyTokens(Place(chain), chunk).Count, Before = chunk * Chunk, KeyRows = keys.Rows, Values = keys.Values, Sums = keys.Sums,
            Scale = keys.Scale, Tile = tile,
        };
    }

    /// <summary>Some keys of a chunk, and the chunk's queries of which the last key that they see is among them.</summary>
    private void RunSeen(long chain, int chunk, in View view, in Room room)
    {
        // What one block of one head asks is multiplied when R̂ is done with, and added to it at once.
        (int firstBlock, int endBlock) = BlocksOf(Place(chain), chunk);
        bool isOne = endBlock - firstBlock == 1 && _problem.Shape.HeadGroup == 1 && _wantsReverse && !_gradients.OutputGradient.Memory.IsEmpty;
        (int query, int count) = AskSeen(chain, chunk, view, isOne, room);
        FinishKeys(chain, view, room.Reverse, room);
        if (isOne && count > 0)
        {
            AddProduct(chain, chunk, query, count, room);
        }
        else if (_wantsReverse)
        {
            AddAsked(view.Tile.Asked, 0, SumRows, room);
        }
    }

    /// <summary>
    /// All of it but what later queries ask of the keys, and, where it leaves the product, what these ask of R̂: <see cref="AddProduct"/>. Returns the queries of
    /// the last block.
    /// </summary>
    private (int Query, int Count) AskSeen(long chain, int chunk, in View view, bool leavesProduct, in Room room)
    {
        (int Query, int Count) last = default;
        TurnKeys(view, room);
        SimdBlas<TV>.Transpose(view.Keys, _problem.Shape.ValueDimension + 1, view.Values, room.GradientStride, room.ValuesTransposed, Chunk);
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
                last = (query, stop - query);
                RunQueries(chain, query, stop - query, view, isFirst, leavesProduct, room);
                isFirst = false;
            }
        }

        if (isFirst)
        {
            ClearTile(view);
        }

        return last;
    }

    /// <summary>The queries that read nothing but a state.</summary>
    private void RunStateQueries(long chain, in State state, in Room room)
    {
        int place = Place(chain);
        bool isBlind = IsBlind(place);
        (int block, int end) = BlocksOf(place, -1);
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
                if (_wantsReverse)
                {
                    AddAsked(tile.Asked, 0, SumRows, room);
                }
            }
        }
    }

    /// <summary>True when queries that read nothing but a state read nothing.</summary>
    private bool IsBlind(int place) => !_problem.HasInitialState && (_problem.Causal || KeysOf(place) == 0);

    /// <summary>A block of queries that reads nothing but a state.</summary>
    private void AskState(long chain, int block, in State state, Tile tile, in Room room)
    {
        (int query, int n, _) = BlockAt(block);
        RunQueries(chain, query, n, new View { Sums = state.Sums, Scale = state.LogScale, Tile = tile }, isFirst: true, leavesProduct: false, room);
    }

    // ---- keys ----

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

    /// <summary>K̂ᵀ.</summary>
    private void TurnKeys(in View view, in Room room) =>
        SimdBlas<TV>.Transpose(view.Keys, _layout.Features, view.KeyRows, _layout.FeatureStride, room.KeysTransposed, Chunk);

    /// <summary>Adds what later queries ask to the gradients of keys and values, once all queries that see them have added theirs, and writes them.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
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
            MicroKernel<TV>.Multiply(
                dv, PackedForm<TV>.RoundUp(n), _layout.Features, reverse, rs, room.KeysTransposed, Chunk, room.ValueGradientTransposed, Chunk, false);
            SimdBlas<TV>.Transpose(dv, n, room.ValueGradientTransposed, Chunk, room.ValueGradientPart, dvs);
            if (dv == dvs && tokens.IsRun && _problem.Storage == ElementType.Single)
            {
                SimdBlas<TV>.AddRows(
                    n, dv, room.ValueGradientPart, view.Tile.ValueGradient, (float*)_gradients.ValueGradient.Row(batch, tokens[0], head),
                    (nint)_gradients.ValueGradient.TokenStride);
            }
            else
            {
                SimdBlas<TV>.AddRows(n, dvs, room.ValueGradientPart, view.Tile.ValueGradient, room.ValueGradientPart, dvs);
                StoredRows.Write(_gradients.ValueGradient, batch, head, tokens, dv, room.ValueGradientPart, dvs);
            }
        }

        float* gradient = view.Tile.KeyFeatureGradient;
        if (_wantsKeys)
        {
            // The rows that are about to be written, and what comes next in a chain.
            LinesAhead ahead = default;
            ahead.AddRows(_gradients.KeyGradient, batch, tokens[0], head, _layout.InputDimension, n);
            int chunk = view.Before / Chunk;
            if (_problem.Causal && chunk >= _chunksApart)
            {
                Keys next = room.KeysAt(chunk - _chunksApart);
                ahead.AddStretch(next.Rows, (long)Chunk * rs);
                ahead.AddStretch(next.Values, (long)Chunk * room.GradientStride);
            }

            MicroKernel<TV>.Multiply(n, _layout.FeatureWidth, dv + 1, view.Values, room.GradientStride, reverse, rs, gradient, rs, true, &ahead);
            float* x = StoredRows.Read(_buffers.Key, batch, head, tokens, _layout.InputDimension, room.Scratch.Rows, out nint stride);
            WriteRows(
                _key, tokens.Count, x, stride, view.KeyRows, gradient, _key.HasRowTerm, room, _gradients.KeyGradient, batch, head, tokens);
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

    /// <summary>Adds what some queries ask to rows of R̂.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void AddAsked(float* asked, int firstRow, int endRow, in Room room)
    {
        float* reverse = room.Reverse;
        nint end = (nint)endRow * _layout.FeatureStride;
        for (nint i = (nint)firstRow * _layout.FeatureStride; i < end; i += TV.Count)
        {
            TV.Store(TV.Add(TV.Load(reverse + i), TV.Load(asked + i)), reverse + i);
        }
    }

    /// <summary>Takes rows of R̂ from behind a chunk to before it, and leaves R̂ behind it where what its queries ask was.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void AddAskedBehind(in Keys keys, float* asked, int firstRow, int endRow, in Room room)
    {
        (int width, nint rs) = (_layout.FeatureWidth, _layout.FeatureStride);
        float* factors = room.Scratch.Factors;
        bool isLowered = _mode == FeatureMode.Logarithmic && FindLowering(keys.Scale, keys.Before, factors);
        for (int row = firstRow; row < endRow; row++)
        {
            float* reverse = room.Reverse + (row * rs);
            float* own = asked + (row * rs);
            for (int i = 0; i < width; i += TV.Count)
            {
                TV behind = TV.Load(reverse + i);
                TV before = TV.Add(behind, TV.Load(own + i));
                TV.Store(isLowered ? TV.Multiply(before, TV.Load(factors + i)) : before, reverse + i);
                TV.Store(behind, own + i);
            }
        }
    }

    /// <summary>R̂ behind the last key: the gradient of the final state, at the scale that the state ended at.</summary>
    private void ImportFinal(long chain, in Room room)
    {
        StateBuffers final = _gradients.FinalStateGradient;
        if (final.IsEmpty)
        {
            new Span<float>(room.Reverse, checked((int)SumFloats)).Clear();
            return;
        }

        nint row = StateRow(chain) * _layout.Features;
        ImportSums(final, row, room.Reverse);
        if (_mode == FeatureMode.Logarithmic)
        {
            // Lower reads whole vectors.
            float* scale = room.Scratch.Bias;
            new Span<float>(scale, _layout.FeatureWidth).Fill(float.NegativeInfinity);
            Copy(final.LogScale.HostPointer + row, scale, _layout.Features);
            Lower(scale, room.State.LogScale, room);
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
        for (int feature = 0; feature < r; feature++)
        {
            float* sums = initial.Sums.HostPointer + ((row + feature) * dv);
            for (int i = 0; i < dv; i++)
            {
                sums[i] = room.Reverse[((nint)i * rs) + feature];
            }
        }

        Copy(room.Reverse + ((nint)dv * rs), initial.Normalizers.HostPointer + row, r);
    }

    /// <summary>Brings R̂ from one scale to an earlier one, which is never larger.</summary>
    private void Lower(float* from, float* to, in Room room)
    {
        if (_wantsReverse)
        {
            FindLowering(from, to, room.Scratch.Factors);
            ScaleColumns(room.Reverse, room.Scratch.Factors);
        }
    }

    /// <summary>What brings R̂ from one scale to an earlier one; false when nothing changes.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private bool FindLowering(float* from, float* to, float* factors)
    {
        bool isAny = false;
        for (int i = 0; i < _layout.FeatureWidth; i += TV.Count)
        {
            for (int lane = 0; lane < TV.Count; lane++)
            {
                // Where nothing was seen yet there is nothing to ask of it: e^−∞, even from −∞.
                float target = to[i + lane];
                factors[i + lane] = float.IsNegativeInfinity(target) ? target : target - from[i + lane];
            }

            TV.Store(SimdExp.Exp(TV.Load(factors + i)), factors + i);
            isAny |= IsChange(factors + i);
        }

        return isAny;
    }

    private void Copy(in State source, in State target)
    {
        CopySums(source.Sums, target.Sums);
        Copy(source.LogScale, target.LogScale, _layout.FeatureWidth);
    }

    private void CopySums(float* source, float* target) => Copy(source, target, SumFloats);

    /// <summary>What some queries read: a state, and keys of which each sees some of the first.</summary>
    private readonly struct View
    {
        /// <summary>How many keys; 0 for a state alone.</summary>
        public int Keys { get; init; }

        /// <summary>How many keys of the sequence stand before them.</summary>
        public int Before { get; init; }

        /// <summary>K̂ at the scale of the state, a row for each key.</summary>
        public float* KeyRows { get; init; }

        /// <summary>[V 1], a row for each key.</summary>
        public float* Values { get; init; }

        /// <summary>Ŝᵀ, with ẑ for its last row.</summary>
        public float* Sums { get; init; }

        /// <summary>The log scale of the state.</summary>
        public float* Scale { get; init; }

        /// <summary>Where the queries' part of the gradients goes.</summary>
        public Tile Tile { get; init; }
    }
}
