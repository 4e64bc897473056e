namespace Gpu.Attention.Samples.Streaming;

/// <summary>A stream that takes part in a batch for a while.</summary>
/// <param name="Tokens">Its tokens.</param>
/// <param name="PromptTokens">How many of them it brings along when it joins.</param>
internal sealed record Participant(TokenStream Tokens, int PromptTokens)
{
    /// <summary>Tokens that were decoded.</summary>
    public int Decoded => Outputs.Count;

    /// <summary>What came out for each.</summary>
    public List<float[]> Outputs { get; } = [];
}

/// <summary>Streams that are decoded together, a token of each in one call, and join and leave while the others go on.</summary>
/// <param name="attention">Decodes them.</param>
internal sealed class ContinuousBatch(LinearAttention attention)
{
    private readonly List<Participant> _participants = [];
    private AttentionState? _state;

    /// <summary>Adds streams. Their prompts, of any lengths, are read packed, in one call.</summary>
    public void Join(params ReadOnlySpan<Participant> participants)
    {
        int[] ends = new int[participants.Length + 1];
        for (int i = 0; i < participants.Length; i++)
        {
            ends[i + 1] = ends[i] + participants[i].PromptTokens;
        }

        float[] keys = new float[ends[^1] * TokenStream.Width];
        float[] values = new float[keys.Length];
        for (int i = 0; i < participants.Length; i++)
        {
            Range prompt = (ends[i] * TokenStream.Width)..(ends[i + 1] * TokenStream.Width);
            participants[i].Tokens.FillKeys(0, keys.AsSpan(prompt), values.AsSpan(prompt));
        }

        AttentionState joined = attention.CreateState(participants.Length, TokenStream.Heads, TokenStream.Dimension, TokenStream.Dimension);
        attention.Append(joined, TokenStream.Shape(1, ends[^1]), keys, values, SequenceLayout.FromCuSeqlens(ends));
        _state = _state is null ? joined : AttentionState.Concat(_state, joined);
        _participants.AddRange(participants);
    }

    /// <summary>Drops a stream.</summary>
    public void Leave(Participant participant)
    {
        int[] others = [.. Enumerable.Range(0, _participants.Count).Where(i => _participants[i] != participant)];
        _state = _state!.Select(others);
        _participants.Remove(participant);
    }

    /// <summary>Decodes one token of every stream.</summary>
    public void Step()
    {
        int count = _participants.Count;
        float[] query = new float[count * TokenStream.Width];
        float[] key = new float[query.Length];
        float[] value = new float[query.Length];
        float[] output = new float[query.Length];
        for (int i = 0; i < count; i++)
        {
            Participant participant = _participants[i];
            Range row = (i * TokenStream.Width)..((i + 1) * TokenStream.Width);
            participant.Tokens.Fill(participant.PromptTokens + participant.Decoded, query.AsSpan(row), key.AsSpan(row), value.AsSpan(row));
        }

        attention.Step(_state!, TokenStream.Shape(count, 1), query, key, value, output);
        for (int i = 0; i < count; i++)
        {
            _participants[i].Outputs.Add(output.AsSpan(i * TokenStream.Width, TokenStream.Width).ToArray());
        }
    }

    /// <summary>Four streams come and go.</summary>
    /// <param name="attention">Decodes them.</param>
    /// <param name="participants">Receives them.</param>
    /// <returns>True when each has, bit for bit, the outputs that it has alone.</returns>
    public static bool IsAsAlone(LinearAttention attention, out IReadOnlyList<Participant> participants)
    {
        Participant first = new(new TokenStream(11), 40);
        Participant brief = new(new TokenStream(12), 7);
        Participant third = new(new TokenStream(13), 129);
        Participant late = new(new TokenStream(14), 65);
        participants = [first, brief, third, late];

        var batch = new ContinuousBatch(attention);
        batch.Join(first, brief, third);
        Step(9);
        batch.Leave(brief);
        Step(4);
        batch.Join(late);
        Step(12);
        return participants.All(participant => IsAsAlone(attention, participant));

        void Step(int tokens)
        {
            for (int i = 0; i < tokens; i++)
            {
                batch.Step();
            }
        }
    }

    private static bool IsAsAlone(LinearAttention attention, Participant participant)
    {
        AttentionState state = attention.CreateState(1, TokenStream.Heads, TokenStream.Dimension, TokenStream.Dimension);
        float[] keys = new float[participant.PromptTokens * TokenStream.Width];
        float[] values = new float[keys.Length];
        participant.Tokens.FillKeys(0, keys, values);
        attention.Append(state, TokenStream.Shape(1, participant.PromptTokens), keys, values);

        float[] query = new float[TokenStream.Width];
        float[] key = new float[TokenStream.Width];
        float[] value = new float[TokenStream.Width];
        float[] output = new float[TokenStream.Width];
        for (int token = 0; token < participant.Decoded; token++)
        {
            participant.Tokens.Fill(participant.PromptTokens + token, query, key, value);
            attention.Step(state, TokenStream.Shape(1, 1), query, key, value, output);
            if (!output.Select(BitConverter.SingleToInt32Bits).SequenceEqual(participant.Outputs[token].Select(BitConverter.SingleToInt32Bits)))
            {
                return false;
            }
        }

        return true;
    }
}
