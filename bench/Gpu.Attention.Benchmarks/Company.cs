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
    private const int Tokens = 128;
    private const double PeakSeconds = 5e-4;
    private const double DefaultSeconds = 10;

    private static readonly (string Map, bool Backward)[] Cases =
        [(MapNames.Favor, false), (MapNames.Elu, false), (MapNames.Exact, false), (MapNames.Favor, true), (MapNames.Elu, true), (MapNames.Exact, true)];

    public static int Run(string[] args)
    {
        double seconds = DefaultSeconds;
        string[] rest = args;
        if (rest is [string text, ..] && double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out double given))
        {
            (seconds, rest) = (given, rest[1..]);
        }

        string? other = rest is ["--beside", { Length: > 0 } directory] ? Path.GetFullPath(directory) : null;
        if (!(double.IsFinite(seconds) && seconds > 0) || (rest.Length > 0 && other is null))
        {
            Console.Error.WriteLine("usage: company [SECONDS] [--beside DIRECTORY]");
            return 2;
        }

        // Without its engine, this build would be measured beside itself.
        string[] missing = other is null ? [] : [.. OtherBuild.Libraries.Where(name => !File.Exists(Path.Combine(other, $"{name}.dll")))];
        if (missing.Length > 0)
        {
            Console.Error.WriteLine($"{other} has no {missing[0]}.dll: --beside names the directory of another build.");
            return 2;
        }

        Console.WriteLine(Machine.Describe());
        Console.WriteLine();
        Console.WriteLine("| | calls | fastest hundredth | tenth | median | slowest tenth |");
        Console.WriteLine("| --- | ---: | ---: | ---: | ---: | ---: |");
        Series[] here = [.. Cases.Select(c => new Series(Open(c.Map, c.Backward)))];
        Series[] beside = [];
        if (other is not null)
        {
            Func<string, bool, Action> open = new OtherBuild(other).Opener();
            beside = [.. Cases.Select(c => new Series(open(c.Map, c.Backward)))];
        }

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
            string name = $"{Name(i)}, ns a token";
            Write(name, here[i].Nanoseconds);
            if (other is not null)
            {
                Write($"{name}, beside", beside[i].Nanoseconds);
            }
        }

        Write("multiply-add peak, GFLOP/s", [.. peaks.Select(p => -p)]);
        if (other is not null)
        {
            WritePairs(here, beside);
        }

        return 0;
    }

    /// <summary>A call of a map's causal operator, ready to be timed. One head and few tokens: a call is to be shorter than what it is to show.</summary>
    internal static Action Open(string map, bool backward)
    {
        AttentionShape shape = ReportTensors.Shape(Tokens, heads: 1);
        var tensors = new ReportTensors(Tokens, heads: 1);
        var attention = new ReportOperator(ComputeDevice.Open(DeviceKind.Cpu), map, causal: true);
        attention.Forward(shape, tensors);
        return backward ? () => attention.Backward(shape, tensors) : () => attention.Forward(shape, tensors);
    }

    private static string Name(int i) => $"{MapNames.Of(Cases[i].Map)}, causal{(Cases[i].Backward ? ", backward" : "")}";

    // Rates come negative, so that the fastest come first.
    private static void Write(string name, IEnumerable<double> samples)
    {
        double[] sorted = [.. samples.Order()];
        Console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"| {name} | {sorted.Length} | {Math.Abs(At(sorted, 0.01)):0} | {Math.Abs(At(sorted, 0.1)):0} | {Math.Abs(At(sorted, 0.5)):0} | {Math.Abs(At(sorted, 0.9)):0} |"));
    }

    // Pairs are told apart by their sum, which favours neither build.
    private static void WritePairs(Series[] here, Series[] beside)
    {
        Console.WriteLine();
        Console.WriteLine("| this build's time to the other's, medians of pairs | the fastest quarter | all | the slowest quarter |");
        Console.WriteLine("| --- | ---: | ---: | ---: |");
        for (int i = 0; i < here.Length; i++)
        {
            (double Here, double Beside)[] pairs = [.. here[i].Nanoseconds.Zip(beside[i].Nanoseconds).OrderBy(pair => pair.First + pair.Second)];
            int quarter = (pairs.Length + 3) / 4;
            double Ratio(Range range) => At([.. pairs[range].Select(pair => pair.Here / pair.Beside).Order()], 0.5);
            Console.WriteLine(string.Create(
                CultureInfo.InvariantCulture, $"| {Name(i)} | {Ratio(..quarter):0.000} | {Ratio(..):0.000} | {Ratio(^quarter..):0.000} |"));
        }
    }

    private static double At(double[] sorted, double share) => sorted[(int)(share * (sorted.Length - 1))];

    /// <summary>The times of one build's calls.</summary>
    private sealed class Series(Action call)
    {
        public List<double> Nanoseconds { get; } = [];

        public void Measure()
        {
            call();
            long begin = Stopwatch.GetTimestamp();
            call();
            
            // A TimeSpan's ticks of 100 ns would show.
            Nanoseconds.Add((Stopwatch.GetTimestamp() - begin) * (1e9 / Stopwatch.Frequency) / Tokens);
        }
    }

    /// <summary>This benchmark once more, on another build's library.</summary>
    private sealed class OtherBuild(string directory) : AssemblyLoadContext
    {
        public static readonly string[] Libraries = ["Gpu.Attention", "Gpu.Attention.Core"];

        public Func<string, bool, Action> Opener()
        {
            Type company = LoadFromAssemblyPath(typeof(Company).Assembly.Location).GetType(typeof(Company).FullName!, throwOnError: true)!;
            return company.GetMethod(nameof(Open), BindingFlags.Static | BindingFlags.NonPublic)!.CreateDelegate<Func<string, bool, Action>>();
        }

        protected override Assembly? Load(AssemblyName assemblyName)
        {
            string path = Path.Combine(directory, $"{assemblyName.Name}.dll");
            return File.Exists(path) ? LoadFromAssemblyPath(path) : null;
        }
    }
}
