using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Gpu.Attention;

/// <summary>What the host's cores can do at best: independent multiply-adds in registers, no memory in sight.</summary>
internal static class HostPeak
{
    // Enough independent chains to cover the latency of two multiply-add units (4 or 5 cycles each), few enough for 16 registers.
    private const int Chains = 12;
    private const int UsualRounds = 5;
    private const double RoundSeconds = 0.1;
    private const double BriefSeconds = 0.008;
    private const int BatchSteps = 10_000;

    /// <summary>Measures the float32 peak of some threads together, in 10⁹ operations a second; takes about half a second unless told otherwise.</summary>
    /// <param name="threads">How many threads work at once.</param>
    /// <param name="rounds">Rounds, of which the best counts, since a peak only ever reads low.</param>
    /// <param name="roundSeconds">What a round takes, and warming up before it.</param>
    /// <remarks>A lane's fused multiply-add counts two operations.</remarks>
    public static double MeasureGflops(int threads, int rounds = UsualRounds, double roundSeconds = RoundSeconds)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(threads);
        (Func<int, float> batch, int lanes) = Choose();
        long warmUp = Stopwatch.GetTimestamp();
        while (Stopwatch.GetElapsedTime(warmUp).TotalSeconds < roundSeconds)
        {
            batch(BatchSteps);
        }

        double best = 0;
        for (int round = 0; round < rounds; round++)
        {
            best = Math.Max(best, MeasureRound(threads, batch, lanes, roundSeconds));
        }

        return best;
    }

    /// <summary>
    /// The peak of all cores at this moment, in some hundredths of a second. What a machine's cores can do changes where others share them: on rented machines two of
    /// them are one for a while.
    /// </summary>
    public static double MeasureBrieflyGflops() => MeasureGflops(Environment.ProcessorCount, rounds: 1, BriefSeconds);

    private static double MeasureRound(int threads, Func<int, float> batch, int lanes, double roundSeconds)
    {
        double[] rates = new double[threads];
        using var start = new Barrier(threads);
        Thread[] workers = new Thread[threads];
        for (int i = 0; i < threads; i++)
        {
            int worker = i;
            workers[i] = new Thread(() =>
            {
                start.SignalAndWait();
                long begin = Stopwatch.GetTimestamp();
                long batches = 0;
                double seconds;
                do
                {
                    batch(BatchSteps);
                    batches++;
                    seconds = Stopwatch.GetElapsedTime(begin).TotalSeconds;
                }
                while (seconds < roundSeconds);
                rates[worker] = batches * 2.0 * BatchSteps * Chains * lanes / seconds / 1e9;
            });
            workers[i].Start();
        }

        foreach (Thread thread in workers)
        {
            thread.Join();
        }

        return rates.Sum();
    }

    private static (Func<int, float> Batch, int Lanes) Choose() =>
        Vector512.IsHardwareAccelerated ? (Batch<V512>, V512.Count)
        : Vector256.IsHardwareAccelerated ? (Batch<V256>, V256.Count)
        : Vector128.IsHardwareAccelerated ? (Batch<V128>, V128.Count)
        : (Batch<V32>, V32.Count);

    // Without a fused multiply-add, the vectors multiply and add apart; the count stays.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Batch<TV>(int steps)
        where TV : struct, ISimdVector<TV>
    {
        TV x = TV.Broadcast(Opaque(0.999f));
        TV y = TV.Broadcast(Opaque(0.001f));
        TV a = x, b = y, c = x, d = y, e = x, f = y, g = x, h = y, i = x, j = y, k = x, l = y;
        for (int step = 0; step < steps; step++)
        {
            a = TV.MultiplyAdd(a, x, y);
            b = TV.MultiplyAdd(b, x, y);
            c = TV.MultiplyAdd(c, x, y);
            d = TV.MultiplyAdd(d, x, y);
            e = TV.MultiplyAdd(e, x, y);
            f = TV.MultiplyAdd(f, x, y);
            g = TV.MultiplyAdd(g, x, y);
            h = TV.MultiplyAdd(h, x, y);
            i = TV.MultiplyAdd(i, x, y);
            j = TV.MultiplyAdd(j, x, y);
            k = TV.MultiplyAdd(k, x, y);
            l = TV.MultiplyAdd(l, x, y);
        }

        TV low = TV.Add(TV.Add(TV.Add(a, b), TV.Add(c, d)), TV.Add(e, f));
        TV high = TV.Add(TV.Add(TV.Add(g, h), TV.Add(i, j)), TV.Add(k, l));
        return TV.Sum(TV.Add(low, high));
    }

    // Keeps the compiler from knowing what it multiplies with.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static float Opaque(float value) => value;
}
