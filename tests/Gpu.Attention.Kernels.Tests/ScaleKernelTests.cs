using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention.Kernels.Tests;

[Collection(TestAccelerators.Collection)]
public class ScaleKernelTests
{
    private const float Factor = -1.7f;
    private const float Shift = 0.3f;

    public static TheoryData<int> Counts() => [0, 1, 63, 65, 1000];

    public static MatrixTheoryData<(int WarpSize, int Warps, int GroupSize), int> SimulatedGroups() =>
        new([(2, 1, 2), (4, 2, 8), (8, 2, 16), (8, 2, 11)], [0, 1, 63, 65, 1000]);

    [Theory]
    [MemberData(nameof(SimulatedGroups))]
    public void On_the_simulator((int WarpSize, int Warps, int GroupSize) group, int count)
    {
        using Accelerator accelerator = TestAccelerators.OpenSimulator(group.WarpSize, group.Warps);
        AssertScales(accelerator, group.GroupSize, count);
    }

    [Theory]
    [MemberData(nameof(Counts))]
    public void On_OpenCL(int count)
    {
        using Accelerator accelerator = TestAccelerators.OpenOpenCL();
        AssertScales(accelerator, 0, count);
        AssertScales(accelerator, 64, count);
    }

    [Theory]
    [MemberData(nameof(Counts))]
    public void On_CUDA(int count)
    {
        using Accelerator accelerator = TestAccelerators.OpenCuda();
        AssertScales(accelerator, 0, count);
        AssertScales(accelerator, 64, count);
    }

    [Fact]
    public void A_view_that_is_too_short_is_refused()
    {
        using Accelerator accelerator = TestAccelerators.OpenSimulator(2, 1);
        using MemoryBuffer1D<float, Stride1D.Dense> buffer = accelerator.Allocate1D<float>(10);
        var launcher = new ScaleLauncher(accelerator);
        ScaleArguments fits = new() { Input = buffer.View.BaseView, Output = buffer.View.BaseView, OutputOffset = 4, Count = 6 };

        launcher.Launch(accelerator.DefaultStream, fits);
        ArgumentException output = Assert.Throws<ArgumentException>(() => launcher.Launch(accelerator.DefaultStream, fits with { Count = 7 }));
        Assert.Equal("Output", output.ParamName);
        ArgumentException input = Assert.Throws<ArgumentException>(() => launcher.Launch(accelerator.DefaultStream, fits with { InputOffset = -1 }));
        Assert.Equal("Input", input.ParamName);
        Assert.Throws<ArgumentOutOfRangeException>(() => new ScaleLauncher(accelerator, 3));
    }

    private static void AssertScales(Accelerator accelerator, int groupSize, int count)
    {
        const int InputOffset = 3;
        const int OutputOffset = 5;
        const int Beyond = 70;
        float[] input = new float[InputOffset + count];
        Array.Fill(input, float.NaN, 0, InputOffset);
        for (int i = 0; i < count; i++)
        {
            input[InputOffset + i] = MathF.Sin(i) * 10;
        }

        float[] output = new float[OutputOffset + count + Beyond];
        Array.Fill(output, float.NaN);

        using MemoryBuffer1D<float, Stride1D.Dense> x = accelerator.Allocate1D(input);
        using MemoryBuffer1D<float, Stride1D.Dense> y = accelerator.Allocate1D(output);
        new ScaleLauncher(accelerator, groupSize).Launch(accelerator.DefaultStream, new ScaleArguments
        {
            Input = x.View.BaseView,
            Output = y.View.BaseView,
            InputOffset = InputOffset,
            OutputOffset = OutputOffset,
            Count = count,
            Factor = Factor,
            Shift = Shift,
        });
        accelerator.Synchronize();
        y.CopyToCPU(output);

        for (int i = 0; i < count; i++)
        {
            // A device may round twice or, fusing, once: half a unit of the product and half of the sum.
            double product = (double)Factor * input[InputOffset + i];
            double expected = product + Shift;
            double error = Math.Abs(output[OutputOffset + i] - expected);
            Assert.True(error <= (Math.Abs(product) + Math.Abs(expected)) * 6.0e-8, $"y[{i}] = {output[OutputOffset + i]}, not {expected}");
        }

        Assert.All(output[..OutputOffset], value => Assert.True(float.IsNaN(value)));
        Assert.All(output[(OutputOffset + count)..], value => Assert.True(float.IsNaN(value)));
    }
}
