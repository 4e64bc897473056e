using System.Reflection;
using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>The device code of exact attention's backward pass for one tiling and direction.</summary>
internal sealed record SoftmaxBackwardEntryPoints(
    int Chunk,
    int GroupSize,
    Action<PackArguments> PackRows,
    Action<PackArguments> PackValues,
    Action<ClearArguments> Clear,
    Action<SoftmaxMeanArguments> Means,
    Action<SoftmaxRowArguments> Rows,
    Action<SoftmaxKeyArguments> Keys,
    Action<SoftmaxKeyArguments> Values)
{
    /// <summary>The kernels' methods.</summary>
    public IEnumerable<MethodInfo> Methods => [PackRows.Method, PackValues.Method, Clear.Method, Means.Method, Rows.Method, Keys.Method, Values.Method];

    /// <summary>The device code.</summary>
    /// <param name="tiling">The tiling.</param>
    /// <param name="causal">The direction.</param>
    /// <param name="isPlanned">True for a sequence layout, in either direction.</param>
    public static SoftmaxBackwardEntryPoints For(Tiling tiling, bool causal, bool isPlanned = false) => tiling switch
    {
        Tiling.Chunk64Block8 => For<Tile64, Block8>(causal, isPlanned),
        Tiling.Chunk64Block4 => For<Tile64, Block4>(causal, isPlanned),
        Tiling.Chunk16Block8 => For<Tile16, Block8>(causal, isPlanned),
        Tiling.Chunk16Block4 => For<Tile16, Block4>(causal, isPlanned),
        _ => throw new ArgumentOutOfRangeException(nameof(tiling), tiling, null),
    };

    private static SoftmaxBackwardEntryPoints For<TTile, TBlock>(bool causal, bool isPlanned)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock> =>
        isPlanned ? For<TTile, TBlock, StaircaseDirection>() : causal ? For<TTile, TBlock, CausalDirection>() : For<TTile, TBlock, BothDirections>();

    private static SoftmaxBackwardEntryPoints For<TTile, TBlock, TDirection>()
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
        where TDirection : unmanaged, IDirection => new(
            TTile.Edge,
            TTile.Edge / TBlock.Edge * (TTile.Edge / TBlock.Edge),
            PackKernels.Rows<TTile>,
            PackKernels.Values<TTile>,
            PackKernels.Clear,
            SoftmaxMeanKernel.Run<TTile>,
            SoftmaxRowKernel.Run<TTile, TBlock, TDirection>,
            SoftmaxKeyKernel.Run<TTile, TBlock, TDirection, KeyPart>,
            SoftmaxKeyKernel.Run<TTile, TBlock, TDirection, ValuePart>);
}

/// <summary>The launchers of <see cref="SoftmaxBackwardEntryPoints"/> on one accelerator. Compiled once: keep it.</summary>
internal sealed class SoftmaxBackwardLaunchers(Accelerator accelerator, SoftmaxBackwardEntryPoints code)
{
    /// <summary>Tokens in a chunk.</summary>
    public int Chunk => code.Chunk;

    /// <summary>Threads in a group.</summary>
    public int GroupSize => code.GroupSize;

    public Action<AcceleratorStream, KernelConfig, PackArguments> PackRows { get; } = accelerator.LoadKernel(code.PackRows);

    public Action<AcceleratorStream, KernelConfig, PackArguments> PackValues { get; } = accelerator.LoadKernel(code.PackValues);

    public Action<AcceleratorStream, KernelConfig, ClearArguments> Clear { get; } = accelerator.LoadKernel(code.Clear);

    public Action<AcceleratorStream, KernelConfig, SoftmaxMeanArguments> Means { get; } = accelerator.LoadKernel(code.Means);

    public Action<AcceleratorStream, KernelConfig, SoftmaxRowArguments> Rows { get; } = accelerator.LoadKernel(code.Rows);

    public Action<AcceleratorStream, KernelConfig, SoftmaxKeyArguments> Keys { get; } = accelerator.LoadKernel(code.Keys);

    public Action<AcceleratorStream, KernelConfig, SoftmaxKeyArguments> Values { get; } = accelerator.LoadKernel(code.Values);
}
