using System.Numerics;
using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Gpu.Attention.Samples.Training;

/// <summary>Products of matrices that lie row by row in memory. An element's terms are added in one order, so that every run gives the same bits.</summary>
internal static class Matrix
{
    // Four rows by two vectors stay in registers; so many terms of a column pair stay in the first cache.
    private const int TileRows = 4;
    private const int Terms = 256;

    /// <summary><c>Y = X W + b</c>, or without <c>b</c> where that is empty.</summary>
    /// <param name="x">The rows, <c>[rows, inputs]</c>.</param>
    /// <param name="weights">The weights, <c>[inputs, outputs]</c>.</param>
    /// <param name="bias">What is added to every row; empty for nothing.</param>
    /// <param name="y">Receives <c>[rows, outputs]</c>.</param>
    /// <param name="rows">How many rows.</param>
    public static void Apply(float[] x, ReadOnlyMemory<float> weights, ReadOnlyMemory<float> bias, float[] y, int rows)
    {
        int inputs = x.Length / rows;
        int outputs = y.Length / rows;
        Rows.ForEachBlock(rows, (_, first, count) =>
        {
            Span<float> part = y.AsSpan(first * outputs, count * outputs);
            for (int row = 0; row < count; row++)
            {
                Span<float> start = part.Slice(row * outputs, outputs);
                if (bias.IsEmpty)
                {
                    start.Clear();
                }
                else
                {
                    bias.Span.CopyTo(start);
                }
            }

            AddProduct(x.AsSpan(first * inputs), inputs, 1, weights.Span, part, count, inputs, outputs);
        });
    }

    /// <summary><c>dX += dY Wᵀ</c>.</summary>
    public static void AddInputGradient(float[] outputGradient, ReadOnlyMemory<float> weights, float[] inputGradient, int rows)
    {
        int inputs = inputGradient.Length / rows;
        int outputs = outputGradient.Length / rows;
        float[] transposed = new float[inputs * outputs];
        ReadOnlySpan<float> w = weights.Span;
        for (int i = 0; i < inputs; i++)
        {
            for (int o = 0; o < outputs; o++)
            {
                transposed[(o * inputs) + i] = w[(i * outputs) + o];
            }
        }

        Rows.ForEachBlock(rows, (_, first, count) => AddProduct(
            outputGradient.AsSpan(first * outputs), outputs, 1, transposed, inputGradient.AsSpan(first * inputs, count * inputs), count, outputs, inputs));
    }

    /// <summary><c>dW += Xᵀ dY</c>, and <c>db += </c> the sum of <c>dY</c>'s rows where <c>db</c> is not empty.</summary>
    public static void AddWeightGradient(float[] x, float[] outputGradient, Memory<float> weightGradient, Memory<float> biasGradient, int rows)
    {
        int inputs = x.Length / rows;
        int outputs = outputGradient.Length / rows;
        int parts = (inputs + 15) / 16;
        Parallel.For(0, parts, part =>
        {
            int first = part * 16;
            int count = Math.Min(16, inputs - first);
            AddProduct(
                x.AsSpan(first), 1, inputs, outputGradient, weightGradient.Span.Slice(first * outputs, count * outputs), count, rows, outputs);
        });
        if (!biasGradient.IsEmpty)
        {
            Span<float> sums = biasGradient.Span;
            for (int row = 0; row < rows; row++)
            {
                TensorPrimitives.Add(sums, outputGradient.AsSpan(row * outputs, outputs), sums);
            }
        }
    }

    // C += A B, with A's element (i, t) at i * rowStride + t * termStride.
    private static void AddProduct(
        ReadOnlySpan<float> a, int rowStride, int termStride, ReadOnlySpan<float> b, Span<float> c, int rows, int terms, int columns)
    {
        int lanes = Vector<float>.Count;
        for (int firstTerm = 0; firstTerm < terms; firstTerm += Terms)
        {
            int count = Math.Min(Terms, terms - firstTerm);
            ReadOnlySpan<float> left = a[(firstTerm * termStride)..];
            ReadOnlySpan<float> right = b[(firstTerm * columns)..];
            int row = 0;
            for (; row + TileRows <= rows; row += TileRows)
            {
                ReadOnlySpan<float> tile = left[(row * rowStride)..];
                Span<float> to = c[(row * columns)..];
                int column = 0;
                for (; column + (2 * lanes) <= columns; column += 2 * lanes)
                {
                    AddTile(tile, rowStride, termStride, right[column..], to[column..], count, columns);
                }

                AddElements(tile, rowStride, termStride, right, to, TileRows, count, column, columns);
            }

            if (row < rows)
            {
                AddElements(left[(row * rowStride)..], rowStride, termStride, right, c[(row * columns)..], rows - row, count, 0, columns);
            }
        }
    }

    private static void AddTile(
        ReadOnlySpan<float> a, int rowStride, int termStride, ReadOnlySpan<float> b, Span<float> c, int terms, int columns)
    {
        // The last access of each span, checked once, so that the loop need not.
        int lanes = Vector<float>.Count;
        _ = a[((TileRows - 1) * rowStride) + ((terms - 1) * termStride)];
        _ = b[((terms - 1) * columns) + (2 * lanes) - 1];
        _ = c[((TileRows - 1) * columns) + (2 * lanes) - 1];
        ref float left = ref MemoryMarshal.GetReference(a);
        ref float right = ref MemoryMarshal.GetReference(b);
        ref float to = ref MemoryMarshal.GetReference(c);
        Vector<float> c00 = Load(ref to, 0), c01 = Load(ref to, lanes);
        Vector<float> c10 = Load(ref to, columns), c11 = Load(ref to, columns + lanes);
        Vector<float> c20 = Load(ref to, 2 * columns), c21 = Load(ref to, (2 * columns) + lanes);
        Vector<float> c30 = Load(ref to, 3 * columns), c31 = Load(ref to, (3 * columns) + lanes);
        for (int term = 0; term < terms; term++)
        {
            Vector<float> b0 = Load(ref right, 0), b1 = Load(ref right, lanes);
            var a0 = new Vector<float>(left);
            var a1 = new Vector<float>(Unsafe.Add(ref left, rowStride));
            var a2 = new Vector<float>(Unsafe.Add(ref left, 2 * rowStride));
            var a3 = new Vector<float>(Unsafe.Add(ref left, 3 * rowStride));
            c00 = Vector.FusedMultiplyAdd(a0, b0, c00);
            c01 = Vector.FusedMultiplyAdd(a0, b1, c01);
            c10 = Vector.FusedMultiplyAdd(a1, b0, c10);
            c11 = Vector.FusedMultiplyAdd(a1, b1, c11);
            c20 = Vector.FusedMultiplyAdd(a2, b0, c20);
            c21 = Vector.FusedMultiplyAdd(a2, b1, c21);
            c30 = Vector.FusedMultiplyAdd(a3, b0, c30);
            c31 = Vector.FusedMultiplyAdd(a3, b1, c31);
            left = ref Unsafe.Add(ref left, termStride);
            right = ref Unsafe.Add(ref right, columns);
        }

        Store(c00, ref to, 0);
        Store(c01, ref to, lanes);
        Store(c10, ref to, columns);
        Store(c11, ref to, columns + lanes);
        Store(c20, ref to, 2 * columns);
        Store(c21, ref to, (2 * columns) + lanes);
        Store(c30, ref to, 3 * columns);
        Store(c31, ref to, (3 * columns) + lanes);
    }

    // What the tiles leave over at the right and at the bottom.
    private static void AddElements(
        ReadOnlySpan<float> a, int rowStride, int termStride, ReadOnlySpan<float> b, Span<float> c, int rows, int terms, int firstColumn, int columns)
    {
        for (int row = 0; row < rows; row++)
        {
            Span<float> to = c.Slice(row * columns, columns)[firstColumn..];
            for (int term = 0; term < terms && to.Length > 0; term++)
            {
                float factor = a[(row * rowStride) + (term * termStride)];
                ReadOnlySpan<float> from = b.Slice(term * columns, columns)[firstColumn..];
                for (int column = 0; column < to.Length; column++)
                {
                    to[column] = MathF.FusedMultiplyAdd(factor, from[column], to[column]);
                }
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector<float> Load(ref float from, int offset) => Vector.LoadUnsafe(ref from, (nuint)offset);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(Vector<float> value, ref float to, int offset) => value.StoreUnsafe(ref to, (nuint)offset);
}
