namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>What a token of a stream costs at a position: a step on a state, beside exact attention over a cache of all keys and values.</summary>
internal static class DecodeSeries
{
    private const double LinearSampleSeconds = 0.001;
    private const double ExactSampleSeconds = 0.002;

    public static IReadOnlyList<DecodeLine> Run(ComputeDevice device, ReportScale scale, ReportTensors tensors)
    {
        int[] positions = [.. Positions(scale.MaxPosition)];
        AttentionShape token = ReportTensors.Shape(1);
        int width = (int)token.QueryElements;
        float[] output = new float[width];
        using LinearAttention favor = Linear(MapNames.Favor);
        using LinearAttention elu = Linear(MapNames.Elu);
        using var exact = new SoftmaxAttention(device);
        var samples = new List<(string Map, int Position, long Bytes, Sample Sample)>();
        foreach (int position in positions)
        {
            foreach ((string map, LinearAttention attention) in new[] { (MapNames.Favor, favor), (MapNames.Elu, elu) })
            {
                AttentionState state = attention.CreateState(1, AttentionCase.Heads, AttentionCase.Dimension, AttentionCase.Dimension);
                AttentionShape before = ReportTensors.Shape(position);
                attention.Append(state, before, tensors.Key(before.KeyElements), tensors.Value(before.ValueElements));
                long bytes = sizeof(float) * ((long)state.Sums.Length + state.Normalizers.Length + state.LogScale.Length);
                Add(map, position, bytes, () => attention.Step(state, token, tensors.Query(width), tensors.Key(width), tensors.Value(width), output));
            }

            var shape = new AttentionShape(1, 1, position, AttentionCase.Heads, AttentionCase.Heads, AttentionCase.Dimension, AttentionCase.Dimension);
            Add(
                MapNames.Exact, position, ReportTensors.Bytes(position, tensors: 2),
                () => exact.Forward(shape, tensors.Query(width), tensors.Key(shape.KeyElements), tensors.Value(shape.ValueElements), output));
        }

        for (int round = 0; round < scale.DecodeRounds; round++)
        {
            foreach ((string map, _, _, Sample sample) in samples)
            {
                sample.Take(map == MapNames.Exact ? ExactSampleSeconds : LinearSampleSeconds);
            }
        }

        return
        [
            .. samples.Select(s => new DecodeLine
            {
                Map = s.Map, Position = s.Position, Us = s.Sample.Median * 1e6, FastestUs = s.Sample.Fastest * 1e6, SlowestUs = s.Sample.Slowest * 1e6,
                KeptBytes = s.Bytes,
            }),
        ];

        LinearAttention Linear(string map) => new(device, new AttentionCase(map, true, 1).Map);

        void Add(string map, int position, long bytes, Action call) => samples.Add((map, position, bytes, new Sample(call, Sampler.Warm(call))));
    }

    // 1, 4, 16, … and the last.
    private static IEnumerable<int> Positions(int last)
    {
        for (int position = 1; position < last; position *= 4)
        {
            yield return position;
        }

        yield return last;
    }
}
