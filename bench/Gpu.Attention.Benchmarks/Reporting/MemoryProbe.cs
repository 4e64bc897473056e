using System.Globalization;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>What a first call of a length takes of memory that nobody had in use before: in a process of its own, which prints it.</summary>
internal static class MemoryProbe
{
    public const string Mode = "memory-probe";

    /// <summary>Starts the process; null where resident memory cannot be known.</summary>
    public static long? InProcessOfItsOwn(string map, string pass, int length)
    {
        CommandResult result = Command.RunItself([Mode, map, pass, length.ToString(CultureInfo.InvariantCulture)]);
        return result.ExitCode == 0 && long.TryParse(result.Output, CultureInfo.InvariantCulture, out long bytes) ? bytes : null;
    }

    /// <summary>The process itself.</summary>
    public static int Run(string[] args)
    {
        if (args is not [string map, string pass, string text] || !int.TryParse(text, CultureInfo.InvariantCulture, out int length))
        {
            Console.Error.WriteLine($"usage: {Mode} MAP PASS LENGTH");
            return 2;
        }

        bool isTraining = pass == Passes.Training;
        using ComputeDevice device = ReportDevice.Open("cpu");
        using var tensors = new ReportTensors(length, hasGradients: isTraining);

        // Code and threads are not what is measured.
        using (var other = new ReportOperator(device, map, causal: true))
        {
            Call(other, 64);
        }

        using var attention = new ReportOperator(device, map, causal: true);
        if (ResidentMemory.RiseDuring(() => Call(attention, length)) is not { } bytes)
        {
            return 1;
        }

        Console.WriteLine(bytes.ToString(CultureInfo.InvariantCulture));
        return 0;

        void Call(ReportOperator operation, int tokens)
        {
            AttentionShape shape = ReportTensors.Shape(tokens);
            operation.Forward(shape, tensors);
            if (isTraining)
            {
                operation.Backward(shape, tensors);
            }
        }
    }
}
