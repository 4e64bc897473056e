namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>Times every case at every length: all cases are set up and tried first, then sampled in turn.</summary>
/// <param name="scale">How much is measured.</param>
/// <param name="tensors">Of the longest length.</param>
internal sealed class TimeSeries(ReportScale scale, ReportTensors tensors)
{
    private readonly List<(ReportOperator Attention, string Pass, int Length, Sample Sample)> _samples = [];

    /// <summary>Adds a curve: doubling lengths, for as long as the next call is expected to stay within the setting's limit.</summary>
    /// <returns>The longest length.</returns>
    public int AddCurve(ReportOperator attention, string pass)
    {
        int longest = 0;
        double seconds = 0;
        for (int length = scale.MinLength; length <= scale.MaxLength; length *= 2)
        {
            double growth = attention.Map == MapNames.Exact ? 4 : 2;
            if (seconds * growth > scale.LongestCallSeconds)
            {
                break;
            }

            seconds = Add(attention, pass, length);
            longest = length;
        }

        return longest;
    }

    /// <summary>Adds one length, if it is not there.</summary>
    /// <returns>Seconds of a call.</returns>
    public double Add(ReportOperator attention, string pass, int length)
    {
        if (_samples.Exists(s => s.Attention == attention && s.Pass == pass && s.Length == length))
        {
            return 0;
        }

        AttentionShape shape = ReportTensors.Shape(length);
        Action call = pass == Passes.Forward ? attention.ForwardCall(shape, tensors) : attention.TrainingCall(shape, tensors);
        double seconds = Sampler.Warm(call);
        _samples.Add((attention, pass, length, new Sample(call, seconds)));
        return seconds;
    }

    /// <summary>Takes the samples, the cases of a length one after the other.</summary>
    /// <param name="measurePeak">Measures the cores' peak, where shares of it mean something.</param>
    /// <param name="afterRound">What else has its turn.</param>
    public void Run(Func<double>? measurePeak, Action afterRound) =>
        Sampler.Run(
            [.. _samples.OrderBy(s => s.Length).Select(s => s.Sample)], scale.Rounds, scale.SampleSeconds, scale.BudgetSeconds, measurePeak, afterRound);

    public IReadOnlyList<TimeLine> Lines() =>
    [
        .. _samples.Select(s =>
        {
            var work = new AttentionCase(s.Attention.Map, s.Attention.Causal, s.Length);
            double? flops = s.Attention.Map == MapNames.Copy ? null : work.Flops + (s.Pass == Passes.Training ? work.BackwardFlops : 0);
            double? gflops = flops / s.Sample.Median * 1e-9;
            return new TimeLine
            {
                Map = s.Attention.Map, Direction = s.Attention.Direction, Pass = s.Pass, Length = s.Length, Ms = s.Sample.Median * 1e3,
                FastestMs = s.Sample.Fastest * 1e3, SlowestMs = s.Sample.Slowest * 1e3, Samples = s.Sample.Count, Calls = s.Sample.Calls, Gflops = gflops,
                
                // A case above the peak says that the peak was measured too low.
                PeakShare = flops * 1e-9 / s.Sample.PossibleGigaflop is { } share and <= 1 ? share : null,
            };
        }),
    ];
}
