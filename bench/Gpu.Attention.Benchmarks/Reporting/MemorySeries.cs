namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>What calls hold beside inputs and outputs: as operators say, and as the process shows.</summary>
internal static class MemorySeries
{
    private const int Longest = 1 << 20;

    /// <summary>What the operators say, at doubling lengths, and what the first call at chosen lengths takes.</summary>
    /// <param name="device">Where.</param>
    /// <param name="scale">Which lengths are measured.</param>
    /// <param name="longest">The longest call of a map and pass that the setting has time for.</param>
    public static IEnumerable<MemoryLine> Run(ComputeDevice device, ReportScale scale, Func<string, string, int> longest)
    {
        foreach (string map in new[] { MapNames.Favor, MapNames.Elu, MapNames.Exact })
        {
            foreach (string pass in new[] { Passes.Forward, Passes.Training })
            {
                if (longest(map, pass) == 0)
                {
                    continue;
                }

                for (int length = 1_024; length <= Longest; length *= 4)
                {
                    using var attention = new ReportOperator(device, map, causal: true);
                    AttentionShape shape = ReportTensors.Shape(length);
                    bool isTraining = pass == Passes.Training;
                    bool isMeasured = device.Info.Kind == DeviceKind.Cpu && length <= longest(map, pass) && scale.MemoryLengths.Contains(length);
                    long workspace = Math.Max(attention.WorkspaceBytes(shape), isTraining ? attention.BackwardWorkspaceBytes(shape) : 0);
                    yield return new MemoryLine
                    {
                        Map = map, Pass = pass, Length = length, TensorBytes = ReportTensors.Bytes(length, isTraining ? 8 : 4), WorkspaceBytes = workspace,
                        MeasuredBytes = isMeasured ? MemoryProbe.InProcessOfItsOwn(map, pass, length) : null,
                    };
                }
            }
        }
    }
}
