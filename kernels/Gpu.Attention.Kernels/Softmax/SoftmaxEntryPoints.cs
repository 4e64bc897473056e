using System.Reflection;
using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>The device code of exact attention for one tiling and direction.</summary>
internal sealed record SoftmaxEntryPoints(
    int Chunk,
    int GroupSize,
    Action<PackArguments> PackRows,
    Action<PackArguments> PackValues,
    Action<SoftmaxArguments> Attend)
{
    /// <summary>The kernels' methods.</summary>
    public IEnumerable<MethodInfo> Methods => [PackRows.Method, PackValues.Method, Attend.Method];

    /// <summary>The device code.</summary>
    /// <param name="tiling">The tiling.</param>
    /// <param name="causal">The direction.</param>
    /// <param name="isPlanned">True for a sequence layout, in either direction.</param>
    public static SoftmaxEntryPoints For(Tiling tiling, bool causal, bool isPlanned = false) => tiling switch
    {
        Tiling.Chunk64Block8 => For<Tile64, Block8>(causal, isPlanned),
        Tiling.Chunk64Block4 => For<Tile64, Block4>(causal, isPlanned),
        Tiling.Chunk16Block8 => For<Tile16, Block8>(causal, isPlanned),
        Tiling.Chunk16Block4 => For<Tile16, Block4>(causal, isPlanned),
        _ => throw new ArgumentOutOfRangeException(nameof(tiling), tiling, null),
    };

    private static SoftmaxEntryPoints For<TTile, TBlock>(bool causal, bool isPlanned)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock> => new(
            TTile.Edge,
            TTile.Edge / TBlock.Edge * (TTile.Edge / TBlock.Edge),
            PackKernels.Rows<TTile>,
            PackKernels.Values<TTile>,
            isPlanned ? SoftmaxKernel.Run<TTile, TBlock, StaircaseDirection>
            : causal ? SoftmaxKernel.Run<TTile, TBlock, CausalDirection>
            : SoftmaxKernel.Run<TTile, TBlock, BothDirections>);
}

/// <summary>The launchers of <see cref="SoftmaxEntryPoints"/> on one accelerator. Compiled once: keep it.</summary>
internal sealed class SoftmaxLaunchers(Accelerator accelerator, SoftmaxEntryPoints code)
{
    /// <summary>Tokens in a chunk.</summary>
    public int Chunk => code.Chunk;

    /// <summary>Threads in a group.</summary>
    public int GroupSize => code.GroupSize;

    public Action<AcceleratorStream, KernelConfig, PackArguments> PackRows { get; } = accelerator.LoadKernel(code.PackRows);

    public Action<AcceleratorStream, KernelConfig, PackArguments> PackValues { get; } = accelerator.LoadKernel(code.PackValues);

    public Action<AcceleratorStream, KernelConfig, SoftmaxArguments> Attend { get; } = accelerator.LoadKernel(code.Attend);
}
