using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;

namespace Gpu.Attention;

/// <summary>What the host's cores can do at best: independent multiply-adds in registers, no memory in sight.</summary>
internal static class HostPeak
{
    // Enough independent chains to cover the latency of two multiply-add units (4 or 5 cycles each), few enough for 16 registers.
    private const int Chains = 12;
    private const int Rounds = 5;
    private const double RoundSeconds = 0.1;
    private const int BatchSteps = 10_000;

    /// <summary>Measures the float32 peak of some threads together, in 10⁹ operations a second; takes about half a second.</summary>
    /// <param name="threads">How many threads work at once.</param>
    /// <remarks>A lane's fused multiply-add counts two operations. The best of five rounds, since a peak only ever reads low.</remarks>
    public static double MeasureGflops(int threads)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(threads);
        (Func<int, float> batch, int lanes) = Choose();

        // Compiled code is what is measured: the first calls run in the lower tier.
        long warmUp = Stopwatch.GetTimestamp();
        while (Stopwatch.GetElapsedTime(warmUp).TotalSeconds < RoundSeconds)
        {
            batch(BatchSteps);
        }

        double best = 0;
        for (int round = 0; round < Rounds; round++)
        {
            best = Math.Max(best, MeasureRound(threads, batch, lanes));
        }

        return best;
    }

    private static double MeasureRound(int threads, Func<int, float> batch, int lanes)
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
                while (seconds < RoundSeconds);
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

    // Without a fused multiply-add, the vectors multiply and add apart; the count stays.
    private static (Func<int, float> Batch, int Lanes) Choose() =>
        Vector512.IsHardwareAccelerated && Avx512F.IsSupported ? (Batch512, Vector512<float>.Count)
        : Vector256.IsHardwareAccelerated && Fma.IsSupported ? (Batch256, Vector256<float>.Count)
        : Vector128.IsHardwareAccelerated ? (Fma.IsSupported || AdvSimd.IsSupported ? Batch128 : Batch128Apart, Vector128<float>.Count)
        : (BatchScalar, 1);

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Batch512(int steps)
    {
        Vector512<float> x = Vector512.Create(Opaque(0.999f));
        Vector512<float> y = Vector512.Create(Opaque(0.001f));
        Vector512<float> a = x, b = y, c = x, d = y, e = x, f = y, g = x, h = y, i = x, j = y, k = x, l = y;
        for (int step = 0; step < steps; step++)
        {
            a = Vector512.FusedMultiplyAdd(a, x, y);
            b = Vector512.FusedMultiplyAdd(b, x, y);
            c = Vector512.FusedMultiplyAdd(c, x, y);
            d = Vector512.FusedMultiplyAdd(d, x, y);
            e = Vector512.FusedMultiplyAdd(e, x, y);
            f = Vector512.FusedMultiplyAdd(f, x, y);
            g = Vector512.FusedMultiplyAdd(g, x, y);
            h = Vector512.FusedMultiplyAdd(h, x, y);
            i = Vector512.FusedMultiplyAdd(i, x, y);
            j = Vector512.FusedMultiplyAdd(j, x, y);
            k = Vector512.FusedMultiplyAdd(k, x, y);
            l = Vector512.FusedMultiplyAdd(l, x, y);
        }

        return Vector512.Sum(a + b + c + d + e + f + g + h + i + j + k + l);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Batch256(int steps)
    {
        Vector256<float> x = Vector256.Create(Opaque(0.999f));
        Vector256<float> y = Vector256.Create(Opaque(0.001f));
        Vector256<float> a = x, b = y, c = x, d = y, e = x, f = y, g = x, h = y, i = x, j = y, k = x, l = y;
        for (int step = 0; step < steps; step++)
        {
            a = Vector256.FusedMultiplyAdd(a, x, y);
            b = Vector256.FusedMultiplyAdd(b, x, y);
            c = Vector256.FusedMultiplyAdd(c, x, y);
            d = Vector256.FusedMultiplyAdd(d, x, y);
            e = Vector256.FusedMultiplyAdd(e, x, y);
            f = Vector256.FusedMultiplyAdd(f, x, y);
            g = Vector256.FusedMultiplyAdd(g, x, y);
            h = Vector256.FusedMultiplyAdd(h, x, y);
            i = Vector256.FusedMultiplyAdd(i, x, y);
            j = Vector256.FusedMultiplyAdd(j, x, y);
            k = Vector256.FusedMultiplyAdd(k, x, y);
            l = Vector256.FusedMultiplyAdd(l, x, y);
        }

        return Vector256.Sum(a + b + c + d + e + f + g + h + i + j + k + l);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Batch128(int steps)
    {
        Vector128<float> x = Vector128.Create(Opaque(0.999f));
        Vector128<float> y = Vector128.Create(Opaque(0.001f));
        Vector128<float> a = x, b = y, c = x, d = y, e = x, f = y, g = x, h = y, i = x, j = y, k = x, l = y;
        for (int step = 0; step < steps; step++)
        {
            a = Vector128.FusedMultiplyAdd(a, x, y);
            b = Vector128.FusedMultiplyAdd(b, x, y);
            c = Vector128.FusedMultiplyAdd(c, x, y);
            d = Vector128.FusedMultiplyAdd(d, x, y);
            e = Vector128.FusedMultiplyAdd(e, x, y);
            f = Vector128.FusedMultiplyAdd(f, x, y);
            g = Vector128.FusedMultiplyAdd(g, x, y);
            h = Vector128.FusedMultiplyAdd(h, x, y);
            i = Vector128.FusedMultiplyAdd(i, x, y);
            j = Vector128.FusedMultiplyAdd(j, x, y);
            k = Vector128.FusedMultiplyAdd(k, x, y);
            l = Vector128.FusedMultiplyAdd(l, x, y);
        }

        return Vector128.Sum(a + b + c + d + e + f + g + h + i + j + k + l);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Batch128Apart(int steps)
    {
        Vector128<float> x = Vector128.Create(Opaque(0.999f));
        Vector128<float> y = Vector128.Create(Opaque(0.001f));
        Vector128<float> a = x, b = y, c = x, d = y, e = x, f = y, g = x, h = y, i = x, j = y, k = x, l = y;
        for (int step = 0; step < steps; step++)
        {
            a = (a * x) + y;
            b = (b * x) + y;
            c = (c * x) + y;
            d = (d * x) + y;
            e = (e * x) + y;
            f = (f * x) + y;
            g = (g * x) + y;
            h = (h * x) + y;
            i = (i * x) + y;
            j = (j * x) + y;
            k = (k * x) + y;
            l = (l * x) + y;
        }

        return Vector128.Sum(a + b + c + d + e + f + g + h + i + j + k + l);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float BatchScalar(int steps)
    {
        float x = Opaque(0.999f);
        float y = Opaque(0.001f);
        float a = x, b = y, c = x, d = y, e = x, f = y, g = x, h = y, i = x, j = y, k = x, l = y;
        for (int step = 0; step < steps; step++)
        {
            a = (a * x) + y;
            b = (b * x) + y;
            c = (c * x) + y;
            d = (d * x) + y;
            e = (e * x) + y;
            f = (f * x) + y;
            g = (g * x) + y;
            h = (h * x) + y;
            i = (i * x) + y;
            j = (j * x) + y;
            k = (k * x) + y;
            l = (l * x) + y;
        }

        return a + b + c + d + e + f + g + h + i + j + k + l;
    }

    // Keeps the compiler from knowing what it multiplies with.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static float Opaque(float value) => value;
}
