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
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void AddCausalProduct(int rows, int* seen, float* p, nint pStride, float* v, nint vStride, int n, float* o, nint oStride)
    {
        if (seen[0] > 0 && seen[0] == seen[rows - 1])
        {
            MicroKernel<TV>.Multiply(rows, n, seen[0], p, pStride, v, vStride, o, oStride, true);
            return;
        }

        for (int row = 0; row < rows; row += MicroKernel<TV>.Rows)
        {
            int height = Math.Min(MicroKernel<TV>.Rows, rows - row);
            int seenByAll = seen[row];
            if (seenByAll > 0)
            {
                MicroKernel<TV>.Multiply(height, n, seenByAll, p + (row * pStride), pStride, v, vStride, o + (row * oStride), oStride, true);
            }

            AddRagged(height, seen + row, p + (row * pStride), pStride, v, vStride, n, o + (row * oStride), oStride);
        }
    }

    /// <summary><c>O = A B</c>, and what <see cref="AddCausalProduct"/> adds to that, to the bit.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void CausalProduct(
        int rows, int n, int k, float* a, nint aStride, float* b, nint bStride, int* seen, float* p, nint pStride, float* v, nint vStride, float* o, nint oStride,
        LinesAhead* ahead = null)
    {
        if (ahead is not null)
        {
            ahead->Expect(MicroKernel<TV>.Tiles(rows, n));
        }

        for (int row = 0; row < rows; row += MicroKernel<TV>.Rows)
        {
            int height = Math.Min(MicroKernel<TV>.Rows, rows - row);
            int seenByAll = seen[row];
            float* factors = p + (row * pStride);
            float* target = o + (row * oStride);
            var second = new MicroKernel<TV>.Factors { A = factors, ARow = pStride, B = v, BRow = vStride, K = seenByAll };
            MicroKernel<TV>.MultiplyBoth(height, n, k, a + (row * aStride), aStride, b, bStride, second, target, oStride, ahead);
            AddRagged(height, seen + row, factors, pStride, v, vStride, n, target, oStride);
        }
    }

    /// <summary>What rows of a block see beyond what its first one sees.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddRagged(int rows, int* seen, float* p, nint pStride, float* v, nint vStride, int n, float* o, nint oStride)
    {
        int seenByAll = seen[0];
        p += seenByAll;
        v += seenByAll * vStride;
        if (rows == MicroKernel<TV>.Rows && n % (2 * TV.Count) == 0 && IsStair(seen))
        {
            AddLower(p, pStride, 1, v, vStride, n, o, oStride);
            return;
        }

        for (int i = 1; i < rows; i++)
        {
            AddRows(seen[i] - seenByAll, p + (i * pStride), 1, v, vStride, n, o + (i * oStride));
        }
    }

    /// <summary>True when each row of a block sees one more than the row before it, as it is nearly always.</summary>
    private static bool IsStair(int* seen) =>
        seen[1] - seen[0] == 1 && seen[2] - seen[1] == 1 && seen[3] - seen[2] == 1 && seen[4] - seen[3] == 1 && seen[5] - seen[4] == 1;

    /// <summary>
    /// Adds <c>P V</c> to O, or to zero, where row i of P counts from its column <c>first[i]</c> on, which never falls; what lies before is not read. P is laid
    /// out by columns when it is transposed.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void AddSuffixProduct(
        int rows, int inner, int* first, float* p, nint pStride, bool isTransposed, float* v, nint vStride, int n, float* o, nint oStride, bool accumulate = true)
    {
        if (!isTransposed && accumulate && first[rows - 1] == 0)
        {
            MicroKernel<TV>.Multiply(rows, n, inner, p, pStride, v, vStride, o, oStride, true);
            return;
        }

        nint pRow = isTransposed ? 1 : pStride;
        nint pStep = isTransposed ? pStride : 1;
        for (int row = 0; row < rows; row += MicroKernel<TV>.Rows)
        {
            int height = Math.Min(MicroKernel<TV>.Rows, rows - row);
            int countedByAll = first[row + height - 1];
            bool isStair = accumulate && height == MicroKernel<TV>.Rows && n % (2 * TV.Count) == 0 && IsStair(first + row);
            if (isStair)
            {
                AddUpper(p + (row * pRow) + (first[row] * pStep), pRow, pStep, v + (first[row] * vStride), vStride, n, o + (row * oStride), oStride);
            }

            for (int i = row; !isStair && i < row + height; i++)
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

    /// <summary>Six rows whose sums end, from one row to the next, one row of v later than those of the first, which are complete.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddLower(float* p, nint pRow, nint pStep, float* v, nint vStride, int n, float* o, nint oStride)
    {
        for (int i = 0; i < n; i += 2 * TV.Count)
        {
            float* x = v + i;
            float* y = o + i;
            (TV y1, TV z1) = (TV.Load(y + oStride), TV.Load(y + oStride + TV.Count));
            (TV y2, TV z2) = (TV.Load(y + (2 * oStride)), TV.Load(y + (2 * oStride) + TV.Count));
            (TV y3, TV z3) = (TV.Load(y + (3 * oStride)), TV.Load(y + (3 * oStride) + TV.Count));
            (TV y4, TV z4) = (TV.Load(y + (4 * oStride)), TV.Load(y + (4 * oStride) + TV.Count));
            (TV y5, TV z5) = (TV.Load(y + (5 * oStride)), TV.Load(y + (5 * oStride) + TV.Count));
            (TV b0, TV d0) = (TV.Load(x), TV.Load(x + TV.Count));
            Add(p[pRow], b0, d0, ref y1, ref z1);
            Add(p[(2 * pRow)], b0, d0, ref y2, ref z2);
            Add(p[(3 * pRow)], b0, d0, ref y3, ref z3);
            Add(p[(4 * pRow)], b0, d0, ref y4, ref z4);
            Add(p[(5 * pRow)], b0, d0, ref y5, ref z5);
            (TV b1, TV d1) = (TV.Load(x + vStride), TV.Load(x + vStride + TV.Count));
            Add(p[(2 * pRow) + pStep], b1, d1, ref y2, ref z2);
            Add(p[(3 * pRow) + pStep], b1, d1, ref y3, ref z3);
            Add(p[(4 * pRow) + pStep], b1, d1, ref y4, ref z4);
            Add(p[(5 * pRow) + pStep], b1, d1, ref y5, ref z5);
            (TV b2, TV d2) = (TV.Load(x + (2 * vStride)), TV.Load(x + (2 * vStride) + TV.Count));
            Add(p[(3 * pRow) + (2 * pStep)], b2, d2, ref y3, ref z3);
            Add(p[(4 * pRow) + (2 * pStep)], b2, d2, ref y4, ref z4);
            Add(p[(5 * pRow) + (2 * pStep)], b2, d2, ref y5, ref z5);
            (TV b3, TV d3) = (TV.Load(x + (3 * vStride)), TV.Load(x + (3 * vStride) + TV.Count));
            Add(p[(4 * pRow) + (3 * pStep)], b3, d3, ref y4, ref z4);
            Add(p[(5 * pRow) + (3 * pStep)], b3, d3, ref y5, ref z5);
            (TV b4, TV d4) = (TV.Load(x + (4 * vStride)), TV.Load(x + (4 * vStride) + TV.Count));
            Add(p[(5 * pRow) + (4 * pStep)], b4, d4, ref y5, ref z5);
            TV.Store(y1, y + oStride);
            TV.Store(z1, y + oStride + TV.Count);
            TV.Store(y2, y + (2 * oStride));
            TV.Store(z2, y + (2 * oStride) + TV.Count);
            TV.Store(y3, y + (3 * oStride));
            TV.Store(z3, y + (3 * oStride) + TV.Count);
            TV.Store(y4, y + (4 * oStride));
            TV.Store(z4, y + (4 * oStride) + TV.Count);
            TV.Store(y5, y + (5 * oStride));
            TV.Store(z5, y + (5 * oStride) + TV.Count);
        }
    }

    /// <summary>Six rows whose sums begin, from one row to the next, one row of v later, up to the last, which has nothing to add.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddUpper(float* p, nint pRow, nint pStep, float* v, nint vStride, int n, float* o, nint oStride)
    {
        for (int i = 0; i < n; i += 2 * TV.Count)
        {
            float* x = v + i;
            float* y = o + i;
            (TV y0, TV z0) = (TV.Load(y), TV.Load(y + TV.Count));
            (TV y1, TV z1) = (TV.Load(y + oStride), TV.Load(y + oStride + TV.Count));
            (TV y2, TV z2) = (TV.Load(y + (2 * oStride)), TV.Load(y + (2 * oStride) + TV.Count));
            (TV y3, TV z3) = (TV.Load(y + (3 * oStride)), TV.Load(y + (3 * oStride) + TV.Count));
            (TV y4, TV z4) = (TV.Load(y + (4 * oStride)), TV.Load(y + (4 * oStride) + TV.Count));
            (TV b0, TV d0) = (TV.Load(x), TV.Load(x + TV.Count));
            Add(*p, b0, d0, ref y0, ref z0);
            (TV b1, TV d1) = (TV.Load(x + vStride), TV.Load(x + vStride + TV.Count));
            Add(p[pStep], b1, d1, ref y0, ref z0);
            Add(p[pRow + pStep], b1, d1, ref y1, ref z1);
            (TV b2, TV d2) = (TV.Load(x + (2 * vStride)), TV.Load(x + (2 * vStride) + TV.Count));
            Add(p[(2 * pStep)], b2, d2, ref y0, ref z0);
            Add(p[pRow + (2 * pStep)], b2, d2, ref y1, ref z1);
            Add(p[(2 * pRow) + (2 * pStep)], b2, d2, ref y2, ref z2);
            (TV b3, TV d3) = (TV.Load(x + (3 * vStride)), TV.Load(x + (3 * vStride) + TV.Count));
            Add(p[(3 * pStep)], b3, d3, ref y0, ref z0);
            Add(p[pRow + (3 * pStep)], b3, d3, ref y1, ref z1);
            Add(p[(2 * pRow) + (3 * pStep)], b3, d3, ref y2, ref z2);
            Add(p[(3 * pRow) + (3 * pStep)], b3, d3, ref y3, ref z3);
            (TV b4, TV d4) = (TV.Load(x + (4 * vStride)), TV.Load(x + (4 * vStride) + TV.Count));
            Add(p[(4 * pStep)], b4, d4, ref y0, ref z0);
            Add(p[pRow + (4 * pStep)], b4, d4, ref y1, ref z1);
            Add(p[(2 * pRow) + (4 * pStep)], b4, d4, ref y2, ref z2);
            Add(p[(3 * pRow) + (4 * pStep)], b4, d4, ref y3, ref z3);
            Add(p[(4 * pRow) + (4 * pStep)], b4, d4, ref y4, ref z4);
            TV.Store(y0, y);
            TV.Store(z0, y + TV.Count);
            TV.Store(y1, y + oStride);
            TV.Store(z1, y + oStride + TV.Count);
            TV.Store(y2, y + (2 * oStride));
            TV.Store(z2, y + (2 * oStride) + TV.Count);
            TV.Store(y3, y + (3 * oStride));
            TV.Store(z3, y + (3 * oStride) + TV.Count);
            TV.Store(y4, y + (4 * oStride));
            TV.Store(z4, y + (4 * oStride) + TV.Count);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Add(float factor, TV x0, TV x1, ref TV y0, ref TV y1)
    {
        TV f = TV.Broadcast(factor);
        y0 = TV.MultiplyAdd(f, x0, y0);
        y1 = TV.MultiplyAdd(f, x1, y1);
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

    /// <summary>1 / a; false where it could be infinite, or lose bits as a subnormal number.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryInvert(float a, out float inverse)
    {
        inverse = 1 / a;
        return MathF.Abs(a) > SmallestInverted && MathF.Abs(inverse) > SmallestInverted;
    }

    /// <summary>Rows of whole vectors, each times its factor.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void ScaleRows(int rows, int n, float* factors, float* x, nint xStride, float* y, nint yStride)
    {
        for (int row = 0; row < rows; row++)
        {
            Scale(n, factors[row], x, y);
            x += xStride;
            y += yStride;
        }
    }

    /// <summary><c>z = y + x</c>, rows of whole vectors that lie close in x and y.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void AddRows(int rows, int n, float* x, float* y, float* z, nint zStride)
    {
        for (int row = 0; row < rows; row++)
        {
            for (int i = 0; i < n; i += TV.Count)
            {
                TV.Store(TV.Add(TV.Load(y + i), TV.Load(x + i)), z + i);
            }

            x += n;
            y += n;
            z += zStride;
        }
    }

    /// <summary><c>y = x / a</c> for any number of elements; x is padded to whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Divide(int n, float* x, float a, float* y)
    {
        if (!TryInvert(a, out float inverse))
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
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void CopyRows(int n, int width, float* source, nint sourceStride, float* target, int stride)
    {
        for (int row = 0; row < n; row++)
        {
            StoredRows.CopyRow(width, source + (row * sourceStride), target + ((nint)row * stride), stride);
        }
    }

    /// <summary>Writes <c>n</c> rows of <c>width</c> elements as columns, and clears the columns from n up to whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
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

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
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
