using System.Globalization;
using System.Text;
using Gpu.Attention.Plotting;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>The report in words, tables and pictures.</summary>
internal static class ReportMarkdown
{
    /// <summary>A machine on which others work that hard says little in a single run.</summary>
    public const double BusyLoad = 0.5;

    private const double BusyShare = 0.1;

    private const double RestlessShare = 0.15;

    /// <summary>What to think of a machine that was busy, or whose neighbours were where it cannot see them; null for one that was not.</summary>
    public static string? Warning(ReportFile report)
    {
        MachineLine machine = report.Machine;
        bool isBusy = machine.OthersShare is { } share ? share > BusyShare : machine.LoadAverage > BusyLoad;
        return isBusy || Unrest(report) > RestlessShare
            ? "**The machine was busy with other work.** Take ratios of cases that were timed in turn, and times only as upper bounds."
            : null;
    }

    public static string Write(ReportFile report)
    {
        var text = new StringBuilder();
        text.Append(Introduction(report).ToMarkdown(1));
        foreach (Document? part in new[] { Time(report), WhereExactWins(report), ByMap(report), Peak(report), Shapes(report), Stages(report), Million(report), Memory(report), Decode(report), Peers(report), Base(report), Checks(report) })
        {
            text.Append(part?.ToMarkdown(2));
        }

        return text.ToString().TrimEnd('\n') + "\n";
    }

    /// <summary>Ratios against an earlier revision, for the console and the report.</summary>
    public static Document? Base(ReportFile report)
    {
        if (report.Base is not { } earlier)
        {
            return null;
        }

        var table = new Table("case", "tokens", "then, ms", "now, ms", "times as fast", "by the fastest calls");
        foreach (BaseRatioLine line in earlier.Ratios)
        {
            table.Add(Case(line.Map, line.Direction, line.Pass), Count(line.Length), Ms(line.BaseMs), Ms(line.Ms), Ratio(line.Ratio), Ratio(line.FastestRatio));
        }

        Document document = new Document($"Against {earlier.Revision} ({earlier.Commit})").Show(table).Say("""
            Both revisions' own tool, `gpu-attention bench`, in processes of their own and in turn; medians over rounds. Above 1, this revision is the faster one.
            """);
        return earlier.Unknown.Aggregate(document, (d, reason) => d.Say(reason));
    }

    /// <summary>By what share of its fastest sample the median one took longer, in the middle of all cases.</summary>
    private static double? Unrest(ReportFile report)
    {
        double[] shares = [.. report.Times.Where(t => t.Samples > 1).Select(t => (t.Ms / t.FastestMs) - 1)];
        return shares.Length == 0 ? null : Median.Of(shares);
    }

    private static Document Introduction(ReportFile report)
    {
        ProblemLine p = report.Problem;
        LimitsLine limits = report.Limits;
        Document document = new Document($"What attention costs on {report.Machine.Device}")
            .Say($"Machine: {report.Machine.Line}.")
            .Say($"Measured {report.Date}{(report.Commit is null ? "" : $", commit {report.Commit}")}, with `{report.Command}`.");
        if (Warning(report) is { } warning)
        {
            document.Say(warning);
        }

        document.Say(FormattableString.Invariant($"""
            B = {p.Batch}, H = {p.Heads}, d = dv = {p.Dimension}, {p.Storage}; FAVOR+ with {p.NumFeatures} random features. Times are medians of samples that were taken in turn, all cases once a
            round. Everything was held against the float64 reference before a clock ran (last section). The numbers are in `report.json`.
            """));
        if (Unrest(report) is { } unrest)
        {
            document.Say(FormattableString.Invariant(
                $"Half of the cases took at least {unrest:0%} longer in the median than at their fastest: what others, seen or not, did to the machine."));
        }

        var table = new Table("the host at best", "one core", report.Machine.Cores == 1 ? "all 1" : $"all {report.Machine.Cores}");
        table.Add("fused multiply-adds, GFLOP/s", Whole(limits.PeakGflopsOneCore), Whole(limits.PeakGflopsAllCores));
        table.Add("reading memory, GB/s", One(limits.ReadGBpsOneCore), One(limits.ReadGBpsAllCores));
        table.Add("copying memory, GB/s", One(limits.CopyGBpsOneCore), One(limits.CopyGBpsAllCores));
        return report.Notes.Aggregate(document.Show(table), (d, note) => d.Say(note));
    }

    private static Document Time(ReportFile report)
    {
        var document = new Document("Time against length");
        foreach ((string pass, string file) in new[] { (Passes.Forward, ReportCharts.TimeForward), (Passes.Training, ReportCharts.TimeTraining) })
        {
            IReadOnlyList<(string Map, TimingCurve Curve)> curves = [.. report.Curves(pass, "causal").Where(c => c.Curve.Points.Count > 2)];
            if (curves.Count == 0)
            {
                continue;
            }

            int[] lengths = [.. curves.SelectMany(c => c.Curve.Points.Select(p => p.Length)).Distinct().Order()];
            int[] shown = [.. lengths.Where((_, i) => (lengths.Length - 1 - i) % 2 == 0)];
            var table = new Table([$"{pass}, causal", .. shown.Select(l => Count(l)), "slope"]);
            foreach ((string map, TimingCurve curve) in curves)
            {
                SlopeLine? slope = report.Slopes.FirstOrDefault(s => s.Map == map && s.Pass == pass && s.Direction == "causal");
                table.Add(
                [
                    MapNames.Of(map), .. shown.Select(l => curve.Points.FindIndex(p => p.Length == l) is >= 0 and int i ? Numbers.Time(curve.Points[i].Seconds) : "–"),
                    slope is null ? "–" : Two(slope.Slope),
                ]);
            }

            document.Show(new Picture($"Time of one causal attention layer against its length, {pass}", file)).Show(table);
        }

        return document.Say("""
            The slope is the exponent of the length in the time: 1 is linear, 2 quadratic. Copying V, on all cores, is the floor of anything that reads its values.
            A dash means that the setting had no time for it.
            """);
    }

    private static Document? WhereExactWins(ReportFile report)
    {
        if (report.Crossovers.Count == 0)
        {
            return null;
        }

        var table = new Table("feature map", "direction", "pass", "faster than exact attention from, tokens");
        foreach (CrossoverLine line in report.Crossovers)
        {
            int longest = report.Times.Where(t => t.Map == MapNames.Exact && t.Direction == line.Direction && t.Pass == line.Pass).Max(t => t.Length);
            table.Add(
                MapNames.Of(line.Map), line.Direction, line.Pass,
                line.Length is not { } length ? $"not up to {Count(longest)}" : line.OrLess ? $"{Count(length)} or less" : Count(Math.Round(length)));
        }

        return new Document("Where exact attention wins").Show(table).Say("""
            Read off between measured lengths on logarithmic axes. Below, exact attention is the faster one, and it is exact: use it there.
            """);
    }

    private static Document? ByMap(ReportFile report)
    {
        if (!report.Times.Any(t => t.Map != MapNames.Copy))
        {
            return null;
        }

        int length = ReportCharts.MapLength(report);
        var table = new Table("feature map", "direction", "pass", "ms", "fastest", "spread", "tokens/s", "GFLOP/s", "of peak");
        foreach (TimeLine line in report.Times.Where(t => t.Length == length && t.Map != MapNames.Copy))
        {
            table.Add(
                MapNames.Of(line.Map), line.Direction, line.Pass, Ms(line.Ms), Ms(line.FastestMs), $"±{Share((line.SlowestMs - line.FastestMs) / 2 / line.Ms)}",
                Numbers.Rate(line.TokensPerSecond), line.Gflops is { } gflops ? Whole(gflops) : "–", line.PeakShare is { } share ? Share(share) : "–");
        }

        return new Document($"Tokens a second by feature map, {Count(length)} tokens")
            .Show(new Picture("Tokens a second by feature map, pass and direction", ReportCharts.TokensByMap))
            .Show(table)
            .Say("Spread: half of what lies between the fastest and the slowest sample, as a share of the median.");
    }

    private static Document? Peak(ReportFile report) => !report.Times.Any(t => t.PeakShare is not null) ? null : new Document("Share of the peak")
        .Show(new Picture("Share of the cores' multiply-add peak against length", ReportCharts.ShareOfPeak))
        .Say("Of the fused multiply-add rate that all cores together showed beside each sample, the larger of just before and just after it; medians count.");

    private static Document? Shapes(ReportFile report)
    {
        if (report.Shapes.Count == 0)
        {
            return null;
        }

        (string Map, string Pass)[] cases = [.. report.Shapes.Select(s => (s.Map, s.Pass)).Distinct()];
        var table = new Table(["B", "H", "tokens", "cores", .. cases.Select(c => $"{MapNames.Of(c.Map)}, {c.Pass}")]);
        foreach (var row in report.Shapes.GroupBy(s => (s.Batch, s.Heads, s.Length, s.Cores)))
        {
            table.Add(
            [
                Count(row.Key.Batch), Count(row.Key.Heads), Count(row.Key.Length), Count(row.Key.Cores),
                .. cases.Select(c => row.FirstOrDefault(s => (s.Map, s.Pass) == c) is not { } line
                    ? "–"
                    : Whole(line.Gflops) + (line.PeakShare is { } share ? $", {Share(share)}" : "")),
            ]);
        }

        Document document = new Document("Other shapes, and one core").Show(table).Say("""
            Causal; 10⁹ operations a second, and the share of what so many cores can do: of all of them, of their peak beside each sample; of one, of its best in the run.
            Threads share a single head by chunks of its tokens.
            """);
        string[] gains =
        [
            .. cases.Select(c => (Name: $"{MapNames.Of(c.Map)}, {c.Pass}", Lines: report.Shapes.Where(s => (s.Map, s.Pass) == c).ToList()))
                .Where(c => c.Lines.Exists(s => s.Cores == 1) && c.Lines[0].Cores > 1)
                .Select(c => $"{c.Name}: {Two(c.Lines.Find(s => s.Cores == 1)!.Ms / c.Lines[0].Ms)}"),
        ];
        return gains.Length == 0 ? document : document.Say($"All {report.Machine.Cores} cores are so many times as fast as one: {string.Join("; ", gains)}.");
    }

    private static Document? Stages(ReportFile report)
    {
        if (report.Stages.Count == 0)
        {
            return null;
        }

        var table = new Table("stage", "feature map", "pass", "ns", "operations", "of one core's peak");
        foreach (StageLine line in report.Stages)
        {
            table.Add(
                line.Stage, MapNames.Of(line.Map), line.Pass, One(line.Nanoseconds), line.Operations > 0 ? Count(line.Operations) : "–",
                line.PeakShare is { } share ? Share(share) : "–");
        }

        return new Document("Share of the peak by stage")
            .Show(new Picture("Share of one core's multiply-add peak by stage of the host engine", ReportCharts.Stages))
            .Show(table)
            .Say("Times and operations are those of one token of one head, causal, in one thread: the fastest of fifteen passes. What has no operations moves, compares or exponentiates numbers.");
    }

    private static Document? Million(ReportFile report)
    {
        if (report.Million.Count == 0)
        {
            return null;
        }

        var table = new Table("feature map", "ns a token", "in calls of 16,384", "ratio", "inputs and outputs", "workspace", "measured");
        foreach (MillionLine line in report.Million)
        {
            table.Add(
                MapNames.Of(line.Map), Whole(line.NsPerToken), Whole(line.ShortNsPerToken), Two(line.Ratio), Numbers.Mebibytes(line.TensorBytes),
                Mebibytes(line.WorkspaceBytes), line.MeasuredBytes is { } bytes ? Mebibytes(bytes) : "–");
        }

        return new Document("A million tokens in one call").Show(table).Say("""
            2²⁰ tokens, causal, forward, in one call, beside as many tokens in calls of 16,384. Workspace is what the call holds beside inputs and outputs; measured, by how
            much a process's resident memory rose at its peak during the first call.
            """);
    }

    private static Document? Memory(ReportFile report)
    {
        if (report.Memory.Count == 0)
        {
            return null;
        }

        int[] lengths = [.. report.Memory.Select(m => m.Length).Distinct().Order()];
        var table = new Table(["workspace (measured)", .. lengths.Select(l => Count(l))]);
        foreach (var rows in report.Memory.GroupBy(m => (m.Map, m.Pass)))
        {
            table.Add(
            [
                $"{MapNames.Of(rows.Key.Map)}, {rows.Key.Pass}",
                .. lengths.Select(l => rows.FirstOrDefault(m => m.Length == l) is not { } m
                    ? "–"
                    : Mebibytes(m.WorkspaceBytes) + (m.MeasuredBytes is { } bytes ? $" ({Mebibytes(bytes)})" : "")),
            ]);
        }

        return new Document("Memory against length")
            .Show(new Picture("Memory beside inputs and outputs against length", ReportCharts.Memory))
            .Show(table)
            .Say("""
                What a causal call holds beside inputs and outputs, as the operator says; in brackets, by how much a process's resident memory rose at its peak during the
                first call, in a process of its own.
                """);
    }

    private static Document? Decode(ReportFile report)
    {
        if (report.Decode.Count == 0)
        {
            return null;
        }

        int[] positions = [.. report.Decode.Select(d => d.Position).Distinct().Order()];
        string[] maps = [.. report.Decode.Select(d => d.Map).Distinct()];
        var table = new Table(["position", .. maps.SelectMany(m => new[] { $"{MapNames.Of(m)}, µs", "kept" })]);
        foreach (int position in positions)
        {
            table.Add(
            [
                Count(position),
                .. maps.SelectMany(m => report.Decode.First(d => d.Map == m && d.Position == position) is var d
                    ? new[] { One(d.Us), Mebibytes(d.KeptBytes) }
                    : []),
            ]);
        }

        Document document = new Document("A token of a stream")
            .Show(new Picture("Time of a token against its position in a stream", ReportCharts.Decode))
            .Show(table)
            .Say("""
                `LinearAttention.Step` on a state of one size, beside exact attention of one query over a cache of all keys and values before it. Early in a stream the cache is
                the smaller and the faster one.
                """);
        if (report.Steps.Count == 0)
        {
            return document;
        }

        var steps = new Table("feature map", "state lies in", "a token, µs", "a pass over the state, µs", "ratio");
        foreach (StepLine line in report.Steps)
        {
            steps.Add(MapNames.Of(line.Map), line.InMemory ? "memory" : "cache", One(line.Us), One(line.PassUs), Two(line.Ratio));
        }

        return document.Show(steps).Say("""
            The least that a token can cost is to read its state and write it back, which the pass does: the same state, multiplied where it lies. From memory a stream takes its
            turn among many; in a cache it is alone, and what a token computes shows.
            """);
    }

    private static Document? Peers(ReportFile report)
    {
        if (report.Peers.Count == 0)
        {
            return null;
        }

        string peer = report.Peers[0].Peer;
        var table = new Table("case", "tokens", $"{peer}, ms", "its threads", "this library, ms", "times as fast", "by the fastest calls");
        foreach (PeerRatioLine line in report.Peers)
        {
            table.Add(
                Case(line.Map, line.Direction, line.Pass), Count(line.Length), Ms(line.PeerMs), line.PeerThreads, Ms(line.Ms), Ratio(line.Ratio), Ratio(line.FastestRatio));
        }

        return new Document($"Beside {peer}").Show(table).Say("""
            `bench/peers/torch_attention.py` on the same cores in the same run, round by round in turn with this library. PyTorch ran with one thread, with as many as there are cores, and with as many
            but one for its matrix products, and is taken at its best, case by case.
            """);
    }

    private static Document Checks(ReportFile report)
    {
        var table = new Table("held against the float64 reference", "largest error", "limit");
        foreach (var check in report.Checks.GroupBy(c => c.Case))
        {
            CheckLine worst = check.MaxBy(c => c.LargestError)!;
            table.Add($"{check.Key}: {string.Join(", ", check.Select(c => c.What))}", worst.LargestError.ToString("0.0e+0", CultureInfo.InvariantCulture), worst.Limit.ToString("0e+0", CultureInfo.InvariantCulture));
        }

        return new Document("Right before fast").Show(table).Say("Errors are shares of the largest element. What fails is not timed: the report ends there.");
    }

    private static string Case(string map, string direction, string pass) => $"{MapNames.Of(map)}, {direction}, {pass}";

    private static string Count(double value) => Numbers.Count(value);

    private static string Ms(double value) => value.ToString(value < 10 ? "0.00" : value < 100 ? "0.0" : "0", CultureInfo.InvariantCulture);

    private static string Ratio(double value) => value.ToString(value < 9.95 ? "0.00" : "0.0", CultureInfo.InvariantCulture);

    private static string Whole(double value) => value.ToString("0", CultureInfo.InvariantCulture);

    private static string One(double value) => value.ToString("0.0", CultureInfo.InvariantCulture);

    private static string Two(double value) => value.ToString("0.00", CultureInfo.InvariantCulture);

    private static string Share(double value) => value.ToString("0 %", CultureInfo.InvariantCulture);

    private static string Mebibytes(long bytes) => (bytes / 1048576.0).ToString(bytes < 10 << 20 ? "0.0" : "N0", CultureInfo.InvariantCulture) + " MiB";
}
