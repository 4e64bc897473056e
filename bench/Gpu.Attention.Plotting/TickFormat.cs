using System.Globalization;

namespace Gpu.Attention.Plotting;

/// <summary>Ways to write a tick's value, the same in every culture.</summary>
public static class TickFormat
{
    private static readonly (double Factor, string Prefix)[] Small = [(1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")];
    private static readonly (double Factor, string Suffix)[] Large = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")];

    /// <summary>The bare number: <c>0.25</c>, <c>1200</c>.</summary>
    public static string Number(double value) => Digits(value);

    /// <summary>A count with a suffix: <c>500</c>, <c>20k</c>, <c>1M</c>.</summary>
    public static string Count(double value)
    {
        (double factor, string suffix) = Array.Find(Large, l => Math.Abs(value) >= l.Factor * 0.9999);
        return factor == 0 ? Digits(value) : Digits(value / factor) + suffix;
    }

    /// <summary>A time: <c>20 µs</c>, <c>5 ms</c>, <c>100 s</c>.</summary>
    public static string Seconds(double value)
    {
        (double factor, string prefix) = Array.Find(Small, s => Math.Abs(value) >= s.Factor * 0.9999);
        return factor == 0 ? $"{Digits(value)} s" : $"{Digits(value / factor)} {prefix}s";
    }

    // Rounding first removes what binary fractions leave behind (0.30000000000000004), and adding zero removes a minus zero.
    private static string Digits(double value) => (Math.Round(value, 6) + 0.0).ToString("0.######", CultureInfo.InvariantCulture);
}
