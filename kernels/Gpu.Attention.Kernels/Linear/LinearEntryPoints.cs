using System.Reflection;
using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>The device code of linear attention for one tiling, activation and direction.</summary>
internal sealed record LinearEntryPoints(
    int Chunk,
    int GroupSize,
    Action<PackArguments> PackRows,
    Action<PackArguments> PackValues,
    Action<KeyArguments> Keys,
    Action<ScanArguments> Import,
    Action<ScanArguments> Scales,
    Action<ScanArguments> Sums,
    Action<ScanArguments> Export,
    Action<QueryArguments> Queries,
    Action<ReadArguments> Read,
    Action<ReadArguments>? SteepRead,
    Action<ReadArguments>? BlindRead)
{
    /// <summary>The kernels' methods.</summary>
    public IEnumerable<MethodInfo> Methods =>
        new Delegate?[] { PackRows, PackValues, Keys, Import, Scales, Sums, Export, Queries, Read, SteepRead, BlindRead }.OfType<Delegate>().Select(d => d.Method);

    /// <summary>The device code for an activation, or null when there is none: it is a caller's own function.</summary>
    /// <param name="tiling">The tiling.</param>
    /// <param name="activation">The activation.</param>
    /// <param name="causal">The direction.</param>
    /// <param name="isPlanned">True for a sequence layout, which makes no difference unless causal.</param>
    public static LinearEntryPoints? For(Tiling tiling, FeatureActivation activation, bool causal, bool isPlanned = false) => tiling switch
    {
        Tiling.Chunk64Block8 => For<Tile64, Block8>(activation, causal, isPlanned),
        Tiling.Chunk64Block4 => For<Tile64, Block4>(activation, causal, isPlanned),
        Tiling.Chunk16Block8 => For<Tile16, Block8>(activation, causal, isPlanned),
        Tiling.Chunk16Block4 => For<Tile16, Block4>(activation, causal, isPlanned),
        _ => throw new ArgumentOutOfRangeException(nameof(tiling), tiling, null),
    };

    private static LinearEntryPoints? For<TTile, TBlock>(FeatureActivation activation, bool causal, bool isPlanned)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock> =>
        activation == FeatureActivation.Exp ? For<TTile, TBlock, LogarithmicActivation>(causal, isPlanned)
        : activation == FeatureActivation.EluPlusOne ? For<TTile, TBlock, EluPlusOneActivation>(causal, isPlanned)
        : activation == FeatureActivation.Relu ? For<TTile, TBlock, ReluActivation>(causal, isPlanned)
        : activation == FeatureActivation.Identity ? For<TTile, TBlock, IdentityActivation>(causal, isPlanned)
        : null;

    private static LinearEntryPoints For<TTile, TBlock, TActivation>(bool causal, bool isPlanned)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
        where TActivation : unmanaged, IActivation =>
        !causal ? For<TTile, TBlock, TActivation, BothDirections>()
        : !isPlanned ? For<TTile, TBlock, TActivation, CausalDirection>()
        : For<TTile, TBlock, TActivation, CausalDirection>() with
        {
            Read = ReadKernel.Run<TTile, TBlock, TActivation, StaircaseDirection>,
            BlindRead = ReadKernel.Run<TTile, TBlock, TActivation, BothDirections>,
        };

    private static LinearEntryPoints For<TTile, TBlock, TActivation, TDirection>()
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
        where TActivation : unmanaged, IActivation
        where TDirection : unmanaged, IDirection => new(
            TTile.Edge,
            TTile.Edge / TBlock.Edge * (TTile.Edge / TBlock.Edge),
            PackKernels.Rows<TTile>,
            PackKernels.Values<TTile>,
            KeyKernel.Run<TTile, TBlock, TActivation, TDirection>,
            ScanKernels.Import,
            ScanKernels.Scales,
            ScanKernels.Sums,
            ScanKernels.Export,
            QueryKernel.Run<TTile, TBlock, TActivation>,
            ReadKernel.Run<TTile, TBlock, TActivation, TDirection>,
            TActivation.IsLogarithmic && TDirection.IsCausal ? SteepReadKernel.Run<TTile> : null,
            BlindRead: null);
}

/// <summary>The launchers of <see cref="LinearEntryPoints"/> on one accelerator. Compiled once: keep it.</summary>
internal sealed class LinearLaunchers(Accelerator accelerator, LinearEntryPoints code)
{
    /// <summary>Tokens in a chunk.</summary>
    public int Chunk => code.Chunk;

    /// <summary>Threads in a group.</summary>
    public int GroupSize => code.GroupSize;

    public Action<AcceleratorStream, KernelConfig, PackArguments> PackRows { get; } = accelerator.LoadKernel(code.PackRows);

    public Action<AcceleratorStream, KernelConfig, PackArguments> PackValues { get; } = accelerator.LoadKernel(code.PackValues);

    public Action<AcceleratorStream, KernelConfig, KeyArguments> Keys { get; } = accelerator.LoadKernel(code.Keys);

    public Action<AcceleratorStream, KernelConfig, ScanArguments> Import { get; } = accelerator.LoadKernel(code.Import);

    public Action<AcceleratorStream, KernelConfig, ScanArguments> Scales { get; } = accelerator.LoadKernel(code.Scales);

    public Action<AcceleratorStream, KernelConfig, ScanArguments> Sums { get; } = accelerator.LoadKernel(code.Sums);

    public Action<AcceleratorStream, KernelConfig, ScanArguments> Export { get; } = accelerator.LoadKernel(code.Export);

    public Action<AcceleratorStream, KernelConfig, QueryArguments> Queries { get; } = accelerator.LoadKernel(code.Queries);

    public Action<AcceleratorStream, KernelConfig, ReadArguments> Read { get; } = accelerator.LoadKernel(code.Read);

    public Action<AcceleratorStream, KernelConfig, ReadArguments>? SteepRead { get; } =
        code.SteepRead is null ? null : accelerator.LoadKernel(code.SteepRead);

    /// <summary>With a layout, causal: reads states as rows do that see no key.</summary>
    public Action<AcceleratorStream, KernelConfig, ReadArguments>? BlindRead { get; } =
        code.BlindRead is null ? null : accelerator.LoadKernel(code.BlindRead);
}
