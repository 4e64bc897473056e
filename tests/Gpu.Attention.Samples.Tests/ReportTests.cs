using System.Runtime.InteropServices;
using System.Xml.Linq;
using Gpu.Attention.Benchmarks;
using Gpu.Attention.Benchmarks.Reporting;
using Gpu.Attention.Plotting;
using Xunit;

namespace Gpu.Attention.Samples.Tests;

/// <summary>What the benchmarks' report makes of numbers; none is measured here.</summary>
public sealed class ReportTests
{
    private const string Causal = "causal";
    private static readonly int[] Lengths = [256, 512, 1_024, 2_048, 4_096, 8_192, 16_384];

    [Fact]
    public void Slopes_AreThoseOfTheEndsOfCurves()
    {
        // Overhead at the short end, which no slope is to see.
        SlopeLine[] slopes =
        [
            .. Curves.Slopes(Lengths.Select(l => Time(MapNames.Favor, l, l < 1_024 ? 7 : l * 1e-3))
                .Concat(Lengths.Take(5).Select(l => Time(MapNames.Exact, l, 1e-6 * l * l)))
                .Concat(Lengths.Take(2).Select(l => Time(MapNames.Elu, l, l)))),
        ];

        Assert.Equal([MapNames.Favor, MapNames.Exact], slopes.Select(s => s.Map));
        Assert.Equal(1, slopes[0].Slope, 1e-9);
        Assert.Equal(2, slopes[1].Slope, 1e-9);
        Assert.Equal(2_048, slopes[0].From);
        Assert.Equal(512, slopes[1].From);
    }

    [Fact]
    public void Crossovers_AreReadOffBetweenLengths_PerMapAndPass()
    {
        TimeLine[] times =
        [
            .. Lengths.Select(l => Time(MapNames.Favor, l, 3e-3 * l)),
            .. Lengths.Select(l => Time(MapNames.Elu, l, 1e-9 * l)),
            .. Lengths.Select(l => Time(MapNames.Relu, l, 1e3 * l)),
            .. Lengths.Select(l => Time(MapNames.Copy, l, 1e-9 * l)),
            .. Lengths.Select(l => Time(MapNames.Exact, l, 1e-6 * l * l)),
            .. Lengths.Select(l => Time(MapNames.Favor, l, 3e-3 * l) with { Pass = Passes.Training }),
        ];

        CrossoverLine[] lines = [.. Curves.Crossovers(times)];

        Assert.Equal([MapNames.Favor, MapNames.Elu, MapNames.Relu], lines.Select(l => l.Map));
        Assert.All(lines, l => Assert.Equal(Passes.Forward, l.Pass));
        Assert.Equal(3_000, lines[0].Length!.Value, 1e-6);
        Assert.False(lines[0].OrLess);
        Assert.True(lines[1].OrLess);
        Assert.Null(lines[2].Length);
    }

    [Theory]
    [InlineData("elu-causal")]
    [InlineData("favor-hyperbolic-bidirectional-training")]
    [InlineData("softmax-causal-training")]
    public void FirstCalls_AreTimedOneByOne(string name)
    {
        double[] times = FirstCalls.Times(CaseName.Parse(name)!, 8);

        Assert.Equal(100, times.Length);
        Assert.All(times, time => Assert.True(time > 0));
    }

    [Theory]
    [InlineData("0")]
    [InlineData("--cases", "favor")]
    [InlineData("64", "--cases", "copy-causal")]
    [InlineData("64", "--cases", "elu-causal,favor-bidirectional-trainings")]
    [InlineData("64", "--rounds", "3")]
    public void FirstCalls_RefuseWhatTheyDoNotKnow(params string[] args) => Assert.Equal(2, FirstCalls.Run(args));

    [Fact]
    public void Json_KeepsEverything_AndRefusesAnotherSchema()
    {
        ReportFile report = Report();

        string json = report.ToJson();
        ReportFile again = ReportFile.FromJson(json);

        Assert.Equal(json, again.ToJson());
        Assert.Equal(report.Times, again.Times);
        Assert.Equal(report.Crossovers, again.Crossovers);
        Assert.Contains("\"schema\": 1", json, StringComparison.Ordinal);
        InvalidDataException e = Assert.Throws<InvalidDataException>(() => ReportFile.FromJson(json.Replace("\"schema\": 1", "\"schema\": 2", StringComparison.Ordinal)));
        Assert.Contains("schema 2", e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Markdown_HasEverySection_AndItsPicturesAreWritten()
    {
        ReportFile report = Report();

        string text = ReportMarkdown.Write(report);
        Dictionary<string, string> pictures = ReportCharts.All(report).ToDictionary(p => p.File, p => p.Svg);

        string[] shown = [.. text.Split('\n').Where(l => l.StartsWith("![", StringComparison.Ordinal)).Select(l => l.Split('(')[^1].TrimEnd(')'))];
        Assert.Equal(pictures.Keys.Order(), shown.Order());
        Assert.Contains("| FAVOR+      |    causal | forward |                                    3,000 |", text, StringComparison.Ordinal);
        Assert.Contains("The machine was busy", text, StringComparison.Ordinal);
        Assert.Contains("one of two", text, StringComparison.Ordinal);
        Assert.Contains("166, 69 % |", text, StringComparison.Ordinal);
        Assert.Contains("|        memory |        30.0 |                      20.0 |  1.50 |", text, StringComparison.Ordinal);
        Assert.Contains("as fast as one: FAVOR+, forward: 1.88.", text, StringComparison.Ordinal);
        Assert.DoesNotContain("NaN", text, StringComparison.Ordinal);
        foreach (string section in new[] { "Where exact attention wins", "A million tokens in one call", "Other shapes, and one core", "Beside torch 9", "Against v0 (abc)", "Right before fast" })
        {
            Assert.Contains($"\n## {section}", text, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void Tables_OfOneDigit_AreTablesInMarkdown()
    {
        var table = new Table("n", "B");
        table.Add("x", "1");

        Assert.Equal("| n  |  B |\n| -- | -: |\n| x  |  1 |\n", table.ToMarkdown());
    }

    [Fact]
    public void Pictures_SayWhereTheyWereMeasuredAndHow()
    {
        ReportFile report = Report();

        foreach ((_, string svg) in ReportCharts.All(report))
        {
            XElement root = XDocument.Parse(svg).Root!;
            string text = string.Join(' ', root.Elements().Where(e => (string?)e.Attribute("class") == "caption").Select(e => e.Value));
            Assert.Contains("a processor, 2 cores", text, StringComparison.Ordinal);
            Assert.Contains("pinned to cores 0-1", text, StringComparison.Ordinal);
            Assert.Contains("load average 7.0", text, StringComparison.Ordinal);
            Assert.Contains(report.Command, text, StringComparison.Ordinal);
        }

        string curves = ReportCharts.All(report).Single(p => p.File == ReportCharts.TimeForward).Svg;
        Assert.Contains("exact attention, slope 2.00", curves, StringComparison.Ordinal);
    }

    [Fact]
    public void Warning_IsForBusyMachines()
    {
        ReportFile report = Report();

        Assert.NotNull(ReportMarkdown.Warning(report));
        Assert.NotNull(ReportMarkdown.Warning(With(loadAverage: 0, othersShare: 0.3, slower: 1)));
        Assert.Null(ReportMarkdown.Warning(With(loadAverage: 0.1, othersShare: 0.02, slower: 1.1)));
        Assert.Null(ReportMarkdown.Warning(With(loadAverage: null, othersShare: null, slower: 1)));
        Assert.Null(ReportMarkdown.Warning(With(loadAverage: null, othersShare: null, slower: 1) with { Times = [] }));

        // Neighbours that the machine does not see are seen in its samples.
        ReportFile restless = With(loadAverage: 0.1, othersShare: 0.02, slower: 1.25);
        Assert.NotNull(ReportMarkdown.Warning(restless));
        Assert.Contains("at least 25% longer", ReportMarkdown.Write(restless), StringComparison.Ordinal);

        ReportFile With(double? loadAverage, double? othersShare, double slower) => report with
        {
            Machine = report.Machine with { LoadAverage = loadAverage, OthersShare = othersShare },
            Times = [.. report.Times.Select(t => t with { Samples = 3, FastestMs = t.Ms / slower })],
        };
    }

    [Fact]
    public void Ratios_AreOfMediansAndOfTheFastest_WhereBothRevisionsKnowTheCase()
    {
        ToolLine[] then = [Tool("favor+", 10, 9), Tool("favor+", 12, 11), Tool("favor+", 30, 8)];
        ToolLine[] now = [Tool("favor+", 6, 4) with { BothMs = 20, FastestBothMs = 19 }, Tool("elu", 1, 1)];

        BaseRatioLine line = Assert.Single(BaseComparison.Ratios(then, now));

        Assert.Equal((MapNames.Favor, Passes.Forward, 1_024), (line.Map, line.Pass, line.Length));
        Assert.Equal(2, line.Ratio, 1e-9);
        Assert.Equal(2, line.FastestRatio, 1e-9);
        Assert.Equal(2, BaseComparison.Ratios([then[0] with { BothMs = 1, FastestBothMs = 1 }], now).Count());
    }

    [Theory]
    [InlineData("AMD EPYC", 2, 512, Architecture.X64, "amd-epyc-2-cores-avx512")]
    [InlineData("AMD EPYC 7763 64-Core Processor", 1, 256, Architecture.X64, "amd-epyc-7763-1-core-avx2")]
    [InlineData("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", 28, 256, Architecture.X64, "intel-xeon-e5-2690-v4-28-cores-avx2")]
    [InlineData("Arm64", 8, 128, Architecture.Arm64, "arm64-8-cores-neon")]
    [InlineData("AMD EPYC", 2, 32, Architecture.X64, "amd-epyc-2-cores-scalar")]
    public void Slug_NamesProcessorCoresAndVectors(string processor, int cores, int bits, Architecture architecture, string slug) =>
        Assert.Equal(slug, Machine.Slug(processor, cores, bits, architecture));

    [Fact]
    public void CommandLine_IsReadAndSaidAgain()
    {
        ReportOptions options = ReportOptions.Parse(["--full", "--base", "v0", "--peer", "/some/where/python -u", "--output", "here"])!;

        Assert.Equal((ReportScale.Full, "v0", "cpu", "/some/where/python -u", "here"), (options.Scale, options.Base, options.Device, options.Peer, options.Output));
        Assert.EndsWith("-- report --full --base v0 --peer python3", options.Command(), StringComparison.Ordinal);
        Assert.EndsWith("-- report --quick --device pocl", ReportOptions.Parse(["--device", "pocl", "--quick"])!.Command(), StringComparison.Ordinal);
        Assert.Null(ReportOptions.Parse(["--device", "pocl", "--base", "v0"]));
        Assert.Null(ReportOptions.Parse(["--base"]));
        Assert.Null(ReportOptions.Parse(["--fast"]));
    }

    [Fact]
    public void Errors_AreSharesOfTheLargestElement_AndNaNIsOne()
    {
        Assert.Equal(0.25, Checks.LargestError([1, 2, 5], [1, 2, 4]));
        Assert.Equal(double.NaN, Checks.LargestError([1, float.NaN, 4], [1, 2, 4]));
    }

    private static TimeLine Time(string map, int length, double ms) => new()
    {
        Map = map, Direction = Causal, Pass = Passes.Forward, Length = length, Ms = ms, FastestMs = ms * 0.9, SlowestMs = ms * 1.2, Samples = 5, Calls = 3,
        Gflops = 50, PeakShare = map == MapNames.Copy ? null : 0.5,
    };

    private static ToolLine Tool(string features, double ms, double fastest) => new()
    {
        Features = features, Direction = Causal, Length = 1_024, ForwardMs = ms, FastestForwardMs = fastest, ForwardGflops = 1, ForwardPeakShare = 0.1,
    };

    private static ReportFile Report()
    {
        TimeLine[] times =
        [
            .. Lengths.Select(l => Time(MapNames.Favor, l, 3e-3 * l)),
            .. Lengths.Select(l => Time(MapNames.Exact, l, 1e-6 * l * l)),
            .. Lengths.Select(l => Time(MapNames.Copy, l, 1e-5 * l)),
        ];
        return new ReportFile
        {
            Setting = "short", Command = "dotnet run -- report", Date = "2001-02-03", Commit = "abcdef0",
            Machine = new MachineLine
            {
                Slug = "a-processor-2-cores", Host = "a processor, 2 cores", Device = "the host's own engine", IsHost = true, Cores = 2, PinnedTo = "cores 0-1",
                LoadAverage = 7, OthersShare = 0.25,
            },
            Limits = new LimitsLine { PeakGflopsOneCore = 100, PeakGflopsAllCores = 190, ReadGBpsOneCore = 20, ReadGBpsAllCores = 30, CopyGBpsOneCore = 15, CopyGBpsAllCores = 25 },
            Problem = new ProblemLine(1, 8, 64, 256, "float32"),
            Checks = [new CheckLine("FAVOR+, causal", "output", 1e-6, 1e-4)],
            Times = times,
            Slopes = [.. Curves.Slopes(times)],
            Crossovers = [.. Curves.Crossovers(times)],
            Shapes =
            [
                new ShapeLine { Map = MapNames.Favor, Pass = Passes.Forward, Batch = 1, Heads = 8, Length = 4_096, Cores = 2, Ms = 16, Gflops = 311, PeakShare = 0.65 },
                new ShapeLine { Map = MapNames.Favor, Pass = Passes.Forward, Batch = 1, Heads = 8, Length = 4_096, Cores = 1, Ms = 30, Gflops = 166, PeakShare = 0.69 },
                new ShapeLine { Map = MapNames.Elu, Pass = Passes.Training, Batch = 8, Heads = 8, Length = 64, Cores = 2, Ms = 3, Gflops = 99 },
            ],
            Stages = [new StageLine(MapNames.Favor, "forward", "reduce", 12, 32_768, 0.8), new StageLine(MapNames.Favor, "forward", "features", 3, 0, null)],
            Memory = [new MemoryLine { Map = MapNames.Favor, Pass = Passes.Forward, Length = 1_024, TensorBytes = 8 << 20, WorkspaceBytes = 1 << 20, MeasuredBytes = 1 << 20 }],
            Decode =
            [
                new DecodeLine { Map = MapNames.Favor, Position = 1, Us = 10, FastestUs = 9, SlowestUs = 12, KeptBytes = 1 << 19 },
                new DecodeLine { Map = MapNames.Exact, Position = 1, Us = 3, FastestUs = 2, SlowestUs = 4, KeptBytes = 4_096 },
            ],
            Steps = [new StepLine { Map = MapNames.Favor, InMemory = true, Us = 30, PassUs = 20 }],
            Million =
            [
                new MillionLine
                {
                    Map = MapNames.Favor, Length = 1 << 20, NsPerToken = 4_100, FastestNsPerToken = 4_000, ShortLength = 16_384, ShortNsPerToken = 4_000,
                    ShortFastestNsPerToken = 3_900, TensorBytes = 8L << 30, WorkspaceBytes = 1 << 20,
                },
            ],
            Peers =
            [
                new PeerRatioLine
                {
                    Peer = "torch 9", Map = MapNames.Favor, Direction = Causal, Pass = Passes.Forward, Length = 1_024, PeerMs = 30, PeerFastestMs = 29, PeerThreads = "2, BLAS 1",
                    Ms = 3, FastestMs = 2.9,
                },
            ],
            Base = new BaseLine
            {
                Revision = "v0", Commit = "abc",
                Ratios =
                [
                    new BaseRatioLine { Map = MapNames.Favor, Direction = Causal, Pass = Passes.Forward, Length = 1_024, BaseMs = 6, BaseFastestMs = 5.9, Ms = 3, FastestMs = 2.9 },
                ],
                Unknown = ["one of two"],
            },
        };
    }
}
