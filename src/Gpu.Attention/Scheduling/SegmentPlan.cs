namespace Gpu.Attention;

/// <summary>
/// How a problem is cut into segments that fit a device: a pure function of the problem, of what the engine says that it needs, and of a number of
/// bytes.
/// </summary>
/// <remarks>
/// <para>The batch is cut first; then the tokens, at the engine's <see cref="IAttentionEngine.SegmentMultiple"/>, with the state handed on; then the
/// key heads. Exact attention is cut by sequences and heads only, since its queries need all keys. No cut changes a bit of the result.</para>
/// <para>Where possible two segments' tensors fit at once, so that one comes and one goes while one is computed.</para>
/// </remarks>
internal sealed class SegmentPlan
{
    private readonly AttentionProblem _problem;
    private readonly SegmentSize _size;

    private SegmentPlan(AttentionProblem problem, SegmentSize size, int slots, long workspaceBytes)
    {
        (_problem, _size, Slots) = (problem, size, slots);
        Layout = new SegmentLayout(problem, size, slots, workspaceBytes);
        Segments = [.. Groups()];
    }

    /// <summary>The segments, in the order in which they run.</summary>
    public Segment[] Segments { get; }

    /// <summary>Segments whose tensors the device holds at once.</summary>
    public int Slots { get; }

    /// <summary>Where everything lies on the device.</summary>
    public SegmentLayout Layout { get; }

    /// <summary>The plan with the fewest cuts that fits.</summary>
    /// <param name="problem">A problem that the engine supports.</param>
    /// <param name="engine">Says what it needs.</param>
    /// <param name="budget">Bytes on the device.</param>
    /// <param name="smallest">What the smallest plan takes.</param>
    /// <returns>Null when nothing fits.</returns>
    public static SegmentPlan? Find(AttentionProblem problem, IAttentionEngine engine, long budget, out long smallest)
    {
        AttentionShape shape = problem.Shape;
        var whole = new SegmentSize(shape.Batch, shape.KeyHeads, shape.QueryLength, shape.KeyLength);
        smallest = 0;
        foreach (bool isRoomy in new[] { true, false })
        {
            if (Fits(whole, 1))
            {
                return Plan(whole, 1);
            }

            foreach (int slots in new[] { 2, 1 })
            {
                if (Largest(1, shape.Batch - 1, n => Fits(whole with { Sequences = n }, slots)) is int sequences)
                {
                    return Plan(whole with { Sequences = sequences }, slots);
                }

                SegmentSize one = whole with { Sequences = Math.Min(1, shape.Batch) };
                if (problem.Features is not null)
                {
                    int multiple = engine.SegmentMultiple;
                    int pieces = (Math.Max(shape.QueryLength, shape.KeyLength) - 1) / multiple;
                    if (Largest(1, pieces, n => Fits(one.WithTokens(n * multiple), slots)) is int cut)
                    {
                        return Plan(one.WithTokens(cut * multiple), slots);
                    }

                    one = one.WithTokens(multiple);
                }

                if (Largest(1, shape.KeyHeads, n => Fits(one with { KeyHeads = n }, slots)) is int heads)
                {
                    return Plan(one with { KeyHeads = heads }, slots);
                }

                smallest = Lay(one with { KeyHeads = 1 }, slots).TotalBytes;
            }

            bool Fits(SegmentSize size, int slots) => Lay(size, slots).TotalBytes <= budget;

            SegmentLayout Lay(SegmentSize size, int slots) => new(problem, size, slots, Workspace(size));

            SegmentPlan Plan(SegmentSize size, int slots) => new(problem, size, slots, Workspace(size));

            long Workspace(SegmentSize size)
            {
                AttentionProblem part = size.Of(problem);
                return isRoomy ? engine.WorkspaceBytes(part) : engine.MinimumWorkspaceBytes(part);
            }
        }

        return null;
    }

    /// <inheritdoc/>
    public override string ToString() =>
        $"{Segments.Length} segments of up to {_size.Sequences} sequences, {_size.KeyHeads} key heads, {Math.Max(_size.Queries, _size.Keys)} tokens; {Layout.TotalBytes} bytes";

    /// <summary>The largest number for which a condition holds that, once false, stays so.</summary>
    private static int? Largest(int low, int high, Predicate<int> holds)
    {
        if (high < low || !holds(low))
        {
            return null;
        }

        while (low < high)
        {
            int middle = (int)(((long)low + high + 1) / 2);
            (low, high) = holds(middle) ? (middle, high) : (low, middle - 1);
        }

        return low;
    }

    private static IEnumerable<(int First, int Count)> Pieces(int length, int size)
    {
        // Beyond the last piece may be beyond 32 bits.
        for (long first = 0; first < length; first += size)
        {
            yield return ((int)first, (int)Math.Min(size, length - first));
        }
    }

    private IEnumerable<Segment> Groups()
    {
        AttentionShape shape = _problem.Shape;
        int group = 0;
        foreach ((int firstSequence, int sequences) in Pieces(shape.Batch, _size.Sequences))
        {
            foreach ((int firstHead, int heads) in Pieces(shape.KeyHeads, _size.KeyHeads))
            {
                SegmentSize size = _size with { Sequences = sequences, KeyHeads = heads };
                Segment[] segments = [.. SegmentLayout.IsCut(_problem, _size) ? Tokens(size) : [Whole(size)]];
                foreach (Segment segment in segments)
                {
                    yield return segment with { Group = group, FirstSequence = firstSequence, FirstKeyHead = firstHead };
                }

                group++;
            }
        }
    }

    private StateEdge Initial => _problem.HasInitialState ? StateEdge.Caller : StateEdge.None;

    private StateEdge Final => _problem.WantsFinalState ? StateEdge.Caller : StateEdge.None;

    private Segment Whole(SegmentSize size) => Part(size, 0, 0, Initial, Final);

    private IEnumerable<Segment> Tokens(SegmentSize size)
    {
        AttentionShape shape = _problem.Shape;
        StateEdge before = Initial;
        if (_problem.Causal)
        {
            foreach ((int first, int count) in Pieces(shape.KeyLength, size.Keys))
            {
                bool isLast = first + count == shape.KeyLength;
                yield return Part(size with { Queries = count, Keys = count }, first, first, before, isLast ? Final : StateEdge.Neighbor);
                before = StateEdge.Neighbor;
            }

            yield break;
        }

        // With no keys at all, a caller's state still goes up once and not for every piece of the queries.
        IEnumerable<(int First, int Count)> keys = shape.KeyLength == 0 && before == StateEdge.Caller ? [(0, 0)] : Pieces(shape.KeyLength, size.Keys);
        foreach ((int first, int count) in keys)
        {
            yield return Part(size with { Queries = 0, Keys = count }, 0, first, before, StateEdge.Neighbor);
            before = StateEdge.Neighbor;
        }

        foreach ((int first, int count) in Pieces(shape.QueryLength, size.Queries))
        {
            yield return Part(size with { Queries = count, Keys = 0 }, first, 0, before, StateEdge.None);
        }

        // Queries read the state at the scale that it was made at, as they do in one piece; the caller's copy is scaled at last.
        if (_problem.WantsFinalState)
        {
            yield return Part(size with { Queries = 0, Keys = 0 }, 0, 0, before, StateEdge.Caller);
        }
    }

    private Segment Part(SegmentSize size, int firstQuery, int firstKey, StateEdge before, StateEdge after) => new(
        size.Of(_problem) with { HasInitialState = before != StateEdge.None, WantsFinalState = after != StateEdge.None },
        0, 0, 0, firstQuery, firstKey, before, after);
}
