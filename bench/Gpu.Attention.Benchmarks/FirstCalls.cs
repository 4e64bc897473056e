using System.Diagnostics;
using System.Globalization;
using Gpu.Attention.Benchmarks.Reporting;

namespace Gpu.Attention.Benchmarks;

/// <summary>What the first calls of a process take, while the runtime still optimises the code that they run: in processes of their own, with its defaults and without quick code.</summary>
internal static class FirstCalls
{
    public const string ProbeMode = "first-calls-probe";
    private const int Processes = 3;
    private static readonly int[] Calls = [1, 2, 3, 5, 10, 20, 50, 100];
    private const string DefaultCases = "favor-causal,elu-causal,softmax-causal,favor-causal-training";

    // As the runtime has it where a project says nothing, and as the benchmarks have it.
    private static readonly (string Name, string QuickCode)[] Settings = [("default", "1"), ("QuickJit off", "0")];

    public static int Run(string[] args)
    {
        bool hasLength = args.Length > 0 && !args[0].StartsWith("--", StringComparison.Ordinal);
        int length = 4096;
        string names = args[(hasLength ? 1 : 0)..] switch
        {
            [] => DefaultCases,
            ["--cases", string given] => given,
            _ => "",
        };
        if (!CaseName.TryParseList(names, out CaseName[] cases) || (hasLength && !TryParseLength(args[0], out length)))
        {
            Console.Error.WriteLine("usage: first-calls [LENGTH] [--cases MAP-DIRECTION[-training],…]");
            return 2;
        }

        Console.WriteLine(Machine.Describe());
        Console.WriteLine();
        Console.WriteLine($"Milliseconds of a process's n-th call of {length.ToString("N0", CultureInfo.InvariantCulture)} tokens, medians of {Processes} processes.");
        Console.WriteLine();
        Console.WriteLine($"| case | runtime | {string.Join(" | ", Calls.Select(call => $"n = {call}"))} |");
        Console.WriteLine($"| --- | --- |{string.Concat(Enumerable.Repeat(" ---: |", Calls.Length))}");
        foreach (CaseName name in cases)
        {
            // In turn, so that all settings meet what else the machine does.
            var times = Settings.Select(_ => new List<double[]>()).ToList();
            for (int process = 0; process < Processes; process++)
            {
                for (int setting = 0; setting < Settings.Length; setting++)
                {
                    times[setting].Add(InProcessOfItsOwn(name, length, Settings[setting].QuickCode));
                }
            }

            for (int setting = 0; setting < Settings.Length; setting++)
            {
                IEnumerable<string> medians = Calls.Select(call => Median.Of(times[setting].Select(t => t[call - 1])).ToString("0.0", CultureInfo.InvariantCulture));
                Console.WriteLine($"| {name} | {Settings[setting].Name} | {string.Join(" | ", medians)} |");
            }
        }

        return 0;
    }

    /// <summary>The process itself: prints what each of its calls took.</summary>
    public static int RunProbe(string[] args)
    {
        if (args is not [string name, string text] || CaseName.Parse(name) is not { } parsed || !TryParseLength(text, out int length))
        {
            Console.Error.WriteLine($"usage: {ProbeMode} CASE LENGTH");
            return 2;
        }

        foreach (double time in Times(parsed, length))
        {
            Console.WriteLine(time.ToString(CultureInfo.InvariantCulture));
        }

        return 0;
    }

    /// <summary>Milliseconds of each of this process's next calls.</summary>
    public static double[] Times(CaseName name, int length)
    {
        using ComputeDevice device = ReportDevice.Open("cpu");
        using var tensors = new ReportTensors(length, hasGradients: name.IsTraining);
        using ReportOperator attention = name.Open(device);
        Action call = name.CallOf(attention, ReportTensors.Shape(length), tensors);
        double[] times = new double[Calls[^1]];
        for (int i = 0; i < times.Length; i++)
        {
            long start = Stopwatch.GetTimestamp();
            call();
            times[i] = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
        }

        return times;
    }

    private static double[] InProcessOfItsOwn(CaseName name, int length, string quickCode)
    {
        // Whatever the caller's own environment says.
        var environment = new Dictionary<string, string>
        {
            ["DOTNET_TieredCompilation"] = "1", ["DOTNET_TC_QuickJit"] = quickCode, ["DOTNET_TC_QuickJitForLoops"] = "1", ["DOTNET_TieredPGO"] = "1",
            ["DOTNET_ReadyToRun"] = "1",
        };
        CommandResult result = Command.RunItself([ProbeMode, name.ToString(), length.ToString(CultureInfo.InvariantCulture)], environment);
        return result.ExitCode == 0
            ? [.. result.Output.Trim().Split('\n').Select(line => double.Parse(line, CultureInfo.InvariantCulture))]
            : throw new InvalidOperationException($"{name}: {result.Complaint}");
    }

    private static bool TryParseLength(string text, out int length) => int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out length) && length > 0;
}
