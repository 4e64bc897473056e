using Gpu.Attention.Plotting;

namespace Gpu.Attention.Samples.Training;

/// <summary>What became of a model of a text.</summary>
/// <param name="Name">How it attends.</param>
/// <param name="Bits">Bits a character of the whole last tenth.</param>
/// <param name="UnseenBits">The same with random features that it was never trained with; FAVOR+ only.</param>
/// <param name="Seconds">What training took.</param>
internal sealed record CharsResult(string Name, double Bits, double? UnseenBits, double Seconds);

/// <summary>Teaches a text to a model with softmax and to two with FAVOR+, one of which draws its random features anew now and then.</summary>
/// <param name="options">Sizes and steps.</param>
/// <param name="text">The text, whose last tenth nothing is learned from.</param>
/// <param name="output">Where progress and the table go.</param>
internal sealed class CharsRun(TrainOptions options, string text, TextWriter output)
{
    public const string Picture = "chars.svg";

    private static readonly double BitsPerNat = 1 / Math.Log(2);

    /// <summary>Runs everything.</summary>
    /// <returns>Softmax, FAVOR+, and FAVOR+ redrawn; null when asked to stop before the end.</returns>
    public IReadOnlyList<CharsResult>? Run(CancellationToken stop = default)
    {
        using ComputeDevice device = options.Open(output);
        var task = new CharacterTask(text, options.Length, options.MeasuredSequences);
        AttentionMethod[] methods =
        [
            AttentionMethod.Softmax, AttentionMethod.FavorPlus(options.Features), AttentionMethod.FavorPlus(options.Features, options.RedrawEvery),
        ];
        var series = new List<Series>();
        var results = new List<CharsResult>();
        foreach (AttentionMethod method in methods)
        {
            using var training = new Training(device, task, method, options, output);
            if (!training.Run(stop))
            {
                output.WriteLine($"Stopped. --resume goes on from {training.Path}.");
                return null;
            }

            results.Add(new CharsResult(
                method.Name, Training.Measure(training.Model, task.HeldOut) * BitsPerNat,
                method.Kind == AttentionKind.FavorPlus ? training.MeasureWithUnseenFeatures(task.HeldOut) * BitsPerNat : null, training.Curve[^1].Seconds));
            series.Add(new Series(method.Name, [.. training.Curve.Skip(1).Select(p => new PlotPoint(p.Seconds, p.Loss * BitsPerNat))]));
        }

        output.WriteLine();
        output.WriteLine($"{"",-22}{"bits a character",18}{"with unseen features",22}{"seconds",10}");
        foreach (CharsResult result in results)
        {
            output.WriteLine($"{result.Name,-22}{result.Bits,18:0.000}{result.UnseenBits,22:0.000}{result.Seconds,10:0.0}");
        }

        Pictures.Save(
            options.Output, Picture, new LineChart("Characters of a held-out tenth", new Axis("seconds of training"), new Axis("bits a character"), series),
            output);
        return results;
    }
}
