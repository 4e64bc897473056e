using Gpu.Attention.Plotting;

namespace Gpu.Attention.Samples.Training;

/// <summary>What became of a model whose attention was changed.</summary>
/// <param name="Softmax">Bits a character before.</param>
/// <param name="Transplanted">The same weights with FAVOR+, at once and after steps of training.</param>
/// <param name="Fresh">FAVOR+ from random weights, after the same steps.</param>
internal sealed record TransplantResults(double Softmax, IReadOnlyList<CurvePoint> Transplanted, IReadOnlyList<CurvePoint> Fresh);

/// <summary>Teaches a text to a model with softmax, puts FAVOR+ in its place, and trains on.</summary>
/// <param name="options">Sizes and steps.</param>
/// <param name="text">The text, whose last tenth nothing is learned from.</param>
/// <param name="output">Where progress and the table go.</param>
internal sealed class TransplantRun(TrainOptions options, string text, TextWriter output)
{
    public const string Picture = "transplant.svg";

    private static readonly double BitsPerNat = 1 / Math.Log(2);

    /// <summary>Runs everything.</summary>
    /// <returns>What was measured, in bits a character; null when asked to stop before the end.</returns>
    public TransplantResults? Run(CancellationToken stop = default)
    {
        using ComputeDevice device = options.Open(output);
        var task = new CharacterTask(text, options.Length, options.MeasuredSequences);
        using var softmax = new Training(device, task, AttentionMethod.Softmax, options, output);
        if (!Complete(softmax, stop))
        {
            return null;
        }

        AttentionMethod favor = AttentionMethod.FavorPlus(options.Features);
        using var transplanted = new Training(device, task, favor, options, output, ($"softmax at {options.Steps}", softmax.Model.Parameters.Values));
        using var fresh = new Training(device, task, favor, options with { Steps = options.TuneSteps }, output);
        if (!Complete(transplanted, stop) || !Complete(fresh, stop))
        {
            return null;
        }

        var results = new TransplantResults(softmax.Curve[^1].Loss * BitsPerNat, InBits(transplanted), InBits(fresh));
        output.WriteLine();
        output.WriteLine($"softmax after {options.Steps} steps: {results.Softmax:0.000} bits a character");
        output.WriteLine($"its weights under {favor.Name}, at once: {results.Transplanted[0].Loss:0.000}");
        output.WriteLine($"  {options.TuneSteps} steps later: {results.Transplanted[^1].Loss:0.000}");
        output.WriteLine($"{favor.Name} from random weights, after as many: {results.Fresh[^1].Loss:0.000}");
        var chart = new LineChart(
            "FAVOR+ under weights that softmax learned", new Axis("gradient steps with FAVOR+"), new Axis("bits a character"),
            [
                new Series("softmax weights", [.. results.Transplanted.Select(p => new PlotPoint(p.Step, p.Loss))]),
                new Series("random weights", [.. results.Fresh.Select(p => new PlotPoint(p.Step, p.Loss))]),
                new Series("softmax itself", [new PlotPoint(0, results.Softmax), new PlotPoint(options.TuneSteps, results.Softmax)]) { IsReference = true },
            ]);
        Pictures.Save(options.Output, Picture, chart, output);
        return results;
    }

    private static CurvePoint[] InBits(Training training) => [.. training.Curve.Select(p => p with { Loss = p.Loss * BitsPerNat })];

    private bool Complete(Training training, CancellationToken stop)
    {
        bool isComplete = training.Run(stop);
        if (!isComplete)
        {
            output.WriteLine($"Stopped. --resume goes on from {training.Path}.");
        }

        return isComplete;
    }
}
