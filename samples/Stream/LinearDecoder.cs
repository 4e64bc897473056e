using System.Diagnostics;

namespace Gpu.Attention.Samples.Streaming;

/// <summary>Linear attention, token by token: what it keeps is a state, of one size for ever.</summary>
/// <param name="name">Its name.</param>
/// <param name="features">The feature map.</param>
internal sealed class LinearDecoder(string name, FeatureMap features)
{
    // Tokens that a time is the median of, so that it takes more than one interruption to show.
    private const int Window = 255;
    private const int WarmUp = 2_000;
    private const int PieceTokens = 1_024;

    public string Name => name;

    public FeatureMap Features => features;

    /// <summary>Decodes a stream to the last of the positions, and a window beyond.</summary>
    /// <param name="device">Where.</param>
    /// <param name="stream">The stream.</param>
    /// <param name="positions">Where times and outputs are wanted, rising.</param>
    public Curve Decode(ComputeDevice device, TokenStream stream, IReadOnlyList<int> positions)
    {
        using var attention = new LinearAttention(device, features);
        AttentionState state = NewState(attention);
        AttentionShape shape = TokenStream.Shape(streams: 1, tokens: 1);
        float[] query = new float[TokenStream.Width];
        float[] key = new float[TokenStream.Width];
        float[] value = new float[TokenStream.Width];
        float[] output = new float[TokenStream.Width];
        float[][] outputs = [.. positions.Select(_ => new float[TokenStream.Width])];
        long[] stateBytes = new long[positions.Count];
        long[] ticks = new long[positions[^1] + Window - 1];

        // Scratch memory is allocated, and caches are filled, by a state that is thrown away.
        AttentionState other = NewState(attention);
        stream.Fill(0, query, key, value);
        for (int i = 0; i < Math.Min(WarmUp, ticks.Length); i++)
        {
            attention.Step(other, shape, query, key, value, output);
        }

        int next = 0;
        long allocated = GC.GetAllocatedBytesForCurrentThread();
        for (int token = 0; token < ticks.Length; token++)
        {
            stream.Fill(token, query, key, value);
            long start = Stopwatch.GetTimestamp();
            attention.Step(state, shape, query, key, value, output);
            ticks[token] = Stopwatch.GetTimestamp() - start;
            if (next < positions.Count && token + 1 == positions[next])
            {
                output.CopyTo(outputs[next], 0);
                stateBytes[next] = BytesOf(state);
                next++;
            }
        }

        double perToken = (GC.GetAllocatedBytesForCurrentThread() - allocated) / (double)ticks.Length;
        Cost[] costs =
        [
            .. positions.Select((position, i) => new Cost(position, Median.Seconds(ticks.AsSpan(position - 1, Window)), stateBytes[i])),
        ];
        return new Curve(name, costs, outputs, perToken, attention.LastDevice, attention.Fallbacks);
    }

    /// <summary>The outputs at the same positions of causal attention over everything before them, computed in large pieces.</summary>
    public IReadOnlyList<float[]> AttendInPieces(ComputeDevice device, TokenStream stream, IReadOnlyList<int> positions)
    {
        using var attention = new LinearAttention(device, features, new LinearAttentionOptions { Causal = true });
        AttentionState state = NewState(attention);
        var outputs = new List<float[]>();
        for (int first = 0; first < positions[^1]; first += PieceTokens)
        {
            int count = Math.Min(PieceTokens, positions[^1] - first);
            float[] query = new float[count * TokenStream.Width];
            float[] key = new float[query.Length];
            float[] value = new float[query.Length];
            float[] output = new float[query.Length];
            stream.Fill(first, query, key, value);
            attention.Forward(TokenStream.Shape(1, count), query, key, value, output, state, state);
            outputs.AddRange(
                from position in positions
                where position > first && position <= first + count
                select output.AsSpan((position - 1 - first) * TokenStream.Width, TokenStream.Width).ToArray());
        }

        return outputs;
    }

    private static AttentionState NewState(LinearAttention attention) =>
        attention.CreateState(batch: 1, TokenStream.Heads, TokenStream.Dimension, TokenStream.Dimension);

    private static long BytesOf(AttentionState state) =>
        sizeof(float) * ((long)state.Sums.Length + state.Normalizers.Length + state.LogScale.Length);
}
