using System.Runtime.Intrinsics.X86;

namespace Gpu.Attention;

/// <summary>
/// Rows of the caller's tensors that are wanted next, brought near a few at a time while a product runs: a head's rows lie far apart, and the
/// processor's own prefetching does not follow them.
/// </summary>
/// <remarks>A hint only: it may ask for rows that are never read, and on processors without the instruction it does nothing.</remarks>
internal unsafe struct RowsAhead
{
    private const nint LineBytes = 64;

    private readonly Rows _first;
    private readonly Rows _second;
    private readonly int _count;
    private int _next;

    /// <summary>The rows of some tokens in two tensors.</summary>
    /// <param name="first">Rows of one tensor.</param>
    /// <param name="second">Rows of another.</param>
    /// <param name="count">How many of each; none if negative.</param>
    public RowsAhead(in Rows first, in Rows second, int count)
    {
        (_first, _second) = (first, second);
        _count = Sse.IsSupported ? count : 0;
    }

    /// <summary>Asks for more rows of each, up to a number of them.</summary>
    public void AdvanceTo(int rows)
    {
        for (int end = Math.Min(rows, _count); _next < end; _next++)
        {
            _first.Prefetch(_next);
            _second.Prefetch(_next);
        }
    }

    /// <summary>One head's rows of a tensor, from a token on.</summary>
    public readonly struct Rows(in TensorBuffer tensor, long batch, long token, long head, int width)
    {
        private readonly byte* _start = (byte*)tensor.Row(batch, token, head);
        private readonly nint _stride = (nint)tensor.TokenStride * tensor.Memory.Type.Size();
        private readonly nint _bytes = (nint)width * tensor.Memory.Type.Size();

        public void Prefetch(int row)
        {
            byte* line = _start + (row * _stride);
            byte* end = line + _bytes;
            for (line = (byte*)((nint)line & ~(LineBytes - 1)); line < end; line += LineBytes)
            {
                Sse.Prefetch1(line);
            }
        }
    }
}
