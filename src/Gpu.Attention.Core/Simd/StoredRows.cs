using System.Numerics;
using System.Numerics.Tensors;
using System.Runtime.CompilerServices;

namespace Gpu.Attention;

/// <summary>Tokens whose rows are taken together: a run of them, or those of a list.</summary>
internal readonly ref struct TokenList
{
    private readonly ReadOnlySpan<int> _tokens;
    private readonly int _first;

    /// <summary>A run.</summary>
    /// <param name="first">The first token.</param>
    /// <param name="count">How many.</param>
    public TokenList(int first, int count) => (_first, Count) = (first, count);

    private TokenList(ReadOnlySpan<int> tokens)
        : this(tokens[0], tokens.Length)
    {
        // They rise, and so leave none out when the ends are as far apart as in a run.
        _tokens = tokens[^1] - tokens[0] == tokens.Length - 1 ? default : tokens;
    }

    /// <summary>How many.</summary>
    public int Count { get; }

    /// <summary>True when the tokens follow each other.</summary>
    public bool IsRun => _tokens.IsEmpty;

    /// <summary>A token.</summary>
    /// <param name="index">Which of the list.</param>
    public int this[int index] => IsRun ? _first + index : _tokens[index];

    /// <summary>Some of the keys of a sequence that take part, at least one.</summary>
    /// <param name="plan">The plan; null when all keys of the tensor take part.</param>
    /// <param name="place">The sequence's place in the plan.</param>
    /// <param name="first">The first, counted over those that take part.</param>
    /// <param name="count">How many.</param>
    public static TokenList OfKeys(SequencePlan? plan, int place, int first, int count) =>
        plan is null ? new TokenList(first, count) : new TokenList(plan.KeyTokens.AsSpan(plan.FirstKey[place] + first, count));
}

/// <summary>Rows of the caller's tensors as float32, however they are stored.</summary>
internal static unsafe class StoredRows
{
    /// <summary>One head's rows of some tokens: where the caller has them when they lie a stride apart in float32, else copied.</summary>
    public static float* Read(
        in TensorBuffer tensor, long batch, long head, TokenList tokens, int width, float* scratch, out nint stride)
    {
        if (tokens.IsRun && tensor.Memory.Type == ElementType.Single)
        {
            stride = (nint)tensor.TokenStride;
            return (float*)tensor.Row(batch, tokens[0], head);
        }

        stride = width;
        Copy(tensor, batch, head, tokens, width, scratch, width);
        return scratch;
    }

    /// <summary>Copies one head's rows of some tokens and clears each up to <paramref name="stride"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Copy(in TensorBuffer tensor, long batch, long head, TokenList tokens, int width, float* target, int stride)
    {
        ElementType type = tensor.Memory.Type;
        byte* origin = (byte*)tensor.Row(batch, 0, head);
        nint step = (nint)tensor.TokenStride * type.Size();
        for (int row = 0; row < tokens.Count; row++)
        {
            float* to = target + ((nint)row * stride);
            if (type == ElementType.Single)
            {
                CopyRow(width, (float*)(origin + (tokens[row] * step)), to, stride);
                continue;
            }

            Widen(origin + (tokens[row] * step), type, width, to);
            if (stride > width)
            {
                new Span<float>(to + width, stride - width).Clear();
            }
        }
    }

    /// <summary>Copies a row and clears what is left up to a stride.</summary>
    /// <remarks>A row is too short for the framework's copying, which first finds out how to go about it.</remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void CopyRow(int width, float* source, float* target, int stride)
    {
        int i = 0;
        for (; i <= width - Vector<float>.Count; i += Vector<float>.Count)
        {
            Vector.Store(Vector.Load(source + i), target + i);
        }

        for (; i < width; i++)
        {
            target[i] = source[i];
        }

        for (; i < stride; i++)
        {
            target[i] = 0;
        }
    }

    /// <summary>Writes one head's rows of some tokens, each element rounded once.</summary>
    public static void Write(in TensorBuffer tensor, long batch, long head, TokenList tokens, int width, float* source, int stride)
    {
        for (int row = 0; row < tokens.Count; row++)
        {
            float* from = source + ((nint)row * stride);
            void* to = tensor.Row(batch, tokens[row], head);
            if (tensor.Memory.Type == ElementType.Single)
            {
                CopyRow(width, from, (float*)to, width);
            }
            else
            {
                Narrow(from, width, tensor.Memory.Type, to);
            }
        }
    }

    /// <summary>Clears one head's rows of some tokens.</summary>
    public static void Clear(in TensorBuffer tensor, long batch, long head, TokenList tokens, int width)
    {
        for (int row = 0; row < tokens.Count; row++)
        {
            new Span<byte>(tensor.Row(batch, tokens[row], head), width * tensor.Memory.Type.Size()).Clear();
        }
    }

    /// <summary>Clears one head's rows of the tokens of a sequence whose keys take no part.</summary>
    public static void ClearMasked(in TensorBuffer tensor, SequenceLayout layout, SequencePlan plan, int place, long head, int width)
    {
        (int token, int count) = layout.Keys(plan.Order[place]);
        ReadOnlySpan<int> visible = plan.KeyTokens.AsSpan(plan.FirstKey[place], plan.Keys(place));
        for (int end = token + count; token < end; token++)
        {
            if (!visible.IsEmpty && visible[0] == token)
            {
                visible = visible[1..];
            }
            else
            {
                Clear(tensor, plan.Batch[place], head, new TokenList(token, 1), width);
            }
        }
    }

    /// <summary>Stored elements as float32: the same numbers.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Widen(void* source, ElementType type, int n, float* target)
    {
        if (type == ElementType.Single)
        {
            new ReadOnlySpan<float>(source, n).CopyTo(new Span<float>(target, n));
        }
        else if (type == ElementType.Half)
        {
            TensorPrimitives.ConvertToSingle(new ReadOnlySpan<Half>(source, n), new Span<float>(target, n));
        }
        else
        {
            WidenBFloat16((ushort*)source, n, target);
        }
    }

    /// <summary>Elements to 16 bits, each rounded to the nearest, to even where two are as near.</summary>
    public static void Narrow(float* source, int n, ElementType type, void* target)
    {
        if (type == ElementType.Half)
        {
            TensorPrimitives.ConvertToHalf(new ReadOnlySpan<float>(source, n), new Span<Half>(target, n));
        }
        else
        {
            NarrowToBFloat16(source, n, (ushort*)target);
        }
    }

    private static void WidenBFloat16(ushort* source, int n, float* target)
    {
        int i = 0;
        for (; i <= n - Vector<ushort>.Count; i += Vector<ushort>.Count)
        {
            Vector.Widen(Vector.Load(source + i), out Vector<uint> low, out Vector<uint> high);
            Vector.Store(Vector.ShiftLeft(low, 16), (uint*)target + i);
            Vector.Store(Vector.ShiftLeft(high, 16), (uint*)target + i + Vector<uint>.Count);
        }

        for (; i < n; i++)
        {
            target[i] = new BFloat16(source[i]);
        }
    }

    private static void NarrowToBFloat16(float* source, int n, ushort* target)
    {
        int i = 0;
        for (; i <= n - Vector<ushort>.Count; i += Vector<ushort>.Count)
        {
            Vector.Store(Vector.Narrow(Rounded(source + i), Rounded(source + i + Vector<uint>.Count)), target + i);
        }

        for (; i < n; i++)
        {
            target[i] = ((BFloat16)source[i]).Bits;
        }

        // As BFloat16 rounds.
        static Vector<uint> Rounded(float* source)
        {
            Vector<float> value = Vector.Load(source);
            Vector<uint> bits = Vector.AsVectorUInt32(value);
            Vector<uint> upper = Vector.ShiftRightLogical(bits, 16);
            Vector<uint> nearest = Vector.ShiftRightLogical(bits + new Vector<uint>(0x7FFF) + (upper & Vector<uint>.One), 16);
            return Vector.ConditionalSelect(Vector.AsVectorUInt32(Vector.Equals(value, value)), nearest, upper | new Vector<uint>(0x40));
        }
    }
}
