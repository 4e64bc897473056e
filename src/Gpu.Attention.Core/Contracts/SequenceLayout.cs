using System.Numerics.Tensors;

namespace Gpu.Attention;

/// <summary>Where the padding of a sequence stands that is shorter than its tensor.</summary>
public enum PaddingSide
{
    /// <summary>After the sequence.</summary>
    Right,

    /// <summary>Before the sequence.</summary>
    Left,
}

/// <summary>
/// Which tokens of a batch's tensors belong to which sequence, and which keys take part: sequences of different lengths, padded or packed one after
/// the other, and masks with holes.
/// </summary>
/// <remarks>
/// <para>A layout is made once and used for every call that has it, all layers of a model included; what engines derive from it is kept in it.</para>
/// <para>A key that takes no part is not read: it reaches neither a sum nor a normaliser nor a maximum, and may be NaN, as may its value. The other rows have, bit for
/// bit, the results that they would have in a tensor without it. Where a row sees no key its output is 0.</para>
/// </remarks>
public sealed class SequenceLayout
{
    // Plans that are kept: a direction or two, for the engines that a program uses.
    private const int MaxPlans = 8;

    private readonly int[]? _firstQuery;
    private readonly int[] _firstKey;
    private readonly int[] _keyTokens;
    private readonly int[] _keyPlaces;
    private readonly Lock _lock = new();
    private readonly List<SequencePlan> _plans = [];

    private SequenceLayout(int batch, int keyLength, int[]? firstQuery, int[] keyPlaces, int[] firstKey, int[] keyTokens)
    {
        (Batch, KeyLength, _firstQuery, _keyPlaces, _firstKey, _keyTokens) = (batch, keyLength, firstQuery, keyPlaces, firstKey, keyTokens);
    }

    /// <summary>N, the number of sequences, each with a state of its own.</summary>
    public int Sequences => _firstKey.Length - 1;

    /// <summary>True when sequences stand one after the other in tensors of batch 1; false when each has its own row of the batch.</summary>
    public bool IsPacked => _firstQuery is not null;

    /// <summary>B, the batch of the tensors.</summary>
    public int Batch { get; }

    /// <summary>S, keys in a row of the batch: when packed, of all sequences together.</summary>
    public int KeyLength { get; }

    /// <summary>T, queries of all sequences together, when packed; else the layout takes any number of queries.</summary>
    public int? QueryLength => _firstQuery?[^1];

    /// <summary>Keys that take part, over all sequences.</summary>
    public int VisibleKeys => _keyTokens.Length;

    /// <summary>True when every key of every row takes part.</summary>
    internal bool IsWhole { get; private set; }

    /// <summary>A padded batch: a mask over keys.</summary>
    /// <param name="keyMask"><c>[B, S]</c>, true where a key takes part.</param>
    /// <exception cref="ArgumentException">The rank is not 2, a size is too large, or the mask is not dense.</exception>
    public static SequenceLayout FromKeyMask(in ReadOnlyTensorSpan<bool> keyMask)
    {
        if (keyMask.Rank != 2 || keyMask.Lengths[0] > int.MaxValue || keyMask.Lengths[1] > int.MaxValue)
        {
            throw new ArgumentException($"keyMask [{string.Join(", ", keyMask.Lengths.ToArray())}] is not [B, S].", nameof(keyMask));
        }

        if (keyMask.FlattenedLength > Array.MaxLength)
        {
            throw new ArgumentException($"keyMask has {keyMask.FlattenedLength} elements, more than {Array.MaxLength}.", nameof(keyMask));
        }

        bool[] flat = new bool[keyMask.FlattenedLength];
        keyMask.FlattenTo(flat);
        return FromKeyMask((int)keyMask.Lengths[0], (int)keyMask.Lengths[1], flat);
    }

    /// <summary>A padded batch: a mask over keys, in flat memory.</summary>
    /// <param name="batch">B.</param>
    /// <param name="keyLength">S.</param>
    /// <param name="keyMask"><c>B·S</c> elements, true where a key takes part.</param>
    /// <exception cref="ArgumentException">The mask has another number of elements, or a size is negative.</exception>
    public static SequenceLayout FromKeyMask(int batch, int keyLength, ReadOnlySpan<bool> keyMask)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(batch);
        ArgumentOutOfRangeException.ThrowIfNegative(keyLength);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(batch, Array.MaxLength);
        if (keyMask.Length != (long)batch * keyLength)
        {
            throw new ArgumentException($"keyMask has {keyMask.Length} elements where [{batch}, {keyLength}] has {(long)batch * keyLength}.", nameof(keyMask));
        }

        int[] firstKey = new int[batch + 1];
        int[] tokens = new int[keyMask.Count(true)];
        int next = 0;
        for (int sequence = 0; sequence < batch; sequence++)
        {
            ReadOnlySpan<bool> row = keyMask.Slice(sequence * keyLength, keyLength);
            for (int token = 0; token < keyLength; token++)
            {
                if (row[token])
                {
                    tokens[next++] = token;
                }
            }

            firstKey[sequence + 1] = next;
        }

        return new SequenceLayout(batch, keyLength, null, new int[batch + 1], firstKey, tokens);
    }

    /// <summary>A padded batch: how many keys of each row take part.</summary>
    /// <param name="keyLengths">For each of the B sequences its length, from 0 to <paramref name="keyLength"/>.</param>
    /// <param name="keyLength">S, the padded length.</param>
    /// <param name="padding">Where the padding stands.</param>
    /// <exception cref="ArgumentException">A length is negative or beyond S, there are more than 2³¹ keys, or the padding is on no side.</exception>
    public static SequenceLayout FromKeyLengths(ReadOnlySpan<int> keyLengths, int keyLength, PaddingSide padding = PaddingSide.Right)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(keyLength);
        if (!Enum.IsDefined(padding))
        {
            throw new ArgumentException($"Padding {padding} is on no side.", nameof(padding));
        }

        int[] firstKey = new int[keyLengths.Length + 1];
        for (int sequence = 0; sequence < keyLengths.Length; sequence++)
        {
            int length = keyLengths[sequence];
            if (length < 0 || length > keyLength)
            {
                throw new ArgumentException($"keyLengths[{sequence}] is {length}; a length is from 0 to S = {keyLength}.", nameof(keyLengths));
            }

            firstKey[sequence + 1] = Total(firstKey[sequence], length, nameof(keyLengths));
        }

        int[] tokens = new int[firstKey[^1]];
        for (int sequence = 0; sequence < keyLengths.Length; sequence++)
        {
            int skipped = padding == PaddingSide.Left ? keyLength - keyLengths[sequence] : 0;
            Count(tokens.AsSpan(firstKey[sequence], keyLengths[sequence]), skipped);
        }

        return new SequenceLayout(keyLengths.Length, keyLength, null, new int[keyLengths.Length + 1], firstKey, tokens);
    }

    /// <summary>Sequences packed one after the other, each with as many queries as keys.</summary>
    /// <param name="cuSeqlens"><c>N + 1</c> offsets: 0, then where each sequence ends.</param>
    /// <exception cref="ArgumentException">There is no offset, the first is not 0, they fall, or there are more than 2³¹ keys.</exception>
    public static SequenceLayout FromCuSeqlens(ReadOnlySpan<int> cuSeqlens)
    {
        RequireOffsets(cuSeqlens, nameof(cuSeqlens));
        return FromCuSeqlens(cuSeqlens, cuSeqlens);
    }

    /// <summary>Sequences packed one after the other, with queries and keys of their own numbers: attention across pairs of sequences.</summary>
    /// <remarks>Causal attention aligns the ends: the last query of a sequence sees all its keys, as in FlashAttention from 2.1 on.</remarks>
    /// <param name="cuSeqlensQuery"><c>N + 1</c> offsets: 0, then where each sequence's queries end.</param>
    /// <param name="cuSeqlensKey"><c>N + 1</c> offsets: 0, then where each sequence's keys end.</param>
    /// <exception cref="ArgumentException">There is no offset, the first is not 0, they fall, there are not as many of both, or more than 2³¹ tokens.</exception>
    public static SequenceLayout FromCuSeqlens(ReadOnlySpan<int> cuSeqlensQuery, ReadOnlySpan<int> cuSeqlensKey)
    {
        RequireOffsets(cuSeqlensQuery, nameof(cuSeqlensQuery));
        RequireOffsets(cuSeqlensKey, nameof(cuSeqlensKey));
        if (cuSeqlensQuery.Length != cuSeqlensKey.Length)
        {
            throw new ArgumentException(
                $"cuSeqlensKey has {cuSeqlensKey.Length} offsets where cuSeqlensQuery has {cuSeqlensQuery.Length}.", nameof(cuSeqlensKey));
        }

        int[] tokens = new int[cuSeqlensKey[^1]];
        Count(tokens, 0);
        return new SequenceLayout(1, tokens.Length, cuSeqlensQuery.ToArray(), cuSeqlensKey.ToArray(), cuSeqlensKey.ToArray(), tokens);
    }

    /// <inheritdoc/>
    public override string ToString() => IsPacked
        ? $"{Counted(Sequences, "packed sequence")}, {Counted(QueryLength!.Value, "query", "queries")} and {Counted(KeyLength, "key")}"
        : $"{Counted(Sequences, "sequence")} of {Counted(KeyLength, "key")}, {VisibleKeys} of which take part";

    /// <summary>Why tensors of a shape do not have this layout; null when they do. Without queries, or without keys, that side does not matter.</summary>
    /// <param name="shape">The sizes.</param>
    internal string? WhyUnfit(AttentionShape shape)
    {
        bool isKeyed = shape.KeyLength > 0 || shape.QueryLength == 0;
        return shape.Batch != Batch ? $"a layout of {this} is for tensors of batch {Batch}, not {shape}"
            : isKeyed && shape.KeyLength != KeyLength ? $"a layout of {this} does not fit {shape}"
            : shape.QueryLength > 0 && QueryLength is int queries && queries != shape.QueryLength ? $"a layout of {this} does not fit {shape}"
            : null;
    }

    /// <summary>A batch in which every key takes part.</summary>
    internal static SequenceLayout Whole(int batch, int keyLength)
    {
        int[] lengths = new int[batch];
        Array.Fill(lengths, keyLength);
        SequenceLayout layout = FromKeyLengths(lengths, keyLength);
        layout.IsWhole = true;
        return layout;
    }

    /// <summary>Some of the sequences, counted from 0.</summary>
    /// <param name="first">The first.</param>
    /// <param name="count">How many.</param>
    internal SequenceLayout Slice(int first, int count)
    {
        int key = _firstKey[first];
        int place = _keyPlaces[first];
        int[] tokens = _keyTokens[key.._firstKey[first + count]];
        for (int i = 0; i < tokens.Length; i++)
        {
            tokens[i] -= place;
        }

        return new SequenceLayout(
            IsPacked ? 1 : count, IsPacked ? _keyPlaces[first + count] - place : KeyLength, Rebased(_firstQuery, first, count),
            Rebased(_keyPlaces, first, count)!, Rebased(_firstKey, first, count)!, tokens);
    }

    /// <summary>Where the queries of a sequence begin and how many there are; when not packed, in its row of the batch.</summary>
    /// <param name="sequence">Which.</param>
    /// <param name="length">T of the tensors; 0 when there are no queries at all.</param>
    internal (int First, int Count) Queries(int sequence, int length) =>
        _firstQuery is null ? (0, length) : length == 0 ? (0, 0) : (_firstQuery[sequence], _firstQuery[sequence + 1] - _firstQuery[sequence]);

    /// <summary>Where the keys of a sequence begin and how many there are, those that take no part included.</summary>
    /// <param name="sequence">Which.</param>
    internal (int First, int Count) Keys(int sequence) =>
        IsPacked ? (_keyPlaces[sequence], _keyPlaces[sequence + 1] - _keyPlaces[sequence]) : (0, KeyLength);

    /// <summary>Tokens of a sequence's keys that take part, rising; when packed, counted over all sequences.</summary>
    /// <param name="sequence">Which.</param>
    internal ReadOnlySpan<int> KeyTokens(int sequence) => _keyTokens.AsSpan(_firstKey[sequence].._firstKey[sequence + 1]);

    /// <summary>What an engine makes of the layout for a problem; made once and kept.</summary>
    /// <param name="problem">The problem, whose layout this is.</param>
    /// <param name="chunk">Tokens in a chunk of the engine.</param>
    internal SequencePlan Plan(AttentionProblem problem, int chunk)
    {
        lock (_lock)
        {
            foreach (SequencePlan known in _plans)
            {
                if (known.IsFor(problem, chunk))
                {
                    return known;
                }
            }

            var plan = new SequencePlan(this, problem, chunk);
            if (_plans.Count == MaxPlans)
            {
                _plans.RemoveAt(0);
            }

            _plans.Add(plan);
            return plan;
        }
    }

    private static string Counted(int count, string one, string? many = null) => $"{count} {(count == 1 ? one : many ?? one + "s")}";

    private static int[]? Rebased(int[]? offsets, int first, int count)
    {
        if (offsets is null)
        {
            return null;
        }

        int[] part = offsets[first..(first + count + 1)];
        for (int i = part.Length - 1; i >= 0; i--)
        {
            part[i] -= part[0];
        }

        return part;
    }

    private static void RequireOffsets(ReadOnlySpan<int> offsets, string name)
    {
        if (offsets.IsEmpty || offsets[0] != 0)
        {
            throw new ArgumentException($"{name} must begin with 0; for N sequences it has N + 1 offsets.", name);
        }

        for (int i = 1; i < offsets.Length; i++)
        {
            if (offsets[i] < offsets[i - 1])
            {
                throw new ArgumentException($"{name}[{i}] is {offsets[i]}, less than {offsets[i - 1]} before it.", name);
            }
        }

        if (offsets[^1] > Array.MaxLength)
        {
            throw new ArgumentException($"{name} are of {offsets[^1]} tokens together, more than {Array.MaxLength}.", name);
        }
    }

    private static int Total(int sum, int length, string name) => sum + length is int total and >= 0 && total <= Array.MaxLength
        ? total
        : throw new ArgumentException($"{name} are more than {Array.MaxLength} keys together.", name);

    private static void Count(Span<int> tokens, int first)
    {
        for (int i = 0; i < tokens.Length; i++)
        {
            tokens[i] = first + i;
        }
    }
}
