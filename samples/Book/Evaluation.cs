using System.Numerics.Tensors;

namespace Gpu.Attention.Samples.Book;

/// <summary>Scores predictions in bits: <c>−log₂</c> of the probability that the character which came had been given.</summary>
/// <remarks>
/// <para>With <c>a</c> the attention's output at token <c>t</c>, divided by its sum, <c>n(c)</c> how often character <c>c</c> stands among
/// <c>0..t</c>, and <c>A</c> the size of the alphabet:
/// <c>p(c) = (1 − λ) a(c) + λ (n(c) + 1) / (t + 1 + A)</c>, <c>λ = 0.05</c>.
/// Both parts sum to 1 over the alphabet, so <c>p</c> does, and no character has probability 0.</para>
/// <para>Tokens are added in order from the first. The first character is not predicted and not counted.</para>
/// </remarks>
internal sealed class Evaluation(Corpus corpus)
{
    public const double Smoothing = 0.05;

    private readonly int[] _counts = new int[corpus.Alphabet.Length];
    private int _seen;
    private double _bits;
    private int _predictions;

    public double BitsPerCharacter => _bits / _predictions;

    /// <summary>Scores the predictions of the next tokens.</summary>
    /// <param name="outputs">The attention's output, one row a token.</param>
    /// <param name="end">Where the text ends for this evaluation: the character there is not predicted.</param>
    public void Add(ReadOnlySpan<float> outputs, int end)
    {
        int alphabet = _counts.Length;
        for (int i = 0; i < outputs.Length / alphabet; i++)
        {
            _counts[corpus.Symbols[_seen]]++;
            _seen++;
            if (_seen < end)
            {
                _bits -= Math.Log2(Probability(outputs.Slice(i * alphabet, alphabet), corpus.Symbols[_seen]));
                _predictions++;
            }
        }
    }

    /// <summary>The probability of a character after those seen so far.</summary>
    /// <param name="attention">A row of the attention's output.</param>
    /// <param name="symbol">The character.</param>
    public double Probability(ReadOnlySpan<float> attention, int symbol)
    {
        double frequency = (_counts[symbol] + 1.0) / (_seen + _counts.Length);
        double sum = TensorPrimitives.Sum(attention);

        // A row whose weights all underflowed says nothing; the frequencies then speak alone.
        return sum > 0 ? ((1 - Smoothing) * attention[symbol] / sum) + (Smoothing * frequency) : frequency;
    }
}
