using System.Diagnostics;
using Gpu.Attention.Plotting;

namespace Gpu.Attention.Samples.Book;

/// <summary>Measures time against length, each length in a single call.</summary>
internal sealed class Measurement
{
    private const int Shortest = 256;
    private const int MaxRepetitions = 25;
    private const double EnoughSeconds = 0.25;
    private const double WarmUpSeconds = 0.1;

    private readonly ComputeDevice _device;
    private readonly Progress _progress;
    private readonly Segment _segment;

    /// <summary>Prepares to measure.</summary>
    /// <param name="device">Where attention runs.</param>
    /// <param name="corpus">What it reads.</param>
    /// <param name="longest">The longest call.</param>
    /// <param name="progress">Where progress is shown.</param>
    public Measurement(ComputeDevice device, Corpus corpus, int longest, Progress progress) =>
        (_device, _progress, _segment) = (device, progress, new Segment(corpus, longest));

    /// <summary>Times exact attention at doubling lengths for as long as the next is expected to stay within a limit.</summary>
    public TimingCurve Exact(double limitSeconds)
    {
        using var attention = new SoftmaxAttention(_device, new SoftmaxAttentionOptions { Causal = true, Scale = 1 });
        return Run(Method.Exact.Name, limitSeconds / 4, s => attention.Forward(s.Shape, s.Query, s.Key, s.Value, s.Output));
    }

    /// <summary>Times a linear method at doubling lengths.</summary>
    public TimingCurve Linear(Method method)
    {
        using var attention = new LinearAttention(_device, method.Features!, new LinearAttentionOptions { Causal = true, Scale = 1 });
        return Run(method.Name, double.MaxValue, s => attention.Forward(s.Shape, s.Query, s.Key, s.Value, s.Output));
    }

    /// <summary>Times copying the values to the outputs: no attention that reads its values can be faster.</summary>
    public TimingCurve Copy() => Run("copying V", double.MaxValue, s => s.Value.CopyTo(s.Output));

    /// <summary>The time to copy the values of a text in segments, as the linear passes take it.</summary>
    public Timing CopyInSegments(int length)
    {
        _segment.Fill(0, Math.Min(Math.Min(Passes.SegmentLength, _segment.Capacity), length));
        double[] seconds = Repeat(() =>
        {
            for (int first = 0; first < length; first += _segment.Length)
            {
                int count = Math.Min(_segment.Length, length - first) * _segment.Shape.ValueDimension;
                _segment.Value[..count].CopyTo(_segment.Output);
            }
        });
        return Summarize(length, seconds);
    }

    private TimingCurve Run(string name, double lastSeconds, Action<Segment> call)
    {
        _progress.Begin($"time against length: {name}");
        var curve = new TimingCurve(name, []);
        for (int length = Shortest; length <= _segment.Capacity; length *= 2)
        {
            _segment.Fill(0, length);
            if (length == Shortest)
            {
                WarmUp(call);
            }

            curve.Points.Add(Summarize(length, Repeat(() => call(_segment))));
            _progress.Report(length / (double)_segment.Capacity);
            if (curve.Points[^1].Seconds > lastSeconds)
            {
                break;
            }
        }

        _progress.End();
        return curve;
    }

    // The first calls compile, start threads and allocate.
    private void WarmUp(Action<Segment> call)
    {
        long start = Stopwatch.GetTimestamp();
        do
        {
            call(_segment);
        }
        while (Stopwatch.GetElapsedTime(start).TotalSeconds < WarmUpSeconds);
    }

    // The first call of a length allocates and fills caches: it counts only when it takes so long that this cannot matter.
    private static double[] Repeat(Action action)
    {
        double first = Time(action);
        if (first > EnoughSeconds)
        {
            return [first];
        }

        var seconds = new List<double>();
        do
        {
            seconds.Add(Time(action));
        }
        while (seconds.Count < MaxRepetitions && (seconds.Count < 3 || seconds.Sum() < EnoughSeconds));
        return [.. seconds];
    }

    private static double Time(Action action)
    {
        long start = Stopwatch.GetTimestamp();
        action();
        return Stopwatch.GetElapsedTime(start).TotalSeconds;
    }

    private static Timing Summarize(int length, double[] seconds)
    {
        Array.Sort(seconds);
        return new Timing(length, seconds[seconds.Length / 2], seconds[0], seconds[^1]);
    }
}
