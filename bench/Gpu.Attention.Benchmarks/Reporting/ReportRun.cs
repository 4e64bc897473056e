using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using System.Text.Json;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>Checks, measures, and writes what it found.</summary>
internal sealed class ReportRun
{
    public const string MarkdownFile = "report.md";
    public const string JsonFile = "report.json";

    private readonly ReportOptions _options;
    private readonly ComputeDevice _device;
    private readonly Stopwatch _clock = Stopwatch.StartNew();
    private readonly double? _loadAverage = LoadMeter.Average();
    private readonly LoadMeter _load = new();
    private readonly HostLimits _limits = new();
    private readonly List<string> _notes = [];

    private ReportRun(ReportOptions options, ComputeDevice device) => (_options, _device) = (options, device);

    private ReportScale Scale => _options.Scale;

    private bool IsHost => _device.Info.Kind == DeviceKind.Cpu;

    public static int Run(string[] args)
    {
        if (ReportOptions.Parse(args) is not { } options)
        {
            Console.Error.WriteLine(ReportOptions.Usage);
            return 2;
        }

        try
        {
            using ComputeDevice device = ReportDevice.Open(options.Device);
            return new ReportRun(options, device).Run();
        }
        catch (Exception e) when (e is ArgumentException or NotSupportedException or DeviceException or InvalidOperationException or InvalidDataException)
        {
            Console.Error.WriteLine(e.Message);
            return 1;
        }
    }

    private int Run()
    {
        Console.WriteLine($"{_device.Info}; host: {Machine.Describe()}");
        if (_loadAverage > ReportMarkdown.BusyLoad)
        {
            Console.Error.WriteLine(string.Create(CultureInfo.InvariantCulture, $"The load average is {_loadAverage:0.0}: this machine is busy, and times will be too long."));
        }

        var operators = new List<ReportOperator>();
        foreach (bool causal in new[] { true, false })
        {
            operators.AddRange(MapNames.Linear.Append(MapNames.Exact).Select(map => new ReportOperator(_device, map, causal)));
        }

        operators.Add(new ReportOperator(_device, MapNames.Copy, causal: true));
        string? noBackward = operators[0].WhyNoBackward();
        if (noBackward is not null)
        {
            _notes.Add($"No gradients are timed: {noBackward}");
        }

        Say("checking against the float64 reference");
        var checks = new Checks(_device);
        foreach (ReportOperator attention in operators.Where(o => o.Map != MapNames.Copy))
        {
            checks.Run(attention, noBackward is null);
        }

        foreach (string map in new[] { MapNames.Favor, MapNames.Elu })
        {
            checks.RunStream(map);
        }

        if (checks.Failures.Any())
        {
            foreach (string failure in checks.Failures)
            {
                Console.Error.WriteLine(failure);
            }

            return 1;
        }

        MeasureLimits();
        using var tensors = new ReportTensors(Scale.LongestTensors);
        _load.Start();
        ReportFile report = Measure(operators, tensors, noBackward is null, checks);
        _load.Stop();
        operators.ForEach(o => o.Dispose());
        report = report with { Machine = report.Machine with { OthersShare = IsHost ? _load.OthersShare : null } };

        // What follows are programs of others: what was measured here is not lost by them.
        bool compared = true;
        if (_options.Peer is { } peer)
        {
            compared &= Compare("beside the peer", () => report = report with { Peers = PeerComparison.Run(peer, Scale, _device, tensors, _notes) });
        }

        if (_options.Base is { } revision)
        {
            compared &= Compare($"beside {revision}", () =>
            {
                report = report with { Base = BaseComparison.Run(revision, Scale, Say) };
                Console.WriteLine(ReportMarkdown.Base(report)!.ToText());
            });
        }

        Write(report);
        return compared ? 0 : 1;
    }

    private bool Compare(string what, Action compare)
    {
        Say(what);
        try
        {
            compare();
            return true;
        }
        catch (Exception e) when (e is InvalidOperationException or Win32Exception or JsonException or IOException)
        {
            Console.Error.WriteLine(e.Message);
            _notes.Add($"The comparison {what} failed: {e.Message}");
            return false;
        }
    }

    private ReportFile Measure(List<ReportOperator> operators, ReportTensors tensors, bool hasBackward, Checks checks)
    {
        Say("trying every case");
        var series = new TimeSeries(Scale, tensors);
        var longest = new Dictionary<(string Map, string Pass), int>();
        string[] passes = hasBackward ? [Passes.Forward, Passes.Training] : [Passes.Forward];
        foreach (string pass in passes)
        {
            foreach (ReportOperator attention in operators.Where(o => o.Causal && HasCurve(o.Map, pass)))
            {
                longest[(attention.Map, pass)] = series.AddCurve(attention, pass);
            }
        }

        int mapLength = Math.Min(Scale.MapLength, passes.Min(pass => longest[(MapNames.Exact, pass)]));
        foreach (string pass in passes)
        {
            operators.Where(o => o.Map != MapNames.Copy).ToList().ForEach(attention => series.Add(attention, pass, mapLength));
        }

        Say("timing, all cases in turn");
        series.Run(IsHost ? HostPeak.MeasureBrieflyGflops : null, afterRound: _limits.MeasurePeakOnce);
        Say("other shapes, and one core");
        IReadOnlyList<ShapeLine> shapes = IsHost ? ShapeSeries.Run(Scale, tensors, hasBackward, _limits.MeasurePeakOnce) : [];
        Say("stages of the host engine");
        IReadOnlyList<StageLine> stages = IsHost ? [.. StageTable.Lines(Scale.MapLength, peakGflops: 1)] : [];
        Say("tokens of a stream");

        // States and caches are the caller's, on the host: a device would be timed by its bus.
        IReadOnlyList<DecodeLine> decode = IsHost ? DecodeSeries.Run(_device, Scale, tensors) : [];
        IReadOnlyList<StepLine> steps = IsHost ? [.. StepTable.Lines(_device, Scale.StepBytes, Scale.DecodeRounds)] : [];
        MeasureLimits();

        // Memory is measured in processes of their own, which are no others.
        _load.Stop();
        Say("memory");
        List<MemoryLine> memory = [.. MemorySeries.Run(_device, Scale, (map, pass) => longest.GetValueOrDefault((map, pass)))];
        IReadOnlyList<MillionLine> million = Million();
        _load.Start();
        MeasureLimits();
        IReadOnlyList<TimeLine> times = series.Lines();
        return new ReportFile
        {
            Setting = Scale.Name,
            Command = _options.Command(),
            Date = DateTime.UtcNow.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture),
            Commit = Tree.Commit(),
            Machine = new MachineLine
            {
                Slug = Slug(), Host = Machine.Describe(), Device = DeviceName(), IsHost = IsHost, Cores = Environment.ProcessorCount,
                PinnedTo = Machine.PinnedTo() is { } cores ? $"cores {cores}" : null, LoadAverage = _loadAverage,
            },
            Limits = _limits.Best,
            Problem = new ProblemLine(1, AttentionCase.Heads, AttentionCase.Dimension, AttentionCase.NumFeatures, "float32"),
            Checks = checks.Lines,
            Times = times,
            Slopes = [.. Curves.Slopes(times)],
            Crossovers = [.. Curves.Crossovers(times)],

            // A case above the peak says that the peak was measured too low.
            Shapes = [.. shapes.Select(s => s.Cores == Environment.ProcessorCount
                ? s
                : s with { PeakShare = s.Gflops / _limits.Best.PeakGflopsOneCore is var share and <= 1 ? share : null })],
            Stages = [.. stages.Select(s => s with { PeakShare = s.PeakShare / _limits.Best.PeakGflopsOneCore })],
            Memory = memory,
            Decode = decode,
            Steps = steps,
            Million = million,
        };

        bool HasCurve(string map, string pass) =>
            map is MapNames.Favor or MapNames.Elu or MapNames.Exact || (map == MapNames.Copy && pass == Passes.Forward && IsHost);
    }

    private void MeasureLimits()
    {
        if (!Scale.LimitsOnce || _limits.Best.PeakGflopsOneCore == 0)
        {
            Say("the host's limits");
            _limits.Measure();
        }
    }

    private IReadOnlyList<MillionLine> Million()
    {
        if (Scale.MillionRounds == 0)
        {
            return [];
        }

        // Elsewhere such a call may take minutes.
        if (!IsHost || MillionTokens.WhyNot() is not null)
        {
            _notes.Add(IsHost ? $"No call of a million tokens: {MillionTokens.WhyNot()}." : "No call of a million tokens: the report makes it on the host only.");
            return [];
        }

        Say("a million tokens in one call");
        return [.. MillionTokens.Run(_device, Scale)];
    }

    private string Slug() => IsHost ? Machine.Slug() : Machine.Words($"{_options.Device.Split(':')[0]} {_device.Info.Name}");

    private string DeviceName() => IsHost
        ? "the host's own engine"
        : _options.Device == ReportDevice.Pocl
            ? $"{_device.Info.Name}, this processor through PoCL's OpenCL, no GPU"
            : _device.Info.Kind == DeviceKind.Simulator
                ? "a simulated GPU, whose times mean nothing"
                : $"{_device.Info.Name} through {_device.Info.Kind} ({_device.Info.ComputeUnits} compute units; {_device.Info.Capabilities})";

    private void Write(ReportFile report)
    {
        string folder = _options.Output ?? Path.Combine(Tree.Root, "bench", "results", report.Machine.Slug);
        Directory.CreateDirectory(folder);
        report = report with { Notes = _notes };
        File.WriteAllText(Path.Combine(folder, JsonFile), report.ToJson());
        File.WriteAllText(Path.Combine(folder, MarkdownFile), ReportMarkdown.Write(report));
        foreach ((string file, string svg) in ReportCharts.All(report))
        {
            File.WriteAllText(Path.Combine(folder, file), svg);
        }

        foreach (CrossoverLine line in report.Crossovers.Where(c => c.Direction == "causal"))
        {
            Console.WriteLine($"{MapNames.Of(line.Map)}, {line.Pass}: faster than exact attention from {(line.Length is { } l ? $"{l.ToString("N0", CultureInfo.InvariantCulture)} tokens" : "no length that was measured")}");
        }

        Say($"written: {Path.Combine(folder, MarkdownFile)}");
    }

    private void Say(string what) => Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{_clock.Elapsed.TotalSeconds,6:0} s  {what}"));
}
