using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;

namespace Gpu.Attention;

/// <summary>How a device is chosen and used.</summary>
public sealed record ComputeDeviceOptions
{
    /// <summary>The most threads that work on one call; 0 for one a core. The results do not depend on it.</summary>
    public int MaxDegreeOfParallelism { get; init; }

    /// <summary>Where the choice of a device, and why, is logged.</summary>
    public ILoggerFactory? LoggerFactory { get; init; }
}

/// <summary>A device that attention runs on.</summary>
/// <remarks>Operators of one device may be used from several threads at once; one operator may not.</remarks>
public sealed partial class ComputeDevice : IDisposable
{
    private bool _disposed;

    private ComputeDevice(DeviceInfo info, string reason, IAttentionEngine engine, ILogger logger) =>
        (Info, Reason, Engine, Logger) = (info, reason, engine, logger);

    /// <summary>What is known of the device.</summary>
    public DeviceInfo Info { get; }

    /// <summary>Why this device was chosen, with the refusals of those that were preferred to it.</summary>
    public string Reason { get; }

    internal IAttentionEngine Engine { get; }

    internal ILogger Logger { get; }

    /// <summary>Every device of this machine, best first; those that attention cannot run on carry the reason.</summary>
    public static IReadOnlyList<DeviceInfo> Enumerate() => DeviceList.Enumerate();

    /// <summary>Opens the best usable device: CUDA, then OpenCL GPUs, then the host's vector engine, which is always there.</summary>
    /// <param name="options">How the device is used.</param>
    public static ComputeDevice OpenDefault(ComputeDeviceOptions? options = null)
    {
        IReadOnlyList<DeviceInfo> devices = Enumerate();
        DeviceInfo best = devices.First(d => d.IsUsable && d.Kind != DeviceKind.Simulator);
        IEnumerable<string> refused = devices.TakeWhile(d => d != best).Select(d => $"{d} refused: {d.Refusal}");
        return Open(best, string.Join("; ", refused.Prepend("the best usable device")), options);
    }

    /// <summary>Opens a device of one kind.</summary>
    /// <param name="kind">The kind.</param>
    /// <param name="options">How the device is used.</param>
    /// <exception cref="NotSupportedException">There is no usable device of this kind; the message says why.</exception>
    public static ComputeDevice Open(DeviceKind kind, ComputeDeviceOptions? options = null)
    {
        List<DeviceInfo> candidates = [.. Enumerate().Where(d => d.Kind == kind)];
        if (candidates.Count == 0)
        {
            throw new NotSupportedException($"No {kind} device: {DeviceList.WhyNone(kind)}.");
        }

        DeviceInfo? usable = candidates.Find(d => d.IsUsable);
        return usable is null
            ? throw new NotSupportedException($"No usable {kind} device: {string.Join("; ", candidates.Select(d => $"{d.Name}: {d.Refusal}"))}.")
            : Open(usable, "asked for by kind", options);
    }

    /// <summary>Releases the device. Operators made on it can no longer be used.</summary>
    public void Dispose() => _disposed = true;

    /// <inheritdoc/>
    public override string ToString() => Info.ToString();

    internal void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(_disposed, this);

    private static ComputeDevice Open(DeviceInfo info, string reason, ComputeDeviceOptions? options)
    {
        options ??= new ComputeDeviceOptions();
        ArgumentOutOfRangeException.ThrowIfNegative(options.MaxDegreeOfParallelism, nameof(options));
        ILogger logger = (options.LoggerFactory ?? NullLoggerFactory.Instance).CreateLogger("Gpu.Attention");
        var device = new ComputeDevice(info, reason, new SimdEngine(options.MaxDegreeOfParallelism), logger);
        LogOpened(logger, info, reason);
        return device;
    }

    [LoggerMessage(EventId = 1, Level = LogLevel.Debug, Message = "Opened {Device}: {Reason}")]
    private static partial void LogOpened(ILogger logger, DeviceInfo device, string reason);
}
