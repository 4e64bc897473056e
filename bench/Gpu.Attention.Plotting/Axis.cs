namespace Gpu.Attention.Plotting;

/// <summary>How an axis spaces its values.</summary>
public enum AxisScale
{
    /// <summary>Equal differences, equal distances.</summary>
    Linear,

    /// <summary>Equal ratios, equal distances; values must be above zero.</summary>
    Logarithmic,
}

/// <summary>One axis of a chart.</summary>
/// <param name="Label">What is measured, with its unit.</param>
/// <param name="Scale">How values are spaced.</param>
public sealed record Axis(string Label, AxisScale Scale = AxisScale.Linear)
{
    /// <summary>Where the axis starts; null for the smallest value shown, rounded outwards.</summary>
    public double? Minimum { get; init; }

    /// <summary>Where the axis ends; null for the largest value shown, rounded outwards.</summary>
    public double? Maximum { get; init; }

    /// <summary>Writes a tick's value.</summary>
    public Func<double, string> Format { get; init; } = TickFormat.Number;
}

/// <summary>An axis laid over the values that it must show: its range and its ticks.</summary>
internal sealed class AxisRange
{
    private const int LinearTicks = 6;

    private static readonly int[] LeadingDigits = [1, 2, 5];

    private readonly AxisScale _scale;
    private readonly double _low;
    private readonly double _high;

    public AxisRange(Axis axis, IReadOnlyCollection<double> values)
    {
        _scale = axis.Scale;
        double low = axis.Minimum ?? values.DefaultIfEmpty(_scale == AxisScale.Linear ? 0 : 1).Min();
        double high = axis.Maximum ?? values.DefaultIfEmpty(_scale == AxisScale.Linear ? 1 : 10).Max();
        if (_scale == AxisScale.Logarithmic && low <= 0)
        {
            throw new ArgumentException($"The logarithmic axis '{axis.Label}' cannot show {low}.", nameof(axis));
        }

        if (_scale == AxisScale.Linear)
        {
            double step = NiceStep(low == high ? 1 : (high - low) / (LinearTicks - 1));
            low = axis.Minimum ?? Math.Floor(low / step) * step;
            high = axis.Maximum ?? Math.Ceiling(high / step) * step;
            high = high > low ? high : low + step;
            int first = (int)Math.Ceiling((low / step) - 1e-9);
            int last = (int)Math.Floor((high / step) + 1e-9);
            Major = [.. Enumerable.Range(first, last - first + 1).Select(i => i * step)];
        }
        else
        {
            // Out to the next 1, 2 or 5 rather than the next decade, which could leave most of the axis empty.
            low = axis.Minimum ?? LogarithmicSteps(low / 10, low * 1.0001).Last();
            high = axis.Maximum ?? LogarithmicSteps(high * 0.9999, high * 10).First();
            high = high > low ? high : low * 10;
            List<double> steps = [.. LogarithmicSteps(low * 0.9999, high * 1.0001)];
            List<double> decades = [.. steps.Where(IsDecade)];
            Major = decades.Count >= 3 ? decades : steps;
            Minor = [.. steps.Except(Major)];
        }

        (_low, _high) = (Transform(low), Transform(high));
    }

    /// <summary>Labelled ticks, ascending.</summary>
    public IReadOnlyList<double> Major { get; }

    /// <summary>Lines without a label.</summary>
    public IReadOnlyList<double> Minor { get; } = [];

    /// <summary>Where a value lies, 0 at the start of the axis and 1 at its end.</summary>
    public double Place(double value) => (Transform(value) - _low) / (_high - _low);

    private static double NiceStep(double rough)
    {
        double power = Math.Pow(10, Math.Floor(Math.Log10(rough)));
        double digit = rough / power;
        return power * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
    }

    private static IEnumerable<double> LogarithmicSteps(double low, double high)
    {
        for (int exponent = (int)Math.Floor(Math.Log10(low)); exponent <= (int)Math.Ceiling(Math.Log10(high)); exponent++)
        {
            foreach (int digit in LeadingDigits)
            {
                double value = digit * Math.Pow(10, exponent);
                if (value >= low && value <= high)
                {
                    yield return value;
                }
            }
        }
    }

    private static bool IsDecade(double value)
    {
        double exponent = Math.Log10(value);
        return Math.Abs(exponent - Math.Round(exponent)) < 1e-9;
    }

    private double Transform(double value) => _scale == AxisScale.Linear ? value : Math.Log10(value);
}
