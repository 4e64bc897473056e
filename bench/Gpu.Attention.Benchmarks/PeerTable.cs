using System.Globalization;
using System.Text.Json;

namespace Gpu.Attention.Benchmarks;

/// <summary>Lines of this library and of a peer, from alternating rounds, as one Markdown table; fails when a required ratio is missed.</summary>
internal static class PeerTable
{
    public static int Run(string[] args)
    {
        if (args is not [var toolFile, var peerFile, .. string[] requirements])
        {
            Console.Error.WriteLine("usage: peer-table TOOL_LINES PEER_LINES [CASE=RATIO]...");
            return 2;
        }

        ToolLine[] ours = Read<ToolLine>(toolFile);
        PeerLine[] theirs = Read<PeerLine>(peerFile);
        string peer = theirs[0].Peer!;
        List<Row> rows =
        [
            .. theirs.Select(l => (l.Case, l.Length)).Distinct()
                .Select(key => Row.Of(
                    key.Case, key.Length, [.. ours.Where(l => (l.Case, l.Length) == key)], [.. theirs.Where(l => (l.Case, l.Length) == key)])),
        ];

        Console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"{Machine.Describe()}; measured peak {Median.Of(ours.Select(l => l.Gflops / l.PeakShare)):0} GFLOP/s; {peer}, {theirs[0].Threads} threads"));
        Console.WriteLine();
        Console.WriteLine($"| case | L | {peer}, ms | Gpu.Attention, ms | ratio | ratio of the fastest calls | GFLOP/s | of the peak |");
        Console.WriteLine("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        foreach (Row row in rows)
        {
            Console.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"| {row.Case} | {row.Length} | {row.Theirs:0.00} | {row.Ours:0.00} | {row.Ratio:0.0} | {row.FastestRatio:0.0} | {row.Gflops:0} | {row.Share:0 %} |"));
        }

        int missed = 0;
        foreach (string requirement in requirements)
        {
            string[] parts = requirement.Split('=');
            double minimum = double.Parse(parts[1], CultureInfo.InvariantCulture);
            List<Row> held = rows.FindAll(r => r.Case == parts[0]);
            if (held.Count == 0)
            {
                Console.Error.WriteLine($"{requirement}: the case was not measured");
                missed++;
            }

            foreach (Row row in held.Where(r => !(Math.Min(r.Ratio, r.FastestRatio) >= minimum)))
            {
                Console.Error.WriteLine(string.Create(
                    CultureInfo.InvariantCulture,
                    $"{row.Case}, L = {row.Length}: ratio {row.Ratio:0.00}, of the fastest calls {row.FastestRatio:0.00}; {minimum} is required of both"));
                missed++;
            }
        }

        return missed == 0 ? 0 : 1;
    }

    private static TLine[] Read<TLine>(string file) => [.. File.ReadLines(file).Select(line => JsonSerializer.Deserialize<TLine>(line)!)];

    private sealed record Row(string Case, int Length, double Theirs, double Ours, double FastestRatio, double Gflops, double Share)
    {
        /// <summary>How many times as long the peer takes.</summary>
        public double Ratio => Theirs / Ours;

        public static Row Of(string name, int length, ToolLine[] ours, PeerLine[] theirs)
        {
            if (ours.Length != theirs.Length)
            {
                throw new InvalidDataException($"{name}, L = {length}: {ours.Length} rounds here and {theirs.Length} of the peer.");
            }

            return new Row(
                name, length, Median.Of(theirs.Select(l => l.Ms)), Median.Of(ours.Select(l => l.Ms)),
                theirs.Min(l => l.FastestMs) / ours.Min(l => l.FastestMs), Median.Of(ours.Select(l => l.Gflops)), Median.Of(ours.Select(l => l.PeakShare)));
        }
    }
}
