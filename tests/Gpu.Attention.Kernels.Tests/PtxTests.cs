using System.Globalization;
using System.Reflection;
using System.Text.RegularExpressions;
using ILGPU.Backends.EntryPoints;
using ILGPU.Backends.PTX;
using ILGPU.Runtime.Cuda;

namespace Gpu.Attention.Kernels.Tests;

/// <summary>Compiles kernels to PTX without a GPU or a driver, and reads the text.</summary>
public sealed partial class PtxTests
{
    private static readonly FeatureActivation[] Activations =
        [FeatureActivation.Exp, FeatureActivation.EluPlusOne, FeatureActivation.Relu, FeatureActivation.Identity];

    /// <summary>Kernels that multiply tiles, and so are to move four floats at once.</summary>
    private static readonly Type[] Tiled = [typeof(KeyKernel), typeof(QueryKernel), typeof(ReadKernel), typeof(SoftmaxKernel)];

    /// <summary>Every instantiation that a device is given, by its name.</summary>
    private static readonly Dictionary<string, MethodInfo> Instantiations = (
        from tiling in new[] { LinearTiling.Chunk64Block8, LinearTiling.Chunk64Block4 }
        from causal in new[] { false, true }
        from method in Activations.SelectMany(activation => LinearEntryPoints.For(tiling, activation, causal)!.Methods)
            .Concat(SoftmaxEntryPoints.For(tiling, causal).Methods)
        select method).Append(new Action<ScaleArguments>(ScaleKernel.Run).Method).DistinctBy(NameOf).ToDictionary(NameOf);

    public static TheoryData<string, int, int> Kernels()
    {
        var data = new TheoryData<string, int, int>();
        foreach (string kernel in Instantiations.Keys)
        {
            foreach ((int major, int minor) in new[] { (7, 0), (8, 0), (9, 0) })
            {
                data.Add(kernel, major, minor);
            }
        }

        return data;
    }

    [Theory]
    [MemberData(nameof(Kernels))]
    public void A_kernel_keeps_to_registers_and_calls_nothing_unresolved(string kernel, int major, int minor)
    {
        string ptx = Compile(Instantiations[kernel], new CudaArchitecture(major, minor));

        Assert.Contains(".visible .entry", ptx, StringComparison.Ordinal);

        // Memory of a thread's own: an array that was not promoted to registers.
        Assert.DoesNotContain(".local", ptx, StringComparison.Ordinal);

        // A function that ILGPU knows on the host only: the driver would refuse the module.
        Assert.DoesNotContain(".extern .func", ptx, StringComparison.Ordinal);

        // An address space that was not inferred: generic accesses keep the driver from moving loads over stores.
        Assert.Contains("ld.global", ptx, StringComparison.Ordinal);
        Assert.Contains("st.global", ptx, StringComparison.Ordinal);
        Assert.DoesNotMatch(GenericAccess(), ptx);

        Assert.True(SharedBytes(ptx) <= 48 * 1024, $"{SharedBytes(ptx)} bytes of shared memory");
        if (Tiled.Contains(Instantiations[kernel].DeclaringType))
        {
            Assert.Contains("ld.global.v4", ptx, StringComparison.Ordinal);
            Assert.Contains("ld.shared.v4", ptx, StringComparison.Ordinal);
            Assert.Contains("st.shared.v4", ptx, StringComparison.Ordinal);
        }
    }

    // "ld.f32 ...": the address space is missing.
    [GeneratedRegex(@"\b(ld|st)\.(v[24]\.)?[fbsu](8|16|32|64)\b")]
    private static partial Regex GenericAccess();

    [GeneratedRegex(@"\.shared \.align \d+ \.b8 \S+\[(\d+)\]")]
    private static partial Regex SharedArray();

    private static int SharedBytes(string ptx) =>
        SharedArray().Matches(ptx).Sum(match => int.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture));

    private static string NameOf(MethodInfo method) =>
        $"{method.DeclaringType!.Name}.{method.Name}<{string.Join(", ", method.GetGenericArguments().Select(type => type.Name))}>";

    private static string Compile(MethodInfo method, CudaArchitecture architecture)
    {
        using var backend = new PTXBackend(AcceleratorList.Context, architecture, new CudaInstructionSet(8, 8), null!);
        var compiled = (PTXCompiledKernel)backend.Compile(EntryPointDescription.FromExplicitlyGroupedKernel(method), default);
        return compiled.PTXAssembly;
    }
}
