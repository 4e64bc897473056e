using System.Globalization;
using BenchmarkDotNet.Columns;
using BenchmarkDotNet.Mathematics;
using BenchmarkDotNet.Reports;
using BenchmarkDotNet.Running;

namespace Gpu.Attention.Benchmarks;

/// <summary>10⁹ operations a second, from the median time and the parameter that is an <see cref="IWork"/>.</summary>
internal sealed class GflopsColumn : IColumn
{
    public string Id => nameof(GflopsColumn);

    public string ColumnName => "GFLOP/s";

    public bool AlwaysShow => false;

    public ColumnCategory Category => ColumnCategory.Custom;

    public int PriorityInCategory => 0;

    public bool IsNumeric => true;

    public UnitType UnitType => UnitType.Dimensionless;

    public string Legend => "10⁹ multiplications and additions per second, at the median time";

    public string GetValue(Summary summary, BenchmarkCase benchmarkCase)
    {
        Statistics? times = summary[benchmarkCase]?.ResultStatistics;
        return times is not null && Work(benchmarkCase) is { } work
            ? (work.Flops / times.Median).ToString("0.0", CultureInfo.InvariantCulture)
            : "-";
    }

    public string GetValue(Summary summary, BenchmarkCase benchmarkCase, SummaryStyle style) => GetValue(summary, benchmarkCase);

    public bool IsDefault(Summary summary, BenchmarkCase benchmarkCase) => false;

    public bool IsAvailable(Summary summary) => summary.BenchmarksCases.Any(c => Work(c) is not null);

    private static IWork? Work(BenchmarkCase benchmarkCase) => benchmarkCase.Parameters.Items.Select(p => p.Value).OfType<IWork>().FirstOrDefault();
}
