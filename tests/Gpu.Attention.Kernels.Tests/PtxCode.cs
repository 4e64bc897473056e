using System.Reflection;
using ILGPU.Backends.EntryPoints;
using ILGPU.Backends.PTX;
using ILGPU.Runtime.Cuda;

namespace Gpu.Attention.Kernels.Tests;

/// <summary>The PTX of every kernel that a device is given, made without a GPU or a driver.</summary>
internal static class PtxCode
{
    private static readonly FeatureActivation[] Activations =
        [FeatureActivation.Exp, FeatureActivation.EluPlusOne, FeatureActivation.Relu, FeatureActivation.Identity];

    /// <summary>Every instantiation, by its name.</summary>
    public static Dictionary<string, MethodInfo> Instantiations { get; } = (
        from tiling in new[] { Tiling.Chunk64Block8, Tiling.Chunk64Block4 }
        from causal in new[] { false, true }
        from isPlanned in new[] { false, true }
        from method in Activations.SelectMany(activation => LinearEntryPoints.For(tiling, activation, causal, isPlanned)!.Methods)
            .Concat(Activations.SelectMany(activation => LinearBackwardEntryPoints.For(tiling, activation, causal).Methods))
            .Concat(SoftmaxEntryPoints.For(tiling, causal, isPlanned).Methods)
            .Concat(SoftmaxBackwardEntryPoints.For(tiling, causal, isPlanned).Methods)
        select method).DistinctBy(NameOf).ToDictionary(NameOf);

    /// <summary>Compiles a kernel.</summary>
    public static string Compile(MethodInfo method, CudaArchitecture architecture, CudaInstructionSet instructionSet)
    {
        using var backend = new PTXBackend(AcceleratorList.Context, architecture, instructionSet, null!);
        return ((PTXCompiledKernel)backend.Compile(EntryPointDescription.FromExplicitlyGroupedKernel(method), default)).PTXAssembly;
    }

    private static string NameOf(MethodInfo method) =>
        $"{method.DeclaringType!.Name}.{method.Name}<{string.Join(", ", method.GetGenericArguments().Select(type => type.Name))}>";
}
