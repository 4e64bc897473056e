using System.Reflection;
using ILGPU.Backends.EntryPoints;
using ILGPU.Backends.PTX;
using ILGPU.Runtime.Cuda;
using Xunit;

namespace Gpu.Attention.Kernels.Tests;

/// <summary>Compiles kernels to PTX without a GPU or a driver, and reads the text.</summary>
public class PtxTests
{
    public static TheoryData<string, int, int> Kernels()
    {
        MethodInfo[] kernels = [new Action<ScaleArguments>(ScaleKernel.Run).Method];
        var data = new TheoryData<string, int, int>();
        foreach (MethodInfo kernel in kernels)
        {
            foreach ((int major, int minor) in new[] { (7, 0), (8, 0), (9, 0) })
            {
                data.Add($"{kernel.DeclaringType!.FullName}.{kernel.Name}", major, minor);
            }
        }

        return data;
    }

    [Theory]
    [MemberData(nameof(Kernels))]
    public void A_kernel_keeps_to_registers_and_calls_nothing_unresolved(string kernel, int major, int minor)
    {
        string ptx = Compile(kernel, new CudaArchitecture(major, minor));

        Assert.Contains(".visible .entry", ptx, StringComparison.Ordinal);

        // Memory of a thread's own: an array that was not promoted to registers.
        Assert.DoesNotContain(".local", ptx, StringComparison.Ordinal);

        // A function that ILGPU knows on the host only: the driver would refuse the module.
        Assert.DoesNotContain(".extern .func", ptx, StringComparison.Ordinal);

        // An address space that was not inferred: generic accesses keep the driver from moving loads over stores.
        Assert.Contains("ld.global", ptx, StringComparison.Ordinal);
        Assert.Contains("st.global", ptx, StringComparison.Ordinal);
    }

    private static string Compile(string kernel, CudaArchitecture architecture)
    {
        int dot = kernel.LastIndexOf('.');
        MethodInfo method = typeof(ScaleKernel).Assembly.GetType(kernel[..dot])!.GetMethod(kernel[(dot + 1)..])!;
        using var backend = new PTXBackend(AcceleratorList.Context, architecture, new CudaInstructionSet(8, 8), null!);
        var compiled = (PTXCompiledKernel)backend.Compile(EntryPointDescription.FromExplicitlyGroupedKernel(method), default);
        return compiled.PTXAssembly;
    }
}
