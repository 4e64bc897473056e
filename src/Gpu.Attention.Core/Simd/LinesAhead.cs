using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace Gpu.Attention;

/// <summary>
/// Memory that is wanted next, asked for some cache lines at a time while a product runs: a head's rows lie far apart, and the processor's own prefetching does not
/// follow them.
/// </summary>
/// <remarks>
/// Between tiles (<see cref="Ask"/>), spread over all of them, lines are asked for eight at a time: one alone costs nearly as much waiting as eight beside each other. Eight rows that lie apart are
/// asked for line by line, so that what their pages cost to find is paid together. Within a tile (<see cref="TryTake"/>) it is one line for each step of the inner dimension. It is a hint
/// only: it may ask for what is never read, and on processors without the instruction nothing comes of it.
/// </remarks>
internal unsafe struct LinesAhead
{
    private const int Capacity = 8;
    private const int LineBytes = 64;
    private const int Burst = 8;

    /// <summary>The lines of 196 KB: more would drive out what the product works on.</summary>
    private const int MaxLines = 3072;

    private Stretches _stretches;
    private int _count;
    private int _at;
    private nint _row;
    private nint _line;
    private nint _lines;
    private nint _asked;
    private nint _tile;
    private nint _tiles;

    /// <summary>True when nothing is asked for.</summary>
    public readonly bool IsEmpty => _lines == 0;

    /// <summary>Some tokens' rows of one head of a tensor.</summary>
    public void AddRows(in TensorBuffer tensor, long batch, long token, long head, int width, int rows)
    {
        nint size = tensor.Memory.Type.Size();
        nint start = (nint)tensor.Row(batch, token, head);
        nint end = start + (width * size);
        start &= ~(nint)(LineBytes - 1);
        Add(start, (nint)tensor.TokenStride * size, rows, (end - start + LineBytes - 1) / LineBytes);
    }

    /// <summary>A stretch of memory.</summary>
    public void AddStretch(float* start, long floats) =>
        Add((nint)start, LineBytes, (nint)((floats * sizeof(float)) + LineBytes - 1) / LineBytes, 1);

    /// <summary>Says over how many tiles the lines are to be spread. The first to say so counts: several products may share them.</summary>
    public void Expect(nint tiles) => _tiles = _tiles == 0 ? tiles : _tiles;

    /// <summary>Lines that the next tile is to ask for, one with each of its steps, if it is to have any: of as many rows, or behind each other in a stretch.</summary>
    public bool TryTake(nint steps, out nint start, out nint step)
    {
        bool isDue = _asked < NextDue();
        start = 0;
        step = 0;
        if (isDue)
        {
            ref Stretch stretch = ref _stretches[_at];
            start = stretch.Start + (_row * stretch.Step) + (_line * LineBytes);
            step = stretch.Step;
            Advance(nint.Min(steps, stretch.Rows - _row));
        }

        return isDue;
    }

    /// <summary>Asks for what is due before the next tile.</summary>
    public void Ask()
    {
        nint due = NextDue();
        while (_asked < due && (_asked + Burst <= due || due == _lines))
        {
            ref Stretch stretch = ref _stretches[_at];
            nint rows = nint.Min(Burst, stretch.Rows - _row);
            nint line = stretch.Start + (_row * stretch.Step) + (_line * LineBytes);
            for (nint i = 0; Sse.IsSupported && i < rows; i++)
            {
                Sse.Prefetch0((void*)line);
                line += stretch.Step;
            }

            Advance(rows);
        }
    }

    /// <summary>How many lines are to be asked for up to the next tile.</summary>
    private nint NextDue()
    {
        _tile++;
        return nint.Min(_lines, _tile * _lines / _tiles);
    }

    /// <summary>Goes on behind one line each of some rows: to their next line, then to the next rows.</summary>
    private void Advance(nint rows)
    {
        ref Stretch stretch = ref _stretches[_at];
        _asked += rows;
        if (++_line == stretch.Lines)
        {
            _line = 0;
            _row += rows;
            if (_row == stretch.Rows)
            {
                _row = 0;
                _at++;
            }
        }
    }

    private void Add(nint start, nint step, nint rows, nint lines)
    {
        rows = nint.Min(rows, lines > 0 ? (MaxLines - _lines) / lines : 0);
        if (_count < Capacity && rows > 0)
        {
            _stretches[_count++] = new Stretch { Start = start, Step = step, Rows = rows, Lines = lines };
            _lines += rows * lines;
        }
    }

    /// <summary>Rows of some lines each, a step apart.</summary>
    private struct Stretch
    {
        public nint Start;
        public nint Step;
        public nint Rows;
        public nint Lines;
    }

    [InlineArray(Capacity)]
    private struct Stretches
    {
        private Stretch _first;
    }
}
