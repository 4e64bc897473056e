using BenchmarkDotNet.Reports;
using BenchmarkDotNet.Running;
using Gpu.Attention.Benchmarks;

IEnumerable<Summary> summaries = BenchmarkSwitcher.FromAssembly(typeof(Program).Assembly).Run(args, new BenchmarkConfig());
return AllocationGate.Check(summaries);
