using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Reports;

namespace Gpu.Attention.Benchmarks;

/// <summary>A short job, so that everything runs in minutes, unless the command line names another.</summary>
internal sealed class BenchmarkConfig : ManualConfig
{
    private const int LongestParameter = 40;

    public BenchmarkConfig()
    {
        Add(DefaultConfig.Instance);
        AddJob(Job.ShortRun.AsDefault());
        AddColumn(new GflopsColumn());
        SummaryStyle = SummaryStyle.Default.WithMaxParameterColumnWidth(LongestParameter);
    }
}
