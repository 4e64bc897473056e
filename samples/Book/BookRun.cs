using System.Collections.Immutable;
using Gpu.Attention.Plotting;

namespace Gpu.Attention.Samples.Book;

/// <summary>Bits per character of one method at one temperature: the mean over its draws, and their range.</summary>
internal readonly record struct Spread(double Mean, double Lowest, double Highest);

/// <summary>How one method fares against the temperature.</summary>
/// <param name="Method">The method.</param>
/// <param name="Draws">How often random features were drawn; 1 where there are none.</param>
/// <param name="Spreads">Its bits per character, one a temperature.</param>
internal sealed record TemperatureCurve(Method Method, int Draws, IReadOnlyList<Spread> Spreads);

/// <summary>Everything that was found out.</summary>
internal sealed class BookResults
{
    public required BookOptions Options { get; init; }

    public required Corpus Corpus { get; init; }

    public required DeviceInfo Device { get; init; }

    /// <summary>Copying V alone: the floor of <see cref="Curves"/>.</summary>
    public required TimingCurve Copy { get; init; }

    /// <summary>Time against length of the linear methods.</summary>
    public required IReadOnlyList<TimingCurve> Curves { get; init; }

    /// <summary>Time against length of exact attention.</summary>
    public required TimingCurve ExactCurve { get; init; }

    /// <summary>Every method on the same prefix, exact attention last.</summary>
    public IReadOnlyList<PassResult> Comparison { get; set; } = [];

    /// <summary>FAVOR+ and exact attention at several temperatures.</summary>
    public IReadOnlyList<TemperatureCurve> TemperatureCurves { get; set; } = [];

    /// <summary>Characters that <see cref="TemperatureCurves"/> were made on.</summary>
    public int TemperatureLength { get; set; }

    /// <summary>Exact attention's bits per character on those, at the temperature of the embedding.</summary>
    public double ExactOnTemperatureLength => TemperatureCurves[0].Spreads[BookRun.Temperatures.IndexOf(HashEmbedding.Temperature)].Mean;

    /// <summary>The linear methods on the whole book.</summary>
    public IReadOnlyList<PassResult> WholeBook { get; set; } = [];
}

/// <summary>The sample from beginning to end: measure, compare, read the whole book, report.</summary>
internal sealed class BookRun(BookOptions options, Corpus corpus, TextWriter console, bool isTerminal)
{
    /// <summary>The temperatures that FAVOR+ and exact attention are compared at.</summary>
    public static readonly ImmutableArray<float> Temperatures = [1.5f, 3, HashEmbedding.Temperature, 12, 24];

    private const int TemperatureLength = 16_384;
    private const int Draws = 3;

    public BookResults Run()
    {
        using ComputeDevice device = ComputeDevice.OpenDefault();
        using var progress = new Progress(console, isTerminal);
        var passes = new Passes(device, corpus);
        int length = Math.Min(options.Length ?? corpus.Length, corpus.Length);
        Method[] favor = [.. options.Features.Select(Method.FavorPlus)];
        Method[] linear = [Method.EluPlusOne, .. favor];
        console.Write(Report.Introduction(corpus, device.Info).ToText());

        var measurement = new Measurement(device, corpus, Math.Min(options.LongestCall, length), progress);
        var results = new BookResults
        {
            Options = options,
            Corpus = corpus,
            Device = device.Info,
            Copy = measurement.Copy(),
            Curves = [.. linear.Select(measurement.Linear)],
            ExactCurve = measurement.Exact(options.ExactSeconds / 8),
        };

        (int prefix, double seconds) = ChoosePrefix(results.ExactCurve.Points[^1], length);
        results.Comparison =
        [
            .. linear.Prepend(Method.Uniform).Select(method => Pass(passes, progress, method, prefix)),
            Pass(passes, progress, Method.Exact, prefix, seconds),
        ];
        AddPoint(results.ExactCurve, results.Comparison[^1]);
        console.Write(Report.Comparison(results).ToText());

        results.TemperatureLength = Math.Min(prefix, TemperatureLength);
        results.TemperatureCurves =
        [
            Against(passes, progress, results.TemperatureLength, [Method.Exact]),
            .. options.Features.Select(
                m => Against(passes, progress, results.TemperatureLength, [.. Enumerable.Range(0, Draws).Select(d => Method.FavorPlus(m, d))])),
        ];
        console.Write(Report.WhereExactWins(results).ToText());

        results.WholeBook = [.. linear.Select(method => Pass(passes, progress, method, length))];
        foreach ((TimingCurve curve, PassResult pass) in results.Curves.Zip(results.WholeBook))
        {
            AddPoint(curve, pass);
        }

        results.Copy.Points.Add(measurement.CopyInSegments(length));
        console.Write(Report.WholeBook(results).ToText());
        console.Write(Report.TimeAgainstLength(results).ToText());
        console.WriteLine($"Written: {string.Join(", ", Report.Write(results))}");
        return results;
    }

    /// <summary>The longest prefix that exact attention should read within its time, from the longest call measured so far.</summary>
    private (int Length, double Seconds) ChoosePrefix(Timing longest, int length)
    {
        const double Margin = 0.85;
        const int Step = 1_024;
        double affordable = longest.Length * Math.Sqrt(Margin * options.ExactSeconds / longest.Seconds);
        int prefix = Math.Min(options.Prefix ?? Math.Max((int)affordable / Step * Step, Step), length);
        return (prefix, longest.Seconds * Math.Pow(prefix / (double)longest.Length, 2));
    }

    private static PassResult Pass(Passes passes, Progress progress, Method method, int length, double expectedSeconds = 0)
    {
        progress.Begin($"{method.Name}, {Numbers.Count(length)} characters", expectedSeconds);
        PassResult result = passes.Run(method, length, report: progress.Report);
        progress.End();
        return result;
    }

    private static TemperatureCurve Against(Passes passes, Progress progress, int length, IReadOnlyList<Method> draws)
    {
        progress.Begin($"{draws[0].Name}, {Numbers.Count(length)} characters, {Temperatures.Length} temperatures");
        var spreads = new List<Spread>();
        foreach (float temperature in Temperatures)
        {
            double[] bits = [.. draws.Select(method => passes.Run(method, length, temperature).BitsPerCharacter)];
            spreads.Add(new Spread(bits.Average(), bits.Min(), bits.Max()));
            progress.Report(spreads.Count / (double)Temperatures.Length);
        }

        progress.End();
        return new TemperatureCurve(draws[0], draws.Count, spreads);
    }

    private static void AddPoint(TimingCurve curve, PassResult pass)
    {
        if (pass.Length > curve.Points[^1].Length)
        {
            curve.Points.Add(new Timing(pass.Length, pass.AttentionSeconds, pass.AttentionSeconds, pass.AttentionSeconds));
        }
    }
}
