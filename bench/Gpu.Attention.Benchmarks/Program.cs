using BenchmarkDotNet.Reports;
using BenchmarkDotNet.Running;
using Gpu.Attention.Benchmarks;
using Gpu.Attention.Benchmarks.Reporting;

// BenchmarkDotNet takes every command line but these; bench/README.md says what each measures.
switch (args)
{
    case ["report", .. string[] rest]:
        return ReportRun.Run(rest);
    case [MemoryProbe.Mode, .. string[] rest]:
        return MemoryProbe.Run(rest);
    case ["peer-table", .. string[] rest]:
        return PeerTable.Run(rest);
    case ["linearity", .. string[] rest]:
        return Linearity.Run(rest);
    case ["step", .. string[] rest]:
        return StepTable.Run(rest);
    case ["backward", .. string[] rest]:
        return BackwardTable.Run(rest);
    case ["stages", .. string[] rest]:
        return StageTable.Run(rest);
    case ["first-calls", .. string[] rest]:
        return FirstCalls.Run(rest);
    case [FirstCalls.ProbeMode, .. string[] rest]:
        return FirstCalls.RunProbe(rest);
    case ["company", .. string[] rest]:
        return Company.Run(rest);
    case ["devices", .. string[] rest]:
        return DeviceTable.Run(rest);
    default:
        IEnumerable<Summary> summaries = BenchmarkSwitcher.FromAssembly(typeof(Program).Assembly).Run(args, new BenchmarkConfig());
        return AllocationGate.Check(summaries);
}
