using System.Numerics.Tensors;

namespace Gpu.Attention.Samples.Devices;

/// <summary>Runs the same problem on every device of the machine and holds each result against the host's.</summary>
/// <param name="output">Where the table goes.</param>
internal sealed class DevicesRun(TextWriter output)
{
    // An output row is a weighted mean of value rows. A weight of FAVOR+ is here the exponential of a sum of terms up to about 15, which float32
    // cannot hold more exactly than 15 · 2⁻²⁴ of itself; product, sum, quotient and result add four roundings; and two devices err: 2 · (15 + 4) · 2⁻²⁴ =
    // 2.3e-6 of the largest value. Four times that leaves room for sums in another order and for a GPU's own exp. A kernel that is wrong errs by percents.
    private const float Tolerance = 1e-5f;

    private readonly Dictionary<(Way, Problem), float[]> _references = [];

    /// <summary>Runs everything.</summary>
    /// <returns>True when every device agrees with the host and none keeps memory.</returns>
    public bool Run()
    {
        bool isRight = true;
        IReadOnlyList<DeviceInfo> devices = ComputeDevice.Enumerate();
        foreach (DeviceInfo device in devices.Where(d => d.IsUsable))
        {
            isRight &= Run(device);
        }

        foreach (DeviceInfo device in devices.Where(d => !d.IsUsable))
        {
            output.WriteLine($"{device.Id}, {device.Name}: refused, for {device.Refusal}");
        }

        foreach (DeviceKind kind in Enum.GetValues<DeviceKind>().Except(devices.Select(d => d.Kind)))
        {
            output.WriteLine(WhyNone(kind));
        }

        output.WriteLine(isRight
            ? $"Every device agrees with the host's engine, to {Tolerance:g1} of the largest value."
            : $"A device is wrong by more than {Tolerance:g1} of the largest value, failed, or kept memory.");
        return isRight;
    }

    private bool Run(DeviceInfo info)
    {
        Problem problem = info.Kind == DeviceKind.Simulator ? Problem.Small : Problem.Usual;
        float limit = Tolerance * MathF.Abs(TensorPrimitives.MaxMagnitude<float>(problem.Value));
        output.WriteLine($"{info.Id}, {info.Name}: [{string.Join(", ", problem.Lengths)}]");
        WriteRow("", "ran on", "largest", "RMS", "2nd call", "tokens/s", "kept");

        using ComputeDevice device = ComputeDevice.Open(info);
        bool isRight = true;
        var reasons = new SortedSet<string>(StringComparer.Ordinal);
        foreach (Way way in Way.All)
        {
            try
            {
                Outcome outcome = way.Run(device, problem);

                // The operator and its tensors are disposed of by now. Asked at once: a finaliser would hide what was forgotten.
                long kept = device.MemoryUse.Live;
                (float largest, float rms) = Differences(outcome.Output, Reference(way, problem));
                string ranOn = outcome.RanOn.Id + (outcome.RanOn == info ? "" : ", fallback");
                double milliseconds = outcome.SecondCall.TotalMilliseconds;
                WriteRow(
                    way.Name, ranOn, $"{largest:0.0e+0}", $"{rms:0.0e+0}", $"{milliseconds:0.00} ms", $"{problem.Shape.QueryLength / milliseconds * 1e3:#,##0}",
                    $"{kept:#,##0} B");
                reasons.UnionWith(outcome.Fallbacks.Select(step => step.ToString()));

                // Written so that NaN is wrong.
                isRight &= largest <= limit && kept == 0;
            }
            catch (Exception e) when (e is DeviceException or NotSupportedException)
            {
                output.WriteLine($"  {way.Name}: {e.Message}");
                isRight = false;
            }
        }

        foreach (string reason in reasons)
        {
            output.WriteLine($"  fallback: {reason}");
        }

        output.WriteLine();
        return isRight;
    }

    // Opening what is not there says why it is not.
    private static string WhyNone(DeviceKind kind)
    {
        try
        {
            ComputeDevice.Open(kind).Dispose();
            return $"{kind}: has just appeared";
        }
        catch (NotSupportedException e)
        {
            return e.Message;
        }
    }

    private float[] Reference(Way way, Problem problem)
    {
        if (!_references.TryGetValue((way, problem), out float[]? reference))
        {
            using ComputeDevice host = ComputeDevice.Open(DeviceKind.Cpu);
            reference = way.Run(host, problem).Output;
            _references.Add((way, problem), reference);
        }

        return reference;
    }

    private static (float Largest, float Rms) Differences(float[] actual, float[] expected)
    {
        float[] differences = new float[actual.Length];
        TensorPrimitives.Subtract(actual, expected, differences);
        float rms = MathF.Sqrt(TensorPrimitives.SumOfSquares<float>(differences) / differences.Length);
        return (MathF.Abs(TensorPrimitives.MaxMagnitude<float>(differences)), rms);
    }

    private void WriteRow(string way, string ranOn, string largest, string rms, string time, string tokensPerSecond, string kept) =>
        output.WriteLine($"  {way,-27}{ranOn,-18}{largest,8}{rms,9}{time,12}{tokensPerSecond,13}{kept,12}");
}
