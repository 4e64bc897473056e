using System.Globalization;
using System.Runtime.Intrinsics;

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
        foreach (string features in new[] { "favor", "elu" })
        {
            var work = new AttentionCase(features, Causal: true, length);
            double[] seconds = Measure(work);
            double tokens = (double)work.Length * AttentionCase.Heads;
            Console.WriteLine();
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{work}, one thread of {peak:0} GFLOP/s at best; a token of a head"));
            Console.WriteLine();
            Console.WriteLine("| stage | operations | ns | GFLOP/s | share of peak |");
            Console.WriteLine("| --- | ---: | ---: | ---: | ---: |");
            for (var stage = ForwardStage.Values; stage < ForwardStage.Count; stage++)
            {
                Write(stage.ToString(), Operations(stage, features == "favor"), seconds[(int)stage] / tokens);
            }

            Write("all", work.Flops / tokens, seconds.Sum() / tokens);
        }

        return 0;

        void Write(string stage, double operations, double seconds)
        {
            string rate = operations == 0 ? "| |" : string.Create(
                CultureInfo.InvariantCulture, $"{operations / seconds * 1e-9:0} | {operations / seconds * 1e-9 / peak:P0} |");
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"| {stage} | {operations:0} | {seconds * 1e9:0.0} | {rate}"));
        }
    }

    private static double Operations(ForwardStage stage, bool projects)
    {
        const double Dimension = AttentionCase.Dimension;
        double r = projects ? AttentionCase.NumFeatures : Dimension;
        return stage switch
        {
            ForwardStage.ProjectKeys or ForwardStage.ProjectQueries => projects ? 2 * Dimension * r : 0,
            ForwardStage.Reduce or ForwardStage.Read => 2 * r * Dimension,
            ForwardStage.Scores => (Chunk + 1) * r,
            ForwardStage.ReadChunk => (Chunk + 1) * Dimension,
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
