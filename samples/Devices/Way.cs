using System.Diagnostics;

namespace Gpu.Attention.Samples.Devices;

/// <summary>What came of running a problem twice on a device.</summary>
/// <param name="Output">The output.</param>
/// <param name="RanOn">The device that ran it, which need not be the one asked for.</param>
/// <param name="Fallbacks">Why not.</param>
/// <param name="SecondCall">How long the second call took; the first compiles kernels and allocates.</param>
internal sealed record Outcome(float[] Output, DeviceInfo RanOn, IReadOnlyList<FallbackStep> Fallbacks, TimeSpan SecondCall);

/// <summary>A way of computing attention.</summary>
/// <param name="Name">Its name.</param>
/// <param name="Run">Runs a problem on a device.</param>
internal sealed record Way(string Name, Func<ComputeDevice, Problem, Outcome> Run)
{
    public static IReadOnlyList<Way> All { get; } =
    [
        new("FAVOR+, causal", (device, problem) => Linear(device, problem, problem.FavorPlus, causal: true)),
        new("FAVOR+, bidirectional", (device, problem) => Linear(device, problem, problem.FavorPlus, causal: false)),
        new("elu+1, causal", (device, problem) => Linear(device, problem, FeatureMap.EluPlusOne, causal: true)),
        new("elu+1, bidirectional", (device, problem) => Linear(device, problem, FeatureMap.EluPlusOne, causal: false)),
        new("exact, causal", (device, problem) => Exact(device, problem, causal: true)),
        new("exact, bidirectional", (device, problem) => Exact(device, problem, causal: false)),
        new("two layers, on the device", TwoLayers),
    ];

    // From host memory to host memory, wherever the work is done.
    private static Outcome Linear(ComputeDevice device, Problem problem, FeatureMap features, bool causal)
    {
        using var attention = new LinearAttention(device, features, new LinearAttentionOptions { Causal = causal });
        float[] output = new float[problem.Shape.OutputElements];
        TimeSpan second = TimeSecond(() => attention.Forward(problem.Shape, problem.Query, problem.Key, problem.Value, output));
        return new Outcome(output, attention.LastDevice, attention.Fallbacks, second);
    }

    private static Outcome Exact(ComputeDevice device, Problem problem, bool causal)
    {
        using var attention = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = causal });
        float[] output = new float[problem.Shape.OutputElements];
        TimeSpan second = TimeSecond(() => attention.Forward(problem.Shape, problem.Query, problem.Key, problem.Value, output));
        return new Outcome(output, attention.LastDevice, attention.Fallbacks, second);
    }

    // Uploads once, attends twice, downloads once: what one layer makes is what the next one reads.
    private static Outcome TwoLayers(ComputeDevice device, Problem problem)
    {
        using var attention = new LinearAttention(device, problem.FavorPlus, new LinearAttentionOptions { Causal = true });
        using DeviceTensor query = DeviceTensor.Allocate(device, problem.Lengths);
        using DeviceTensor key = DeviceTensor.Allocate(device, problem.Lengths);
        using DeviceTensor value = DeviceTensor.Allocate(device, problem.Lengths);
        using DeviceTensor hidden = DeviceTensor.Allocate(device, problem.Lengths);
        using DeviceTensor output = DeviceTensor.Allocate(device, problem.Lengths);
        query.Upload(problem.Query);
        key.Upload(problem.Key);
        value.Upload(problem.Value);

        TimeSpan second = TimeSecond(() =>
        {
            attention.Forward(query, key, value, hidden);
            attention.Forward(query, key, hidden, output);
        });

        float[] result = new float[problem.Shape.OutputElements];
        output.Download(result);
        return new Outcome(result, attention.LastDevice, attention.Fallbacks, second);
    }

    private static TimeSpan TimeSecond(Action call)
    {
        call();
        long start = Stopwatch.GetTimestamp();
        call();
        return Stopwatch.GetElapsedTime(start);
    }
}
