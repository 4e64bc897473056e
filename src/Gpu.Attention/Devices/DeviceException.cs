namespace Gpu.Attention;

/// <summary>A device failed, or had too little memory, and no other was allowed to take over.</summary>
public sealed class DeviceException : Exception
{
    /// <summary>Creates an exception.</summary>
    /// <param name="device">The device that failed.</param>
    /// <param name="message">What failed.</param>
    /// <param name="innerException">The driver's or the compiler's exception.</param>
    public DeviceException(DeviceInfo device, string message, Exception? innerException = null)
        : base(message, innerException) => Device = device;

    /// <summary>The device that failed.</summary>
    public DeviceInfo Device { get; }
}

/// <summary>Why a device did not run a call that it was asked for first.</summary>
/// <param name="Device">The device.</param>
/// <param name="Reason">What stood in the way.</param>
public sealed record FallbackStep(DeviceInfo Device, string Reason)
{
    /// <inheritdoc/>
    public override string ToString() => $"{Device}: {Reason}";
}

/// <summary>A device's memory as this library uses it, in bytes.</summary>
/// <param name="Live">In use now: tensors, running calls, and what operators keep between calls.</param>
/// <param name="Peak">The most that was in use for tensors and calls at once.</param>
/// <param name="Held">Taken from the device: in use, or kept for the next call.</param>
public readonly record struct DeviceMemoryUse(long Live, long Peak, long Held);
