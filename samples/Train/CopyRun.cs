using Gpu.Attention.Plotting;

namespace Gpu.Attention.Samples.Training;

/// <summary>Teaches the copy task to a model of each kind of attention, and draws what they have learned after each step.</summary>
/// <param name="options">Sizes and steps.</param>
/// <param name="output">Where progress and the table go.</param>
internal sealed class CopyRun(TrainOptions options, TextWriter output)
{
    public const string Picture = "copy.svg";

    /// <summary>The loss, in nats a symbol, at which the task counts as learned.</summary>
    public const double Learned = 0.05;

    /// <summary>Runs everything.</summary>
    /// <returns>The curves of softmax, elu+1 and FAVOR+; null when asked to stop before their end.</returns>
    public IReadOnlyList<IReadOnlyList<CurvePoint>>? Run(CancellationToken stop = default)
    {
        using ComputeDevice device = options.Open(output);
        var task = new CopyTask(options.Length, options.Shortest, options.MeasuredSequences);
        AttentionMethod[] methods = [AttentionMethod.Softmax, AttentionMethod.EluPlusOne, AttentionMethod.FavorPlus(options.Features)];
        var curves = new List<IReadOnlyList<CurvePoint>>();
        foreach (AttentionMethod method in methods)
        {
            using var training = new Training(device, task, method, options, output);
            if (!training.Run(stop))
            {
                output.WriteLine($"Stopped. --resume goes on from {training.Path}.");
                return null;
            }

            curves.Add(training.Curve);
        }

        output.WriteLine();
        output.WriteLine($"{"",-16}{"nats a symbol",16}{$"under {Learned} at",18}{"seconds",10}");
        foreach ((AttentionMethod method, IReadOnlyList<CurvePoint> curve) in methods.Zip(curves))
        {
            string learned = curve.Any(p => p.Loss < Learned) ? $"step {curve.First(p => p.Loss < Learned).Step}" : "never";
            output.WriteLine($"{method.Name,-16}{curve[^1].Loss,16:0.0000}{learned,18}{curve[^1].Seconds,10:0.0}");
        }

        var chart = new LineChart(
            $"Copying {task.Name}", new Axis("gradient steps"), new Axis("nats a symbol", AxisScale.Logarithmic),
            [
                .. methods.Zip(curves, (method, curve) => new Series(method.Name, [.. curve.Select(p => new PlotPoint(p.Step, p.Loss))])),
                new Series("learned", [new PlotPoint(0, Learned), new PlotPoint(options.Steps, Learned)]) { IsReference = true },
            ]);
        Pictures.Save(options.Output, Picture, chart, output);
        return curves;
    }
}
