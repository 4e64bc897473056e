using System.Text;

namespace Gpu.Attention.Samples.Book;

/// <summary>A text as numbers: every character by its place in the text's own alphabet.</summary>
internal sealed class Corpus
{
    public Corpus(string text)
    {
        Alphabet = string.Concat(text.Distinct().Order());
        if (Alphabet.Length > 256)
        {
            throw new ArgumentException($"The text has {Alphabet.Length} different characters; this sample takes 256.", nameof(text));
        }

        var places = Alphabet.Select((character, place) => (character, place)).ToDictionary(p => p.character, p => (byte)p.place);
        Symbols = [.. text.Select(character => places[character])];
    }

    /// <summary>Every character that occurs, in the order of its code.</summary>
    public string Alphabet { get; }

    /// <summary>The text, each character as its place in <see cref="Alphabet"/>.</summary>
    public byte[] Symbols { get; }

    public int Length => Symbols.Length;

    public static Corpus Load(string path) => new(File.ReadAllText(path, Encoding.UTF8));
}
