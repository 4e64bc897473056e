using System.Reflection;
using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>The device code of linear attention's backward pass for one tiling, activation and direction.</summary>
internal sealed record LinearBackwardEntryPoints(
    int Chunk,
    int GroupSize,
    Action<PackArguments> PackRows,
    Action<PackArguments> PackValues,
    Action<KeyArguments> Keys,
    Action<ScanArguments> Import,
    Action<ScanArguments> Scales,
    Action<ScanArguments> Sums,
    Action<QueryArguments> Queries,
    Action<QueryArguments> Arguments,
    Action<LinearBackwardArguments> QueryFeatures,
    Action<LinearBackwardArguments> KeyFeatures,
    Action<LinearBackwardArguments> Scores,
    Action<LinearBackwardArguments> SteepScores,
    Action<GradientArguments> Gradients,
    Action<LinearBackwardArguments> Products,
    Action<LinearBackwardArguments> QueryGradients,
    Action<LinearBackwardArguments> Asked,
    Action<LinearBackwardArguments> KeyParts,
    Action<LinearBackwardArguments> ValueParts,
    Action<LinearBackwardArguments> SteepParts,
    Action<LinearBackwardArguments> KeyGradients,
    Action<ValueGradientArguments> ValueGradients,
    Action<RowGradientArguments> ProjectRows,
    Action<RowGradientArguments> StoreRows,
    Action<ReverseScanArguments> ImportReverse,
    Action<ReverseScanArguments> ReverseSums,
    Action<ReverseScanArguments> ReverseNormalizers,
    Action<ReverseScanArguments> CollectSums,
    Action<ReverseScanArguments> CollectNormalizers,
    Action<ReverseScanArguments> ExportReverse,
    Action<ArrayView<float>, long, long, long> Copy,
    Action<ClearArguments> Clear)
{
    /// <summary>The kernels' methods.</summary>
    public IEnumerable<MethodInfo> Methods => new Delegate[]
    {
        PackRows, PackValues, Keys, Import, Scales, Sums, Queries, Arguments, QueryFeatures, KeyFeatures, Scores, SteepScores, Gradients, Products,
        QueryGradients, Asked, KeyParts, ValueParts, SteepParts, KeyGradients, ValueGradients, ProjectRows, StoreRows, ImportReverse, ReverseSums,
        ReverseNormalizers, CollectSums, CollectNormalizers, ExportReverse, Copy, Clear,
    }.Select(d => d.Method);

    /// <summary>The device code for an activation that there is device code for.</summary>
    /// <param name="tiling">The tiling.</param>
    /// <param name="activation">The activation.</param>
    /// <param name="causal">The direction.</param>
    public static LinearBackwardEntryPoints For(Tiling tiling, FeatureActivation activation, bool causal) => tiling switch
    {
        Tiling.Chunk64Block8 => For<Tile64, Block8>(activation, causal),
        Tiling.Chunk64Block4 => For<Tile64, Block4>(activation, causal),
        Tiling.Chunk16Block8 => For<Tile16, Block8>(activation, causal),
        Tiling.Chunk16Block4 => For<Tile16, Block4>(activation, causal),
        _ => throw new ArgumentOutOfRangeException(nameof(tiling), tiling, null),
    };

    private static LinearBackwardEntryPoints For<TTile, TBlock>(FeatureActivation activation, bool causal)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock> =>
        activation == FeatureActivation.Exp ? For<TTile, TBlock, LogarithmicActivation>(causal)
        : activation == FeatureActivation.EluPlusOne ? For<TTile, TBlock, EluPlusOneActivation>(causal)
        : activation == FeatureActivation.Relu ? For<TTile, TBlock, ReluActivation>(causal)
        : For<TTile, TBlock, IdentityActivation>(causal);

    private static LinearBackwardEntryPoints For<TTile, TBlock, TActivation>(bool causal)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
        where TActivation : unmanaged, IActivation =>
        causal ? For<TTile, TBlock, TActivation, CausalDirection>() : For<TTile, TBlock, TActivation, BothDirections>();

    private static LinearBackwardEntryPoints For<TTile, TBlock, TActivation, TDirection>()
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
            TActivation.IsLogarithmic ? QueryKernel.Run<TTile, TBlock, LogarithmicActivation> : QueryKernel.Run<TTile, TBlock, IdentityActivation>,
            QueryKernel.Run<TTile, TBlock, IdentityActivation>,
            GradientFeatureKernels.Queries<TTile, TActivation>,
            GradientFeatureKernels.Keys<TTile, TActivation>,
            ScoreKernels.Scores<TTile, TBlock>,
            ScoreKernels.Steep<TTile>,
            GradientKernel.Run<TTile>,
            ScoreKernels.Products<TTile, TBlock>,
            QueryGradientKernel.Run<TTile, TBlock>,
            AskedKernel.Run<TTile, TBlock>,
            KeyPartKernels.Keys<TTile, TBlock>,
            KeyPartKernels.Values<TTile, TBlock>,
            KeyPartKernels.Steep<TTile>,
            KeyGradientKernels.Keys<TTile, TBlock>,
            KeyGradientKernels.Values<TTile, TBlock>,
            RowGradientKernels.Project<TTile, TBlock>,
            RowGradientKernels.Store<TTile>,
            ReverseScanKernels.Import,
            ReverseScanKernels.Sums,
            ReverseScanKernels.Normalizers,
            ReverseScanKernels.CollectSums,
            ReverseScanKernels.CollectNormalizers,
            ReverseScanKernels.Export,
            ReverseScanKernels.Copy,
            PackKernels.Clear);
}

/// <summary>The launchers of <see cref="LinearBackwardEntryPoints"/> on one accelerator. Compiled once: keep it.</summary>
internal sealed class LinearBackwardLaunchers(Accelerator accelerator, LinearBackwardEntryPoints code)
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

    public Action<AcceleratorStream, KernelConfig, QueryArguments> Queries { get; } = accelerator.LoadKernel(code.Queries);

    public Action<AcceleratorStream, KernelConfig, QueryArguments> Arguments { get; } = accelerator.LoadKernel(code.Arguments);

    public Action<AcceleratorStream, KernelConfig, LinearBackwardArguments> QueryFeatures { get; } = accelerator.LoadKernel(code.QueryFeatures);

    public Action<AcceleratorStream, KernelConfig, LinearBackwardArguments> KeyFeatures { get; } = accelerator.LoadKernel(code.KeyFeatures);

    public Action<AcceleratorStream, KernelConfig, LinearBackwardArguments> Scores { get; } = accelerator.LoadKernel(code.Scores);

    public Action<AcceleratorStream, KernelConfig, LinearBackwardArguments> SteepScores { get; } = accelerator.LoadKernel(code.SteepScores);

    public Action<AcceleratorStream, KernelConfig, GradientArguments> Gradients { get; } = accelerator.LoadKernel(code.Gradients);

    public Action<AcceleratorStream, KernelConfig, LinearBackwardArguments> Products { get; } = accelerator.LoadKernel(code.Products);

    public Action<AcceleratorStream, KernelConfig, LinearBackwardArguments> QueryGradients { get; } = accelerator.LoadKernel(code.QueryGradients);

    public Action<AcceleratorStream, KernelConfig, LinearBackwardArguments> Asked { get; } = accelerator.LoadKernel(code.Asked);

    public Action<AcceleratorStream, KernelConfig, LinearBackwardArguments> KeyParts { get; } = accelerator.LoadKernel(code.KeyParts);

    public Action<AcceleratorStream, KernelConfig, LinearBackwardArguments> ValueParts { get; } = accelerator.LoadKernel(code.ValueParts);

    public Action<AcceleratorStream, KernelConfig, LinearBackwardArguments> SteepParts { get; } = accelerator.LoadKernel(code.SteepParts);

    public Action<AcceleratorStream, KernelConfig, LinearBackwardArguments> KeyGradients { get; } = accelerator.LoadKernel(code.KeyGradients);

    public Action<AcceleratorStream, KernelConfig, ValueGradientArguments> ValueGradients { get; } = accelerator.LoadKernel(code.ValueGradients);

    public Action<AcceleratorStream, KernelConfig, RowGradientArguments> ProjectRows { get; } = accelerator.LoadKernel(code.ProjectRows);

    public Action<AcceleratorStream, KernelConfig, RowGradientArguments> StoreRows { get; } = accelerator.LoadKernel(code.StoreRows);

    public Action<AcceleratorStream, KernelConfig, ReverseScanArguments> ImportReverse { get; } = accelerator.LoadKernel(code.ImportReverse);

    public Action<AcceleratorStream, KernelConfig, ReverseScanArguments> ReverseSums { get; } = accelerator.LoadKernel(code.ReverseSums);

    public Action<AcceleratorStream, KernelConfig, ReverseScanArguments> ReverseNormalizers { get; } = accelerator.LoadKernel(code.ReverseNormalizers);

    public Action<AcceleratorStream, KernelConfig, ReverseScanArguments> CollectSums { get; } = accelerator.LoadKernel(code.CollectSums);

    public Action<AcceleratorStream, KernelConfig, ReverseScanArguments> CollectNormalizers { get; } = accelerator.LoadKernel(code.CollectNormalizers);

    public Action<AcceleratorStream, KernelConfig, ReverseScanArguments> ExportReverse { get; } = accelerator.LoadKernel(code.ExportReverse);

    public Action<AcceleratorStream, KernelConfig, ArrayView<float>, long, long, long> Copy { get; } = accelerator.LoadKernel(code.Copy);

    public Action<AcceleratorStream, KernelConfig, ClearArguments> Clear { get; } = accelerator.LoadKernel(code.Clear);
}
