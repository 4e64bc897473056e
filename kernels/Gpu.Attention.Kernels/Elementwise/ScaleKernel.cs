using ILGPU;
using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>What <see cref="ScaleKernel"/> reads and writes.</summary>
internal struct ScaleArguments
{
    /// <summary>x: elements <c>InputOffset .. InputOffset + Count</c> are read.</summary>
    public ArrayView<float> Input;

    /// <summary>y: elements <c>OutputOffset .. OutputOffset + Count</c> are written. May be <see cref="Input"/> at the same offset.</summary>
    public ArrayView<float> Output;

    /// <summary>The element of <see cref="Input"/> that x begins at.</summary>
    public long InputOffset;

    /// <summary>The element of <see cref="Output"/> that y begins at.</summary>
    public long OutputOffset;

    /// <summary>n.</summary>
    public long Count;

    /// <summary>a.</summary>
    public float Factor;

    /// <summary>b.</summary>
    public float Shift;
}

/// <summary><c>y[i] = a·x[i] + b</c> for <c>i = 0 .. n</c>; x and y are vectors of n.</summary>
internal static class ScaleKernel
{
    /// <summary>Explicitly grouped; any number of groups, of any size.</summary>
    /// <param name="arguments">x, y, a, b and n.</param>
    public static void Run(ScaleArguments arguments)
    {
        long step = (long)Grid.DimX * Group.DimX;
        for (long i = ((long)Grid.IdxX * Group.DimX) + Group.IdxX; i < arguments.Count; i += step)
        {
            arguments.Output[arguments.OutputOffset + i] = (arguments.Factor * arguments.Input[arguments.InputOffset + i]) + arguments.Shift;
        }
    }
}

/// <summary>Launches <see cref="ScaleKernel"/> on one accelerator. Compiled once: keep it.</summary>
internal sealed class ScaleLauncher
{
    /// <summary>Enough groups a multiprocessor to hide latency; more only add launch work to a loop that strides over the grid.</summary>
    private const int GroupsPerMultiprocessor = 8;

    private readonly Accelerator _accelerator;
    private readonly Action<AcceleratorStream, KernelConfig, ScaleArguments> _kernel;
    private readonly int _groupSize;

    /// <summary>Compiles the kernel.</summary>
    /// <param name="accelerator">Where it runs.</param>
    /// <param name="groupSize">Threads in a group; 0 for 256, or what the accelerator allows.</param>
    /// <exception cref="ArgumentOutOfRangeException">The accelerator has no groups of this size.</exception>
    public ScaleLauncher(Accelerator accelerator, int groupSize = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(groupSize);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(groupSize, accelerator.MaxNumThreadsPerGroup);
        _accelerator = accelerator;
        _groupSize = groupSize == 0 ? Math.Min(256, accelerator.MaxNumThreadsPerGroup) : groupSize;
        _kernel = accelerator.LoadKernel<ScaleArguments>(ScaleKernel.Run);
    }

    /// <summary>Enqueues <c>y = a·x + b</c>; returns before it is done.</summary>
    /// <param name="stream">The accelerator's stream.</param>
    /// <param name="arguments">x, y, a, b and n.</param>
    /// <exception cref="ArgumentException">A view is too short for its offset and n.</exception>
    public void Launch(AcceleratorStream stream, ScaleArguments arguments)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(arguments.Count, nameof(arguments));
        RequireRange(arguments.Input, arguments.InputOffset, arguments.Count, nameof(ScaleArguments.Input));
        RequireRange(arguments.Output, arguments.OutputOffset, arguments.Count, nameof(ScaleArguments.Output));
        if (arguments.Count == 0)
        {
            return;
        }

        long groups = ((arguments.Count - 1) / _groupSize) + 1;
        int grid = (int)Math.Min(groups, (long)_accelerator.NumMultiprocessors * GroupsPerMultiprocessor);
        _kernel(stream, new KernelConfig(grid, _groupSize), arguments);
    }

    private static void RequireRange(ArrayView<float> view, long offset, long count, string name)
    {
        if (offset < 0 || offset > view.Length || count > view.Length - offset)
        {
            throw new ArgumentException($"The view has {view.Length} elements; {count} from {offset} on are needed.", name);
        }
    }
}
