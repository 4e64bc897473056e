using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Gpu.Attention;

/// <summary>The engine's small loops over rows and tiles, beside the micro-kernel.</summary>
internal static unsafe class SimdBlas<TV>
    where TV : struct, ISimdVector<TV>
{
    private const int TransposedColumns = 16;
    private const int MaxLanes = 16;

    /// <summary>Numbers no larger, and their inverses, are left to division.</summary>
    private const float SmallestInverted = 1e-37f;

    // Constants of the assembly, which do not move.
    private static ReadOnlySpan<float> OnesThenZeros => [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    /// <summary>Adds <c>P V</c> to O where row i of P counts in its first <c>seen[i]</c> columns, which never fall; what lies beyond is not read.</summary>
    /// <remarks>Not even as a factor of zero: a value that a row does not see may be NaN.</remarks>
    public static void AddCausalProduct(int rows, int* seen, float* p, nint pStride, float* v, nint vStride, int n, float* o, nint oStride)
    {
        for (int row = 0; row < rows; row += MicroKernel<TV>.Rows)
        {
            int height = Math.Min(MicroKernel<TV>.Rows, rows - row);
            int seenByAll = seen[row];
            if (seenByAll > 0)
            {
                MicroKernel<TV>.Multiply(height, n, seenByAll, p + (row * pStride), pStride, v, vStride, o + (row * oStride), oStride, true);
            }

            for (int i = row + 1; i < row + height; i++)
            {
                AddRows(seen[i] - seenByAll, p + (i * pStride) + seenByAll, 1, v + (seenByAll * vStride), vStride, n, o + (i * oStride));
            }
        }
    }

    /// <summary>
    /// Adds <c>P V</c> to O, or to zero, where row i of P counts from its column <c>first[i]</c> on, which never falls; what lies before is not read. P is laid
    /// out by columns when it is transposed.
    /// </summary>
    public static void AddSuffixProduct(
        int rows, int inner, int* first, float* p, nint pStride, bool isTransposed, float* v, nint vStride, int n, float* o, nint oStride, bool accumulate = true)
    {
        nint pRow = isTransposed ? 1 : pStride;
        nint pStep = isTransposed ? pStride : 1;
        for (int row = 0; row < rows; row += MicroKernel<TV>.Rows)
        {
            int height = Math.Min(MicroKernel<TV>.Rows, rows - row);
            int countedByAll = first[row + height - 1];
            for (int i = row; i < row + height; i++)
            {
                AddRows(
                    countedByAll - first[i], p + (i * pRow) + (first[i] * pStep), pStep, v + (first[i] * vStride), vStride, n, o + (i * oStride), accumulate);
            }

            float* left = p + (row * pRow) + (countedByAll * pStep);
            float* right = v + (countedByAll * vStride);
            float* target = o + (row * oStride);
            if (isTransposed)
            {
                MicroKernel<TV>.MultiplyTransposed(height, n, inner - countedByAll, left, pStride, right, vStride, target, oStride, true);
            }
            else
            {
                MicroKernel<TV>.Multiply(height, n, inner - countedByAll, left, pStride, right, vStride, target, oStride, true);
            }
        }
    }

    /// <summary><c>o (+)= Σ p_j v_j</c> over a few rows v of whole vectors, in their order.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddRows(int count, float* p, nint pStep, float* v, nint vStride, int n, float* o, bool accumulate = true)
    {
        int i = 0;
        for (; i <= n - (4 * TV.Count); i += 4 * TV.Count)
        {
            float* x = v + i;
            float* f = p;
            TV o0 = accumulate ? TV.Load(o + i) : default;
            TV o1 = accumulate ? TV.Load(o + i + TV.Count) : default;
            TV o2 = accumulate ? TV.Load(o + i + (2 * TV.Count)) : default;
            TV o3 = accumulate ? TV.Load(o + i + (3 * TV.Count)) : default;
            for (int j = 0; j < count; j++)
            {
                TV factor = TV.Broadcast(*f);
                o0 = TV.MultiplyAdd(factor, TV.Load(x), o0);
                o1 = TV.MultiplyAdd(factor, TV.Load(x + TV.Count), o1);
                o2 = TV.MultiplyAdd(factor, TV.Load(x + (2 * TV.Count)), o2);
                o3 = TV.MultiplyAdd(factor, TV.Load(x + (3 * TV.Count)), o3);
                x += vStride;
                f += pStep;
            }

            TV.Store(o0, o + i);
            TV.Store(o1, o + i + TV.Count);
            TV.Store(o2, o + i + (2 * TV.Count));
            TV.Store(o3, o + i + (3 * TV.Count));
        }

        for (; i < n; i += TV.Count)
        {
            TV sum = accumulate ? TV.Load(o + i) : default;
            for (int j = 0; j < count; j++)
            {
                sum = TV.MultiplyAdd(TV.Broadcast(p[j * pStep]), TV.Load(v + (j * vStride) + i), sum);
            }

            TV.Store(sum, o + i);
        }
    }

    /// <summary><c>y += a x</c> over whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void MultiplyAdd(int n, float a, float* x, float* y)
    {
        TV factor = TV.Broadcast(a);
        for (int i = 0; i < n; i += TV.Count)
        {
            TV.Store(TV.MultiplyAdd(factor, TV.Load(x + i), TV.Load(y + i)), y + i);
        }
    }

    /// <summary><c>y = a x</c> over whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Scale(int n, float a, float* x, float* y)
    {
        TV factor = TV.Broadcast(a);
        for (int i = 0; i < n; i += TV.Count)
        {
            TV.Store(TV.Multiply(factor, TV.Load(x + i)), y + i);
        }
    }

    /// <summary><c>y = x / a</c> for any number of elements; x is padded to whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Divide(int n, float* x, float a, float* y)
    {
        // Times 1 / a, except where that could be infinite, or lose bits as a subnormal number.
        float inverse = 1 / a;
        if (!(MathF.Abs(a) > SmallestInverted && MathF.Abs(inverse) > SmallestInverted))
        {
            TensorPrimitives.Divide(new ReadOnlySpan<float>(x, n), a, new Span<float>(y, n));
            return;
        }

        TV factor = TV.Broadcast(inverse);
        int i = 0;
        for (; i <= n - TV.Count; i += TV.Count)
        {
            TV.Store(TV.Multiply(factor, TV.Load(x + i)), y + i);
        }

        for (; i < n; i++)
        {
            y[i] = x[i] * inverse;
        }
    }

    /// <summary>x·y over whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Dot(int n, float* x, float* y)
    {
        TV sum = default;
        for (int i = 0; i < n; i += TV.Count)
        {
            sum = TV.MultiplyAdd(TV.Load(x + i), TV.Load(y + i), sum);
        }

        return TV.Sum(sum);
    }

    /// <summary>
    /// The sum of any number of elements, in an order that depends on the number and the vector width only. Reads whole vectors; what lies behind the last
    /// element may be anything.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(int n, float* x)
    {
        TV sum = default;
        int i = 0;
        for (; i <= n - TV.Count; i += TV.Count)
        {
            sum = TV.Add(sum, TV.Load(x + i));
        }

        if (i < n)
        {
            float* mask = (float*)Unsafe.AsPointer(ref MemoryMarshal.GetReference(OnesThenZeros)) + MaxLanes - (n - i);
            sum = TV.Add(sum, TV.SelectPositive(TV.Load(mask), TV.Load(x + i), default));
        }

        return TV.Sum(sum);
    }

    /// <summary>Copies <c>n</c> rows of <c>width</c> elements and clears each up to <c>stride</c>.</summary>
    public static void CopyRows(int n, int width, float* source, nint sourceStride, float* target, int stride)
    {
        for (int row = 0; row < n; row++)
        {
            StoredRows.CopyRow(width, source + (row * sourceStride), target + ((nint)row * stride), stride);
        }
    }

    /// <summary>Writes <c>n</c> rows of <c>width</c> elements as columns, and clears the columns from n up to whole vectors.</summary>
    public static void Transpose(int n, int width, float* source, nint sourceStride, float* target, nint targetStride)
    {
        // Few columns at a time: where strides are powers of two, the target's rows would drive one another out of the cache.
        for (int first = 0; first < width; first += TransposedColumns)
        {
            int columns = Math.Min(TransposedColumns, width - first);
            float* x = source + first;
            float* y = target + (first * targetStride);
            int row = 0;
            for (; Avx512F.IsSupported && columns == 16 && row <= n - 16; row += 16)
            {
                Transpose16(x + (row * sourceStride), sourceStride, y + row, targetStride);
            }

            for (; Avx.IsSupported && row <= n - 8; row += 8)
            {
                int column = 0;
                for (; column <= columns - 8; column += 8)
                {
                    Transpose8(x + (row * sourceStride) + column, sourceStride, y + (column * targetStride) + row, targetStride);
                }

                TransposeElements(8, columns - column, x + (row * sourceStride) + column, sourceStride, y + (column * targetStride) + row, targetStride);
            }

            for (; Sse.IsSupported && row <= n - 4; row += 4)
            {
                int column = 0;
                for (; column <= columns - 4; column += 4)
                {
                    Transpose4(x + (row * sourceStride) + column, sourceStride, y + (column * targetStride) + row, targetStride);
                }

                TransposeElements(4, columns - column, x + (row * sourceStride) + column, sourceStride, y + (column * targetStride) + row, targetStride);
            }

            TransposeElements(n - row, columns, x + (row * sourceStride), sourceStride, y + row, targetStride);
        }

        int padded = PackedForm<TV>.RoundUp(n);
        for (int column = 0; padded > n && column < width; column++)
        {
            new Span<float>(target + (column * targetStride) + n, padded - n).Clear();
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose4(float* x, nint xStride, float* y, nint yStride)
    {
        Vector128<float> r0 = Vector128.Load(x);
        Vector128<float> r1 = Vector128.Load(x + xStride);
        Vector128<float> r2 = Vector128.Load(x + (2 * xStride));
        Vector128<float> r3 = Vector128.Load(x + (3 * xStride));
        Vector128<float> a = Sse.UnpackLow(r0, r1);
        Vector128<float> b = Sse.UnpackLow(r2, r3);
        Vector128<float> c = Sse.UnpackHigh(r0, r1);
        Vector128<float> d = Sse.UnpackHigh(r2, r3);
        Sse.MoveLowToHigh(a, b).Store(y);
        Sse.MoveHighToLow(b, a).Store(y + yStride);
        Sse.MoveLowToHigh(c, d).Store(y + (2 * yStride));
        Sse.MoveHighToLow(d, c).Store(y + (3 * yStride));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Transpose8(float* x, nint xStride, float* y, nint yStride)
    {
        // Rows i and i + 4 share a vector from the first, so that what is left are four transpositions of 4 by 4, two in each vector.
        (Vector256<float> a0, Vector256<float> b0) = Pair(x, x + (4 * xStride));
        (Vector256<float> a1, Vector256<float> b1) = Pair(x + xStride, x + (5 * xStride));
        (Vector256<float> a2, Vector256<float> b2) = Pair(x + (2 * xStride), x + (6 * xStride));
        (Vector256<float> a3, Vector256<float> b3) = Pair(x + (3 * xStride), x + (7 * xStride));
        StoreColumns(a0, a1, a2, a3, y, yStride);
        StoreColumns(b0, b1, b2, b3, y + (4 * yStride), yStride);

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        static (Vector256<float> Left, Vector256<float> Right) Pair(float* upper, float* lower) =>
            (Vector256.Create(Vector128.Load(upper), Vector128.Load(lower)), Vector256.Create(Vector128.Load(upper + 4), Vector128.Load(lower + 4)));

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        static void StoreColumns(Vector256<float> r0, Vector256<float> r1, Vector256<float> r2, Vector256<float> r3, float* y, nint yStride)
        {
            Vector256<double> a = Avx.UnpackLow(r0, r1).AsDouble();
            Vector256<double> b = Avx.UnpackLow(r2, r3).AsDouble();
            Vector256<double> c = Avx.UnpackHigh(r0, r1).AsDouble();
            Vector256<double> d = Avx.UnpackHigh(r2, r3).AsDouble();
            Avx.UnpackLow(a, b).AsSingle().Store(y);
            Avx.UnpackHigh(a, b).AsSingle().Store(y + yStride);
            Avx.UnpackLow(c, d).AsSingle().Store(y + (2 * yStride));
            Avx.UnpackHigh(c, d).AsSingle().Store(y + (3 * yStride));
        }
    }

    private static void Transpose16(float* x, nint xStride, float* y, nint yStride)
    {
        // As 8 by 8, but with rows i, i + 4, i + 8 and i + 12 in the quarters of a vector.
        for (int column = 0; column < 16; column += 4)
        {
            Vector512<float> r0 = Quarters(x + column, xStride);
            Vector512<float> r1 = Quarters(x + column + xStride, xStride);
            Vector512<float> r2 = Quarters(x + column + (2 * xStride), xStride);
            Vector512<float> r3 = Quarters(x + column + (3 * xStride), xStride);
            Vector512<double> a = Avx512F.UnpackLow(r0, r1).AsDouble();
            Vector512<double> b = Avx512F.UnpackLow(r2, r3).AsDouble();
            Vector512<double> c = Avx512F.UnpackHigh(r0, r1).AsDouble();
            Vector512<double> d = Avx512F.UnpackHigh(r2, r3).AsDouble();
            float* target = y + (column * yStride);
            Avx512F.UnpackLow(a, b).AsSingle().Store(target);
            Avx512F.UnpackHigh(a, b).AsSingle().Store(target + yStride);
            Avx512F.UnpackLow(c, d).AsSingle().Store(target + (2 * yStride));
            Avx512F.UnpackHigh(c, d).AsSingle().Store(target + (3 * yStride));
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        static Vector512<float> Quarters(float* x, nint stride) => Vector512.Create(
            Vector256.Create(Vector128.Load(x), Vector128.Load(x + (4 * stride))),
            Vector256.Create(Vector128.Load(x + (8 * stride)), Vector128.Load(x + (12 * stride))));
    }

    private static void TransposeElements(int n, int width, float* x, nint xStride, float* y, nint yStride)
    {
        for (int row = 0; row < n; row++)
        {
            for (int column = 0; column < width; column++)
            {
                y[(column * yStride) + row] = x[(row * xStride) + column];
            }
        }
    }
}
