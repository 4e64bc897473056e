using System.Globalization;

namespace Gpu.Attention.Plotting;

/// <summary>Numbers as the tables and sentences write them.</summary>
public static class Numbers
{
    /// <summary>A count: <c>12,345</c>.</summary>
    public static string Count(double value) => value.ToString("N0", CultureInfo.InvariantCulture);

    /// <summary>Bits to a thousandth.</summary>
    public static string Bits(double value) => value.ToString("0.000", CultureInfo.InvariantCulture);

    /// <summary>A share: <c>63%</c>.</summary>
    public static string Percent(double fraction) => fraction.ToString("0%", CultureInfo.InvariantCulture);

    /// <summary>Bytes in MiB.</summary>
    public static string Mebibytes(long bytes) => (bytes / 1048576.0).ToString("N0", CultureInfo.InvariantCulture) + " MiB";

    /// <summary>A rate: <c>12,345</c>, <c>1.23 M</c>.</summary>
    public static string Rate(double perSecond) => perSecond >= 1e6
        ? (perSecond / 1e6).ToString(perSecond >= 1e7 ? "0.0" : "0.00", CultureInfo.InvariantCulture) + " M"
        : Count(perSecond);

    /// <summary>A time in the unit that suits it.</summary>
    public static string Time(double seconds)
    {
        (double value, string unit) = seconds switch
        {
            < 1e-3 => (seconds * 1e6, "µs"),
            < 1 => (seconds * 1e3, "ms"),
            < 180 => (seconds, "s"),
            < 10_800 => (seconds / 60, "min"),
            _ => (seconds / 3600, "h"),
        };
        return value.ToString(value < 9.95 ? "0.0" : "0", CultureInfo.InvariantCulture) + " " + unit;
    }
}
