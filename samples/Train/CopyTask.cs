namespace Gpu.Attention.Samples.Training;

/// <summary>
/// The copy task: a separator, a random word, the separator, and the same word again, <c>0 w 0 w</c>. Only the second word is asked: nothing tells
/// the first.
/// </summary>
internal sealed class CopyTask : ITask
{
    private const int Separator = 0;
    private const int WordSymbols = 10;
    private const ulong MeasuredSeed = 3;

    private readonly int _length;

    /// <param name="length">Symbols of a sequence; even, and 4 at least.</param>
    /// <param name="measured">Sequences that models are measured on.</param>
    public CopyTask(int length, int measured)
    {
        _length = length;
        Measured = [Draw(measured, new RandomSource(MeasuredSeed))];
    }

    public string Name => $"copy, {_length} symbols";

    public int Symbols => WordSymbols + 1;

    public IReadOnlyList<Batch> Measured { get; }

    public Batch Draw(int sequences, RandomSource random)
    {
        // The last symbol is asked, and never fed.
        int fed = _length - 1;
        int word = (_length / 2) - 1;
        int[] inputs = new int[sequences * fed];
        int[] targets = new int[sequences * fed];
        int[] sequence = new int[_length];
        for (int i = 0; i < sequences; i++)
        {
            sequence[0] = sequence[word + 1] = Separator;
            for (int j = 1; j <= word; j++)
            {
                sequence[j] = sequence[j + word + 1] = 1 + random.Below(WordSymbols);
            }

            sequence.AsSpan(0, fed).CopyTo(inputs.AsSpan(i * fed));
            Span<int> asked = targets.AsSpan(i * fed, fed);
            sequence.AsSpan(1).CopyTo(asked);
            asked[..(word + 1)].Fill(-1);
        }

        return new Batch(sequences, fed, inputs, targets);
    }
}
