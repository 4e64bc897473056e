using System.Diagnostics;
using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>What the host's memory can do at best: arrays far larger than the caches, read or copied by some threads at once.</summary>
internal static unsafe class HostBandwidth
{
    private const long Floats = 64L << 20;
    private const int Rounds = 4;

    /// <summary>10⁹ bytes a second, read and copied; of a copy, bytes read and bytes written both count. The best of four rounds.</summary>
    /// <param name="threads">How many threads work at once.</param>
    public static (double Read, double Copy) Measure(int threads)
    {
        int share = (int)(Floats / threads);
        float*[] sources = new float*[threads];
        float*[] targets = new float*[threads];
        for (int i = 0; i < threads; i++)
        {
            sources[i] = (float*)NativeMemory.AlignedAlloc((nuint)share * sizeof(float), 64);
            targets[i] = (float*)NativeMemory.AlignedAlloc((nuint)share * sizeof(float), 64);
            new Span<float>(sources[i], share).Fill(1);
            new Span<float>(targets[i], share).Fill(1);
        }

        try
        {
            double read = 0;
            double copy = 0;
            for (int round = 0; round < Rounds; round++)
            {
                read = Math.Max(read, Rate(threads, sizeof(float), i => Read(sources[i], share)));
                copy = Math.Max(copy, Rate(threads, 2 * sizeof(float), i => new ReadOnlySpan<float>(sources[i], share).CopyTo(new Span<float>(targets[i], share))));
            }

            return (read, copy);
        }
        finally
        {
            for (int i = 0; i < threads; i++)
            {
                NativeMemory.AlignedFree(sources[i]);
                NativeMemory.AlignedFree(targets[i]);
            }
        }

        double Rate(int workers, int bytesPerFloat, Action<int> work)
        {
            // Each thread takes its own times: one that watches them may be put aside itself, and see less than they took.
            using var start = new Barrier(workers);
            long[] begins = new long[workers];
            long[] ends = new long[workers];
            Thread[] all = [.. Enumerable.Range(0, workers).Select(i => new Thread(() =>
            {
                start.SignalAndWait();
                begins[i] = Stopwatch.GetTimestamp();
                work(i);
                ends[i] = Stopwatch.GetTimestamp();
            }))];
            Array.ForEach(all, thread => thread.Start());
            Array.ForEach(all, thread => thread.Join());
            return (double)share * workers * bytesPerFloat / Stopwatch.GetElapsedTime(begins.Min(), ends.Max()).TotalSeconds * 1e-9;
        }
    }

    private static void Read(float* source, int length)
    {
        // The sum is looked at, so that it is not left out.
        if (float.IsNaN(TensorPrimitives.Sum(new ReadOnlySpan<float>(source, length))))
        {
            throw new InvalidOperationException("Ones have a sum.");
        }
    }
}
