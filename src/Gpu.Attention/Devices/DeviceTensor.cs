using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Gpu.Attention;

/// <summary>A dense row-major float32 tensor in a device's memory, for work that stays there.</summary>
/// <remarks>Copies return when they are done. On the host a tensor is native memory, and everything works the same.</remarks>
public sealed unsafe class DeviceTensor : IDisposable
{
    private readonly nint[] _lengths;
    private readonly DeviceRuntime _runtime;
    private DeviceBlock? _block;

    private DeviceTensor(ComputeDevice device, DeviceRuntime runtime, nint[] lengths, long length, DeviceBlock block) =>
        (Device, _runtime, _lengths, Length, _block) = (device, runtime, lengths, length, block);

    /// <summary>Frees memory that nobody disposed of.</summary>
    ~DeviceTensor() => Return();

    /// <summary>The device that it lies on.</summary>
    public ComputeDevice Device { get; }

    /// <summary>The sizes, outermost first.</summary>
    public ReadOnlySpan<nint> Lengths => _lengths;

    /// <summary>The number of elements.</summary>
    public long Length { get; }

    internal MemoryRegion Region
    {
        get
        {
            ObjectDisposedException.ThrowIf(_block is null, this);
            Device.ThrowIfDisposed();
            return _runtime is HostRuntime
                ? new MemoryRegion(null, HostRuntime.AddressOf(_block.Allocation, 0), Length)
                : new MemoryRegion(_block.Allocation, 0, Length);
        }
    }

    /// <summary>Allocates a tensor. Its content is undefined until something is written to it.</summary>
    /// <param name="device">The device.</param>
    /// <param name="lengths">The sizes, outermost first: <c>[B, T, H, D]</c> for an operand of attention.</param>
    /// <exception cref="ArgumentException">A size is negative, or the tensor would be larger than 2⁶³ bytes.</exception>
    /// <exception cref="DeviceException">The device cannot be opened, or has too little memory.</exception>
    public static DeviceTensor Allocate(ComputeDevice device, params ReadOnlySpan<nint> lengths)
    {
        ArgumentNullException.ThrowIfNull(device);
        Int128 length = 1;
        foreach (nint size in lengths)
        {
            length = size < 0
                ? throw new ArgumentException($"A tensor [{string.Join(", ", lengths.ToArray())}] has a negative size.", nameof(lengths))
                : Int128.Min(length * size, long.MaxValue);
        }

        if (length * sizeof(float) > long.MaxValue)
        {
            throw new ArgumentException($"A tensor [{string.Join(", ", lengths.ToArray())}] has more bytes than can be addressed.", nameof(lengths));
        }

        DeviceRuntime runtime = device.OpenRuntime();
        try
        {
            return new DeviceTensor(device, runtime, lengths.ToArray(), (long)length, runtime.Pool.Rent((long)length * sizeof(float)));
        }
        catch (DeviceOutOfMemoryException e)
        {
            throw new DeviceException(device.Info, $"{device} has no room for a tensor [{string.Join(", ", lengths.ToArray())}]: {e.Message}", e);
        }
    }

    /// <summary>Allocates a tensor and fills it.</summary>
    /// <param name="device">The device.</param>
    /// <param name="source">Its elements, dense.</param>
    /// <exception cref="ArgumentException">The source is not dense.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory.</exception>
    public static DeviceTensor From(ComputeDevice device, in ReadOnlyTensorSpan<float> source)
    {
        DeviceTensor tensor = Allocate(device, source.Lengths);
        try
        {
            tensor.Upload(source);
            return tensor;
        }
        catch
        {
            tensor.Dispose();
            throw;
        }
    }

    /// <summary>Copies elements to the device.</summary>
    /// <param name="source">Dense, of the tensor's sizes.</param>
    /// <exception cref="ArgumentException">The sizes differ, or the source is not dense.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    public void Upload(in ReadOnlyTensorSpan<float> source)
    {
        RequireFit(source.Lengths, source.IsDense, nameof(source));
        fixed (float* pointer = &TensorMarshal.GetReference(source))
        {
            Device.Copy(this, pointer, Length, toDevice: true);
        }
    }

    /// <summary>Copies elements to the device.</summary>
    /// <param name="source">As many as the tensor has.</param>
    /// <exception cref="ArgumentException">There are more or fewer.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    public void Upload(ReadOnlySpan<float> source)
    {
        RequireLength(source.Length, nameof(source));
        fixed (float* pointer = source)
        {
            Device.Copy(this, pointer, Length, toDevice: true);
        }
    }

    /// <summary>Copies elements from the device.</summary>
    /// <param name="destination">Dense, of the tensor's sizes.</param>
    /// <exception cref="ArgumentException">The sizes differ, or the destination is not dense.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    public void Download(in TensorSpan<float> destination)
    {
        RequireFit(destination.Lengths, destination.IsDense, nameof(destination));
        fixed (float* pointer = &TensorMarshal.GetReference(destination))
        {
            Device.Copy(this, pointer, Length, toDevice: false);
        }
    }

    /// <summary>Copies elements from the device.</summary>
    /// <param name="destination">As many as the tensor has.</param>
    /// <exception cref="ArgumentException">There are more or fewer.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    public void Download(Span<float> destination)
    {
        RequireLength(destination.Length, nameof(destination));
        fixed (float* pointer = destination)
        {
            Device.Copy(this, pointer, Length, toDevice: false);
        }
    }

    /// <summary>Gives the memory back to the device.</summary>
    public void Dispose()
    {
        Return();
        GC.SuppressFinalize(this);
    }

    /// <inheritdoc/>
    public override string ToString() => $"[{string.Join(", ", _lengths)}] on {Device}";

    /// <summary>Keeps finalisers from giving memory back that is still worked on: to be called after the work.</summary>
    internal static void KeepAlive(DeviceTensor query, DeviceTensor key, DeviceTensor value, DeviceTensor output)
    {
        GC.KeepAlive(query);
        GC.KeepAlive(key);
        GC.KeepAlive(value);
        GC.KeepAlive(output);
    }

    private void Return()
    {
        if (Interlocked.Exchange(ref _block, null) is { } block)
        {
            _runtime.Pool.Return(block);
        }
    }

    private void RequireFit(ReadOnlySpan<nint> lengths, bool isDense, string name)
    {
        if (!lengths.SequenceEqual(_lengths))
        {
            throw new ArgumentException($"{name} [{string.Join(", ", lengths.ToArray())}] does not fit the tensor {this}.", name);
        }

        if (!isDense)
        {
            throw new ArgumentException($"{name} [{string.Join(", ", lengths.ToArray())}] is not dense; copy it to a tensor of its own first.", name);
        }
    }

    private void RequireLength(int length, string name)
    {
        if (length != Length)
        {
            throw new ArgumentException($"{name} has {length} elements where the tensor {this} has {Length}.", name);
        }
    }
}
