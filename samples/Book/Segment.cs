namespace Gpu.Attention.Samples.Book;

/// <summary>
/// A stretch of the text laid out for one call of causal attention, <c>B = H = 1</c>.
/// </summary>
/// <remarks>
/// <para>Token <c>t</c> holds as key what came before character <c>t</c>, as value character <c>t</c> itself (one-hot), and as query
/// everything up to and including it. Causal attention lets token <c>t</c> see tokens <c>0..t</c>: pairs of a context and the character
/// that followed it, all of them known by then. Its output is a distribution over character <c>t + 1</c>, which no row up to <c>t</c>
/// contains.</para>
/// <para>The query of a token is the key of the next, so both are views of one array of contexts, shifted by a row.</para>
/// </remarks>
internal sealed class Segment
{
    private readonly Corpus _corpus;
    private readonly float[] _contexts;
    private readonly float[] _values;
    private readonly float[] _outputs;

    public Segment(Corpus corpus, int capacity)
    {
        _corpus = corpus;
        Capacity = capacity;
        _contexts = new float[(capacity + 1) * HashEmbedding.Dimension];
        _values = new float[capacity * corpus.Alphabet.Length];
        _outputs = new float[capacity * corpus.Alphabet.Length];
    }

    public int Capacity { get; }

    /// <summary>Tokens in it now.</summary>
    public int Length { get; private set; }

    public AttentionShape Shape => ShapeOf(_corpus, Length);

    public ReadOnlySpan<float> Query => _contexts.AsSpan(HashEmbedding.Dimension, Length * HashEmbedding.Dimension);

    public ReadOnlySpan<float> Key => _contexts.AsSpan(0, Length * HashEmbedding.Dimension);

    public ReadOnlySpan<float> Value => _values.AsSpan(0, Length * _corpus.Alphabet.Length);

    public Span<float> Output => _outputs.AsSpan(0, Length * _corpus.Alphabet.Length);

    /// <summary>Bytes of the four tensors.</summary>
    public long Bytes => sizeof(float) * ((long)_contexts.Length + _values.Length + _outputs.Length);

    public static AttentionShape ShapeOf(Corpus corpus, int length) =>
        new(batch: 1, length, length, heads: 1, keyHeads: 1, HashEmbedding.Dimension, corpus.Alphabet.Length);

    /// <summary>Lays out the tokens <paramref name="first"/> to <paramref name="first"/><c> + </c><paramref name="length"/>.</summary>
    public void Fill(int first, int length)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(length, Capacity);
        Length = length;
        HashEmbedding.Write(_corpus.Symbols, first, _contexts.AsSpan(0, (length + 1) * HashEmbedding.Dimension));
        _values.AsSpan(0, length * _corpus.Alphabet.Length).Clear();
        for (int i = 0; i < length; i++)
        {
            _values[(i * _corpus.Alphabet.Length) + _corpus.Symbols[first + i]] = 1;
        }
    }
}
