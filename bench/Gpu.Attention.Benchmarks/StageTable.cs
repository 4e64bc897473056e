using System.Globalization;
using System.Runtime.Intrinsics;
using Gpu.Attention.Benchmarks.Reporting;

namespace Gpu.Attention.Benchmarks;

/// <summary>Where the time of a causal forward pass goes, stage by stage, in one thread.</summary>
internal static class StageTable
{
    private const int Rounds = 15;
    private const int Chunk = LinearLayout.Chunk;

    public static int Run(string[] args)
    {
        int length = 4096;
        if (args.Length > 1 || (args.Length == 1 && !int.TryParse(args[0], CultureInfo.InvariantCulture, out length)))
        {
            Console.Error.WriteLine("usage: stages [LENGTH]");
            return 2;
        }

        Console.WriteLine(Machine.Describe());
        double peak = HostPeak.MeasureGflops(1);
        foreach (var map in Lines(length, peak).GroupBy(l => l.Map))
        {
            Console.WriteLine();
            Console.WriteLine(string.Create(
                CultureInfo.InvariantCulture, $"{new AttentionCase(map.Key, true, length)}, one thread of {peak:0} GFLOP/s at best; a token of a head"));
            Console.WriteLine();
            Console.WriteLine("| stage | operations | ns | GFLOP/s | share of peak |");
            Console.WriteLine("| --- | ---: | ---: | ---: | ---: |");
            foreach (StageLine line in map)
            {
                string rate = line.PeakShare is not { } share ? "| |" : string.Create(CultureInfo.InvariantCulture, $"{line.Operations / line.Nanoseconds:0} | {share:P0} |");
                Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"| {line.Stage} | {line.Operations:0} | {line.Nanoseconds:0.0} | {rate}"));
            }
        }

        return 0;
    }

    /// <summary>The stages, and all of them together, of FAVOR+ and of elu+1: the fastest of fifteen passes each.</summary>
    /// <param name="length">Tokens.</param>
    /// <param name="peakGflops">One core's peak.</param>
    public static IEnumerable<StageLine> Lines(int length, double peakGflops)
    {
        foreach (string features in new[] { "favor", "elu" })
        {
            var work = new AttentionCase(features, Causal: true, length);
            double[] seconds = Measure(work);
            double tokens = (double)work.Length * AttentionCase.Heads;
            for (var stage = ForwardStage.Keys; stage < ForwardStage.Count; stage++)
            {
                yield return Line(stage.ToString(), Operations(stage, features == "favor"), seconds[(int)stage] / tokens * 1e9);
            }

            yield return Line("all", work.Flops / tokens, seconds.Sum() / tokens * 1e9);

            StageLine Line(string stage, double operations, double nanoseconds) =>
                new(features, Passes.Forward, stage, nanoseconds, operations, operations == 0 ? null : operations / nanoseconds / peakGflops);
        }
    }

    private static double Operations(ForwardStage stage, bool projects)
    {
        const double Dimension = AttentionCase.Dimension;
        double r = projects ? AttentionCase.NumFeatures : Dimension;
        return stage switch
        {
            ForwardStage.Keys or ForwardStage.ProjectQueries => projects ? 2 * Dimension * r : 0,
            ForwardStage.Scores => (Chunk + 1) * r,
            ForwardStage.Read => (2 * r * Dimension) + ((Chunk + 1) * Dimension),
            ForwardStage.Reduce => 2 * r * Dimension,
            _ => 0,
        };
    }

    private static unsafe double[] Measure(AttentionCase work)
    {
        AttentionShape shape = work.Shape;
        var problem = new AttentionProblem
        {
            Shape = shape, Features = work.Map.Lower(shape.KeyDimension, work.Map.DefaultScale(shape.KeyDimension)), Causal = true,
        };
        Func<AttentionBuffers, double[]> pass = Vector512.IsHardwareAccelerated ? Pass<V512>()
            : Vector256.IsHardwareAccelerated ? Pass<V256>()
            : Vector128.IsHardwareAccelerated ? Pass<V128>()
            : Pass<V32>();
        int elements = (int)shape.QueryElements;
        int workspaceFloats = (int)(new SimdEngine(1).WorkspaceBytes(problem) / sizeof(float));
        var data = new AttentionData(shape);
        using var workspace = new NativeFloats(workspaceFloats, 6);
        fixed (float* query = data.Query, key = data.Key, value = data.Value, output = data.Output)
        {
            var buffers = new AttentionBuffers
            {
                Query = Tensor(query), Key = Tensor(key), Value = Tensor(value), Output = Tensor(output),
                Workspace = MemoryRegion.Host(workspace.Pointer, workspaceFloats),
            };
            double[] best = [.. Enumerable.Repeat(double.PositiveInfinity, (int)ForwardStage.Count)];
            for (int round = -2; round < Rounds; round++)
            {
                double[] seconds = pass(buffers);
                for (int stage = 0; round >= 0 && stage < best.Length; stage++)
                {
                    best[stage] = Math.Min(best[stage], seconds[stage]);
                }
            }

            return best;
        }

        TensorBuffer Tensor(float* start) => TensorBuffer.Dense(MemoryRegion.Host(start, elements), shape.QueryLength, shape.Heads, shape.KeyDimension);

        Func<AttentionBuffers, double[]> Pass<TV>()
            where TV : struct, ISimdVector<TV>
        {
            var stages = new StagePass<TV>();
            return buffers => stages.Measure(problem, buffers);
        }
    }
}
