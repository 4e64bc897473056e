using System.Globalization;

namespace Gpu.Attention.Benchmarks;

/// <summary>The command line of the mode <c>devices</c>.</summary>
internal sealed record DeviceOptions
{
    public const string Usage =
        "usage: devices [--device PART_OF_NAME] [--lengths 4096,16384] [--heads 8] [--dim 64] [--features 256] [--bidirectional] [--rounds 7]\n" +
        "               [--tiling Chunk64Block8] [--block-items 0] [--json FILE] [--require-gflops N]";

    /// <summary>A part of the names of the devices to measure; null for all that are no simulators.</summary>
    public string? Device { get; init; }

    public int[] Lengths { get; init; } = [4096, 16384];

    public int Heads { get; init; } = 8;

    public int Dimension { get; init; } = 64;

    public int NumFeatures { get; init; } = 256;

    public bool Causal { get; init; } = true;

    public int Rounds { get; init; } = 7;

    public Tiling? Tiling { get; init; }

    public int BlockItems { get; init; }

    /// <summary>Where lines of JSON go; null for nowhere.</summary>
    public string? Json { get; init; }

    /// <summary>What every device's fastest call must reach at every length.</summary>
    public double RequiredGflops { get; init; }

    /// <summary>Reads a command line; null when it is wrong.</summary>
    public static DeviceOptions? Parse(string[] args)
    {
        var options = new DeviceOptions();
        try
        {
            for (int i = 0; i < args.Length; i++)
            {
                options = args[i] switch
                {
                    "--bidirectional" => options with { Causal = false },
                    "--device" => options with { Device = args[++i] },
                    "--lengths" => options with { Lengths = [.. args[++i].Split(',').Select(Positive)] },
                    "--heads" => options with { Heads = Positive(args[++i]) },
                    "--dim" => options with { Dimension = Positive(args[++i]) },
                    "--features" => options with { NumFeatures = Positive(args[++i]) },
                    "--rounds" => options with { Rounds = Positive(args[++i]) },
                    "--tiling" => options with { Tiling = Enum.Parse<Tiling>(args[++i]) },
                    "--block-items" => options with { BlockItems = Positive(args[++i]) },
                    "--json" => options with { Json = args[++i] },
                    "--require-gflops" => options with { RequiredGflops = double.Parse(args[++i], CultureInfo.InvariantCulture) },
                    _ => throw new FormatException($"{args[i]} is no option"),
                };
            }
        }
        catch (Exception e) when (e is FormatException or ArgumentException or OverflowException or IndexOutOfRangeException)
        {
            return null;
        }

        return options;
    }

    private static int Positive(string text)
    {
        int number = int.Parse(text, CultureInfo.InvariantCulture);
        return number > 0 ? number : throw new FormatException($"{text} is not positive");
    }
}
