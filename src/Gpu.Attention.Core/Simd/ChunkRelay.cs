namespace Gpu.Attention;

/// <summary>What is done with a chunk, one after the other.</summary>
internal enum ChunkWork
{
    /// <summary>The projection of its keys, from which the scale of what follows comes in the order of chunks. Left out where there is no such scale.</summary>
    Project,

    /// <summary>What else needs no state: the chunk's own sums.</summary>
    Ahead,

    /// <summary>The sums are added to the chain's state, chunk after chunk, and the state that was there takes their place.</summary>
    InTurn,

    /// <summary>What needs the state that the chunk found.</summary>
    Behind,
}

/// <summary>A piece of work on a chunk of a chain.</summary>
/// <param name="Work">What is to be done.</param>
/// <param name="Chain">The chain.</param>
/// <param name="Chunk">The chunk of the chain.</param>
/// <param name="Slot">Where the chunk is kept.</param>
/// <param name="Piece">Which piece of the state it is added to; −1 for all of it.</param>
internal readonly record struct ChunkTask(ChunkWork Work, int Chain, int Chunk, int Slot, int Piece = -1);

/// <summary>
/// Chunks of chains that are too few for each thread to have its own. A thread takes a chunk through all its stages where it can. While the state has to wait for the chunk before, it begins
/// another, and where enough of them wait it does what others have begun. So one that is slow, or is taken away for a while, holds up the others by no more than the chunk that it has.
/// </summary>
internal sealed class ChunkRelay
{
    /// <summary>The most chunks that a thread keeps.</summary>
    public const int MaxSlots = 4;

    /// <summary>Chunks that a thread keeps before it helps others.</summary>
    private const int Enough = 2;

    // Monitor's: a Lock has nothing to wait for.
    private readonly object _gate = new();
    private Slot[] _slots = [];
    private Chain[] _chains = [];
    private int[] _next = [];
    private int[] _homes = [];
    private int _chainCount;
    private int _slotCount;
    private int _slotsOfThread;
    private int _pieces;
    private bool _hasScales;
    private bool _hasBehind;
    private long _unfinished;
    private int _working;
    private bool _isStopped;

    private enum Stage
    {
        Free,
        Projecting,
        Projected,
        Ahead,
        Waiting,
        Added,
        Behind,
    }

    /// <summary>Begins with no chain.</summary>
    /// <param name="threads">The most threads that take part.</param>
    /// <param name="slotsOfThread">The most chunks that each keeps.</param>
    /// <param name="chains">The most chains.</param>
    /// <param name="pieces">Pieces of a state, to each of which one chunk is added after the other.</param>
    /// <param name="hasScales">True when chunks have scales that follow from those of the chunks before. Then each is projected, and has a turn to find its scale when those before it have ended theirs.</param>
    /// <param name="hasBehind">False when chunks are done with when they were added.</param>
    public void Start(int threads, int slotsOfThread, int chains, int pieces, bool hasScales, bool hasBehind)
    {
        (_slotCount, _slotsOfThread, _pieces, _hasScales, _hasBehind) = (threads * slotsOfThread, slotsOfThread, pieces, hasScales, hasBehind);
        (_chainCount, _unfinished, _working, _isStopped) = (0, 0, 0, false);
        Provide(ref _slots, _slotCount);
        Provide(ref _chains, chains);
        Provide(ref _next, chains * pieces);
        Provide(ref _homes, threads);
        Array.Fill(_homes, -1);
    }

    /// <summary>Adds a chain of so many chunks.</summary>
    public void Add(int chunks)
    {
        _chains[_chainCount++] = new Chain { Chunks = chunks, CutFrom = int.MaxValue };
        _unfinished += chunks;
    }

    /// <summary>The next work of a thread, which may have to be waited for. False when no more will come: those who work on the other chunks will end them.</summary>
    public bool TryTake(int thread, out ChunkTask task)
    {
        lock (_gate)
        {
            while (!TryFind(thread, out task) || _isStopped)
            {
                if (_isStopped || _unfinished <= _working)
                {
                    return false;
                }

                Monitor.Wait(_gate);
            }

            _working++;
            Begin(task);
            return true;
        }
    }

    /// <summary>Gives work back that is done.</summary>
    /// <param name="task">The work.</param>
    /// <param name="isCut">True when what was done ahead of the state has cut the chunk into segments. From there on chunks are added to states as a whole.</param>
    public void Return(in ChunkTask task, bool isCut = false)
    {
        lock (_gate)
        {
            _working--;
            ref Slot slot = ref _slots[task.Slot];
            switch (task.Work)
            {
                case ChunkWork.Project:
                    slot.Stage = Stage.Projected;
                    break;
                case ChunkWork.Ahead:
                    slot.Stage = Stage.Waiting;
                    ref Chain chain = ref _chains[task.Chain];
                    chain.CutFrom = isCut ? Math.Min(chain.CutFrom, task.Chunk) : chain.CutFrom;
                    break;
                case ChunkWork.InTurn:
                    (int first, int end) = PiecesOf(task);
                    for (int piece = first; piece < end; piece++)
                    {
                        Next(task.Chain, piece) = task.Chunk + 1;
                    }

                    slot.Pieces += end - first;
                    slot.Stage = slot.Pieces < _pieces ? Stage.Waiting : Stage.Added;
                    break;
            }

            if (task.Work == ChunkWork.Behind || (slot.Stage == Stage.Added && !_hasBehind))
            {
                slot.Stage = Stage.Free;
                _unfinished--;
            }

            Monitor.PulseAll(_gate);
        }
    }

    /// <summary>Ends the turn that a chunk has from when it is taken ahead of the state: its scale is known.</summary>
    public void EndTurn(int chain)
    {
        lock (_gate)
        {
            _chains[chain].Turn++;
            Monitor.PulseAll(_gate);
        }
    }

    /// <summary>Hands out no more: something failed.</summary>
    public void Stop()
    {
        lock (_gate)
        {
            _isStopped = true;
            Monitor.PulseAll(_gate);
        }
    }

    private static void Provide<T>(ref T[] array, int length)
    {
        if (array.Length < length)
        {
            array = new T[length];
        }

        Array.Clear(array);
    }

    /// <summary>The chunk that is added next to a piece of a chain's state; its complement while it is.</summary>
    private ref int Next(int chain, int piece) => ref _next[(chain * _pieces) + piece];

    private (int First, int End) PiecesOf(in ChunkTask task) => task.Piece < 0 ? (0, _pieces) : (task.Piece, task.Piece + 1);

    private void Begin(in ChunkTask task)
    {
        ref Slot slot = ref _slots[task.Slot];
        switch (task.Work)
        {
            case ChunkWork.Ahead when slot.Stage == Stage.Projected:
                slot.Stage = Stage.Ahead;
                break;
            case ChunkWork.Project or ChunkWork.Ahead:
                slot = new Slot { Chain = task.Chain, Chunk = task.Chunk, Stage = _hasScales ? Stage.Projecting : Stage.Ahead };
                _chains[task.Chain].Begun++;
                break;
            case ChunkWork.InTurn:
                (int first, int end) = PiecesOf(task);
                for (int piece = first; piece < end; piece++)
                {
                    Next(task.Chain, piece) = ~task.Chunk;
                }

                break;
            case ChunkWork.Behind:
                slot.Stage = Stage.Behind;
                break;
        }
    }

    private bool TryFind(int thread, out ChunkTask task)
    {
        int first = thread * _slotsOfThread;
        int end = first + _slotsOfThread;
        int kept = 0;
        for (int slot = first; slot < end; slot++)
        {
            kept += _slots[slot].Stage == Stage.Free ? 0 : 1;
        }

        return TryScale(first, end, out task) || TryAdd(first, end, out task) || TryFinish(first, end, out task) ||
            (kept < Enough && TryBegin(thread, first, end, out task)) ||
            TryScale(0, _slotCount, out task) || TryAdd(0, _slotCount, out task) || TryFinish(0, _slotCount, out task) ||
            TryBegin(thread, first, end, out task);
    }

    private bool TryScale(int first, int end, out ChunkTask task)
    {
        for (int slot = first; slot < end && _hasScales; slot++)
        {
            if (_slots[slot].Stage == Stage.Projected && _slots[slot].Chunk == _chains[_slots[slot].Chain].Turn)
            {
                task = new ChunkTask(ChunkWork.Ahead, _slots[slot].Chain, _slots[slot].Chunk, slot);
                return true;
            }
        }

        task = default;
        return false;
    }

    private bool TryFinish(int first, int end, out ChunkTask task)
    {
        for (int slot = first; slot < end; slot++)
        {
            if (_slots[slot].Stage == Stage.Added)
            {
                task = new ChunkTask(ChunkWork.Behind, _slots[slot].Chain, _slots[slot].Chunk, slot);
                return true;
            }
        }

        task = default;
        return false;
    }

    private bool TryAdd(int first, int end, out ChunkTask task)
    {
        for (int slot = first; slot < end; slot++)
        {
            (int chain, int chunk) = (_slots[slot].Chain, _slots[slot].Chunk);
            if (_slots[slot].Stage == Stage.Waiting && FindPiece(chain, chunk) is int piece)
            {
                task = new ChunkTask(ChunkWork.InTurn, chain, chunk, slot, piece);
                return true;
            }
        }

        task = default;
        return false;
    }

    /// <summary>The first piece of a chain's state that a chunk may be added to, or −1 for all of them where it is added to the whole.</summary>
    private int? FindPiece(int chain, int chunk)
    {
        bool isWhole = _pieces == 1 || chunk >= _chains[chain].CutFrom;
        for (int piece = 0; piece < _pieces; piece++)
        {
            bool isNext = Next(chain, piece) == chunk;
            if (isNext != isWhole)
            {
                return isWhole ? null : piece;
            }
        }

        return isWhole ? -1 : null;
    }

    /// <summary>The next chunk of the chain that the thread is at, or of the one that has most left for each who is at it.</summary>
    private bool TryBegin(int thread, int first, int end, out ChunkTask task)
    {
        task = default;
        int slot = first;
        while (slot < end && _slots[slot].Stage != Stage.Free)
        {
            slot++;
        }

        ref int home = ref _homes[thread];
        if (slot == end)
        {
            return false;
        }

        if (home >= 0 && _chains[home].Left == 0)
        {
            _chains[home].Threads--;
            home = -1;
        }

        if (home < 0)
        {
            for (int chain = 0; chain < _chainCount; chain++)
            {
                // a / b > c / d, without quotients.
                if (_chains[chain].Left > 0 && (home < 0 || (long)_chains[chain].Left * (_chains[home].Threads + 1) > (long)_chains[home].Left * (_chains[chain].Threads + 1)))
                {
                    home = chain;
                }
            }

            if (home < 0)
            {
                return false;
            }

            _chains[home].Threads++;
        }

        task = new ChunkTask(_hasScales ? ChunkWork.Project : ChunkWork.Ahead, home, _chains[home].Begun, slot);
        return true;
    }

    private struct Slot
    {
        public int Chain;
        public int Chunk;
        public int Pieces;
        public Stage Stage;
    }

    private struct Chain
    {
        public int Chunks;
        public int Begun;
        public int Turn;
        public int CutFrom;
        public int Threads;

        public readonly int Left => Chunks - Begun;
    }
}
