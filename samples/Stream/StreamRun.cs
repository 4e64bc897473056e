using System.Globalization;
using System.Numerics.Tensors;
using Gpu.Attention.Plotting;

namespace Gpu.Attention.Samples.Streaming;

/// <summary>What a run came to.</summary>
/// <param name="Linear">Linear attention, by feature map.</param>
/// <param name="Exact">Exact attention.</param>
/// <param name="IsRight">True when every check passed.</param>
internal sealed record StreamResults(IReadOnlyList<Curve> Linear, Curve Exact, bool IsRight);

/// <summary>Decodes the stream in each way, checks what came out, and shows what tokens cost along the stream.</summary>
/// <param name="options">How long the stream is, and where it is decoded.</param>
/// <param name="output">Where the table goes.</param>
internal sealed class StreamRun(StreamOptions options, TextWriter output)
{
    public const string TimeFile = "time-per-token.svg";
    public const string MemoryFile = "memory.svg";

    // Sums of n terms, added one at a time, err by about √n · 2⁻²⁴ of themselves, and features, quotient and result by up to 19 · 2⁻²⁴ (a weight of
    // FAVOR+ is the exponential of a sum of terms up to about 15), on either side. Four times that is the limit, as a share of the largest element of
    // an output. A token that is forgotten, or seen twice, changes it by about 1/√n.
    private const float Unit = 1f / (1 << 24);
    private const float Margin = 4;
    private const float Roundings = 2 * 19;

    private static readonly TokenStream Tokens = new(seed: 1);

    /// <summary>Runs everything.</summary>
    public StreamResults Run()
    {
        using ComputeDevice device = ComputeDevice.Open(options.Device);
        int[] positions = [.. Positions(options.Tokens)];
        output.WriteLine($"{Count(options.Tokens)} tokens of {TokenStream.Heads} heads of {TokenStream.Dimension}, one at a time, on {device}");
        LinearDecoder[] decoders =
        [
            new("elu+1", FeatureMap.EluPlusOne),
            new("FAVOR+ 256", FeatureMap.FavorPlus(RandomProjection.Orthogonal(256, TokenStream.Dimension, seed: 42))),
        ];
        Curve[] linear = [.. decoders.Select(decoder => decoder.Decode(device, Tokens, positions))];
        Curve exact = ExactDecoder.Decode(device, Tokens, positions);
        Curve[] all = [.. linear, exact];
        WriteTable(all);
        WriteMemory(all);
        output.WriteLine();

        bool isRight = true;
        foreach ((LinearDecoder decoder, Curve curve) in decoders.Zip(linear))
        {
            isRight &= CheckMemory(curve);
            isRight &= CheckOutputs(curve, decoder.AttendInPieces(device, Tokens, positions));
            isRight &= CheckBatch(device, decoder);
        }

        isRight &= CheckOutputs(exact, ExactDecoder.AttendAtOnce(device, Tokens, positions));
        Directory.CreateDirectory(options.Output);
        var time = new Axis("time", AxisScale.Logarithmic) { Format = TickFormat.Seconds };
        var memory = new Axis("bytes", AxisScale.Logarithmic) { Format = TickFormat.Count };
        Save(TimeFile, Chart("Time of a token against its position", time, all, c => c.Seconds));
        Save(MemoryFile, Chart("What is kept of the stream", memory, all, c => c.Bytes));
        output.WriteLine(isRight ? "Everything is as it should be." : "Something is wrong.");
        return new StreamResults(linear, exact, isRight);
    }

    /// <summary>How far an output at a position is from what it should be, where 1 is the limit.</summary>
    internal static float ShareOfLimit(int position, float[] actual, float[] expected)
    {
        float limit = Margin * (MathF.Sqrt(position) + Roundings) * Unit * MathF.Abs(TensorPrimitives.MaxMagnitude<float>(expected));
        float[] differences = new float[expected.Length];
        TensorPrimitives.Subtract(actual, expected, differences);
        return MathF.Abs(TensorPrimitives.MaxMagnitude<float>(differences)) / limit;
    }

    // 1, 2, 4, … and the last.
    private static IEnumerable<int> Positions(int tokens)
    {
        for (int position = 1; position < tokens; position *= 2)
        {
            yield return position;
        }

        yield return tokens;
    }

    private void WriteTable(Curve[] curves)
    {
        output.WriteLine();
        output.WriteLine($"{"",10}{string.Concat(curves.Select(c => $"{c.Name,26}"))}");
        output.WriteLine($"{"position",10}{string.Concat(curves.Select(c => $"{"µs/token",12}{"bytes",14}"))}");
        foreach (Cost[] row in curves[0].Costs.Select((_, i) => curves.Select(c => c.Costs[i]).ToArray()))
        {
            output.WriteLine($"{Count(row[0].Position),10}{string.Concat(row.Select(c => $"{Fixed(c.Seconds * 1e6),12}{Count(c.Bytes),14}"))}");
        }

        output.WriteLine($"{"allocated",10}{string.Concat(curves.Select(c => $"{Few(c.AllocatedBytes),12}{"bytes a token",14}"))}");
        output.WriteLine();
    }

    private void WriteMemory(Curve[] curves)
    {
        foreach (Curve curve in curves)
        {
            Cost first = curve.Costs[0];
            Cost last = curve.Costs[^1];
            output.WriteLine(
                $"{curve.Name}: {Mebibytes(last.Bytes)} MiB at the end, {Fixed((double)last.Bytes / first.Bytes)} times as much as at the start, and " +
                $"{Fixed(last.Seconds / first.Seconds)} times the time; ran on {curve.RanOn.Id}");
            foreach (FallbackStep step in curve.Fallbacks)
            {
                output.WriteLine($"  fallback: {step}");
            }
        }

        output.WriteLine("Exact attention did not decode every token: its cache was filled with the stream's keys and values up to each position.");
    }

    private bool CheckMemory(Curve curve)
    {
        // Another device's calls make what they copy with.
        bool isFree = curve.AllocatedBytes == 0 || curve.RanOn.Kind != DeviceKind.Cpu;
        bool isFlat = curve.Costs.All(c => c.Bytes == curve.Costs[0].Bytes);
        return Say(
            isFree && isFlat,
            $"{curve.Name}: {Count(curve.Costs[0].Bytes)} bytes of state at every position, {Few(curve.AllocatedBytes)} bytes allocated a token");
    }

    private bool CheckOutputs(Curve curve, IReadOnlyList<float[]> expected)
    {
        float worst = 0;
        for (int i = 0; i < expected.Count; i++)
        {
            // MathF.Max hands NaN on.
            worst = MathF.Max(worst, ShareOfLimit(curve.Costs[i].Position, curve.Outputs[i], expected[i]));
        }

        return Say(
            worst <= 1,
            $"{curve.Name}: outputs at {expected.Count} positions up to {Count(curve.Costs[expected.Count - 1].Position)} are those of causal attention over " +
            $"the prefix; the worst is off by {worst.ToString("0.000", CultureInfo.InvariantCulture)} of the limit");
    }

    private bool CheckBatch(ComputeDevice device, LinearDecoder decoder)
    {
        using var attention = new LinearAttention(device, decoder.Features);
        bool isRight = ContinuousBatch.IsAsAlone(attention, out IReadOnlyList<Participant> participants);
        return Say(
            isRight,
            $"{decoder.Name}: {participants.Count} streams, one leaving and one joining a running batch, decode {participants.Sum(p => p.Decoded)} tokens to " +
            "the bits that each has alone");
    }

    private bool Say(bool isRight, string claim)
    {
        output.WriteLine((isRight ? "ok     " : "WRONG  ") + claim);
        return isRight;
    }

    private static LineChart Chart(string title, Axis axis, Curve[] curves, Func<Cost, double> value) => new(
        title, new Axis("position in the stream", AxisScale.Logarithmic) { Format = TickFormat.Count }, axis,
        [.. curves.Select(curve => new Series(curve.Name, [.. curve.Costs.Select(c => new PlotPoint(c.Position, value(c)))]))]);

    private void Save(string name, LineChart chart)
    {
        string path = Path.Combine(options.Output, name);
        File.WriteAllText(path, chart.ToSvg());
        output.WriteLine($"Written: {path}");
    }

    private static string Count(double value) => value.ToString("N0", CultureInfo.InvariantCulture);

    private static string Fixed(double value) => value.ToString("N1", CultureInfo.InvariantCulture);

    // A byte now and then is not none.
    private static string Few(double value) => value.ToString("0.######", CultureInfo.InvariantCulture);

    private static string Mebibytes(long bytes) => (bytes / 1048576.0).ToString("N2", CultureInfo.InvariantCulture);
}
