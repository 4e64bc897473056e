using System.Diagnostics;

namespace Gpu.Attention.Samples.Streaming;

/// <summary>Exact attention, token by token: what it keeps is every key and value so far.</summary>
/// <remarks>
/// Not every token is decoded. Before a position that is measured the cache is filled with the stream's keys and values up to there, and the token at the
/// position is decoded again and again.
/// </remarks>
internal static class ExactDecoder
{
    public const string Name = "exact";

    /// <summary>Outputs are checked up to here, where attention over the whole prefix is quick.</summary>
    public const int LongestCheck = 1_024;

    private const int MostCalls = 255;
    private const int FewestCalls = 5;
    private const double EnoughSeconds = 0.25;

    /// <summary>Decodes the tokens at some positions of a stream.</summary>
    /// <param name="device">Where.</param>
    /// <param name="stream">The stream.</param>
    /// <param name="positions">The positions, rising.</param>
    public static Curve Decode(ComputeDevice device, TokenStream stream, IReadOnlyList<int> positions)
    {
        using var attention = new SoftmaxAttention(device);
        float[] query = new float[TokenStream.Width];
        float[] key = new float[TokenStream.Width];
        float[] value = new float[TokenStream.Width];
        float[] output = new float[TokenStream.Width];
        float[] keys = new float[(long)positions[^1] * TokenStream.Width];
        float[] values = new float[keys.Length];
        var costs = new List<Cost>();
        var outputs = new List<float[]>();
        double allocated = 0;
        int filled = 0;
        foreach (int position in positions)
        {
            int end = position * TokenStream.Width;
            Range missing = (filled * TokenStream.Width)..end;
            stream.FillKeys(filled, keys.AsSpan(missing), values.AsSpan(missing));
            filled = position;
            stream.Fill(position - 1, query, key, value);

            // The first call allocates and fills caches.
            Step(position);
            long[] ticks = new long[MostCalls];
            int calls = 0;
            long before = GC.GetAllocatedBytesForCurrentThread();
            long start = Stopwatch.GetTimestamp();
            for (; calls < MostCalls && (calls < FewestCalls || Stopwatch.GetElapsedTime(start).TotalSeconds < EnoughSeconds); calls++)
            {
                long call = Stopwatch.GetTimestamp();
                Step(position);
                ticks[calls] = Stopwatch.GetTimestamp() - call;
            }

            allocated = Math.Max(allocated, (GC.GetAllocatedBytesForCurrentThread() - before) / (double)calls);
            costs.Add(new Cost(position, Median.Seconds(ticks.AsSpan(0, calls)), 2L * end * sizeof(float)));
            outputs.Add([.. output]);
        }

        return new Curve(Name, costs, outputs, allocated, attention.LastDevice, attention.Fallbacks);

        void Step(int position)
        {
            int last = (position - 1) * TokenStream.Width;
            key.CopyTo(keys, last);
            value.CopyTo(values, last);
            var shape = new AttentionShape(
                1, 1, position, TokenStream.Heads, TokenStream.Heads, TokenStream.Dimension, TokenStream.Dimension);
            int end = last + TokenStream.Width;
            attention.Forward(shape, query.AsSpan(), keys.AsSpan(0, end), values.AsSpan(0, end), output.AsSpan());
        }
    }

    /// <summary>The outputs at the same positions, up to <see cref="LongestCheck"/>, of one causal call over the whole prefix.</summary>
    public static IReadOnlyList<float[]> AttendAtOnce(ComputeDevice device, TokenStream stream, IReadOnlyList<int> positions)
    {
        int[] early = [.. positions.Where(p => p <= LongestCheck)];
        float[] query = new float[early[^1] * TokenStream.Width];
        float[] key = new float[query.Length];
        float[] value = new float[query.Length];
        float[] output = new float[query.Length];
        stream.Fill(0, query, key, value);
        using var attention = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = true });
        attention.Forward(TokenStream.Shape(1, early[^1]), query, key, value, output);
        return [.. early.Select(position => output.AsSpan((position - 1) * TokenStream.Width, TokenStream.Width).ToArray())];
    }
}
