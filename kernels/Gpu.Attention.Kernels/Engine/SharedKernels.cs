using System.Runtime.CompilerServices;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>What all engines on an accelerator share: its kernels, and the lock that their launches are made under.</summary>
/// <remarks>
/// A kernel object and its arguments are the accelerator's, whichever engine launches it. ILGPU's own cache forgets a kernel that nobody holds, and
/// a driver takes up to a second to compile it again.
/// </remarks>
internal sealed class SharedKernels
{
    private static readonly ConditionalWeakTable<Accelerator, SharedKernels> All = [];

    private readonly Accelerator _accelerator;
    private readonly Dictionary<(Tiling, FeatureActivation, bool, bool), LinearLaunchers> _linear = [];
    private readonly Dictionary<(Tiling, FeatureActivation, bool), LinearBackwardLaunchers> _linearBackward = [];
    private readonly Dictionary<(Tiling, bool, bool), SoftmaxLaunchers> _softmax = [];
    private readonly Dictionary<(Tiling, bool, bool), SoftmaxBackwardLaunchers> _softmaxBackward = [];

    private SharedKernels(Accelerator accelerator) => _accelerator = accelerator;

    /// <summary>To be held while kernels are looked up and launched.</summary>
    public Lock Lock { get; } = new();

    /// <summary>An accelerator's kernels.</summary>
    /// <param name="accelerator">The accelerator.</param>
    public static SharedKernels Of(Accelerator accelerator) => All.GetValue(accelerator, static a => new SharedKernels(a));

    /// <summary>The kernels of linear attention, compiled when they are first asked for.</summary>
    /// <param name="tiling">The tiling.</param>
    /// <param name="activation">An activation that there is device code for.</param>
    /// <param name="causal">The direction.</param>
    /// <param name="isPlanned">True for a sequence layout.</param>
    public LinearLaunchers Linear(Tiling tiling, FeatureActivation activation, bool causal, bool isPlanned)
    {
        if (!_linear.TryGetValue((tiling, activation, causal, isPlanned), out LinearLaunchers? launchers))
        {
            launchers = new LinearLaunchers(_accelerator, LinearEntryPoints.For(tiling, activation, causal, isPlanned)!);
            _linear.Add((tiling, activation, causal, isPlanned), launchers);
        }

        return launchers;
    }

    /// <summary>The kernels of linear attention's backward pass, compiled when they are first asked for.</summary>
    /// <param name="tiling">The tiling.</param>
    /// <param name="activation">An activation that there is device code for.</param>
    /// <param name="causal">The direction.</param>
    public LinearBackwardLaunchers LinearBackward(Tiling tiling, FeatureActivation activation, bool causal)
    {
        if (!_linearBackward.TryGetValue((tiling, activation, causal), out LinearBackwardLaunchers? launchers))
        {
            launchers = new LinearBackwardLaunchers(_accelerator, LinearBackwardEntryPoints.For(tiling, activation, causal));
            _linearBackward.Add((tiling, activation, causal), launchers);
        }

        return launchers;
    }

    /// <summary>The kernels of exact attention, compiled when they are first asked for.</summary>
    /// <param name="tiling">The tiling.</param>
    /// <param name="causal">The direction.</param>
    /// <param name="isPlanned">True for a sequence layout.</param>
    public SoftmaxLaunchers Softmax(Tiling tiling, bool causal, bool isPlanned)
    {
        if (!_softmax.TryGetValue((tiling, causal, isPlanned), out SoftmaxLaunchers? launchers))
        {
            launchers = new SoftmaxLaunchers(_accelerator, SoftmaxEntryPoints.For(tiling, causal, isPlanned));
            _softmax.Add((tiling, causal, isPlanned), launchers);
        }

        return launchers;
    }

    /// <summary>The kernels of exact attention's backward pass, compiled when they are first asked for.</summary>
    /// <param name="tiling">The tiling.</param>
    /// <param name="causal">The direction.</param>
    /// <param name="isPlanned">True for a sequence layout.</param>
    public SoftmaxBackwardLaunchers SoftmaxBackward(Tiling tiling, bool causal, bool isPlanned)
    {
        if (!_softmaxBackward.TryGetValue((tiling, causal, isPlanned), out SoftmaxBackwardLaunchers? launchers))
        {
            launchers = new SoftmaxBackwardLaunchers(_accelerator, SoftmaxBackwardEntryPoints.For(tiling, causal, isPlanned));
            _softmaxBackward.Add((tiling, causal, isPlanned), launchers);
        }

        return launchers;
    }
}
