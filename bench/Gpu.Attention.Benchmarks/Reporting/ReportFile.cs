using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using Gpu.Attention.Plotting;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>Everything that a report says; <c>report.json</c> is this. bench/README.md describes the fields.</summary>
internal sealed record ReportFile
{
    /// <summary>Grows when a field changes its meaning or goes away; new fields leave it alone.</summary>
    public const int CurrentSchema = 1;

    private static readonly JsonSerializerOptions Json = new(JsonSerializerDefaults.Web)
    {
        WriteIndented = true,
        DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    };

    public int Schema { get; init; } = CurrentSchema;

    /// <summary><c>quick</c>, <c>short</c> or <c>full</c>.</summary>
    public required string Setting { get; init; }

    public required string Command { get; init; }

    /// <summary>The day, in UTC.</summary>
    public required string Date { get; init; }

    /// <summary>The commit measured, with <c>+</c> when files differed from it.</summary>
    public string? Commit { get; init; }

    public required MachineLine Machine { get; init; }

    public required LimitsLine Limits { get; init; }

    /// <summary>Sizes that all cases share.</summary>
    public required ProblemLine Problem { get; init; }

    public IReadOnlyList<CheckLine> Checks { get; init; } = [];

    public IReadOnlyList<TimeLine> Times { get; init; } = [];

    public IReadOnlyList<SlopeLine> Slopes { get; init; } = [];

    public IReadOnlyList<CrossoverLine> Crossovers { get; init; } = [];

    public IReadOnlyList<ShapeLine> Shapes { get; init; } = [];

    public IReadOnlyList<StageLine> Stages { get; init; } = [];

    public IReadOnlyList<MemoryLine> Memory { get; init; } = [];

    public IReadOnlyList<DecodeLine> Decode { get; init; } = [];

    public IReadOnlyList<StepLine> Steps { get; init; } = [];

    public IReadOnlyList<MillionLine> Million { get; init; } = [];

    public IReadOnlyList<PeerRatioLine> Peers { get; init; } = [];

    public BaseLine? Base { get; init; }

    /// <summary>What was left out, and why.</summary>
    public IReadOnlyList<string> Notes { get; init; } = [];

    public string ToJson() => JsonSerializer.Serialize(this, Json) + "\n";

    public static ReportFile FromJson(string text)
    {
        ReportFile report = JsonSerializer.Deserialize<ReportFile>(text, Json) ?? throw new InvalidDataException("The file holds no report.");
        return report.Schema == CurrentSchema
            ? report
            : throw new InvalidDataException($"The report has schema {report.Schema}; this program reads {CurrentSchema}.");
    }

    /// <summary>The curves of one pass and direction, in the order in which they were measured.</summary>
    public IReadOnlyList<(string Map, TimingCurve Curve)> Curves(string pass, string direction) =>
    [
        .. Times.Where(t => t.Pass == pass && t.Direction == direction).GroupBy(t => t.Map)
            .Select(g => (g.Key, new TimingCurve(MapNames.Of(g.Key), [.. g.OrderBy(t => t.Length).Select(t => t.Timing())]))),
    ];
}

/// <summary>Where it was measured, and how busy that was.</summary>
internal sealed record MachineLine
{
    /// <summary>The name of the machine's folder.</summary>
    public required string Slug { get; init; }

    /// <summary>Processor, cores, vectors, runtime and operating system.</summary>
    public required string Host { get; init; }

    /// <summary>What ran the cases.</summary>
    public required string Device { get; init; }

    /// <summary>True when that is the host's own engine.</summary>
    public required bool IsHost { get; init; }

    public required int Cores { get; init; }

    /// <summary>The cores that this process, and all that it started, may use.</summary>
    public string? PinnedTo { get; init; }

    /// <summary>Over the minute before the run.</summary>
    public double? LoadAverage { get; init; }

    /// <summary>What other processes took of the machine's cores while this one measured.</summary>
    public double? OthersShare { get; init; }

    /// <summary>The line under every chart.</summary>
    [JsonIgnore]
    public string Line
    {
        get
        {
            string device = IsHost ? Host : $"{Device}; host: {Host}";
            string pinned = PinnedTo is null ? "" : $"; pinned to {PinnedTo}";
            string load = LoadAverage is { } average ? FormattableString.Invariant($"; load average {average:0.0} at the start") : "";
            string others = OthersShare is { } share ? FormattableString.Invariant($", others took {share:0%} of the cores") : "";
            return device + pinned + load + others;
        }
    }
}

/// <summary>What the host's cores and memory can do at best: the best of all measurements in the run.</summary>
internal sealed record LimitsLine
{
    public double PeakGflopsOneCore { get; init; }

    public double PeakGflopsAllCores { get; init; }

    /// <summary>10⁹ bytes a second.</summary>
    public double ReadGBpsOneCore { get; init; }

    public double ReadGBpsAllCores { get; init; }

    /// <summary>Bytes read and bytes written both count.</summary>
    public double CopyGBpsOneCore { get; init; }

    public double CopyGBpsAllCores { get; init; }
}

/// <summary>The sizes of the problem.</summary>
internal sealed record ProblemLine(int Batch, int Heads, int Dimension, int NumFeatures, string Storage);

/// <summary>A case held against the float64 reference before anything was timed.</summary>
/// <param name="Case">What was computed.</param>
/// <param name="What"><c>output</c>, <c>query gradient</c>, …</param>
/// <param name="LargestError">Over the largest element of the reference.</param>
/// <param name="Limit">The most it may be.</param>
internal sealed record CheckLine(string Case, string What, double LargestError, double Limit);

/// <summary>One case, timed.</summary>
internal sealed record TimeLine
{
    public required string Map { get; init; }

    /// <summary><c>causal</c> or <c>bidirectional</c>.</summary>
    public required string Direction { get; init; }

    /// <summary><c>forward</c> or <c>forward+backward</c>.</summary>
    public required string Pass { get; init; }

    public required int Length { get; init; }

    /// <summary>The median of the samples.</summary>
    public required double Ms { get; init; }

    public required double FastestMs { get; init; }

    public required double SlowestMs { get; init; }

    public required int Samples { get; init; }

    /// <summary>Calls in a sample; its time is that of one.</summary>
    public required int Calls { get; init; }

    public double? Gflops { get; init; }

    /// <summary>Of the host's measured peak on all cores; null on other devices.</summary>
    public double? PeakShare { get; init; }

    public double TokensPerSecond => Length / Ms * 1e3;

    public Timing Timing() => new(Length, Ms / 1e3, FastestMs / 1e3, SlowestMs / 1e3);
}

/// <summary>Causal linear attention in another shape than the report's own, or on one core.</summary>
internal sealed record ShapeLine
{
    public required string Map { get; init; }

    public required string Pass { get; init; }

    public required int Batch { get; init; }

    public required int Heads { get; init; }

    public required int Length { get; init; }

    /// <summary>The cores that it could use.</summary>
    public required int Cores { get; init; }

    public double Ms { get; init; }

    public double FastestMs { get; init; }

    public double SlowestMs { get; init; }

    public int Samples { get; init; }

    public double Gflops { get; init; }

    /// <summary>Of what so many cores can do.</summary>
    public double? PeakShare { get; init; }
}

/// <summary>The exponent of the length in a curve's time.</summary>
internal sealed record SlopeLine(string Map, string Direction, string Pass, int From, double Slope);

/// <summary>The length from which linear attention stays faster than exact attention; null when it was not reached.</summary>
/// <param name="Map">The feature map.</param>
/// <param name="Direction">The direction of both.</param>
/// <param name="Pass">The pass of both.</param>
/// <param name="Length">Read off between measured lengths, on logarithmic axes.</param>
/// <param name="OrLess">True when linear attention was faster at every length that was measured.</param>
internal sealed record CrossoverLine(string Map, string Direction, string Pass, double? Length, bool OrLess);

/// <summary>A stage of the host engine, in one thread.</summary>
/// <param name="Map">The feature map.</param>
/// <param name="Pass"><c>forward</c> or <c>backward</c>.</param>
/// <param name="Stage">The stage's name.</param>
/// <param name="Nanoseconds">Of a token of a head.</param>
/// <param name="Operations">Of a token of a head.</param>
/// <param name="PeakShare">Of one core's peak; null for a stage without counted operations.</param>
internal sealed record StageLine(string Map, string Pass, string Stage, double Nanoseconds, double Operations, double? PeakShare);

/// <summary>What a call holds beside its inputs and outputs.</summary>
internal sealed record MemoryLine
{
    public required string Map { get; init; }

    public required string Pass { get; init; }

    public required int Length { get; init; }

    /// <summary>Inputs and outputs, and their gradients where the pass has them.</summary>
    public required long TensorBytes { get; init; }

    /// <summary>What the operator says that it allocates.</summary>
    public required long WorkspaceBytes { get; init; }

    /// <summary>How much the process's resident memory rose at its peak during the first call; null where that was not measured.</summary>
    public long? MeasuredBytes { get; init; }
}

/// <summary>One token of a stream.</summary>
internal sealed record DecodeLine
{
    public required string Map { get; init; }

    /// <summary>Tokens of the stream before it.</summary>
    public required int Position { get; init; }

    public required double Us { get; init; }

    public required double FastestUs { get; init; }

    public required double SlowestUs { get; init; }

    /// <summary>The state, or the cache of keys and values.</summary>
    public required long KeptBytes { get; init; }
}

/// <summary>A token of a stream, beside one pass that reads and writes its state.</summary>
internal sealed record StepLine
{
    public required string Map { get; init; }

    /// <summary>True when states come from memory, one after the other; false when one stays in a cache.</summary>
    public required bool InMemory { get; init; }

    public required double Us { get; init; }

    /// <summary>The pass.</summary>
    public required double PassUs { get; init; }

    public double Ratio => Us / PassUs;
}

/// <summary>2²⁰ tokens in one causal call, beside a shorter one.</summary>
internal sealed record MillionLine
{
    public required string Map { get; init; }

    public required int Length { get; init; }

    public required double NsPerToken { get; init; }

    public required double FastestNsPerToken { get; init; }

    public required int ShortLength { get; init; }

    public required double ShortNsPerToken { get; init; }

    public required double ShortFastestNsPerToken { get; init; }

    public required long TensorBytes { get; init; }

    public required long WorkspaceBytes { get; init; }

    public long? MeasuredBytes { get; init; }

    public double Ratio => NsPerToken / ShortNsPerToken;
}

/// <summary>A case beside a peer's, from alternating rounds.</summary>
internal sealed record PeerRatioLine
{
    public required string Peer { get; init; }

    public required string Map { get; init; }

    public required string Direction { get; init; }

    public required string Pass { get; init; }

    public required int Length { get; init; }

    public required double PeerMs { get; init; }

    public required double PeerFastestMs { get; init; }

    /// <summary>The peer's setting with the smallest median.</summary>
    public required string PeerThreads { get; init; }

    public required double Ms { get; init; }

    public required double FastestMs { get; init; }

    /// <summary>How many times as long the peer takes.</summary>
    public double Ratio => PeerMs / Ms;

    public double FastestRatio => PeerFastestMs / FastestMs;
}

/// <summary>The same cases of an earlier revision.</summary>
internal sealed record BaseLine
{
    /// <summary>As it was asked for.</summary>
    public required string Revision { get; init; }

    public required string Commit { get; init; }

    public IReadOnlyList<BaseRatioLine> Ratios { get; init; } = [];

    /// <summary>Cases that the revision does not know, and why.</summary>
    public IReadOnlyList<string> Unknown { get; init; } = [];
}

/// <summary>A case in two revisions, from alternating processes.</summary>
internal sealed record BaseRatioLine
{
    public required string Map { get; init; }

    public required string Direction { get; init; }

    public required string Pass { get; init; }

    public required int Length { get; init; }

    public required double BaseMs { get; init; }

    public required double BaseFastestMs { get; init; }

    public required double Ms { get; init; }

    public required double FastestMs { get; init; }

    /// <summary>How many times as long the earlier revision takes.</summary>
    public double Ratio => BaseMs / Ms;

    public double FastestRatio => BaseFastestMs / FastestMs;
}
