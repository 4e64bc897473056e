namespace Gpu.Attention;

/// <summary>
/// The sizes of one attention problem. Tensors are row-major and dense: query <c>[B, T, H, D]</c>, key <c>[B, S, Hk, D]</c>,
/// value <c>[B, S, Hk, Dv]</c>, output <c>[B, T, H, Dv]</c>.
/// </summary>
/// <remarks>Query head <c>i</c> reads key head <c>i / (H / Hk)</c>. <c>T</c> and <c>S</c> may be zero: no queries, or nothing to see.</remarks>
public readonly record struct AttentionShape
{
    /// <summary>Creates a shape and checks that every tensor of it can be addressed.</summary>
    /// <param name="batch">B, the number of sequences.</param>
    /// <param name="queryLength">T, queries in each sequence.</param>
    /// <param name="keyLength">S, keys and values in each sequence.</param>
    /// <param name="heads">H, query heads.</param>
    /// <param name="keyHeads">Hk, key and value heads; divides <paramref name="heads"/>.</param>
    /// <param name="keyDimension">D, the size of a query or key row.</param>
    /// <param name="valueDimension">Dv, the size of a value or output row.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is negative, or a head count or dimension is zero.</exception>
    /// <exception cref="ArgumentException"><paramref name="keyHeads"/> does not divide <paramref name="heads"/>, or a product of sizes overflows.</exception>
    public AttentionShape(int batch, int queryLength, int keyLength, int heads, int keyHeads, int keyDimension, int valueDimension)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(batch);
        ArgumentOutOfRangeException.ThrowIfNegative(queryLength);
        ArgumentOutOfRangeException.ThrowIfNegative(keyLength);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(heads);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(keyHeads);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(keyDimension);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(valueDimension);
        if (heads % keyHeads != 0)
        {
            throw new ArgumentException($"{heads} query heads cannot share {keyHeads} key heads evenly.", nameof(keyHeads));
        }

        (Batch, QueryLength, KeyLength, Heads, KeyHeads, KeyDimension, ValueDimension) =
            (batch, queryLength, keyLength, heads, keyHeads, keyDimension, valueDimension);
        QueryElements = Product("query", batch, queryLength, heads, keyDimension);
        KeyElements = Product("key", batch, keyLength, keyHeads, keyDimension);
        ValueElements = Product("value", batch, keyLength, keyHeads, valueDimension);
        OutputElements = Product("output", batch, queryLength, heads, valueDimension);
    }

    /// <summary>Self-attention of one length, with as many key heads as query heads and <c>Dv = D</c>.</summary>
    /// <param name="batch">B.</param>
    /// <param name="length">T = S.</param>
    /// <param name="heads">H = Hk.</param>
    /// <param name="dimension">D = Dv.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is negative, or a head count or dimension is zero.</exception>
    /// <exception cref="ArgumentException">A product of sizes overflows.</exception>
    public AttentionShape(int batch, int length, int heads, int dimension)
        : this(batch, length, length, heads, heads, dimension, dimension)
    {
    }

    /// <summary>B, the number of sequences.</summary>
    public int Batch { get; }

    /// <summary>T, queries in each sequence.</summary>
    public int QueryLength { get; }

    /// <summary>S, keys and values in each sequence.</summary>
    public int KeyLength { get; }

    /// <summary>H, query heads.</summary>
    public int Heads { get; }

    /// <summary>Hk, key and value heads.</summary>
    public int KeyHeads { get; }

    /// <summary>D, the size of a query or key row.</summary>
    public int KeyDimension { get; }

    /// <summary>Dv, the size of a value or output row.</summary>
    public int ValueDimension { get; }

    /// <summary>Query heads that read one key head, <c>H / Hk</c>.</summary>
    public int HeadGroup => Heads / KeyHeads;

    /// <summary>Elements of the query tensor, <c>B·T·H·D</c>.</summary>
    public long QueryElements { get; }

    /// <summary>Elements of the key tensor, <c>B·S·Hk·D</c>.</summary>
    public long KeyElements { get; }

    /// <summary>Elements of the value tensor, <c>B·S·Hk·Dv</c>.</summary>
    public long ValueElements { get; }

    /// <summary>Elements of the output tensor, <c>B·T·H·Dv</c>.</summary>
    public long OutputElements { get; }

    /// <inheritdoc/>
    public override string ToString() =>
        $"query [{Batch}, {QueryLength}, {Heads}, {KeyDimension}], key [{Batch}, {KeyLength}, {KeyHeads}, {KeyDimension}], " +
        $"value [{Batch}, {KeyLength}, {KeyHeads}, {ValueDimension}]";

    private static long Product(string tensor, int a, int b, int c, int d)
    {
        // Four factors below 2^31 overflow 64 bits; bytes must fit too, so elements stay below 2^60.
        Int128 elements = (Int128)a * b * c * d;
        if (elements > 1L << 60)
        {
            throw new ArgumentException($"The {tensor} tensor [{a}, {b}, {c}, {d}] has more elements than can be addressed.", tensor);
        }

        return (long)elements;
    }
}
