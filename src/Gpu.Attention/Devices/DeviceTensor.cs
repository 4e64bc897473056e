using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Gpu.Attention;

/// <summary>A dense row-major tensor in a device's memory, for work that stays there: of float32, or of 16 bits.</summary>
/// <remarks>Copies return when they are done. On the host a tensor is native memory, and everything works the same.</remarks>
public sealed unsafe class DeviceTensor : IDisposable
{
    private readonly nint[] _lengths;
    private readonly DeviceRuntime _runtime;
    private DeviceBlock? _block;

    private DeviceTensor(ComputeDevice device, DeviceRuntime runtime, ElementType type, nint[] lengths, long length, DeviceBlock block) =>
        (Device, _runtime, ElementType, _lengths, Length, _block) = (device, runtime, type, lengths, length, block);

    /// <summary>Frees memory that nobody disposed of.</summary>
    ~DeviceTensor() => Return();

    /// <summary>The device that it lies on.</summary>
    public ComputeDevice Device { get; }

    /// <summary>How elements are stored.</summary>
    public ElementType ElementType { get; }

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
                ? new MemoryRegion(null, HostRuntime.AddressOf(_block.Allocation, 0), Length, ElementType)
                : new MemoryRegion(_block.Allocation, 0, Length, ElementType);
        }
    }

    private long Bytes => Length * ElementType.Size();

    /// <summary>Allocates a float32 tensor. Its content is undefined until something is written to it.</summary>
    /// <inheritdoc cref="Allocate{T}(ComputeDevice, ReadOnlySpan{nint})"/>
    public static DeviceTensor Allocate(ComputeDevice device, params ReadOnlySpan<nint> lengths) => Allocate<float>(device, lengths);

    /// <summary>Allocates a tensor. Its content is undefined until something is written to it.</summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>.</typeparam>
    /// <param name="device">The device.</param>
    /// <param name="lengths">The sizes, outermost first: <c>[B, T, H, D]</c> for an operand of attention.</param>
    /// <exception cref="ArgumentException">A size is negative, or the tensor would be larger than 2⁶³ bytes.</exception>
    /// <exception cref="NotSupportedException">Elements are of another type.</exception>
    /// <exception cref="DeviceException">The device cannot be opened, or has too little memory.</exception>
    public static DeviceTensor Allocate<T>(ComputeDevice device, params ReadOnlySpan<nint> lengths)
        where T : unmanaged
    {
        ArgumentNullException.ThrowIfNull(device);
        ElementType type = TensorArguments.StorageOf<T>();
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
            return new DeviceTensor(device, runtime, type, lengths.ToArray(), (long)length, runtime.Pool.Rent((long)length * type.Size()));
        }
        catch (DeviceOutOfMemoryException e)
        {
            throw new DeviceException(device.Info, $"{device} has no room for a tensor [{string.Join(", ", lengths.ToArray())}]: {e.Message}", e);
        }
    }

    /// <summary>Allocates a float32 tensor and fills it.</summary>
    /// <inheritdoc cref="From{T}(ComputeDevice, in ReadOnlyTensorSpan{T})"/>
    public static DeviceTensor From(ComputeDevice device, in ReadOnlyTensorSpan<float> source) => From<float>(device, source);

    /// <summary>Allocates a tensor and fills it.</summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>.</typeparam>
    /// <param name="device">The device.</param>
    /// <param name="source">Its elements, dense.</param>
    /// <exception cref="ArgumentException">The source is not dense.</exception>
    /// <exception cref="DeviceException">The device failed, or has too little memory.</exception>
    public static DeviceTensor From<T>(ComputeDevice device, in ReadOnlyTensorSpan<T> source)
        where T : unmanaged
    {
        DeviceTensor tensor = Allocate<T>(device, source.Lengths);
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

    /// <summary>Copies float32 elements to the device.</summary>
    /// <inheritdoc cref="Upload{T}(in ReadOnlyTensorSpan{T})"/>
    public void Upload(in ReadOnlyTensorSpan<float> source) => Upload<float>(source);

    /// <summary>Copies elements to the device.</summary>
    /// <typeparam name="T">The type of the tensor's elements.</typeparam>
    /// <param name="source">Dense, of the tensor's sizes.</param>
    /// <exception cref="ArgumentException">The sizes or types differ, or the source is not dense.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    public void Upload<T>(in ReadOnlyTensorSpan<T> source)
        where T : unmanaged
    {
        RequireType<T>(nameof(source));
        RequireFit(source.Lengths, source.IsDense, nameof(source));
        fixed (T* pointer = &TensorMarshal.GetReference(source))
        {
            Device.Copy(this, pointer, Bytes, toDevice: true);
        }
    }

    /// <summary>Copies elements to the device.</summary>
    /// <typeparam name="T">The type of the tensor's elements.</typeparam>
    /// <param name="source">As many as the tensor has.</param>
    /// <exception cref="ArgumentException">There are more or fewer, or they are of another type.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    public void Upload<T>(ReadOnlySpan<T> source)
        where T : unmanaged
    {
        RequireType<T>(nameof(source));
        RequireLength(source.Length, nameof(source));
        fixed (T* pointer = source)
        {
            Device.Copy(this, pointer, Bytes, toDevice: true);
        }
    }

    /// <summary>Copies float32 elements from the device.</summary>
    /// <inheritdoc cref="Download{T}(in TensorSpan{T})"/>
    public void Download(in TensorSpan<float> destination) => Download<float>(destination);

    /// <summary>Copies elements from the device.</summary>
    /// <typeparam name="T">The type of the tensor's elements.</typeparam>
    /// <param name="destination">Dense, of the tensor's sizes.</param>
    /// <exception cref="ArgumentException">The sizes or types differ, or the destination is not dense.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    public void Download<T>(in TensorSpan<T> destination)
        where T : unmanaged
    {
        RequireType<T>(nameof(destination));
        RequireFit(destination.Lengths, destination.IsDense, nameof(destination));
        fixed (T* pointer = &TensorMarshal.GetReference(destination))
        {
            Device.Copy(this, pointer, Bytes, toDevice: false);
        }
    }

    /// <summary>Copies elements from the device.</summary>
    /// <typeparam name="T">The type of the tensor's elements.</typeparam>
    /// <param name="destination">As many as the tensor has.</param>
    /// <exception cref="ArgumentException">There are more or fewer, or they are of another type.</exception>
    /// <exception cref="DeviceException">The device failed.</exception>
    public void Download<T>(Span<T> destination)
        where T : unmanaged
    {
        RequireType<T>(nameof(destination));
        RequireLength(destination.Length, nameof(destination));
        fixed (T* pointer = destination)
        {
            Device.Copy(this, pointer, Bytes, toDevice: false);
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
    internal static void KeepAlive(params ReadOnlySpan<DeviceTensor?> tensors)
    {
        foreach (DeviceTensor? tensor in tensors)
        {
            GC.KeepAlive(tensor);
        }
    }

    private void Return()
    {
        if (Interlocked.Exchange(ref _block, null) is { } block)
        {
            _runtime.Pool.Return(block);
        }
    }

    private void RequireType<T>(string name)
    {
        if (TensorArguments.StorageOf<T>() != ElementType)
        {
            throw new ArgumentException($"{name} has elements of {typeof(T)} where the tensor {this} is stored as {ElementType}.", name);
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
