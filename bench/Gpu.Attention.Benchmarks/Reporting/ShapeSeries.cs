namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>Linear attention in other shapes than the report's own, and on one core: one head, many short sequences. All of them in turn, causal.</summary>
internal static class ShapeSeries
{
    private const int Heads = AttentionCase.Heads;

    /// <summary>Sequences of the batch of short ones.</summary>
    private const int ShortSequences = 8;

    private static readonly int[] ShortLengths = [64, 256];

    public static IReadOnlyList<ShapeLine> Run(ReportScale scale, ReportTensors tensors, bool hasBackward, Action afterRound)
    {
        using ComputeDevice allCores = ReportDevice.OpenHost();
        using ComputeDevice oneCore = ReportDevice.OpenHost(threads: 1);
        int cores = Environment.ProcessorCount;
        var usual = new AttentionShape(1, scale.MapLength, Heads, AttentionCase.Dimension);
        var problems = new List<(AttentionShape Shape, int Cores)> { (usual, cores) };
        if (cores > 1)
        {
            problems.Add((usual, 1));
        }

        problems.Add((new AttentionShape(1, scale.MapLength, 1, AttentionCase.Dimension), cores));
        problems.AddRange(ShortLengths.Select(length => (new AttentionShape(ShortSequences, length, Heads, AttentionCase.Dimension), cores)));
        problems.RemoveAll(p => p.Shape.QueryElements > ReportTensors.Shape(scale.LongestTensors).QueryElements);

        var operators = new List<ReportOperator>();
        var samples = new List<(ShapeLine Line, AttentionCase Work, AttentionShape Shape, Sample Sample)>();
        foreach (string map in new[] { MapNames.Favor, MapNames.Elu })
        {
            var onAll = new ReportOperator(allCores, map, causal: true);
            var onOne = new ReportOperator(oneCore, map, causal: true);
            operators.AddRange([onAll, onOne]);
            foreach (string pass in hasBackward ? [Passes.Forward, Passes.Training] : new[] { Passes.Forward })
            {
                foreach ((AttentionShape shape, int used) in problems)
                {
                    ReportOperator attention = used == cores ? onAll : onOne;
                    Action call = pass == Passes.Forward ? attention.ForwardCall(shape, tensors) : attention.TrainingCall(shape, tensors);
                    samples.Add((
                        new ShapeLine { Map = map, Pass = pass, Batch = shape.Batch, Heads = shape.Heads, Length = shape.QueryLength, Cores = used },
                        new AttentionCase(map, Causal: true, shape.QueryLength), shape, new Sample(call, Sampler.Warm(call))));
                }
            }
        }

        Sampler.Run([.. samples.Select(s => s.Sample)], scale.Rounds, scale.SampleSeconds, scale.BudgetSeconds, HostPeak.MeasureBrieflyGflops, afterRound);
        operators.ForEach(o => o.Dispose());
        return
        [
            .. samples.Select(s =>
            {
                double flops = s.Work.FlopsOf(s.Shape) + (s.Line.Pass == Passes.Training ? s.Work.BackwardFlopsOf(s.Shape) : 0);
                return s.Line with
                {
                    Ms = s.Sample.Median * 1e3, FastestMs = s.Sample.Fastest * 1e3, SlowestMs = s.Sample.Slowest * 1e3, Samples = s.Sample.Count,
                    Gflops = flops / s.Sample.Median * 1e-9,

                    // The peak beside each sample is that of all cores.
                    PeakShare = s.Line.Cores == cores && flops * 1e-9 / s.Sample.PossibleGigaflop is { } share and <= 1 ? share : null,
                };
            }),
        ];
    }
}
