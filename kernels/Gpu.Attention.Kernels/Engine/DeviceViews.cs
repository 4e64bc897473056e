using System.Runtime.CompilerServices;
using ILGPU;

namespace Gpu.Attention;

/// <summary>A <see cref="TensorBuffer"/> as kernels see it.</summary>
internal struct KernelTensor
{
    /// <summary>The allocation that the tensor lies in.</summary>
    public ArrayView<float> Elements;

    /// <summary>The element of it that the tensor begins at.</summary>
    public long Start;

    /// <summary>Elements from one sequence to the next.</summary>
    public long BatchStride;

    /// <summary>Elements from one token to the next.</summary>
    public long TokenStride;

    /// <summary>Elements from one head to the next.</summary>
    public long HeadStride;

    /// <summary>Where a row begins.</summary>
    /// <param name="batch">b.</param>
    /// <param name="token">t.</param>
    /// <param name="head">h.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly long Row(int batch, int token, int head) => Start + (batch * BatchStride) + (token * TokenStride) + (head * HeadStride);
}

/// <summary>
/// Which tokens an item is. Items are the chunks <c>FirstChunk ..</c> of the chains <c>FirstChain ..</c>, chunks running fastest; a chain is a key
/// head of a sequence, and each item has <see cref="HeadGroup"/> members, the heads that belong to the key head.
/// </summary>
internal struct ItemMap
{
    /// <summary>The first item's chain.</summary>
    public int FirstChain;

    /// <summary>The first chunk of every chain.</summary>
    public int FirstChunk;

    /// <summary>Chunks of every chain.</summary>
    public int Chunks;

    /// <summary>Key heads in a sequence.</summary>
    public int KeyHeads;

    /// <summary>Heads of the tensor for each key head.</summary>
    public int HeadGroup;

    /// <summary>Tokens in a sequence.</summary>
    public int Length;

    /// <summary>The chain, counted from <see cref="FirstChain"/>.</summary>
    /// <param name="item">An item.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int Chain(int item) => item / Chunks;

    /// <summary>The first token.</summary>
    /// <param name="item">An item.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int Token(int item, int edge) => (FirstChunk + (item % Chunks)) * edge;

    /// <summary>Tokens that there are, at most <paramref name="edge"/>.</summary>
    /// <param name="item">An item.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly int Tokens(int item, int edge)
    {
        int left = Length - Token(item, edge);
        return left < edge ? left : edge;
    }

    /// <summary>Where the first token's row begins.</summary>
    /// <param name="tensor">The tensor.</param>
    /// <param name="item">An item.</param>
    /// <param name="member">Its member.</param>
    /// <param name="edge">Tokens in a chunk.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly long Row(KernelTensor tensor, int item, int member, int edge)
    {
        int chain = FirstChain + Chain(item);
        return tensor.Row(chain / KeyHeads, Token(item, edge), (chain % KeyHeads * HeadGroup) + member);
    }
}

/// <summary>A <see cref="FeatureForm"/> on a device: its parts in one allocation, an absent part at no offset.</summary>
internal struct DeviceForm
{
    /// <summary>All parts.</summary>
    public ArrayView<float> Elements;

    /// <summary>Wᵀ, <c>[d↑, r↑]</c>, zero where padded: the identity when the form has no projection.</summary>
    public int Projection;

    /// <summary>b, <c>[r↑]</c>.</summary>
    public int Offset;

    /// <summary>P, <c>[d, d]</c>; negative for the identity.</summary>
    public int PreMatrix;

    /// <summary>p, <c>[d]</c>; negative for zero.</summary>
    public int PreOffset;

    /// <summary>u, <c>[d]</c>; negative for zero.</summary>
    public int Linear;

    /// <summary>β.</summary>
    public float NormCoefficient;
}

/// <summary>The sizes that arrays in the workspace are padded to. Tiles cover them exactly, so no hot loop looks for an edge.</summary>
internal struct PaddedSizes
{
    /// <summary>d.</summary>
    public int Inputs;

    /// <summary>d↑, a multiple of <see cref="TileProduct.Depth"/>.</summary>
    public int PaddedInputs;

    /// <summary>r.</summary>
    public int Features;

    /// <summary>r↑, a multiple of C.</summary>
    public int PaddedFeatures;

    /// <summary>dv.</summary>
    public int Values;

    /// <summary>dv↑, a multiple of C.</summary>
    public int PaddedValues;
}

/// <summary>A state in a caller's memory, <c>[N, Hk, r]</c> and <c>[N, Hk, r, dv]</c>.</summary>
internal struct DeviceState
{
    /// <summary>c; not there for the direct family.</summary>
    public ArrayView<float> LogScale;

    /// <summary>The element that c begins at.</summary>
    public long LogScaleStart;

    /// <summary>The largest log feature, where c is not that.</summary>
    public ArrayView<float> Maximum;

    /// <summary>The element that the maximum begins at.</summary>
    public long MaximumStart;

    /// <summary>Non-zero when there is a maximum beside c.</summary>
    public int HasMaximum;

    /// <summary>S.</summary>
    public ArrayView<float> Sums;

    /// <summary>The element that S begins at.</summary>
    public long SumsStart;

    /// <summary>z.</summary>
    public ArrayView<float> Normalizers;

    /// <summary>The element that z begins at.</summary>
    public long NormalizersStart;
}
