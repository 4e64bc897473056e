using Gpu.Attention.Plotting;

namespace Gpu.Attention.Samples.Training;

/// <summary>Teaches a text to a model with softmax and to two with FAVOR+, one of which draws its random features anew now and then.</summary>
/// <param name="options">Sizes and steps.</param>
/// <param name="text">The text, whose last tenth nothing is learned from.</param>
/// <param name="output">Where progress and the table go.</param>
internal sealed class CharsRun(TrainOptions options, string text, TextWriter output)
{
    public const string Picture = "chars.svg";

    private static readonly double BitsPerNat = 1 / Math.Log(2);

    /// <summary>Runs everything.</summary>
    /// <returns>Bits a character of the whole last tenth, by method; null when asked to stop before the end.</returns>
    public IReadOnlyList<double>? Run(CancellationToken stop = default)
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        var task = new CharacterTask(text, options.Length, options.MeasuredSequences);
        AttentionMethod[] methods =
        [
            AttentionMethod.Softmax, AttentionMethod.FavorPlus(options.Features), AttentionMethod.FavorPlus(options.Features, options.RedrawEvery),
        ];
        var series = new List<Series>();
        var results = new List<double>();
        var lines = new List<string> { $"{"",-22}{"bits a character",18}{"seconds",10}" };
        foreach (AttentionMethod method in methods)
        {
            using var training = new Training(device, task, method, options, output);
            if (!training.Run(stop))
            {
                output.WriteLine($"Stopped. --resume goes on from {training.Path}.");
                return null;
            }

            results.Add(Training.Measure(training.Model, task.HeldOut) * BitsPerNat);
            lines.Add($"{method.Name,-22}{results[^1],18:0.000}{training.Curve[^1].Seconds,10:0.0}");
            series.Add(new Series(method.Name, [.. training.Curve.Skip(1).Select(p => new PlotPoint(p.Seconds, p.Loss * BitsPerNat))]));
        }

        output.WriteLine();
        lines.ForEach(output.WriteLine);
        Pictures.Save(
            options.Output, Picture, new LineChart("Characters of a held-out tenth", new Axis("seconds of training"), new Axis("bits a character"), series),
            output);
        return results;
    }
}
