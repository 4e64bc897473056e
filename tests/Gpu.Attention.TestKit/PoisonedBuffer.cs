using System.Runtime.InteropServices;

namespace Gpu.Attention.TestKit;

/// <summary>
/// Native memory full of a NaN of its own, with more of it on both sides: what is read before it was written, written out of bounds, or never
/// written shows.
/// </summary>
public sealed unsafe class PoisonedBuffer : IDisposable
{
    // A quiet NaN with a payload that arithmetic does not make.
    private const uint Poison = 0x7FCD_EAD5;
    private const int GuardElements = 1024;
    private const int Alignment = 64;

    private readonly float* _allocation;
    private readonly int _offset;
    private bool _disposed;

    /// <summary>Allocates a poisoned buffer.</summary>
    /// <param name="length">Elements.</param>
    /// <param name="misalignment">Elements by which the first lies past an address that 64 bytes divide.</param>
    public PoisonedBuffer(long length, int misalignment = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        ArgumentOutOfRangeException.ThrowIfNegative(misalignment);
        Length = checked((int)length);
        _offset = GuardElements + misalignment;
        _allocation = (float*)NativeMemory.AlignedAlloc((nuint)Total * sizeof(float), Alignment);
        new Span<uint>(_allocation, Total).Fill(Poison);
    }

    /// <summary>Allocates a buffer with given content between the poison.</summary>
    public PoisonedBuffer(ReadOnlySpan<float> content, int misalignment = 0)
        : this(content.Length, misalignment) => content.CopyTo(Span);

    public int Length { get; }

    public Span<float> Span
    {
        get
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            return new Span<float>(Address, Length);
        }
    }

    public float* Address => _allocation + _offset;

    /// <summary>The buffer with the poison on both sides.</summary>
    public Span<float> Whole
    {
        get
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            return new Span<float>(_allocation, Total);
        }
    }

    /// <summary>The element of <see cref="Whole"/> that the buffer begins at.</summary>
    public int Start => _offset;

    public MemoryRegion Region => new(null, (nint)Address, Length);

    private int Total => _offset + Length + GuardElements;

    /// <summary>Throws when something was written beside the buffer.</summary>
    public void RequireGuardsIntact()
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        var all = new Span<uint>(_allocation, Total);
        int before = all[.._offset].LastIndexOfAnyExcept(Poison);
        int after = all[(_offset + Length)..].IndexOfAnyExcept(Poison);
        if (before >= 0)
        {
            throw new VerificationException($"Something was written {_offset - before} elements before a buffer of {Length}.");
        }

        if (after >= 0)
        {
            throw new VerificationException($"Something was written {after + 1} elements past a buffer of {Length}.");
        }
    }

    /// <summary>Throws when something was written beside the buffer, or an element of it never was.</summary>
    public void RequireFullyWritten()
    {
        RequireGuardsIntact();
        int unwritten = MemoryMarshal.Cast<float, uint>(Span).IndexOf(Poison);
        if (unwritten >= 0)
        {
            throw new VerificationException($"Element {unwritten} of {Length} was never written.");
        }
    }

    public void Dispose()
    {
        if (!_disposed)
        {
            _disposed = true;
            NativeMemory.AlignedFree(_allocation);
        }
    }
}
