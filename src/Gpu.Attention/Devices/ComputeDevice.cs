using System.Globalization;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;

namespace Gpu.Attention;

/// <summary>How a device is chosen and used.</summary>
public sealed record ComputeDeviceOptions
{
    /// <summary>The most threads of the host that work on one call; 0 for one a core. The results do not depend on it.</summary>
    public int MaxDegreeOfParallelism { get; init; }

    /// <summary>
    /// The most bytes that one call on host memory takes of the device; 0 for most of what it has. What needs more is cut into segments. The host's
    /// own engine, which copies nothing, has no use for it.
    /// </summary>
    public long MemoryBudgetBytes { get; init; }

    /// <summary>
    /// True to go on with the next device, in the end the host, when this one cannot run a problem, fails, or has too little memory. Each such
    /// step is logged and stands in the operator's <c>Fallbacks</c>. False to throw instead.
    /// </summary>
    public bool AllowFallback { get; init; } = true;

    /// <summary>Where the choice of a device, every fallback, and why, are logged.</summary>
    public ILoggerFactory? LoggerFactory { get; init; }
}

/// <summary>A device that attention runs on.</summary>
/// <remarks>
/// <para>Operators of one device may be used from several threads at once; one operator may not.</para>
/// <para>An accelerator, once opened, stays open for the process, with the kernels compiled for it; its memory does not.</para>
/// </remarks>
public sealed partial class ComputeDevice : IDisposable
{
    private readonly DeviceCandidate[] _candidates;
    private readonly Lock _lock = new();
    private DeviceSession? _session;
    private TransferQueue? _uploads;
    private TransferQueue? _downloads;
    private volatile bool _disposed;

    internal ComputeDevice(string reason, IEnumerable<DeviceCandidate> candidates, ComputeDeviceOptions? options)
    {
        Options = options ?? new ComputeDeviceOptions();
        ArgumentOutOfRangeException.ThrowIfNegative(Options.MaxDegreeOfParallelism, nameof(options));
        ArgumentOutOfRangeException.ThrowIfNegative(Options.MemoryBudgetBytes, nameof(options));
        _candidates = [.. candidates];
        Reason = reason;
        Logger = (Options.LoggerFactory ?? NullLoggerFactory.Instance).CreateLogger("Gpu.Attention");
        LogOpened(Logger, Info, reason);
    }

    /// <summary>What is known of the device.</summary>
    public DeviceInfo Info => _candidates[0].Info;

    /// <summary>Why this device was chosen, with the refusals of those that were preferred to it.</summary>
    public string Reason { get; }

    /// <summary>The device's memory as this process uses it.</summary>
    public DeviceMemoryUse MemoryUse => _candidates[0].Runtime is { } runtime
        ? new DeviceMemoryUse(runtime.LiveBytes, runtime.Pool.PeakBytes, runtime.Pool.HeldBytes + runtime.LiveBytes - runtime.Pool.LiveBytes)
        : default;

    internal ComputeDeviceOptions Options { get; }

    internal ILogger Logger { get; }

    /// <summary>The device, and those that take over from it, in order.</summary>
    internal IReadOnlyList<DeviceCandidate> Candidates => _candidates;

    /// <summary>Every device of this machine, best first; those that attention cannot run on carry the reason.</summary>
    public static IReadOnlyList<DeviceInfo> Enumerate() => DeviceList.Enumerate();

    /// <summary>
    /// Opens the best usable device: CUDA, then OpenCL GPUs, then the host's vector engine, which is always there. Those after it take over
    /// when it fails.
    /// </summary>
    /// <param name="options">How the device is used.</param>
    public static ComputeDevice OpenDefault(ComputeDeviceOptions? options = null)
    {
        IReadOnlyList<DeviceInfo> devices = Enumerate();
        List<DeviceInfo> usable = [.. devices.Where(d => d.IsUsable && !d.OnlyWhenAskedFor)];
        IEnumerable<string> refused = devices.TakeWhile(d => d != usable[0]).Select(d => $"{d} refused: {d.Refusal ?? "it runs only when asked for"}");
        return Open(usable, string.Join("; ", refused.Prepend("the best usable device")), options);
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
            : OpenOne(usable, "asked for by kind", options);
    }

    /// <summary>Opens one of the devices of <see cref="Enumerate"/>.</summary>
    /// <param name="device">The device.</param>
    /// <param name="options">How the device is used.</param>
    /// <exception cref="NotSupportedException">It is not usable; the message says why.</exception>
    public static ComputeDevice Open(DeviceInfo device, ComputeDeviceOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(device);
        return device.IsUsable
            ? OpenOne(device, "asked for", options)
            : throw new NotSupportedException($"{device} is not usable: {device.Refusal}.");
    }

    /// <summary>Opens a device by what a user would type.</summary>
    /// <param name="id"><c>auto</c> for the best, <c>cuda</c>, <c>opencl</c>, <c>cpu</c> or <c>simulator</c>, with <c>:1</c> for the second of its kind.</param>
    /// <param name="options">How the device is used.</param>
    /// <exception cref="ArgumentException">It is none of these.</exception>
    /// <exception cref="NotSupportedException">There is no such device, or it is not usable; the message says why.</exception>
    public static ComputeDevice Open(string id, ComputeDeviceOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(id);
        if (id.Equals("auto", StringComparison.OrdinalIgnoreCase))
        {
            return OpenDefault(options);
        }

        string[] parts = id.Split(':', 2);
        DeviceKind? kind = Enum.GetValues<DeviceKind>().Cast<DeviceKind?>().FirstOrDefault(k => parts[0].Equals(k.ToString(), StringComparison.OrdinalIgnoreCase));
        int index = 0;
        if (kind is null || (parts.Length == 2 && !int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out index)))
        {
            throw new ArgumentException($"\"{id}\" is no device; say auto, cuda, opencl, cpu or simulator, and :1 for the second of its kind.", nameof(id));
        }

        return parts.Length == 1
            ? Open(kind.Value, options)
            : Enumerate().FirstOrDefault(d => d.Kind == kind && d.Index == index) is { } device
                ? Open(device, options)
                : throw new NotSupportedException($"There is no device {kind} {index}; there are {string.Join(", ", Enumerate())}.");
    }

    /// <summary>Releases the device's memory. Operators and tensors made on it can no longer be used.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            if (!_disposed)
            {
                _disposed = true;
                if (_session is { } session)
                {
                    session.Quiesce();
                    DeviceRuntime.Ignore(() => _uploads?.Dispose());
                    DeviceRuntime.Ignore(() => _downloads?.Dispose());
                    DeviceRuntime.Ignore(session.Dispose);
                }

                Array.ForEach(_candidates, candidate => candidate.Dispose());
            }
        }
    }

    /// <inheritdoc/>
    public override string ToString() => Info.ToString();

    internal bool IsDisposed => _disposed;

    internal void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(_disposed, this);

    /// <summary>The opened device itself.</summary>
    /// <exception cref="DeviceException">It cannot be opened.</exception>
    internal DeviceRuntime OpenRuntime()
    {
        ThrowIfDisposed();
        try
        {
            return _candidates[0].Open();
        }
        catch (Exception e) when (e is not OutOfMemoryException && !_disposed)
        {
            throw new DeviceException(Info, $"{Info} cannot be opened: {e.Message}", e);
        }
    }

    /// <summary>Copies host memory to the device, or back, and waits.</summary>
    internal unsafe void Copy(DeviceTensor tensor, void* host, long bytes, bool toDevice)
    {
        DeviceRuntime runtime = OpenRuntime();
        MemoryRegion region = tensor.Region;
        if (runtime is HostRuntime)
        {
            void* pointer = (void*)region.Address;
            Buffer.MemoryCopy(toDevice ? host : pointer, toDevice ? pointer : host, bytes, bytes);
            GC.KeepAlive(tensor);
            return;
        }

        lock (_lock)
        {
            ThrowIfDisposed();
            try
            {
                _session ??= runtime.OpenSession();

                // On a caller's stream, what was enqueued there may still use the tensor.
                _session.Wait(DeviceQueue.Compute);
                TransferQueue queue = toDevice
                    ? _uploads ??= new TransferQueue(_session, DeviceQueue.Upload)
                    : _downloads ??= new TransferQueue(_session, DeviceQueue.Download);
                queue.Begin(region.Owner!);
                queue.Add(new HostView((nint)host, 1, 0, 1, 0, bytes), region.Address);
                while (queue.Step())
                {
                }
            }
            catch (Exception e)
            {
                // What is under way reads or writes staging memory and the tensor.
                _session?.Quiesce();
                throw e is OutOfMemoryException ? e : new DeviceException(Info, $"{Info} failed to copy a tensor: {runtime.Describe(e)}", e);
            }
        }

        // Its finaliser gives the memory back.
        GC.KeepAlive(tensor);
    }

    private static ComputeDevice OpenOne(DeviceInfo info, string reason, ComputeDeviceOptions? options) =>
        Open(info.Kind == DeviceKind.Cpu ? [info] : [info, Enumerate().First(d => d.Kind == DeviceKind.Cpu)], reason, options);

    private static ComputeDevice Open(IEnumerable<DeviceInfo> devices, string reason, ComputeDeviceOptions? options) =>
        new(reason, devices.Select(info => DeviceList.Candidate(info, options)), options);

    [LoggerMessage(EventId = 1, Level = LogLevel.Debug, Message = "Opened {Device}: {Reason}")]
    private static partial void LogOpened(ILogger logger, DeviceInfo device, string reason);
}
