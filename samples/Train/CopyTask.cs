namespace Gpu.Attention.Samples.Training;

/// <summary>
/// The copy task: a separator, a random word, the separator, and the same word again, <c>0 w 0 w</c>. Only the second word is asked: nothing tells the
/// first.
/// </summary>
internal sealed class CopyTask : ITask
{
    private const int Separator = 0;
    private const int WordSymbols = 10;
    private const ulong MeasuredSeed = 3;

    private readonly int _shortest;
    private readonly int _longest;

    /// <param name="length">Symbols of the longest sequence; even, and 4 at least.</param>
    /// <param name="shortest">Symbols of the shortest word; null when all are as long as there is room.</param>
    /// <param name="measured">Longest sequences in whose room there are those that models are measured on.</param>
    public CopyTask(int length, int? shortest, int measured)
    {
        _longest = (length / 2) - 1;
        _shortest = Math.Min(shortest ?? _longest, _longest);
        Measured = [Draw(measured, new RandomSource(MeasuredSeed))];
    }

    public string Name => _shortest == _longest ? $"words of {_longest} symbols" : $"words of {_shortest} to {_longest} symbols";

    public int Symbols => WordSymbols + 1;

    public IReadOnlyList<Batch> Measured { get; }

    /// <summary>Draws packed sequences, in the room of so many of the longest.</summary>
    public Batch Draw(int sequences, RandomSource random)
    {
        int[] inputs = new int[sequences * ((2 * _longest) + 1)];
        int[] targets = new int[inputs.Length];
        Array.Fill(targets, -1);
        var starts = new List<int>();
        for (int start = 0; start < inputs.Length;)
        {
            // The last word is as long as there is room; what is left of it in the end is one separator.
            starts.Add(start);
            int word = Math.Min(_shortest + random.Below(_longest - _shortest + 1), (inputs.Length - start - 1) / 2);
            for (int j = 1; j <= word; j++)
            {
                // A symbol is asked where the one before it is fed, and the last is never fed.
                int symbol = 1 + random.Below(WordSymbols);
                inputs[start + j] = targets[start + word + j] = symbol;
                if (j < word)
                {
                    inputs[start + word + 1 + j] = symbol;
                }
            }

            start += (2 * word) + 1;
        }

        return Batch.Packed([.. starts, inputs.Length], inputs, targets);
    }
}
