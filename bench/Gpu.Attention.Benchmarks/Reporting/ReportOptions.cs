namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>The command line of the mode <c>report</c>.</summary>
internal sealed record ReportOptions
{
    public const string Usage =
        "usage: report [--full | --quick] [--output DIR] [--base REVISION] [--device cpu|cuda|opencl|pocl|simulator[:N]] [--peer \"PYTHON COMMAND\"]";

    public ReportScale Scale { get; init; } = ReportScale.Short;

    /// <summary>Where the report is written; null for the machine's folder under <c>bench/results</c>.</summary>
    public string? Output { get; init; }

    /// <summary>An earlier git revision to compare with.</summary>
    public string? Base { get; init; }

    /// <summary>What <see cref="ReportDevice.Open"/> takes.</summary>
    public string Device { get; init; } = "cpu";

    /// <summary>A command that runs a script in a Python with torch.</summary>
    public string? Peer { get; init; }

    /// <summary>Reads a command line; null when it is wrong.</summary>
    public static ReportOptions? Parse(string[] args)
    {
        var options = new ReportOptions();
        for (int i = 0; i < args.Length; i++)
        {
            bool takesValue = args[i] is "--output" or "--base" or "--device" or "--peer";
            if (takesValue && i + 1 == args.Length)
            {
                return null;
            }

            switch (args[i])
            {
                case "--full": options = options with { Scale = ReportScale.Full }; break;
                case "--quick": options = options with { Scale = ReportScale.Quick }; break;
                case "--output": options = options with { Output = args[++i] }; break;
                case "--base": options = options with { Base = args[++i] }; break;
                case "--device": options = options with { Device = args[++i] }; break;
                case "--peer": options = options with { Peer = args[++i] }; break;
                default: return null;
            }
        }

        // Revisions are compared by the tool, which the report runs on the host.
        return options.Base is not null && options.Device != "cpu" ? null : options;
    }

    /// <summary>The command that a reader types to get the same report.</summary>
    public string Command()
    {
        var words = new List<string> { "dotnet run --project bench/Gpu.Attention.Benchmarks -- report" };
        words.AddRange(Scale == ReportScale.Full ? ["--full"] : Scale == ReportScale.Quick ? ["--quick"] : []);
        words.AddRange(Device == "cpu" ? [] : ["--device", Device]);
        words.AddRange(Base is null ? [] : ["--base", Base]);

        // What runs Python is a matter of the machine, and may be a path of it.
        words.AddRange(Peer is null ? [] : ["--peer", "python3"]);
        return string.Join(' ', words);
    }
}
