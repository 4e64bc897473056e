using System.Text;

namespace Gpu.Attention.Samples.Training;

/// <summary>A text, character by character: pieces of its first nine tenths to learn from, and of the last tenth to be measured on.</summary>
internal sealed class CharacterTask : ITask
{
    private const int MeasuredBatch = 16;

    private readonly int[] _text;
    private readonly int _length;
    private readonly int _learned;

    /// <param name="text">The text.</param>
    /// <param name="length">Characters of a piece.</param>
    /// <param name="measured">Pieces that models are measured on along the way, spread evenly over the last tenth.</param>
    public CharacterTask(string text, int length, int measured)
    {
        char[] alphabet = [.. text.Distinct().Order()];
        _text = [.. text.Select(character => Array.BinarySearch(alphabet, character))];
        (Symbols, _length, _learned) = (alphabet.Length, length, (int)(text.Length * 0.9));
        int pieces = (_text.Length - _learned - 1) / length;
        HeldOut = Pieces(Enumerable.Range(0, pieces));
        int shown = Math.Min(measured, pieces);
        Measured = Pieces(Enumerable.Range(0, shown).Select(i => (int)((long)i * pieces / shown)));
    }

    public string Name => $"characters, pieces of {_length}";

    public int Symbols { get; }

    public IReadOnlyList<Batch> Measured { get; }

    /// <summary>All pieces of the last tenth.</summary>
    public IReadOnlyList<Batch> HeldOut { get; }

    /// <summary>The book that comes with the sample.</summary>
    public static string Book() => File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "moby-dick.txt"), Encoding.UTF8);

    public Batch Draw(int sequences, RandomSource random) =>
        Cut([.. Enumerable.Range(0, sequences).Select(_ => random.Below(_learned - _length))]);

    private Batch[] Pieces(IEnumerable<int> numbers) =>
        [.. numbers.Select(number => _learned + (number * _length)).Chunk(MeasuredBatch).Select(Cut)];

    // Every character of a piece is to be followed by the next of the text.
    private Batch Cut(int[] starts) => Batch.Whole(
        starts.Length, _length,
        [.. starts.SelectMany(start => _text.AsSpan(start, _length).ToArray())],
        [.. starts.SelectMany(start => _text.AsSpan(start + 1, _length).ToArray())]);
}
