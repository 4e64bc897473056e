using System.Globalization;
using System.Reflection;
using System.Text.RegularExpressions;
using ILGPU.Runtime.Cuda;

namespace Gpu.Attention.Kernels.Tests;

/// <summary>Compiles kernels to PTX without a GPU or a driver, and reads the text.</summary>
public sealed partial class PtxTests
{
    /// <summary>Kernels that multiply tiles.</summary>
    private static readonly Type[] Tiled = [typeof(KeyKernel), typeof(QueryKernel), typeof(ReadKernel), typeof(SoftmaxKernel), typeof(SoftmaxRowKernel), typeof(SoftmaxKeyKernel)];

    /// <summary>Those of the linear backward pass, by how many products they are made of.</summary>
    private static readonly Dictionary<(Type, string), int> TiledBackward = new()
    {
        [(typeof(ScoreKernels), nameof(ScoreKernels.Scores))] = 1,
        [(typeof(ScoreKernels), nameof(ScoreKernels.Products))] = 1,
        [(typeof(QueryGradientKernel), nameof(QueryGradientKernel.Run))] = 2,
        [(typeof(AskedKernel), nameof(AskedKernel.Run))] = 1,
        [(typeof(KeyPartKernels), nameof(KeyPartKernels.Keys))] = 1,
        [(typeof(KeyPartKernels), nameof(KeyPartKernels.Values))] = 1,
        [(typeof(KeyGradientKernels), nameof(KeyGradientKernels.Keys))] = 1,
        [(typeof(KeyGradientKernels), nameof(KeyGradientKernels.Values))] = 1,
        [(typeof(RowGradientKernels), nameof(RowGradientKernels.Project))] = 1,
    };

    public static TheoryData<string, int, int> Kernels()
    {
        var data = new TheoryData<string, int, int>();
        foreach (string kernel in PtxCode.Instantiations.Keys)
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
        MethodInfo method = PtxCode.Instantiations[kernel];
        string ptx = PtxCode.Compile(method, new CudaArchitecture(major, minor), new CudaInstructionSet(8, 8));

        Assert.Contains(".visible .entry", ptx, StringComparison.Ordinal);

        // Memory of a thread's own: an array that was not promoted to registers.
        Assert.DoesNotContain(".local", ptx, StringComparison.Ordinal);

        // A function that ILGPU knows on the host only: the driver would refuse the module.
        Assert.DoesNotContain(".extern .func", ptx, StringComparison.Ordinal);

        // An address space that was not inferred: generic accesses keep the driver from moving loads over stores.
        if (method.Name != nameof(PackKernels.Clear))
        {
            Assert.Contains("ld.global", ptx, StringComparison.Ordinal);
        }

        Assert.Contains("st.global", ptx, StringComparison.Ordinal);
        Assert.DoesNotMatch(GenericAccess(), ptx);

        // What would depend on how wide a warp is, or on which thread comes first.
        Assert.DoesNotMatch(WarpOrAtomic(), ptx);

        Assert.True(SharedBytes(ptx) <= 48 * 1024, $"{SharedBytes(ptx)} bytes of shared memory");
        if (Tiled.Contains(method.DeclaringType))
        {
            Assert.True(SharedBytes(ptx) > 0, "no shared memory");
            Assert.Contains("ld.global.v4", ptx, StringComparison.Ordinal);
            Assert.Contains("st.shared.v4", ptx, StringComparison.Ordinal);
            Type[] arguments = method.GetGenericArguments();
            int products = method.DeclaringType == typeof(QueryKernel) ? 1
                : method.DeclaringType == typeof(SoftmaxRowKernel) || arguments.Contains(typeof(KeyPart)) ? 3
                : method.DeclaringType == typeof(SoftmaxKeyKernel) ? 2
                : method.DeclaringType == typeof(KeyKernel) || method.DeclaringType == typeof(SoftmaxKernel) ? 2
                : arguments.Contains(typeof(BothDirections)) ? 1 : 2;
            RequireTightProducts(ptx, arguments.Contains(typeof(Block8)) ? 8 : 4, products);
        }

        if (TiledBackward.TryGetValue((method.DeclaringType!, method.Name), out int backwardProducts))
        {
            Assert.Contains("ld.global.v4", ptx, StringComparison.Ordinal);
            RequireTightProducts(ptx, method.GetGenericArguments().Contains(typeof(Block8)) ? 8 : 4, backwardProducts);
        }
    }

    /// <summary>An iteration of a tile's product, eight times e × e multiply-adds, loads its 16e numbers 16 bytes at a time, and nothing else.</summary>
    private static void RequireTightProducts(string ptx, int edge, int products)
    {
        string[] iterations = [.. Label().Split(ptx).Where(block => Multiplication().Count(block) == 8 * edge * edge)];
        Assert.Equal(products, iterations.Length);
        foreach (string iteration in iterations)
        {
            Assert.Equal(8 * edge * edge, Addition().Count(iteration));
            Assert.Equal(4 * edge, QuadLoad().Count(iteration));
            Assert.DoesNotMatch(ScalarLoad(), iteration);
        }
    }

    [GeneratedRegex(@"^\s*\$?\w+:", RegexOptions.Multiline)]
    private static partial Regex Label();

    [GeneratedRegex(@"\bmul\.f32\b")]
    private static partial Regex Multiplication();

    [GeneratedRegex(@"\badd\.f32\b")]
    private static partial Regex Addition();

    [GeneratedRegex(@"\bld\.shared\.v4\.f32\b")]
    private static partial Regex QuadLoad();

    [GeneratedRegex(@"\bld\.(shared|global)\.(v2\.)?f32\b")]
    private static partial Regex ScalarLoad();

    // "ld.f32 ...": the address space is missing.
    [GeneratedRegex(@"\b(ld|st)\.(v[24]\.)?[fbsu](8|16|32|64)\b")]
    private static partial Regex GenericAccess();

    [GeneratedRegex(@"\b(shfl|vote|match|activemask|redux|atom|red)\b")]
    private static partial Regex WarpOrAtomic();

    [GeneratedRegex(@"\.shared \.align \d+ \.b8 \S+\[(\d+)\]")]
    private static partial Regex SharedArray();

    private static int SharedBytes(string ptx) =>
        SharedArray().Matches(ptx).Sum(match => int.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture));
}
