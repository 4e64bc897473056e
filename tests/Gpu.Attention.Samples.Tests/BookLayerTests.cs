using Gpu.Attention.Samples.Book;
using Xunit;

namespace Gpu.Attention.Samples.Tests;

/// <summary>What the sample rests on: that no row knows the character it predicts, and that a prediction is a distribution.</summary>
public sealed class BookLayerTests
{
    private const int Length = 600;
    private const int Changed = 400;

    public static TheoryData<string> MethodNames => [.. Methods.Keys];

    private static Dictionary<string, Method> Methods { get; } = new()
    {
        ["uniform"] = Method.Uniform,
        ["elu"] = Method.EluPlusOne,
        ["favor"] = Method.FavorPlus(64),
        ["exact"] = Method.Exact,
    };

    [Theory]
    [MemberData(nameof(MethodNames))]
    public void ChangedCharacter_ChangesNoEarlierPrediction(string method)
    {
        string text = Text();
        char other = text[Changed] == 'e' ? 't' : 'e';
        string changed = text[..Changed] + other + text[(Changed + 1)..];

        (Corpus before, float[] first) = Attend(text, method);
        (Corpus after, float[] second) = Attend(changed, method);

        // Token Changed − 1 predicts the changed character, and must not have seen it.
        Assert.Equal(before.Alphabet, after.Alphabet);
        int row = before.Alphabet.Length;
        Assert.Equal(first[..(Changed * row)], second[..(Changed * row)]);
        Assert.NotEqual(first[(Changed * row)..], second[(Changed * row)..]);
    }

    [Theory]
    [MemberData(nameof(MethodNames))]
    public void Prediction_IsADistribution(string method)
    {
        (Corpus corpus, float[] outputs) = Attend(Text(), method);
        int row = corpus.Alphabet.Length;
        var evaluation = new Evaluation(corpus);
        for (int t = 0; t < Length; t++)
        {
            ReadOnlySpan<float> output = outputs.AsSpan(t * row, row);
            evaluation.Add(output, Length);
            double sum = 0;
            for (int symbol = 0; symbol < row; symbol++)
            {
                double probability = evaluation.Probability(output, symbol);
                Assert.True(probability > 0);
                sum += probability;
            }

            Assert.Equal(1, sum, 1e-5);
        }
    }

    [Fact]
    public void UniformWeights_GiveTheFrequenciesSoFar()
    {
        (Corpus corpus, float[] outputs) = Attend(Text(), "uniform");
        int row = corpus.Alphabet.Length;
        double[] counts = new double[row];
        for (int t = 0; t < Length; t++)
        {
            counts[corpus.Symbols[t]]++;
            for (int symbol = 0; symbol < row; symbol++)
            {
                Assert.Equal(counts[symbol] / (t + 1), outputs[(t * row) + symbol], 1e-5);
            }
        }
    }

    [Fact]
    public void BlindGuess_CostsTheLogarithmOfTheAlphabet()
    {
        // Every symbol equally often, and attention that prefers none.
        var corpus = new Corpus(string.Concat(Enumerable.Repeat("abcd", 500)));
        var evaluation = new Evaluation(corpus);
        float[] flat = [0.25f, 0.25f, 0.25f, 0.25f];
        for (int t = 0; t < corpus.Length; t++)
        {
            evaluation.Add(flat, corpus.Length);
        }

        Assert.Equal(2, evaluation.BitsPerCharacter, 1e-3);
    }

    [Fact]
    public void Contexts_AreCloserTheMoreOfTheirEndTheyShare()
    {
        double Cosine(string a, string b)
        {
            var corpus = new Corpus("abcdefgh" + a + b);
            float[] first = new float[HashEmbedding.Dimension];
            float[] second = new float[HashEmbedding.Dimension];
            HashEmbedding.Write(corpus.Symbols, 8 + a.Length, first);
            HashEmbedding.Write(corpus.Symbols, 8 + a.Length + b.Length, second);
            return first.Zip(second, (x, y) => (double)x * y).Sum() / HashEmbedding.Temperature;
        }

        Assert.Equal(1, Cosine("xabcd", "yabcd"), 1e-5);
        Assert.InRange(Cosine("abcd", "hbcd"), 0.75, 1);
        Assert.InRange(Cosine("abcd", "efgd"), 0.25, 0.8);
        Assert.InRange(Cosine("abcd", "efgh"), -0.4, 0.4);
    }

    // All characters stand at the beginning, so that a change later leaves the alphabet as it is.
    private static string Text() => SmallBookRun.Book.Alphabet + string.Concat(
        SmallBookRun.Book.Symbols.Take(Length - SmallBookRun.Book.Alphabet.Length).Select(s => SmallBookRun.Book.Alphabet[s]));

    private static (Corpus Corpus, float[] Outputs) Attend(string text, string name)
    {
        var corpus = new Corpus(text);
        var segment = new Segment(corpus, text.Length);
        segment.Fill(0, text.Length);
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        if (Methods[name].Features is FeatureMap features)
        {
            using var attention = new LinearAttention(device, features, new LinearAttentionOptions { Causal = true, Scale = 1 });
            attention.Forward(segment.Shape, segment.Query, segment.Key, segment.Value, segment.Output);
        }
        else
        {
            using var attention = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = true, Scale = 1 });
            attention.Forward(segment.Shape, segment.Query, segment.Key, segment.Value, segment.Output);
        }

        return (corpus, segment.Output.ToArray());
    }
}
