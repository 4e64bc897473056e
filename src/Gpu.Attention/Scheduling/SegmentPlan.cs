namespace Gpu.Attention;

/// <summary>
/// How a problem is cut into segments that fit a device: a pure function of the problem, of what the engine says that it needs, and of a number of
/// bytes.
/// </summary>
/// <remarks>
/// <para>The batch is cut first; then the tokens, at the engine's <see cref="IAttentionEngine.SegmentMultiple"/>, with the state handed on; then the
/// key heads. Exact attention is cut by sequences and heads only, since its queries need all keys, and so is a problem with a layout: its sequences are
/// taken in groups of about as many tokens. No cut changes a bit of the result.</para>
/// <para>A backward pass is cut by sequences and heads only: what a sequence's keys are asked for comes from its last queries first.</para>
/// <para>Where possible two segments' tensors fit at once, so that one comes and one goes while one is computed.</para>
/// </remarks>
internal sealed class SegmentPlan
{
    private readonly AttentionProblem _problem;
    private readonly SegmentSize _size;

    private SegmentPlan(
        AttentionProblem problem, GradientParts? gradients, SegmentSize size, int slots, long workspaceBytes, IEnumerable<SequenceGroup> groups)
    {
        (_problem, _size, Slots, Gradients) = (problem, size, slots, gradients);
        Layout = new SegmentLayout(problem, size, slots, workspaceBytes, gradients);
        Segments = [.. Cut(groups)];
    }

    /// <summary>The segments, in the order in which they run.</summary>
    public Segment[] Segments { get; }

    /// <summary>Segments whose tensors the device holds at once.</summary>
    public int Slots { get; }

    /// <summary>The gradients of a backward pass; null for a forward one.</summary>
    public GradientParts? Gradients { get; }

    /// <summary>Where everything lies on the device.</summary>
    public SegmentLayout Layout { get; }

    /// <summary>The plan with the fewest cuts that fits.</summary>
    /// <param name="problem">A problem that the engine supports.</param>
    /// <param name="engine">Says what it needs.</param>
    /// <param name="budget">Bytes on the device.</param>
    /// <param name="smallest">What the smallest plan takes.</param>
    /// <param name="gradients">The gradients of a backward pass; null for a forward one.</param>
    /// <returns>Null when nothing fits.</returns>
    public static SegmentPlan? Find(
        AttentionProblem problem, IAttentionEngine engine, long budget, out long smallest, GradientParts? gradients = null) =>
        problem.Layout is null
            ? FindCut(problem, gradients, engine, budget, out smallest)
            : FindGroups(problem, gradients, problem.Layout, engine, budget, out smallest);

    /// <inheritdoc/>
    public override string ToString() =>
        $"{Segments.Length} segments of up to {_size.Sequences} sequences, {_size.KeyHeads} key heads, {Math.Max(_size.Queries, _size.Keys)} tokens; {Layout.TotalBytes} bytes";

    private static SegmentPlan? FindCut(AttentionProblem problem, GradientParts? gradients, IAttentionEngine engine, long budget, out long smallest)
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
                if (problem.Features is not null && gradients is null)
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

            SegmentLayout Lay(SegmentSize size, int slots) => new(problem, size, slots, Workspace(size), gradients);

            SegmentPlan Plan(SegmentSize size, int slots) => new(
                problem, gradients, size, slots, Workspace(size), Pieces(shape.Batch, size.Sequences).Select(piece => new SequenceGroup(piece.First, piece.Count, null)));

            long Workspace(SegmentSize size) => WorkspaceBytes(size.Of(problem), gradients, engine, isRoomy);
        }

        return null;
    }

    private static SegmentPlan? FindGroups(
        AttentionProblem problem, GradientParts? gradients, SequenceLayout layout, IAttentionEngine engine, long budget, out long smallest)
    {
        int keyHeads = problem.Shape.KeyHeads;
        long tokens = Enumerable.Range(0, layout.Sequences).Sum(n => QueriesOf(problem, layout, n) + KeysOf(problem, layout, n));
        SequenceGroup[] whole = layout.Sequences == 0 ? [] : [new SequenceGroup(0, layout.Sequences, layout)];
        smallest = 0;
        foreach (bool isRoomy in new[] { true, false })
        {
            if (PlanIfFits(whole, keyHeads, 1) is { } plan)
            {
                return plan;
            }

            foreach (int slots in new[] { 2, 1 })
            {
                // Every try makes the plans of all groups: halves are near enough.
                for (long most = tokens / 2; most > 0; most /= 2)
                {
                    SequenceGroup[] groups = Groups(problem, layout, most);
                    if (PlanIfFits(groups, keyHeads, slots) is { } found)
                    {
                        return found;
                    }
                }

                SequenceGroup[] single = Groups(problem, layout, 0);
                if (Largest(1, keyHeads, n => Fits(single, n, slots)) is int heads)
                {
                    return PlanIfFits(single, heads, slots);
                }

                smallest = Lay(single, 1, slots).TotalBytes;
            }

            SegmentPlan? PlanIfFits(SequenceGroup[] groups, int heads, int slots) => Fits(groups, heads, slots)
                ? new SegmentPlan(problem, gradients, SizeOf(groups, heads), slots, Workspace(groups, heads), groups)
                : null;

            // What the tensors alone are too large for needs no plan of the engine's.
            bool Fits(SequenceGroup[] groups, int heads, int slots) =>
                new SegmentLayout(problem, SizeOf(groups, heads), slots, 0, gradients).TotalBytes <= budget && Lay(groups, heads, slots).TotalBytes <= budget;

            SegmentLayout Lay(SequenceGroup[] groups, int heads, int slots) => new(problem, SizeOf(groups, heads), slots, Workspace(groups, heads), gradients);

            long Workspace(SequenceGroup[] groups, int heads) =>
                groups.Select(group => WorkspaceBytes(Part(problem, group, heads), gradients, engine, isRoomy)).DefaultIfEmpty(0).Max();
        }

        return null;

        SegmentSize SizeOf(SequenceGroup[] groups, int heads) => new(
            groups.Select(group => group.Count).DefaultIfEmpty(0).Max(), heads,
            groups.Select(group => Enumerable.Range(group.First, group.Count).Sum(n => QueriesOf(problem, layout, n))).DefaultIfEmpty(0).Max(),
            groups.Select(group => Enumerable.Range(group.First, group.Count).Sum(n => KeysOf(problem, layout, n))).DefaultIfEmpty(0).Max());
    }

    private static long WorkspaceBytes(AttentionProblem part, GradientParts? gradients, IAttentionEngine engine, bool isRoomy) =>
        gradients is null
            ? isRoomy ? engine.WorkspaceBytes(part) : engine.MinimumWorkspaceBytes(part)
            : isRoomy ? engine.BackwardWorkspaceBytes(part) : engine.MinimumBackwardWorkspaceBytes(part);

    /// <summary>Queries of a sequence.</summary>
    private static long QueriesOf(AttentionProblem problem, SequenceLayout layout, int sequence) =>
        layout.Queries(sequence, problem.Shape.QueryLength).Count;

    /// <summary>Keys of a sequence, as they are copied: those that take no part too.</summary>
    private static long KeysOf(AttentionProblem problem, SequenceLayout layout, int sequence) =>
        problem.Shape.KeyLength > 0 ? layout.Keys(sequence).Count : 0;

    /// <summary>Neighbouring sequences in groups of at most so many tokens, or a sequence where one alone has more.</summary>
    private static SequenceGroup[] Groups(AttentionProblem problem, SequenceLayout layout, long tokens)
    {
        var groups = new List<SequenceGroup>();
        int first = 0;
        long taken = 0;
        for (int sequence = 0; sequence < layout.Sequences; sequence++)
        {
            long more = QueriesOf(problem, layout, sequence) + KeysOf(problem, layout, sequence);
            if (sequence > first && taken + more > tokens)
            {
                Add(sequence);
            }

            taken += more;
        }

        if (first < layout.Sequences)
        {
            Add(layout.Sequences);
        }

        return [.. groups];

        void Add(int end)
        {
            groups.Add(new SequenceGroup(first, end - first, layout.Slice(first, end - first)));
            (first, taken) = (end, 0);
        }
    }

    /// <summary>A group of a layout's sequences as a problem.</summary>
    private static AttentionProblem Part(AttentionProblem problem, SequenceGroup group, int heads)
    {
        AttentionShape s = problem.Shape;
        SequenceLayout layout = group.Layout!;
        int queries = s.QueryLength == 0 ? 0 : layout.QueryLength ?? s.QueryLength;
        int keys = s.KeyLength == 0 ? 0 : layout.KeyLength;
        return problem with
        {
            Shape = new AttentionShape(layout.Batch, queries, keys, heads * s.HeadGroup, heads, s.KeyDimension, s.ValueDimension),
            Layout = layout,
        };
    }

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

    private IEnumerable<Segment> Cut(IEnumerable<SequenceGroup> groups)
    {
        int number = 0;
        foreach (SequenceGroup group in groups)
        {
            foreach ((int firstHead, int heads) in Pieces(_problem.Shape.KeyHeads, _size.KeyHeads))
            {
                SegmentSize size = _size with { Sequences = group.Count, KeyHeads = heads };
                Segment[] segments = [.. group.Layout is not null ? [Whole(group, heads)] : SegmentLayout.IsCut(_problem, _size) ? Tokens(size) : [Whole(size)]];
                foreach (Segment segment in segments)
                {
                    yield return segment with
                    {
                        Group = number,
                        FirstSequence = group.First,
                        FirstRow = group.Layout is { IsPacked: true } ? 0 : group.First,
                        FirstKeyHead = firstHead,
                    };
                }

                number++;
            }
        }
    }

    private StateEdge Initial => _problem.HasInitialState ? StateEdge.Caller : StateEdge.None;

    private StateEdge Final => _problem.WantsFinalState ? StateEdge.Caller : StateEdge.None;

    private Segment Whole(SegmentSize size) => Part(size, 0, 0, Initial, Final);

    private Segment Whole(SequenceGroup group, int heads)
    {
        SequenceLayout layout = _problem.Layout!;
        return new Segment(
            Part(_problem, group, heads), 0, 0, 0, 0, layout.Queries(group.First, _problem.Shape.QueryLength).First,
            _problem.Shape.KeyLength == 0 ? 0 : layout.Keys(group.First).First, Initial, Final);
    }

    private IEnumerable<Segment> Tokens(SegmentSize size)
    {
        AttentionShape shape = _problem.Shape;
        StateEdge before = Initial;
        if (_problem.Causal)
        {
            foreach ((int first, int count) in Pieces(shape.KeyLength, (int)size.Keys))
            {
                bool isLast = first + count == shape.KeyLength;
                yield return Part(size with { Queries = count, Keys = count }, first, first, before, isLast ? Final : StateEdge.Neighbor);
                before = StateEdge.Neighbor;
            }

            yield break;
        }

        // With no keys at all, a caller's state still goes up once and not for every piece of the queries.
        IEnumerable<(int First, int Count)> keys = shape.KeyLength == 0 && before == StateEdge.Caller ? [(0, 0)] : Pieces(shape.KeyLength, (int)size.Keys);
        foreach ((int first, int count) in keys)
        {
            yield return Part(size with { Queries = 0, Keys = count }, 0, first, before, StateEdge.Neighbor);
            before = StateEdge.Neighbor;
        }

        foreach ((int first, int count) in Pieces(shape.QueryLength, (int)size.Queries))
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
        0, 0, 0, 0, firstQuery, firstKey, before, after);

    /// <summary>Sequences that are taken together.</summary>
    /// <param name="First">The first one.</param>
    /// <param name="Count">How many.</param>
    /// <param name="Layout">Their own layout, where the problem has one.</param>
    private readonly record struct SequenceGroup(int First, int Count, SequenceLayout? Layout);
}
