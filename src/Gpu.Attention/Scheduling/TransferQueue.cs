namespace Gpu.Attention;

/// <summary>
/// Copies parts of host tensors to or from a device, piece by piece through two halves of page-locked memory: while one is under way, the host fills
/// or empties the other.
/// </summary>
/// <remarks><see cref="Step"/> does one piece, so that a thread can feed two queues in turn.</remarks>
internal sealed unsafe class TransferQueue(DeviceSession session, DeviceQueue queue) : IDisposable
{
    /// <summary>The most bytes of a half: enough for a bus's full speed.</summary>
    private const int MaxPieceBytes = 4 << 20;

    /// <summary>What places in staging memory are multiples of.</summary>
    private const int Alignment = 64;

    private readonly List<Item> _items = [];
    private StagingMemory? _staging;
    private object? _device;
    private int _pieceBytes;
    private long _longest;
    private int _item;
    private long _done;
    private int _half;
    private Piece _underWay;

    /// <summary>Empties the list and begins a new one.</summary>
    /// <param name="device">The allocation that offsets count in.</param>
    public void Begin(object device)
    {
        _device = device;
        _items.Clear();
        _item = 0;
        _done = 0;
        _longest = 0;
        _underWay = default;
    }

    /// <summary>Adds a part of a tensor.</summary>
    /// <param name="view">The part.</param>
    /// <param name="offset">Where its bytes lie on the device, without gaps: the first byte.</param>
    public void Add(HostView view, long offset)
    {
        if (view.Length > 0)
        {
            _items.Add(new Item(view.Merged, offset));
            _longest = Math.Max(_longest, view.Length);
        }
    }

    /// <summary>Starts the next piece, and finishes the one before it.</summary>
    /// <returns>False when there is nothing left to do.</returns>
    public bool Step()
    {
        if (_item == _items.Count)
        {
            bool had = _underWay.Count > 0;
            Finish();
            return had;
        }

        RequireStaging();
        Item item = _items[_item];
        var piece = new Piece(item, _done, (int)Math.Min(_pieceBytes, item.View.Length - _done), _half * _pieceBytes);
        if (queue == DeviceQueue.Upload)
        {
            piece.Item.View.CopyTo(piece.First, _staging!.Pointer + piece.Place, piece.Count);
            Finish();
            session.Upload(_staging, piece.Place, _device!, piece.DeviceOffset, piece.Count);
            _underWay = piece;
        }
        else
        {
            Piece before = _underWay;
            if (before.Count > 0)
            {
                session.Wait(queue);
            }

            session.Download(_device!, piece.DeviceOffset, _staging!, piece.Place, piece.Count);
            _underWay = piece;
            Empty(before);
        }

        _half ^= 1;
        _done += piece.Count;
        if (_done == item.View.Length)
        {
            _item++;
            _done = 0;
        }

        return true;
    }

    public void Dispose()
    {
        _staging?.Dispose();
        _staging = null;
        _pieceBytes = 0;
    }

    private void RequireStaging()
    {
        int wanted = (int)Math.Min(MaxPieceBytes, (_longest + Alignment - 1) / Alignment * Alignment);
        if (_pieceBytes < wanted)
        {
            Finish();
            Dispose();
            _staging = session.AllocateStaging(2 * wanted);
            _pieceBytes = wanted;
        }
    }

    private void Finish()
    {
        if (_underWay.Count > 0)
        {
            session.Wait(queue);
            Piece piece = _underWay;
            _underWay = default;
            if (queue == DeviceQueue.Download)
            {
                Empty(piece);
            }
        }
    }

    private void Empty(Piece piece)
    {
        if (piece.Count > 0)
        {
            piece.Item.View.CopyFrom(piece.First, _staging!.Pointer + piece.Place, piece.Count);
        }
    }

    private readonly record struct Item(HostView View, long Offset);

    /// <summary>Bytes <c>First ..</c> of an item, at a place in the staging memory.</summary>
    private readonly record struct Piece(Item Item, long First, int Count, int Place)
    {
        public long DeviceOffset => Item.Offset + First;
    }
}
