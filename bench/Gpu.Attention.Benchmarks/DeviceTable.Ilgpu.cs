using System.Globalization;
using System.Text.Json;
using Gpu.Attention.Kernels.Tests;
using ILGPU.Runtime;
using ILGPU.Runtime.OpenCL;

namespace Gpu.Attention.Benchmarks;

/// <content>Measures: a device at a time, a length at a time, its results held against the host engine's before any is timed.</content>
internal static partial class DeviceTable
{
    private const double WorstDifference = 1e-4;

    private static readonly LinearStage[] Stages = Enum.GetValues<LinearStage>();

    static partial void Measure(string[] args, ref int? exitCode)
    {
        if (DeviceOptions.Parse(args) is not { } options)
        {
            Console.Error.WriteLine(DeviceOptions.Usage);
            exitCode = 2;
            return;
        }

        var runs = new List<(string Device, Func<Accelerator> Open)>();
        foreach (AcceleratorDescription device in AcceleratorList.Devices.Where(d => d.Refusal is null && d.Type != AcceleratorType.OpenCL && IsChosen(d)))
        {
            runs.Add((device.Name, () => device.Device.CreateAccelerator(AcceleratorList.Context)));
        }

        foreach (CLDevice device in Pocl.Context.Value.GetCLDevices())
        {
            if (options.Device is null || device.Name.Contains(options.Device, StringComparison.OrdinalIgnoreCase))
            {
                runs.Add((device.Name.Trim(), () => device.CreateAccelerator(Pocl.Context.Value)));
            }
        }

        if (runs.Count == 0)
        {
            Console.Error.WriteLine(options.Device is null ? "There is no CUDA or OpenCL device." : $"No device's name contains \"{options.Device}\".");
            exitCode = 2;
            return;
        }

        Console.WriteLine($"{Machine.Describe()}; FAVOR+, {(options.Causal ? "causal" : "bidirectional")}, H = {options.Heads}, d = dv = {options.Dimension}, " +
            $"m = {options.NumFeatures}; medians of {options.Rounds} rounds, stages in ms");
        Console.WriteLine();
        Console.WriteLine($"| device | L | ms | fastest, ms | GFLOP/s | fastest, GFLOP/s | tokens/s | largest difference | {string.Join(" | ", Stages)} |");
        Console.WriteLine($"| --- {string.Concat(Enumerable.Repeat("| ---: ", 7 + Stages.Length))}|");
        using StreamWriter? json = options.Json is null ? null : new StreamWriter(options.Json);
        int missed = 0;
        foreach ((string device, Func<Accelerator> open) in runs)
        {
            using Accelerator accelerator = open();
            foreach (int length in options.Lengths)
            {
                DeviceLine line = Run(accelerator, device, length, options);
                if (!(line.LargestDifference <= WorstDifference))
                {
                    Console.Error.WriteLine($"{device}, L = {length}: {line.LargestDifference:g3} from the host engine's outputs; not timed");
                    missed++;
                    continue;
                }

                Console.WriteLine(string.Create(
                    CultureInfo.InvariantCulture,
                    $"| {line.Device} | {line.Length} | {line.Ms:0.000} | {line.FastestMs:0.000} | {line.Gflops:0.0} | {line.FastestGflops:0.0} | {line.TokensPerSecond:0} | {line.LargestDifference:0.0e+0} | ")
                    + string.Join(" | ", line.StageMs.Values.Select(ms => ms.ToString("0.000", CultureInfo.InvariantCulture))) + " |");
                json?.WriteLine(JsonSerializer.Serialize(line));
                if (!(line.FastestGflops >= options.RequiredGflops))
                {
                    Console.Error.WriteLine(string.Create(
                        CultureInfo.InvariantCulture, $"{device}, L = {length}: the fastest call has {line.FastestGflops:0.0} GFLOP/s where {options.RequiredGflops} are required"));
                    missed++;
                }
            }
        }

        exitCode = missed == 0 ? 0 : 1;

        // The simulator takes hours for what others do in milliseconds.
        bool IsChosen(AcceleratorDescription device) => options.Device is null
            ? device.Type != AcceleratorType.CPU
            : device.Name.Contains(options.Device, StringComparison.OrdinalIgnoreCase);
    }

    private static DeviceLine Run(Accelerator accelerator, string device, int length, DeviceOptions options)
    {
        var shape = new AttentionShape(batch: 1, length, options.Heads, options.Dimension);
        var data = new AttentionData(shape);
        FeatureMap map = FeatureMap.FavorPlus(RandomProjection.Orthogonal(options.NumFeatures, options.Dimension, seed: 42));
        using (ComputeDevice host = ComputeDevice.Open(DeviceKind.Cpu))
        using (var attention = new LinearAttention(host, map, new LinearAttentionOptions { Causal = options.Causal }))
        {
            attention.Forward(shape, data.Query, data.Key, data.Value, data.Output);
        }

        using var run = new DeviceRun(accelerator, options, shape, map, data);
        var line = new DeviceLine
        {
            Device = device,
            Length = length,
            Heads = options.Heads,
            Dimension = options.Dimension,
            NumFeatures = options.NumFeatures,
            Causal = options.Causal,
            LargestDifference = run.LargestDifference(data.Output),
        };
        if (!(line.LargestDifference <= WorstDifference))
        {
            return line;
        }

        var whole = new List<double>();
        var stages = Stages.ToDictionary(stage => stage, _ => new List<double>());
        for (int round = 0; round < options.Rounds; round++)
        {
            whole.Add(run.Forward());
            foreach ((LinearStage stage, double ms) in run.ForwardByStage())
            {
                stages[stage].Add(ms);
            }
        }

        return line with { Ms = Median.Of(whole), FastestMs = whole.Min(), StageMs = stages.ToDictionary(s => s.Key, s => Median.Of(s.Value)) };
    }
}
