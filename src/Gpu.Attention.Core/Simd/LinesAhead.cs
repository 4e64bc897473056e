using System.Runtime.CompilerServices;

namespace Gpu.Attention;

/// <summary>
/// Memory that is wanted next, asked for a cache line at a time while a product runs: a head's rows lie far apart, and the processor's own prefetching does not
/// follow them.
/// </summary>
/// <remarks>
/// Lines are asked for as streams, each a start and a step, one line for each step of the inner dimension of one tile. More at once would wait for each other. It is a hint
/// only: it may ask for what is never read, and on processors without the instruction nothing comes of it.
/// </remarks>
internal unsafe struct LinesAhead
{
    private const int Capacity = 48;
    private const int LineBytes = 64;

    private Streams _starts;
    private Streams _steps;
    private int _count;
    private int _next;
    private nint _tile;
    private nint _tiles;

    /// <summary>True when nothing is asked for.</summary>
    public readonly bool IsEmpty => _count == 0;

    /// <summary>One head's rows of a tensor from a token on, as many as a tile has steps.</summary>
    public void AddRows(in TensorBuffer tensor, long batch, long token, long head, int width)
    {
        nint size = tensor.Memory.Type.Size();
        nint line = (nint)tensor.Row(batch, token, head);
        nint end = line + (width * size);
        for (line &= ~(nint)(LineBytes - 1); line < end; line += LineBytes)
        {
            Add(line, (nint)tensor.TokenStride * size);
        }
    }

    /// <summary>A stretch of memory, for tiles of some steps.</summary>
    public void AddStretch(float* start, long floats, int steps)
    {
        nint end = (nint)(start + floats);
        for (nint line = (nint)start; line < end; line += steps * LineBytes)
        {
            Add(line, LineBytes);
        }
    }

    /// <summary>Says over how many tiles the streams are to be spread. The first to say so counts: several products may share them.</summary>
    public void Expect(nint tiles) => _tiles = _tiles == 0 ? tiles : _tiles;

    /// <summary>The next tile's stream, if it is to have one: they are spread over all tiles.</summary>
    public bool TryNext(out nint start, out nint step)
    {
        _tile++;
        bool isDue = _next < _count && _tile * _count > _next * _tiles;
        start = isDue ? _starts[_next] : 0;
        step = isDue ? _steps[_next] : 0;
        _next += isDue ? 1 : 0;
        return isDue;
    }

    private void Add(nint start, nint step)
    {
        if (_count < Capacity)
        {
            _starts[_count] = start;
            _steps[_count] = step;
            _count++;
        }
    }

    [InlineArray(Capacity)]
    private struct Streams
    {
        private nint _first;
    }
}
