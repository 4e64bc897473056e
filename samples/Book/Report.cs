using System.Collections.Immutable;
using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using Gpu.Attention.Plotting;
using static Gpu.Attention.Plotting.Numbers;

namespace Gpu.Attention.Samples.Book;

/// <summary>Says what was found: the numbers, and what they mean.</summary>
internal static class Report
{
    private const string TimeFile = "time-vs-length.svg";
    private const string TemperatureFile = "bits-vs-temperature.svg";

    public static Document Introduction(Corpus corpus, DeviceInfo device)
    {
        string cores = device.Kind == DeviceKind.Cpu ? "cores" : "compute units";
        return new Document("The book through one causal attention layer")
            .Say($"""
                Machine: {device.Name}, {device.ComputeUnits} {cores}, {device.Capabilities}; {RuntimeInformation.OSDescription};
                {RuntimeInformation.FrameworkDescription}. Run {DateTime.UtcNow:yyyy-MM-dd HH:mm} UTC.
                """)
            .Say($"""
                Text: {Count(corpus.Length)} characters, {corpus.Alphabet.Length} of them different. Nothing is trained. Each position's key is
                a signed hash of the {HashEmbedding.Orders} characters before it, in {HashEmbedding.Dimension} dimensions; its query is the same,
                one character on; its value is the character itself. So the layer looks up what followed similar places earlier in the book, and
                never sees the character that it predicts.
                """);
    }

    public static Document Comparison(BookResults results)
    {
        PassResult uniform = results.Comparison[0];
        PassResult exact = results.Comparison[^1];
        var table = new Table("method", "bits/char", "of exact's gain", "tokens/s", "time", "buffers", "peak memory");
        foreach (PassResult pass in results.Comparison)
        {
            table.Add(
                pass.Method.Name, Bits(pass.BitsPerCharacter), Percent(GainOf(pass, uniform, exact)), Rate(pass.TokensPerSecond),
                Time(pass.AttentionSeconds), Mebibytes(pass.BufferBytes), Mebibytes(pass.PeakBytes));
        }

        double blind = Math.Log2(results.Corpus.Alphabet.Length);
        return new Document($"Every method on the first {Count(exact.Length)} characters, temperature {HashEmbedding.Temperature}")
            .Show(table)
            .Say($"""
                Bits per character: the mean of −log2 p(the character that came). Lower is better: {blind:0.00} is a blind guess, and uniform
                weights know no more than how frequent each character has been so far. What separates the others is only how they weigh the past.
                Of exact's gain: how far a method goes from the uniform weights to exact attention at the same temperature.
                """)
            .Say($"""
                A prediction is p(c) = {1 - Evaluation.Smoothing} a(c) + {Evaluation.Smoothing} (n(c) + 1) / (t + 1 + A): a is the layer's output
                divided by its sum, n(c) how often c stands among the first t + 1 characters, A the size of the alphabet. Both parts sum to 1.
                """)
            .Say("""
                elu+1 is nearly flat here. On rows this short its features are about 1 + x, so a perfect match weighs about a tenth more than
                none. It is cheap, and meant for layers that are trained with it.
                """)
            .Say("""
                FAVOR+ estimates the weights of exact attention, exp(temperature · cosine), from m random features. The relative variance of
                one weight is about (exp(|q + k|²) − 1) / m, worst for the best matches, where |q + k|² is four times the temperature: more
                features help, but slowly.
                """)
            .Say($"""
                Time and tokens/s count the attention calls alone, not the embedding and the scoring. Buffers are tensors, scratch memory and
                state. Peak memory is the largest working set of the process, sampled during the pass, and so holds the runtime and the text too.
                Linear passes hold up to {Count(Passes.SegmentLength)} tokens and carry a state from call to call; the exact call holds the whole
                prefix. Its scratch memory is small: it is time that grows with the square.
                """);
    }

    public static Document WhereExactWins(BookResults results)
    {
        ImmutableArray<float> temperatures = BookRun.Temperatures;
        IReadOnlyList<TemperatureCurve> curves = results.TemperatureCurves;
        var table = new Table(["temperature", .. curves.Select(c => c.Method.Name)]);
        for (int i = 0; i < temperatures.Length; i++)
        {
            table.Add([temperatures[i].ToString(CultureInfo.InvariantCulture), .. curves.Select(c => Bits(c.Spreads[i].Mean))]);
        }

        IEnumerable<string> best = curves.Select(c =>
        {
            (Spread lowest, float temperature) = c.Spreads.Zip(temperatures).MinBy(s => s.First.Mean);
            return $"{c.Method.Name} {Bits(lowest.Mean)} at {temperature}";
        });
        double widest = curves.SelectMany(c => c.Spreads).Max(s => s.Highest - s.Lowest);
        Document document = new Document($"Where exact attention wins: bits per character on {Count(results.TemperatureLength)} characters")
            .Show(table)
            .Show(new Picture("Bits per character against temperature", TemperatureFile))
            .Say($"""
                Up to a point, sharper attention predicts better, and only exact attention can be as sharp as it likes: the variance of random
                features grows exponentially with the temperature. The best of each: {string.Join("; ", best)}.
                """)
            .Say($"""
                FAVOR+ is the mean of {curves.Max(c => c.Draws)} draws of its random features, which lay at most {widest:0.00} bits apart; the
                other tables use the first draw.
                """);
        bool isAhead = curves.Skip(1).Any(c => c.Spreads.Zip(curves[0].Spreads).Any(s => s.First.Mean < s.Second.Mean));
        return !isAhead ? document : document.Say("""
            An estimate can come out ahead of what it estimates: where exact attention is too flat to predict well, errors that happen to
            sharpen it may help. That is luck of the draw, not a merit of the estimate.
            """);
    }

    public static Document WholeBook(BookResults results)
    {
        PassResult exact = results.Comparison[^1];
        int length = results.WholeBook[0].Length;
        var table = new Table("method", "bits/char", "tokens/s", "time", "whole pass", "buffers", "peak memory");
        foreach (PassResult pass in results.WholeBook)
        {
            table.Add(
                pass.Method.Name, Bits(pass.BitsPerCharacter), Rate(pass.TokensPerSecond), Time(pass.AttentionSeconds), Time(pass.TotalSeconds),
                Mebibytes(pass.BufferBytes), Mebibytes(pass.PeakBytes));
        }

        double ratio = length / (double)exact.Length;
        PassResult sharpest = results.WholeBook[^1];
        PassResult early = results.Comparison[^2];
        return new Document($"{Count(length)} characters, linear methods only")
            .Show(table)
            .Say($"""
                One pass, every character predicted from all before it: {Math.Ceiling(length / (double)Passes.SegmentLength)} calls of up to
                {Count(Passes.SegmentLength)} tokens, each going on from the state that the last one left. The state does not grow.
                """)
            .Say($"""
                What a long memory is worth depends on how sharply it is searched. {sharpest.Method.Name}: {Bits(early.BitsPerCharacter)} bits on
                the first {Count(early.Length)} characters, {Bits(sharpest.BitsPerCharacter)} on all of these. Exact attention:
                {Bits(results.ExactOnTemperatureLength)} on the first {Count(results.TemperatureLength)}, {Bits(exact.BitsPerCharacter)} on the
                first {Count(exact.Length)}.
                """)
            .Say($"""
                Exact attention took {Time(exact.AttentionSeconds)} for {Count(exact.Length)} characters. Growing with the square, it would take
                about {Time(exact.AttentionSeconds * ratio * ratio)} for these {Count(length)}; this was computed, not measured.
                """);
    }

    public static Document TimeAgainstLength(BookResults results)
    {
        TimingCurve exact = results.ExactCurve;
        int[] lengths = [1_024, 8_192, 65_536];
        var table = new Table(["method", .. lengths.Select(l => Count(l)), "longest", "slope", "beats exact from"]);
        foreach (TimingCurve curve in results.Curves.Prepend(results.Copy).Append(exact))
        {
            Timing last = curve.Points[^1];
            double? from = curve.FasterThan(exact);
            string crossover = curve == exact || curve == results.Copy ? "–"
                : from is null ? "not reached"
                : from == exact.Points[0].Length ? $"{Count(from.Value)} or less"
                : Count(Math.Round(from.Value / 10) * 10);
            table.Add(
            [
                curve.Name,
                .. lengths.Select(l => curve.Points.FindIndex(p => p.Length == l) is >= 0 and int i ? Time(curve.Points[i].Seconds) : "–"),
                $"{Count(last.Length)} in {Time(last.Seconds)}",
                curve.Slope() is double slope ? $"{slope:0.00}" : "–",
                crossover,
            ]);
        }

        return new Document("Time against length")
            .Show(table)
            .Show(new Picture("Time of one causal attention layer against length, both logarithmic", TimeFile))
            .Say($"""
                Single calls, the median of repetitions (in the picture, bars from the fastest to the slowest); the longest of each is the pass
                above. Slope is the exponent of the length, fitted from {Count(TimingCurve.SlopeFrom)} characters on: 1 is linear, 2 quadratic.
                Copying V alone is the floor of anything that reads its values.
                """)
            .Say("Below the length in the last column exact attention is the faster one, and it is exact: use it there.");
    }

    /// <summary>Writes the report and its pictures.</summary>
    /// <returns>The files.</returns>
    public static IReadOnlyList<string> Write(BookResults results)
    {
        Directory.CreateDirectory(results.Options.Output);
        using var process = Process.GetCurrentProcess();
        Document[] parts = [Comparison(results), WhereExactWins(results), WholeBook(results), TimeAgainstLength(results)];
        string text = Introduction(results.Corpus, results.Device).ToMarkdown(1) +
            "Made by `dotnet run --project samples/Book`. " +
            $"Largest working set of the whole run: {Mebibytes(process.PeakWorkingSet64)}.\n\n" +
            string.Concat(parts.Select(p => p.ToMarkdown(2)));
        return
        [
            Save(results, "report.md", text.TrimEnd('\n') + "\n"),
            Save(results, TimeFile, TimeChart(results).ToSvg()),
            Save(results, TemperatureFile, TemperatureChart(results).ToSvg()),
        ];
    }

    private static double GainOf(PassResult pass, PassResult uniform, PassResult exact) =>
        (uniform.BitsPerCharacter - pass.BitsPerCharacter) / (uniform.BitsPerCharacter - exact.BitsPerCharacter);

    private static LineChart TimeChart(BookResults results)
    {
        IEnumerable<Series> series = results.Curves.Prepend(results.ExactCurve).Append(results.Copy).Select(curve => new Series(
            curve.Name, [.. curve.Points.Select(p => new PlotPoint(p.Length, p.Seconds, p.Fastest, p.Slowest))])
        {
            IsReference = curve == results.Copy,
        });
        return new LineChart(
            "Time of one causal attention layer against length",
            new Axis("characters", AxisScale.Logarithmic) { Format = TickFormat.Count },
            new Axis("time", AxisScale.Logarithmic) { Format = TickFormat.Seconds },
            [.. series]);
    }

    private static LineChart TemperatureChart(BookResults results) => new(
        $"Bits per character against temperature, {Count(results.TemperatureLength)} characters",
        new Axis("temperature", AxisScale.Logarithmic),
        new Axis("bits per character (lower is better)"),
        [.. results.TemperatureCurves.Select((curve, index) => new Series(
            curve.Method.Name,
            [.. curve.Spreads.Zip(BookRun.Temperatures, (s, t) => new PlotPoint(t, s.Mean, s.Lowest, s.Highest))])
        {
            // As in the other picture, where elu+1 stands between them.
            Style = index == 0 ? 0 : index + 1,
        })]);

    private static string Save(BookResults results, string name, string text)
    {
        string path = Path.Combine(results.Options.Output, name);
        File.WriteAllText(path, text);
        return path;
    }
}
