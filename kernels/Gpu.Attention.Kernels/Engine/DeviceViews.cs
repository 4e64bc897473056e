using System.Runtime.CompilerServices;
using ILGPU;

namespace Gpu.Attention;

/// <summary>A <see cref="TensorBuffer"/> as kernels see it, and all that they know of how its elements are stored.</summary>
internal struct KernelTensor
{
    /// <summary>The allocation that the tensor lies in, as float32.</summary>
    public ArrayView<float> Elements;

    /// <summary>The same allocation in 16 bits an element.</summary>
    public ArrayView<ushort> Halves;

    /// <summary>How elements are stored, an <see cref="ElementType"/>.</summary>
    public int Type;

    /// <summary>The element of the allocation that the tensor begins at.</summary>
    public long Start;

    /// <summary>Elements from one sequence to the next.</summary>
    public long BatchStride;

    /// <summary>Elements from one token to the next.</summary>
    public long TokenStride;

    /// <summary>Elements from one head to the next.</summary>
    public long HeadStride;

    /// <summary>Where a row begins.</summary>
    /// <param name="batch">b.</param>
    /// <param name="token">t.</param>
    /// <param name="head">h.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly long Row(int batch, int token, int head) => Start + (batch * BatchStride) + (token * TokenStride) + (head * HeadStride);

    /// <summary>Reads an element.</summary>
    /// <param name="at">Its place in the allocation.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly float Load(long at)
    {
        if (Type == (int)ElementType.Single)
        {
            return Elements[at];
        }

        uint bits = Halves[at];
        return Type == (int)ElementType.Half ? SixteenBits.FromHalf(bits) : SixteenBits.FromBFloat16(bits);
    }

    /// <summary>Writes an element, rounded once to the nearest that can be stored.</summary>
    /// <param name="at">Its place in the allocation.</param>
    /// <param name="value">The element.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly void Store(long at, float value)
    {
        if (Type == (int)ElementType.Single)
        {
            Elements[at] = value;
        }
        else
        {
            Halves[at] = (ushort)(Type == (int)ElementType.Half ? SixteenBits.ToHalf(value) : SixteenBits.ToBFloat16(value));
        }
    }
}

/// <summary>
/// Which tokens an item is. Items are a rectangle: <see cref="Chunks"/> of them for each of the chains <c>FirstChain ..</c>, chunks running fastest. A chain
/// is a key head of a sequence, and each item has <see cref="HeadGroup"/> members, the heads that belong to the key head.
/// </summary>
/// <remarks>
/// Sequences that fill their rows of the batch need no tables, and all items of their rectangles are there. Else <see cref="Kind"/> says which tables tell
/// an item's tokens, a sequence is a place in the order of its <see cref="SequencePlan"/>, and items that do not exist have no tokens.
/// </remarks>
internal struct ItemMap
{
    /// <summary>Sequences fill their rows of the batch: item i of a chain is its chunk <c>FirstChunk + i</c>.</summary>
    public const int Whole = 0;

    /// <summary>Item i is the chunk <c>FirstChunk + i</c> of the sequence's keys that take part.</summary>
    public const int Keys = 1;

    /// <summary>Item i is the chunk <c>FirstChunk + i</c> of the sequence's first queries, of as many as <see cref="Count"/> names.</summary>
    public const int Queries = 2;

    /// <summary>Item i is block <c>FirstChunk + i</c> of those whose rows see a part of the key chunks <c>FirstKeyChunk .. EndKeyChunk</c>.</summary>
    public const int Staircase = 3;

    /// <summary>The first item's chain.</summary>
    public int FirstChain;

    /// <summary>The first chunk of every chain.</summary>
    public int FirstChunk;

    /// <summary>Chunks of every chain, those that do not exist included.</summary>
    public int Chunks;

    /// <summary>Key heads in a sequence.</summary>
    public int KeyHeads;

    /// <summary>Heads of the tensor for each key head.</summary>
    public int HeadGroup;

    /// <summary>Tokens in a sequence, where sequences fill their rows.</summary>
    public int Length;

    /// <summary>What items are.</summary>
    public int Kind;

    /// <summary>The number of an item's tokens in its sequence, a number of <see cref="SequenceTables"/>' places.</summary>
    public int Count;

    /// <summary>A staircase's first chunk of keys, which is the first key item of every chain.</summary>
    public int FirstKeyChunk;

    /// <summary>One beyond a staircase's last chunk of keys; every chain has as many key items as that makes.</summary>
    public int EndKeyChunk;

    /// <summary>The tables of <see cref="SequenceTables"/>.</summary>
    public ArrayView<int> Tables;

    /// <summary>The chain, counted from <see cref="FirstChain"/>.</summary>
    /// <param name="item">An item.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int Chain(int item) => item / Chunks;

    /// <summary>The chain's place in a caller's state: sequences stand there in their own order.</summary>
    /// <param name="chain">A chain, counted from <see cref="FirstChain"/>.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int StateChain(int chain)
    {
        int at = FirstChain + chain;
        return Kind == Whole ? at : (Tables[PlaceOf(chain) + SequenceTables.Sequence] * KeyHeads) + (at % KeyHeads);
    }

    /// <summary>Keys: the chunks of a chain that exist; not above 0 when none does.</summary>
    /// <param name="chain">A chain, counted from <see cref="FirstChain"/>.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int ChunksOf(int chain)
    {
        if (Kind == Whole)
        {
            return Chunks;
        }

        int left = Tables[PlaceOf(chain) + SequenceTables.KeyChunks] - FirstChunk;
        return left < Chunks ? left : Chunks;
    }

    /// <summary>True when no key of an item's sequence takes part; with tables only.</summary>
    /// <param name="item">An item.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly bool HasNoKeys(int item) => Tables[PlaceOf(Chain(item)) + SequenceTables.KeyChunks] == 0;

    /// <summary>The first token; of gathered keys, counted among them.</summary>
    /// <param name="item">An item that is not of a staircase.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int Token(int item, int edge) => (FirstChunk + (item % Chunks)) * edge;

    /// <summary>Tokens that there are, at most <paramref name="edge"/>; not above 0 when the item does not exist.</summary>
    /// <param name="item">An item.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int Tokens(int item, int edge)
    {
        if (Kind == Whole)
        {
            return WholeTokens(item, edge);
        }

        if (Kind == Staircase)
        {
            int block = Block(item);
            return block < 0 ? 0 : Tables[block + SequenceTables.BlockQueries];
        }

        int left = Tables[PlaceOf(Chain(item)) + Count] - Token(item, edge);
        return left < edge ? left : edge;
    }

    /// <summary><see cref="Tokens"/> where sequences fill their rows of the batch.</summary>
    /// <param name="item">An item.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int WholeTokens(int item, int edge)
    {
        int left = Length - Token(item, edge);
        return left < edge ? left : edge;
    }

    /// <summary>True when the item does not exist, all of its group's threads alike.</summary>
    /// <param name="item">An item.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly bool IsMissing(int item, int edge) => Kind != Whole && Tokens(item, edge) <= 0;

    /// <summary>Where the first token's row begins; of gathered keys, the row of the sequence's token 0, see <see cref="Gathered"/>.</summary>
    /// <param name="tensor">The tensor.</param>
    /// <param name="item">An item.</param>
    /// <param name="member">Its member.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly long Row(KernelTensor tensor, int item, int member, int edge)
    {
        if (Kind == Whole)
        {
            return WholeRow(tensor, item, member, edge);
        }

        int head = ((FirstChain + Chain(item)) % KeyHeads * HeadGroup) + member;
        int place = PlaceOf(Chain(item));
        int token = Kind == Keys ? 0
            : Kind == Staircase ? Tables[Block(item) + SequenceTables.BlockFirstQuery]
            : Tables[place + SequenceTables.FirstQuery] + Token(item, edge);
        return tensor.Row(Tables[place + SequenceTables.Batch], token, head);
    }

    /// <summary><see cref="Row"/> where sequences fill their rows of the batch.</summary>
    /// <param name="tensor">The tensor.</param>
    /// <param name="item">An item.</param>
    /// <param name="member">Its member.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly long WholeRow(KernelTensor tensor, int item, int member, int edge)
    {
        int chain = FirstChain + Chain(item);
        return tensor.Row(chain / KeyHeads, Token(item, edge), (chain % KeyHeads * HeadGroup) + member);
    }

    /// <summary>Where the tokens of an item's keys stand in the tables; negative when its tokens follow one another.</summary>
    /// <param name="item">An item.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int Gathered(int item, int edge) =>
        Kind == Keys ? Tables[PlaceOf(Chain(item)) + SequenceTables.FirstKey] + Token(item, edge) : -1;

    /// <summary>Where the numbers of keys that an item's queries see stand in the tables.</summary>
    /// <param name="item">An item of queries.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int Visible(int item, int edge) => Kind == Staircase
        ? Tables[Block(item) + SequenceTables.BlockVisible]
        : Tables[PlaceOf(Chain(item)) + SequenceTables.FirstRow] + Token(item, edge);

    /// <summary>The item of keys that an item's queries see a part of.</summary>
    /// <param name="item">An item.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int KeyItem(int item) =>
        Kind == Staircase ? (Chain(item) * (EndKeyChunk - FirstKeyChunk)) + KeyChunk(item) - FirstKeyChunk : item;

    /// <summary>A staircase's chunk of keys that an item's queries see a part of.</summary>
    /// <param name="item">An item.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int KeyChunk(int item) => Tables[Block(item) + SequenceTables.BlockChunk];

    /// <summary>Keys of its chunk that a row of causal queries sees.</summary>
    /// <param name="item">An item.</param>
    /// <param name="row">A row that there is.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int Seen(int item, int row, int edge) =>
        Kind == Staircase ? Tables[Visible(item, edge) + row] - (KeyChunk(item) * edge) : row + 1;

    /// <summary>The first of the items whose queries see a part of a chunk of keys.</summary>
    /// <param name="keyItem">The item of keys.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int FirstReader(int keyItem) => Kind == Staircase ? Reader(keyItem, 0) : keyItem;

    /// <summary>One beyond the last of the items whose queries see a part of a chunk of keys.</summary>
    /// <param name="keyItem">The item of keys.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int EndReader(int keyItem) => Kind == Staircase ? Reader(keyItem, 1) : keyItem + 1;

    // The first of a staircase's items that sees a part of a key item's chunk, or of a later one.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private readonly int Reader(int keyItem, int later)
    {
        int keyChunks = EndKeyChunk - FirstKeyChunk;
        int chain = keyItem / keyChunks;
        int place = PlaceOf(chain);
        int blocks = BlockOf(place, FirstKeyChunk + (keyItem % keyChunks) + later) - BlockOf(place, FirstKeyChunk);
        int block = (blocks / SequenceTables.BlockSize) - FirstChunk;
        return (chain * Chunks) + (block < 0 ? 0 : block < Chunks ? block : Chunks);
    }

    // Where a chain's place stands.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private readonly int PlaceOf(int chain) => (FirstChain + chain) / KeyHeads * SequenceTables.PlaceSize;

    // Where a staircase's block stands, negative when the chain has no such block.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private readonly int Block(int item)
    {
        int place = PlaceOf(Chain(item));
        int block = BlockOf(place, FirstKeyChunk) + ((FirstChunk + (item % Chunks)) * SequenceTables.BlockSize);
        return block < BlockOf(place, EndKeyChunk) ? block : -1;
    }

    // Where the first block stands that sees a part of a chunk, or of a later one.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private readonly int BlockOf(int place, int chunk)
    {
        int chunks = Tables[place + SequenceTables.KeyChunks];
        return Tables[Tables[place + SequenceTables.FirstBlocks] + (chunk < chunks ? chunk : chunks)];
    }
}

/// <summary>A <see cref="FeatureForm"/> on a device: its parts in one allocation, an absent part at no offset.</summary>
internal struct DeviceForm
{
    /// <summary>All parts.</summary>
    public ArrayView<float> Elements;

    /// <summary>Wᵀ, <c>[d↑, r↑]</c>, zero where padded: the identity when the form has no projection.</summary>
    public int Projection;

    /// <summary>b, <c>[r↑]</c>.</summary>
    public int Offset;

    /// <summary>P, <c>[d, d]</c>; negative for the identity.</summary>
    public int PreMatrix;

    /// <summary>p, <c>[d]</c>; negative for zero.</summary>
    public int PreOffset;

    /// <summary>u, <c>[d]</c>; negative for zero.</summary>
    public int Linear;

    /// <summary>β.</summary>
    public float NormCoefficient;
}

/// <summary>The sizes that arrays in the workspace are padded to. Tiles cover them exactly, so no hot loop looks for an edge.</summary>
internal struct PaddedSizes
{
    /// <summary>d.</summary>
    public int Inputs;

    /// <summary>d↑, a multiple of <see cref="TileProduct.Depth"/>.</summary>
    public int PaddedInputs;

    /// <summary>r.</summary>
    public int Features;

    /// <summary>r↑, a multiple of C.</summary>
    public int PaddedFeatures;

    /// <summary>dv.</summary>
    public int Values;

    /// <summary>dv↑, a multiple of C.</summary>
    public int PaddedValues;
}

/// <summary>A state in a caller's memory, <c>[N, Hk, r]</c> and <c>[N, Hk, r, dv]</c>.</summary>
internal struct DeviceState
{
    /// <summary>c; not there for the direct family.</summary>
    public ArrayView<float> LogScale;

    /// <summary>The element that c begins at.</summary>
    public long LogScaleStart;

    /// <summary>The largest log feature, where c is not that.</summary>
    public ArrayView<float> Maximum;

    /// <summary>The element that the maximum begins at.</summary>
    public long MaximumStart;

    /// <summary>Non-zero when there is a maximum beside c.</summary>
    public int HasMaximum;

    /// <summary>S.</summary>
    public ArrayView<float> Sums;

    /// <summary>The element that S begins at.</summary>
    public long SumsStart;

    /// <summary>z.</summary>
    public ArrayView<float> Normalizers;

    /// <summary>The element that z begins at.</summary>
    public long NormalizersStart;
}
