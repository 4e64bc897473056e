namespace Gpu.Attention;

#pragma warning disable CA1720 // The field's names for element types are type names.
/// <summary>How an element is stored. Sums, states and normalisers are <see cref="Single"/> whatever the storage.</summary>
public enum ElementType
{
    /// <summary>32-bit IEEE floating point.</summary>
    Single,

    /// <summary>16-bit IEEE floating point.</summary>
    Half,

    /// <summary>The upper 16 bits of a <see cref="Single"/>.</summary>
    BFloat16,

    /// <summary>An unsigned byte; as a mask, non-zero means: take part.</summary>
    Byte,

    /// <summary>A 32-bit signed integer.</summary>
    Int32,
}

/// <summary>Sizes of element types.</summary>
internal static class ElementTypes
{
    /// <summary>Bytes of an element.</summary>
    public static int Size(this ElementType type) => type switch
    {
        ElementType.Half or ElementType.BFloat16 => sizeof(ushort),
        ElementType.Byte => sizeof(byte),
        _ => sizeof(float),
    };
}

/// <summary>A run of elements that an engine can reach.</summary>
/// <param name="Owner">The device allocation that <paramref name="Address"/> counts in, or null for host memory.</param>
/// <param name="Address">A pointer in host memory, or a byte offset into <paramref name="Owner"/>.</param>
/// <param name="Length">The number of elements.</param>
/// <param name="Type">How an element is stored.</param>
/// <remarks>A region borrows: whoever made it keeps the memory alive and in place while an engine works on it.</remarks>
public readonly record struct MemoryRegion(object? Owner, nint Address, long Length, ElementType Type = ElementType.Single)
{
    /// <summary>True when there is nothing here: the optional buffer was not given.</summary>
    public bool IsEmpty => Length == 0;

    internal static unsafe MemoryRegion Host(float* pointer, long length) => new(null, (nint)pointer, length);

    internal unsafe float* HostPointer => (float*)Address;
}

/// <summary>
/// A tensor in an engine's reach: element <c>(b, t, h, i)</c> lies at <c>b·BatchStride + t·TokenStride + h·HeadStride + i</c>.
/// Strides are in elements, so that a range of tokens, heads or batch items is again such a tensor.
/// </summary>
/// <param name="Memory">Where the elements lie.</param>
/// <param name="BatchStride">Elements from one sequence to the next.</param>
/// <param name="TokenStride">Elements from one token to the next.</param>
/// <param name="HeadStride">Elements from one head to the next.</param>
public readonly record struct TensorBuffer(MemoryRegion Memory, long BatchStride, long TokenStride, long HeadStride)
{
    /// <summary>A dense row-major <c>[B, T, H, D]</c> tensor.</summary>
    /// <param name="memory">Where the elements lie.</param>
    /// <param name="tokens">T.</param>
    /// <param name="heads">H.</param>
    /// <param name="dimension">D.</param>
    public static TensorBuffer Dense(MemoryRegion memory, int tokens, int heads, int dimension) =>
        new(memory, (long)tokens * heads * dimension, (long)heads * dimension, dimension);

    internal unsafe void* Row(long batch, long token, long head) =>
        (byte*)Memory.Address + (((batch * BatchStride) + (token * TokenStride) + (head * HeadStride)) * Memory.Type.Size());
}

/// <summary>The three parts of an <see cref="AttentionState"/> in an engine's reach, dense and row-major.</summary>
/// <param name="LogScale">c, <c>[N, Hk, r]</c>; empty for the direct family.</param>
/// <param name="Sums">S, <c>[N, Hk, r, Dv]</c>.</param>
/// <param name="Normalizers">z, <c>[N, Hk, r]</c>.</param>
public readonly record struct StateBuffers(MemoryRegion LogScale, MemoryRegion Sums, MemoryRegion Normalizers)
{
    /// <summary>
    /// The largest log feature seen, <c>[N, Hk, r]</c>, where <see cref="LogScale"/> is the scale that the sums were made at and not that maximum
    /// itself; else empty.
    /// </summary>
    /// <remarks>A sequence cut into segments hands its state on so: nothing is rescaled, and the pieces give the bits of the whole.</remarks>
    public MemoryRegion Maximum { get; init; }

    /// <summary>True when no state was given.</summary>
    public bool IsEmpty => Sums.IsEmpty;
}
