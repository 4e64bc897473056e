using System.Diagnostics;

namespace Gpu.Attention.Cli.Commands;

/// <summary>One call of <c>attend</c>, and the backward pass after it.</summary>
/// <param name="Device">The device that ran the forward pass.</param>
/// <param name="Milliseconds">What it took.</param>
/// <param name="Backward">Where the backward pass ran, and what it took; null when no gradients are wanted.</param>
/// <param name="Fallbacks">Why either ran elsewhere than asked for, or in smaller segments than planned.</param>
internal sealed record AttendRun(DeviceInfo Device, double Milliseconds, (DeviceInfo Device, double Milliseconds)? Backward, IReadOnlyList<string> Fallbacks)
{
    public static AttendRun Of(Operation operation)
    {
        double forward = Time(operation.Forward);
        (DeviceInfo device, IReadOnlyList<string> fallbacks) = (operation.LastDevice, operation.Fallbacks);
        if (operation.Backward is null)
        {
            return new AttendRun(device, forward, null, fallbacks);
        }

        double backward = Time(operation.Backward);
        return new AttendRun(device, forward, (operation.LastDevice, backward), [.. fallbacks.Union(operation.Fallbacks)]);
    }

    private static double Time(Action pass)
    {
        long start = Stopwatch.GetTimestamp();
        pass();
        return Stopwatch.GetElapsedTime(start).TotalMilliseconds;
    }
}
