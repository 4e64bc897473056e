namespace Gpu.Attention;

/// <summary>
/// Chains that threads take a stretch at a time: whoever is free takes those that are furthest behind. All end at about the same time then, also where one core is slower than another, or is
/// taken away for a while; where each thread has chains to itself, the others wait for the slowest.
/// </summary>
internal sealed class ChainRelay
{
    /// <summary>Groups a thread from which on threads are as even with whole chains.</summary>
    private const int Many = 8;

    /// <summary>The most chains: all are looked at for each stretch.</summary>
    private const int MaxChains = 256;

    // Monitor's: a Lock has nothing to wait for.
    private readonly object _gate = new();
    private readonly int[] _next = new int[MaxChains];
    private readonly bool[] _isTaken = new bool[MaxChains];
    private int _chains;
    private int _together;
    private int _degree;
    private int _stretches;
    private int _holders;
    private bool _isStopped;

    /// <summary>True when chains, of which threads take so many together where they can, are worth it.</summary>
    public static bool Suits(long chains, int together, int degree) => degree > 1 && chains > degree && chains <= MaxChains && chains / together < (long)Many * degree;

    /// <summary>Begins with chains of so many stretches each. Chains that threads take together have numbers from a multiple of <paramref name="together"/> on, a power of two.</summary>
    public void Start(int chains, int together, int degree, int stretches)
    {
        (_chains, _together, _degree, _stretches, _holders, _isStopped) = (chains, together, degree, stretches, 0, false);
        Array.Clear(_next);
        Array.Clear(_isTaken);
    }

    /// <summary>The next stretch of chains that nobody works on, which may have to be waited for. False when no more will come: those who work on the others will end them.</summary>
    public bool TryTake(out int first, out int count, out int stretch)
    {
        lock (_gate)
        {
            (first, count) = (-1, 0);
            while ((stretch = LeastFree()) == _stretches || _isStopped)
            {
                // Whoever has several leaves a share of them when that stretch is done.
                if (_isStopped || Unfinished() <= _holders)
                {
                    return false;
                }

                Monitor.Wait(_gate);
            }

            int behind = 0;
            for (int i = 0; i < _chains; i++)
            {
                behind += _next[i] <= stretch + 1 && (_isTaken[i] || _next[i] < _stretches) ? 1 : 0;
            }

            // Those who have the others, far ahead, will come for a share.
            for (count = _together; count > 1 && count * _degree > behind;)
            {
                count /= 2;
            }

            while ((first = Find(count, stretch)) < 0)
            {
                count /= 2;
            }

            _holders++;
            for (int i = first; i < first + count; i++)
            {
                _isTaken[i] = true;
                _next[i]++;
            }

            return true;
        }
    }

    /// <summary>Gives chains back when their stretch is done.</summary>
    public void Return(int first, int count)
    {
        lock (_gate)
        {
            _holders--;
            Array.Clear(_isTaken, first, count);
            Monitor.PulseAll(_gate);
        }
    }

    /// <summary>Hands out no more: a stretch failed.</summary>
    public void Stop()
    {
        lock (_gate)
        {
            _isStopped = true;
            Monitor.PulseAll(_gate);
        }
    }

    /// <summary>The stretch that the chains nobody works on are at, of those furthest behind.</summary>
    private int LeastFree()
    {
        int least = _stretches;
        for (int i = 0; i < _chains; i++)
        {
            least = _isTaken[i] ? least : Math.Min(least, _next[i]);
        }

        return least;
    }

    /// <summary>Chains that somebody works on, and not for the last time.</summary>
    private int Unfinished()
    {
        int unfinished = 0;
        for (int i = 0; i < _chains; i++)
        {
            unfinished += _isTaken[i] && _next[i] < _stretches ? 1 : 0;
        }

        return unfinished;
    }

    /// <summary>So many chains side by side that are all free and at a stretch, or −1.</summary>
    private int Find(int count, int stretch)
    {
        for (int first = 0; first < _chains; first += count)
        {
            int i = first;
            while (i < first + count && !_isTaken[i] && _next[i] == stretch)
            {
                i++;
            }

            if (i == first + count)
            {
                return first;
            }
        }

        return -1;
    }
}
