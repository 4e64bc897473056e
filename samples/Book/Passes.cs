using System.Diagnostics;

namespace Gpu.Attention.Samples.Book;

/// <summary>What one method made of one stretch of the text.</summary>
/// <param name="Method">The method.</param>
/// <param name="Length">Characters read.</param>
/// <param name="BitsPerCharacter">The mean cost of a character.</param>
/// <param name="AttentionSeconds">Time inside the attention calls.</param>
/// <param name="TotalSeconds">Time of the pass, with embedding and scoring.</param>
/// <param name="BufferBytes">Tensors, scratch memory and state: what the pass has to hold.</param>
/// <param name="PeakBytes">The process's largest working set seen during the pass.</param>
internal sealed record PassResult(
    Method Method, int Length, double BitsPerCharacter, double AttentionSeconds, double TotalSeconds, long BufferBytes, long PeakBytes)
{
    public double TokensPerSecond => Length / AttentionSeconds;
}

/// <summary>Sends stretches of the text, from its beginning, through one causal attention layer.</summary>
internal sealed class Passes(ComputeDevice device, Corpus corpus)
{
    /// <summary>Tokens a call of a linear pass; the state goes from call to call, so that memory does not grow with the text.</summary>
    public const int SegmentLength = 32_768;

    /// <summary>Reads the first characters of the text.</summary>
    /// <param name="method">How.</param>
    /// <param name="length">How many.</param>
    /// <param name="temperature">How sharply.</param>
    /// <param name="report">Receives the fraction that is done, where a pass takes several calls.</param>
    public PassResult Run(Method method, int length, float temperature = HashEmbedding.Temperature, Action<double>? report = null)
    {
        float scale = temperature / HashEmbedding.Temperature;
        return method.Features is null ? RunExact(method, length, scale) : RunLinear(method, length, scale, report);
    }

    private PassResult RunLinear(Method method, int length, float scale, Action<double>? report)
    {
        using var memory = new PeakMemory();
        var total = Stopwatch.StartNew();
        var attending = new Stopwatch();
        using var attention = new LinearAttention(device, method.Features!, new LinearAttentionOptions { Causal = true, Scale = scale });
        AttentionState state = attention.CreateState(batch: 1, heads: 1, HashEmbedding.Dimension, corpus.Alphabet.Length);
        var segment = new Segment(corpus, Math.Min(length, SegmentLength));
        var evaluation = new Evaluation(corpus);
        for (int first = 0; first < length; first += segment.Length)
        {
            segment.Fill(first, Math.Min(segment.Capacity, length - first));
            attending.Start();
            attention.Forward(segment.Shape, segment.Query, segment.Key, segment.Value, segment.Output, state, state);
            attending.Stop();
            evaluation.Add(segment.Output, length);
            report?.Invoke((first + segment.Length) / (double)length);
        }

        long stateBytes = sizeof(float) * (long)(state.Sums.Length + state.Normalizers.Length + state.LogScale.Length);
        long bytes = segment.Bytes + stateBytes + attention.WorkspaceBytes(Segment.ShapeOf(corpus, segment.Capacity));
        return new PassResult(
            method, length, evaluation.BitsPerCharacter, attending.Elapsed.TotalSeconds, total.Elapsed.TotalSeconds, bytes, memory.Bytes);
    }

    private PassResult RunExact(Method method, int length, float scale)
    {
        using var memory = new PeakMemory();
        var total = Stopwatch.StartNew();
        using var attention = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = true, Scale = scale });
        var segment = new Segment(corpus, length);
        segment.Fill(0, length);
        var attending = Stopwatch.StartNew();
        attention.Forward(segment.Shape, segment.Query, segment.Key, segment.Value, segment.Output);
        attending.Stop();
        var evaluation = new Evaluation(corpus);
        evaluation.Add(segment.Output, length);
        long bytes = segment.Bytes + attention.WorkspaceBytes(segment.Shape);
        return new PassResult(
            method, length, evaluation.BitsPerCharacter, attending.Elapsed.TotalSeconds, total.Elapsed.TotalSeconds, bytes, memory.Bytes);
    }
}
