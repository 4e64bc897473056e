using System.Diagnostics;
using System.Globalization;
using System.Reflection;
using System.Runtime.Loader;
using Gpu.Attention.Benchmarks.Reporting;

namespace Gpu.Attention.Benchmarks;

/// <summary>
/// Short calls over and over: on a machine that others share, times jump from one level to another for milliseconds to seconds. A median of long calls shows a mixture, and not which part is whose.
/// Another build's calls in turn with this one's, in one process, have the same company.
/// </summary>
internal static class Company
{
    private const int DefaultTokens = 128;
    private const int MaxRows = 1 << 23;
    private const double PeakSeconds = 5e-4;
    private const double DefaultSeconds = 10;
    private const string DefaultCases = "favor-causal,elu-causal,softmax-causal,favor-causal-training,elu-causal-training,softmax-causal-training";
    private const string Usage = "usage: company [SECONDS] [--cases MAP-DIRECTION[-training],…] [--tokens N] [--heads N] [--beside DIRECTORY]";

    public static int Run(string[] args)
    {
        double seconds = DefaultSeconds;
        Queue<string> rest = new(args);
        if (rest.TryPeek(out string? text) && double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out double given))
        {
            seconds = given;
            rest.Dequeue();
        }

        (int tokens, int heads) = (DefaultTokens, 1);
        string? other = null;
        bool isRight = CaseName.TryParseList(DefaultCases, out CaseName[] cases) && double.IsFinite(seconds) && seconds > 0;
        while (isRight && rest.TryDequeue(out string? option))
        {
            string value = rest.TryDequeue(out string? next) ? next : "";
            isRight = option switch
            {
                "--cases" => CaseName.TryParseList(value, out cases),
                "--tokens" => TryParse(value, out tokens),
                "--heads" => TryParse(value, out heads),
                "--beside" => value.Length > 0 && (other = Path.GetFullPath(value)).Length > 0,
                _ => false,
            };
        }

        if (!isRight || (long)tokens * heads > MaxRows)
        {
            Console.Error.WriteLine(Usage);
            return 2;
        }

        // Without its engine, this build would be measured beside itself.
        string[] missing = other is null ? [] : [.. OtherBuild.Libraries.Where(name => !File.Exists(Path.Combine(other, $"{name}.dll")))];
        if (missing.Length > 0)
        {
            Console.Error.WriteLine($"{other} has no {missing[0]}.dll: --beside names the directory of another build.");
            return 2;
        }

        string[] names = [.. cases.Select(c => c.ToString())];
        Series[] here = [.. Open(names, tokens, heads).Select(call => new Series(call, tokens * heads))];
        Series[] beside = other is null ? [] : [.. new OtherBuild(other).Open(names, tokens, heads).Select(call => new Series(call, tokens * heads))];
        Console.WriteLine(Machine.Describe());
        Console.WriteLine();
        Console.WriteLine("| | calls | fastest hundredth | tenth | median | slowest tenth |");
        Console.WriteLine("| --- | ---: | ---: | ---: | ---: | ---: |");

        var peaks = new List<double>();
        long start = Stopwatch.GetTimestamp();
        bool hereFirst = false;
        do
        {
            hereFirst = !hereFirst;
            for (int i = 0; i < here.Length; i++)
            {
                foreach (Series[] build in hereFirst ? [here, beside] : new[] { beside, here })
                {
                    if (build.Length > 0)
                    {
                        build[i].Measure();
                    }
                }
            }

            peaks.Add(HostPeak.MeasureGflops(threads: 1, rounds: 1, PeakSeconds));
        }
        while (Stopwatch.GetElapsedTime(start).TotalSeconds < seconds);

        for (int i = 0; i < here.Length; i++)
        {
            string name = $"{names[i]}, ns a token{(heads == 1 ? "" : " of a head")}";
            Write(name, here[i].Nanoseconds);
            if (other is not null)
            {
                Write($"{name}, beside", beside[i].Nanoseconds);
            }
        }

        Write("multiply-add peak, GFLOP/s", [.. peaks.Select(p => -p)]);
        if (other is not null)
        {
            WritePairs(names, here, beside);
        }

        return 0;
    }

    /// <summary>Calls of cases, ready to be timed.</summary>
    internal static Action[] Open(string[] names, int tokens, int heads)
    {
        AttentionShape shape = ReportTensors.Shape(tokens, heads);
        var tensors = new ReportTensors(tokens, heads);
        ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        return [.. names.Select(name => CaseName.Parse(name)!).Select(name => name.CallOf(name.Open(device), shape, tensors))];
    }

    private static bool TryParse(string text, out int count) => int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out count) && count > 0;

    // Rates come negative, so that the fastest come first.
    private static void Write(string name, IEnumerable<double> samples)
    {
        double[] sorted = [.. samples.Order()];
        Console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"| {name} | {sorted.Length} | {Math.Abs(At(sorted, 0.01)):0} | {Math.Abs(At(sorted, 0.1)):0} | {Math.Abs(At(sorted, 0.5)):0} | {Math.Abs(At(sorted, 0.9)):0} |"));
    }

    /// <summary>Medians of one build's times to the other's, in the pairs that took least, in all, and in those that took most. Pairs are told apart by their sum, which favours neither build.</summary>
    internal static (double FastestQuarter, double All, double SlowestQuarter) Ratios(IEnumerable<double> here, IEnumerable<double> beside)
    {
        (double Here, double Beside)[] pairs = [.. here.Zip(beside).OrderBy(pair => pair.First + pair.Second)];
        int quarter = (pairs.Length + 3) / 4;
        return (Median(..quarter), Median(..), Median(^quarter..));

        double Median(Range range) => At([.. pairs[range].Select(pair => pair.Here / pair.Beside).Order()], 0.5);
    }

    private static void WritePairs(string[] names, Series[] here, Series[] beside)
    {
        Console.WriteLine();
        Console.WriteLine("| this build's time to the other's, medians of pairs | the fastest quarter | all | the slowest quarter |");
        Console.WriteLine("| --- | ---: | ---: | ---: |");
        for (int i = 0; i < here.Length; i++)
        {
            (double fastest, double all, double slowest) = Ratios(here[i].Nanoseconds, beside[i].Nanoseconds);
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"| {names[i]} | {fastest:0.000} | {all:0.000} | {slowest:0.000} |"));
        }
    }

    private static double At(double[] sorted, double share) => sorted[(int)(share * (sorted.Length - 1))];

    /// <summary>The times of one build's calls.</summary>
    private sealed class Series(Action call, long tokens)
    {
        public List<double> Nanoseconds { get; } = [];

        public void Measure()
        {
            call();
            long begin = Stopwatch.GetTimestamp();
            call();

            // A TimeSpan's ticks of 100 ns would show.
            Nanoseconds.Add((Stopwatch.GetTimestamp() - begin) * (1e9 / Stopwatch.Frequency) / tokens);
        }
    }

    /// <summary>This benchmark once more, on another build's library.</summary>
    private sealed class OtherBuild(string directory) : AssemblyLoadContext
    {
        public static readonly string[] Libraries = ["Gpu.Attention", "Gpu.Attention.Core"];

        public Action[] Open(string[] names, int tokens, int heads)
        {
            Type company = LoadFromAssemblyPath(typeof(Company).Assembly.Location).GetType(typeof(Company).FullName!, throwOnError: true)!;
            return company.GetMethod(nameof(Company.Open), BindingFlags.Static | BindingFlags.NonPublic)!.CreateDelegate<Func<string[], int, int, Action[]>>()(names, tokens, heads);
        }

        protected override Assembly? Load(AssemblyName assemblyName)
        {
            string path = Path.Combine(directory, $"{assemblyName.Name}.dll");
            return File.Exists(path) ? LoadFromAssemblyPath(path) : null;
        }
    }
}
