using System.Globalization;

namespace Gpu.Attention.Cli;

/// <summary>Numbers as people read them.</summary>
internal static class Format
{
    public static string Number(double value) => value.ToString("#,##0", CultureInfo.InvariantCulture);

    public static string Short(double value) => value switch
    {
        0 => "0",
        >= 1000 => Number(value),
        >= 100 => value.ToString("F0", CultureInfo.InvariantCulture),
        >= 10 => value.ToString("F1", CultureInfo.InvariantCulture),
        >= 0.01 => value.ToString("F3", CultureInfo.InvariantCulture),
        _ => value.ToString("0.0e-0", CultureInfo.InvariantCulture),
    };

    public static string Percent(double? share) => share is null ? "-" : (100 * share.Value).ToString("F1", CultureInfo.InvariantCulture) + " %";

    public static string Bytes(long bytes)
    {
        if (bytes <= 0)
        {
            return "-";
        }

        string[] units = ["B", "KiB", "MiB", "GiB", "TiB"];
        int unit = Math.Min((int)Math.Log2(bytes) / 10, units.Length - 1);
        double value = bytes / Math.Pow(1024, unit);
        return value.ToString(value < 10 && unit > 0 ? "0.#" : "0", CultureInfo.InvariantCulture) + " " + units[unit];
    }
}
