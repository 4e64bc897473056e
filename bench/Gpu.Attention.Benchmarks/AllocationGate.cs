using System.Globalization;
using BenchmarkDotNet.Reports;

namespace Gpu.Attention.Benchmarks;

/// <summary>Fails a run in which a kernel or an operator's steady call allocated, or in which a benchmark did not run.</summary>
internal static class AllocationGate
{
    public static int Check(IEnumerable<Summary> summaries)
    {
        int failures = 0;
        foreach (Summary summary in summaries)
        {
            failures += summary.HasCriticalValidationErrors ? 1 : 0;
            foreach (BenchmarkReport report in summary.Reports)
            {
                string name = report.BenchmarkCase.DisplayInfo;
                long? bytes = report.GcStats.GetBytesAllocatedPerOperation(report.BenchmarkCase);
                if (!report.Success)
                {
                    Console.Error.WriteLine($"{name}: did not run");
                    failures++;
                }
                else if (bytes is not 0)
                {
                    Console.Error.WriteLine($"{name}: a call allocated {bytes?.ToString(CultureInfo.InvariantCulture) ?? "nobody knows how many"} bytes; a steady call allocates none");
                    failures++;
                }
            }
        }

        return failures == 0 ? 0 : 1;
    }
}
