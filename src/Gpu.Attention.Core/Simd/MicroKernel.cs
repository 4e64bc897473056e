using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace Gpu.Attention;

/// <summary>A constant that the compiler sees through a type argument.</summary>
internal interface IConstant
{
    static abstract int Value { get; }
}

internal readonly struct N1 : IConstant
{
    public static int Value => 1;
}

internal readonly struct N2 : IConstant
{
    public static int Value => 2;
}

internal readonly struct N3 : IConstant
{
    public static int Value => 3;
}

internal readonly struct N4 : IConstant
{
    public static int Value => 4;
}

internal readonly struct N5 : IConstant
{
    public static int Value => 5;
}

internal readonly struct N6 : IConstant
{
    public static int Value => 6;
}

internal readonly struct N8 : IConstant
{
    public static int Value => 8;
}

/// <summary>
/// The engine's one matrix product, <c>C (+)= A B</c>: A row-major with its elements broadcast, B and C row-major in whole vectors. A tile of
/// up to 6 rows by <see cref="ISimdVector{TSelf}.TileVectors"/> vectors of C stays in registers while the inner dimension runs.
/// </summary>
/// <remarks>Every element of C is summed in the order of the inner dimension, so its bits depend on nothing but its row and column.</remarks>
internal static unsafe class MicroKernel<TV>
    where TV : struct, ISimdVector<TV>
{
    /// <summary>Rows of a tile.</summary>
    public const int Rows = 6;

    /// <summary>
    /// Where lines are asked for: with each step of a tile where a step is 24 multiply-adds of 512 bits, which have room for it, and tiles are few (11 in a product of elu+1); between
    /// the tiles where it is 12, and every other instruction counts.
    /// </summary>
    private static bool AsksInside
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => TV.TileVectors == 4;
    }

    /// <summary>Columns of a tile.</summary>
    public static int Columns
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => TV.TileVectors * TV.Count;
    }

    /// <summary><c>C[m, n] (+)= A[m, k] B[k, n]</c>; n is a multiple of the vector length. Asks for lines ahead, if there are, as it goes.</summary>
    public static void Multiply(
        nint m, nint n, nint k, float* a, nint lda, float* b, nint ldb, float* c, nint ldc, bool accumulate, LinesAhead* ahead = null) =>
        Run(m, n, k, a, lda, 1, b, ldb, 1, c, ldc, accumulate, null, null, default, ahead);

    /// <summary><c>C[m, n] (+)= Aᵀ B</c> for <c>A[k, m]</c>, with the bits of <see cref="Multiply"/> where A is laid out the other way.</summary>
    public static void MultiplyTransposed(
        nint m, nint n, nint k, float* a, nint lda, float* b, nint ldb, float* c, nint ldc, bool accumulate, LinesAhead* ahead = null) =>
        Run(m, n, k, a, 1, lda, b, ldb, 1, c, ldc, accumulate, null, null, default, ahead);

    /// <summary><c>C = A B + P V</c>, summed as if one inner dimension followed the other: the bits of one product that is added to C by the next, which C need not wait for.</summary>
    public static void MultiplyBoth(
        nint m, nint n, nint k, float* a, nint lda, float* b, nint ldb, in Factors second, float* c, nint ldc, LinesAhead* ahead = null) =>
        Run(m, n, k, a, lda, 1, b, ldb, 1, c, ldc, false, null, null, second, ahead);

    /// <summary>
    /// <c>C = X + diag(w) A B</c>, X laid out as C is and perhaps C itself: the bits of a product of its own that is added in the end. Without w the factors are 1.
    /// </summary>
    public static void AddProduct(
        nint m, nint n, nint k, float* a, nint lda, float* b, nint ldb, float* c, nint ldc, float* x, float* w = null, LinesAhead* ahead = null) =>
        Run(m, n, k, a, lda, 1, b, ldb, 1, c, ldc, false, x, w, default, ahead);

    /// <summary><see cref="AddProduct"/> with <c>Aᵀ</c> for <c>A[k, m]</c>.</summary>
    public static void AddTransposedProduct(
        nint m, nint n, nint k, float* a, nint lda, float* b, nint ldb, float* c, nint ldc, float* x, float* w = null, LinesAhead* ahead = null) =>
        Run(m, n, k, a, 1, lda, b, ldb, 1, c, ldc, false, x, w, default, ahead);

    /// <summary><c>C[m, n] = A B</c> for B in panels of <see cref="Columns"/> columns, one behind the other.</summary>
    public static void MultiplyPanels(nint m, nint n, nint k, float* a, nint lda, float* panels, float* c, nint ldc, LinesAhead* ahead = null) =>
        Run(m, n, k, a, lda, 1, panels, Columns, k, c, ldc, false, null, null, default, ahead);

    // Row i of A begins at a + i·aRow, and its elements lie aStep apart; a panel of B begins bColumn floats a column behind the first.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Run(
        nint m, nint n, nint k, float* a, nint aRow, nint aStep, float* b, nint ldb, nint bColumn, float* c, nint ldc, bool accumulate, float* x, float* w,
        in Factors second, LinesAhead* ahead)
    {
        ahead = ahead is null || ahead->IsEmpty ? null : ahead;
        if (ahead is not null)
        {
            ahead->Expect(((m + Rows - 1) / Rows) * ((n + Columns - 1) / Columns));
        }

        TileArguments tile = default;

        // Tiles count down to exactly 0.
        Debug.Assert(k >= 0 && second.K >= 0, "An inner dimension is never negative.");
        tile.K = nint.Max(k, 0);
        tile.ARow = aRow;
        tile.AStep = aStep;
        tile.BRow = ldb;
        tile.CRow = ldc;
        tile.Accumulates = accumulate;
        tile.Second = second;
        tile.Second.K = nint.Max(second.K, 0);
        for (nint column = 0; column < n; column += Columns)
        {
            int vectors = (int)nint.Min(n - column, Columns) / TV.Count;
            tile.B = b + (column * bColumn);
            tile.Second.B = second.B + column;
            for (nint row = 0, rows; row < m; row += rows)
            {
                rows = Height(m - row);
                nint at = (row * ldc) + column;
                tile.A = a + (row * aRow);
                if (AsksInside && (ahead is null || !ahead->TryTake(k, out tile.Line, out tile.LineStep)))
                {
                    (tile.Line, tile.LineStep) = ((nint)tile.A, 0);
                }
                else if (!AsksInside && ahead is not null)
                {
                    ahead->Ask();
                }

                tile.C = c + at;
                tile.X = x is null ? null : x + at;
                tile.W = w is null ? null : w + row;
                tile.Second.A = second.A + (row * second.ARow);
                Tile((int)rows, vectors, &tile);
            }
        }
    }

    /// <summary>How many of the rows that are left the next tile takes. A tile of few waits for its own sums: rather two of four than one of six and one of two.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static nint Height(nint rows) => rows <= Rows ? rows : rows < Rows + 4 ? (rows + 1) / 2 : Rows;

    /// <summary>One tile of any size up to the largest.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Tile(int rows, int vectors, TileArguments* tile)
    {
        if (vectors == 4)
        {
            TileRows<N4>(rows, tile);
        }
        else if (vectors == 2)
        {
            TileRows<N2>(rows, tile);
        }
        else if (vectors == 3)
        {
            TileRows<N3>(rows, tile);
        }
        else
        {
            TileRows<N1>(rows, tile);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void TileRows<TN>(int rows, TileArguments* tile)
        where TN : struct, IConstant
    {
        switch (rows)
        {
            case 6: Tile<N6, TN>(tile); break;
            case 5: Tile<N5, TN>(tile); break;
            case 4: Tile<N4, TN>(tile); break;
            case 3: Tile<N3, TN>(tile); break;
            case 2: Tile<N2, TN>(tile); break;
            default: Tile<N1, TN>(tile); break;
        }
    }

    // One body for every width, row count and column count: what the constants exclude is never compiled.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Tile<TM, TN>(TileArguments* tile)
        where TM : struct, IConstant
        where TN : struct, IConstant
    {
        float* a = tile->A;
        nint aRow = tile->ARow;
        nint aStep = tile->AStep;
        float* b = tile->B;
        nint ldb = tile->BRow;
        float* c = tile->C;
        nint ldc = tile->CRow;
        nint line = tile->Line;
        nint lineStep = tile->LineStep;
        TV c00 = default, c01 = default, c02 = default, c03 = default;
        TV c10 = default, c11 = default, c12 = default, c13 = default;
        TV c20 = default, c21 = default, c22 = default, c23 = default;
        TV c30 = default, c31 = default, c32 = default, c33 = default;
        TV c40 = default, c41 = default, c42 = default, c43 = default;
        TV c50 = default, c51 = default, c52 = default, c53 = default;
        if (tile->Accumulates)
        {
            c00 = TV.Load(c);

            if (TN.Value > 1)
            {
                c01 = TV.Load(c + TV.Count);
            }

            if (TN.Value > 2)
            {
                c02 = TV.Load(c + (2 * TV.Count));
            }

            if (TN.Value > 3)
            {
                c03 = TV.Load(c + (3 * TV.Count));
            }

            if (TM.Value > 1)
            {
                c10 = TV.Load(c + ldc);

                if (TN.Value > 1)
                {
                    c11 = TV.Load(c + ldc + TV.Count);
                }

                if (TN.Value > 2)
                {
                    c12 = TV.Load(c + ldc + (2 * TV.Count));
                }

                if (TN.Value > 3)
                {
                    c13 = TV.Load(c + ldc + (3 * TV.Count));
                }
            }

            if (TM.Value > 2)
            {
                c20 = TV.Load(c + (2 * ldc));

                if (TN.Value > 1)
                {
                    c21 = TV.Load(c + (2 * ldc) + TV.Count);
                }

                if (TN.Value > 2)
                {
                    c22 = TV.Load(c + (2 * ldc) + (2 * TV.Count));
                }

                if (TN.Value > 3)
                {
                    c23 = TV.Load(c + (2 * ldc) + (3 * TV.Count));
                }
            }

            if (TM.Value > 3)
            {
                c30 = TV.Load(c + (3 * ldc));

                if (TN.Value > 1)
                {
                    c31 = TV.Load(c + (3 * ldc) + TV.Count);
                }

                if (TN.Value > 2)
                {
                    c32 = TV.Load(c + (3 * ldc) + (2 * TV.Count));
                }

                if (TN.Value > 3)
                {
                    c33 = TV.Load(c + (3 * ldc) + (3 * TV.Count));
                }
            }

            if (TM.Value > 4)
            {
                c40 = TV.Load(c + (4 * ldc));

                if (TN.Value > 1)
                {
                    c41 = TV.Load(c + (4 * ldc) + TV.Count);
                }

                if (TN.Value > 2)
                {
                    c42 = TV.Load(c + (4 * ldc) + (2 * TV.Count));
                }

                if (TN.Value > 3)
                {
                    c43 = TV.Load(c + (4 * ldc) + (3 * TV.Count));
                }
            }

            if (TM.Value > 5)
            {
                c50 = TV.Load(c + (5 * ldc));

                if (TN.Value > 1)
                {
                    c51 = TV.Load(c + (5 * ldc) + TV.Count);
                }

                if (TN.Value > 2)
                {
                    c52 = TV.Load(c + (5 * ldc) + (2 * TV.Count));
                }

                if (TN.Value > 3)
                {
                    c53 = TV.Load(c + (5 * ldc) + (3 * TV.Count));
                }
            }
        }

        nint twoRows = 2 * aRow;
        for (nint k = tile->K, next = tile->Second.K; ; k = next, next = 0)
        {
            // Two pointers and two distances reach six rows: more of either would not fit the registers.
            float* a3 = a + (3 * aRow);

            // Bytes, and down to exactly 0: a step of 12 multiply-adds is 25 instructions so, else 27. Alone on a core both take the same time.
            nint stepBytes = aStep * sizeof(float);
            for (; k != 0; k--)
            {
                TV b0 = TV.Load(b);
                TV b1 = TN.Value > 1 ? TV.Load(b + TV.Count) : default;
                TV b2 = TN.Value > 2 ? TV.Load(b + (2 * TV.Count)) : default;
                TV b3 = TN.Value > 3 ? TV.Load(b + (3 * TV.Count)) : default;
                b += ldb;
                TV f0 = TV.Broadcast(*a);
                TV.AddProduct(f0, b0, ref c00);

                if (TN.Value > 1)
                {
                    TV.AddProduct(f0, b1, ref c01);
                }

                if (TN.Value > 2)
                {
                    TV.AddProduct(f0, b2, ref c02);
                }

                if (TN.Value > 3)
                {
                    TV.AddProduct(f0, b3, ref c03);
                }

                if (TM.Value > 1)
                {
                    TV f1 = TV.Broadcast(a[aRow]);
                    TV.AddProduct(f1, b0, ref c10);

                    if (TN.Value > 1)
                    {
                        TV.AddProduct(f1, b1, ref c11);
                    }

                    if (TN.Value > 2)
                    {
                        TV.AddProduct(f1, b2, ref c12);
                    }

                    if (TN.Value > 3)
                    {
                        TV.AddProduct(f1, b3, ref c13);
                    }
                }

                if (TM.Value > 2)
                {
                    TV f2 = TV.Broadcast(a[twoRows]);
                    TV.AddProduct(f2, b0, ref c20);

                    if (TN.Value > 1)
                    {
                        TV.AddProduct(f2, b1, ref c21);
                    }

                    if (TN.Value > 2)
                    {
                        TV.AddProduct(f2, b2, ref c22);
                    }

                    if (TN.Value > 3)
                    {
                        TV.AddProduct(f2, b3, ref c23);
                    }
                }

                if (TM.Value > 3)
                {
                    TV f3 = TV.Broadcast(*a3);
                    TV.AddProduct(f3, b0, ref c30);

                    if (TN.Value > 1)
                    {
                        TV.AddProduct(f3, b1, ref c31);
                    }

                    if (TN.Value > 2)
                    {
                        TV.AddProduct(f3, b2, ref c32);
                    }

                    if (TN.Value > 3)
                    {
                        TV.AddProduct(f3, b3, ref c33);
                    }
                }

                if (TM.Value > 4)
                {
                    TV f4 = TV.Broadcast(a3[aRow]);
                    TV.AddProduct(f4, b0, ref c40);

                    if (TN.Value > 1)
                    {
                        TV.AddProduct(f4, b1, ref c41);
                    }

                    if (TN.Value > 2)
                    {
                        TV.AddProduct(f4, b2, ref c42);
                    }

                    if (TN.Value > 3)
                    {
                        TV.AddProduct(f4, b3, ref c43);
                    }
                }

                if (TM.Value > 5)
                {
                    TV f5 = TV.Broadcast(a3[twoRows]);
                    TV.AddProduct(f5, b0, ref c50);

                    if (TN.Value > 1)
                    {
                        TV.AddProduct(f5, b1, ref c51);
                    }

                    if (TN.Value > 2)
                    {
                        TV.AddProduct(f5, b2, ref c52);
                    }

                    if (TN.Value > 3)
                    {
                        TV.AddProduct(f5, b3, ref c53);
                    }
                }

                a = (float*)((byte*)a + stepBytes);
                a3 = (float*)((byte*)a3 + stepBytes);
                if (AsksInside && Sse.IsSupported)
                {
                    Sse.Prefetch0((void*)line);
                    line += lineStep;
                }
            }

            if (next == 0)
            {
                break;
            }

            a = tile->Second.A;
            aRow = tile->Second.ARow;
            aStep = 1;
            twoRows = 2 * aRow;
            b = tile->Second.B;
            ldb = tile->Second.BRow;
            lineStep = 0;
        }

        float* x = tile->X;
        if (x is not null)
        {
            float* w = tile->W;
            TV w0 = TV.Broadcast(w is null ? 1 : w[0]);
            c00 = TV.MultiplyAdd(w0, c00, TV.Load(x));

            if (TN.Value > 1)
            {
                c01 = TV.MultiplyAdd(w0, c01, TV.Load(x + TV.Count));
            }

            if (TN.Value > 2)
            {
                c02 = TV.MultiplyAdd(w0, c02, TV.Load(x + (2 * TV.Count)));
            }

            if (TN.Value > 3)
            {
                c03 = TV.MultiplyAdd(w0, c03, TV.Load(x + (3 * TV.Count)));
            }

            if (TM.Value > 1)
            {
                TV w1 = TV.Broadcast(w is null ? 1 : w[1]);
                c10 = TV.MultiplyAdd(w1, c10, TV.Load(x + ldc));

                if (TN.Value > 1)
                {
                    c11 = TV.MultiplyAdd(w1, c11, TV.Load(x + ldc + TV.Count));
                }

                if (TN.Value > 2)
                {
                    c12 = TV.MultiplyAdd(w1, c12, TV.Load(x + ldc + (2 * TV.Count)));
                }

                if (TN.Value > 3)
                {
                    c13 = TV.MultiplyAdd(w1, c13, TV.Load(x + ldc + (3 * TV.Count)));
                }
            }

            if (TM.Value > 2)
            {
                TV w2 = TV.Broadcast(w is null ? 1 : w[2]);
                c20 = TV.MultiplyAdd(w2, c20, TV.Load(x + (2 * ldc)));

                if (TN.Value > 1)
                {
                    c21 = TV.MultiplyAdd(w2, c21, TV.Load(x + (2 * ldc) + TV.Count));
                }

                if (TN.Value > 2)
                {
                    c22 = TV.MultiplyAdd(w2, c22, TV.Load(x + (2 * ldc) + (2 * TV.Count)));
                }

                if (TN.Value > 3)
                {
                    c23 = TV.MultiplyAdd(w2, c23, TV.Load(x + (2 * ldc) + (3 * TV.Count)));
                }
            }

            if (TM.Value > 3)
            {
                TV w3 = TV.Broadcast(w is null ? 1 : w[3]);
                c30 = TV.MultiplyAdd(w3, c30, TV.Load(x + (3 * ldc)));

                if (TN.Value > 1)
                {
                    c31 = TV.MultiplyAdd(w3, c31, TV.Load(x + (3 * ldc) + TV.Count));
                }

                if (TN.Value > 2)
                {
                    c32 = TV.MultiplyAdd(w3, c32, TV.Load(x + (3 * ldc) + (2 * TV.Count)));
                }

                if (TN.Value > 3)
                {
                    c33 = TV.MultiplyAdd(w3, c33, TV.Load(x + (3 * ldc) + (3 * TV.Count)));
                }
            }

            if (TM.Value > 4)
            {
                TV w4 = TV.Broadcast(w is null ? 1 : w[4]);
                c40 = TV.MultiplyAdd(w4, c40, TV.Load(x + (4 * ldc)));

                if (TN.Value > 1)
                {
                    c41 = TV.MultiplyAdd(w4, c41, TV.Load(x + (4 * ldc) + TV.Count));
                }

                if (TN.Value > 2)
                {
                    c42 = TV.MultiplyAdd(w4, c42, TV.Load(x + (4 * ldc) + (2 * TV.Count)));
                }

                if (TN.Value > 3)
                {
                    c43 = TV.MultiplyAdd(w4, c43, TV.Load(x + (4 * ldc) + (3 * TV.Count)));
                }
            }

            if (TM.Value > 5)
            {
                TV w5 = TV.Broadcast(w is null ? 1 : w[5]);
                c50 = TV.MultiplyAdd(w5, c50, TV.Load(x + (5 * ldc)));

                if (TN.Value > 1)
                {
                    c51 = TV.MultiplyAdd(w5, c51, TV.Load(x + (5 * ldc) + TV.Count));
                }

                if (TN.Value > 2)
                {
                    c52 = TV.MultiplyAdd(w5, c52, TV.Load(x + (5 * ldc) + (2 * TV.Count)));
                }

                if (TN.Value > 3)
                {
                    c53 = TV.MultiplyAdd(w5, c53, TV.Load(x + (5 * ldc) + (3 * TV.Count)));
                }
            }
        }

        TV.Store(c00, c);

        if (TN.Value > 1)
        {
            TV.Store(c01, c + TV.Count);
        }

        if (TN.Value > 2)
        {
            TV.Store(c02, c + (2 * TV.Count));
        }

        if (TN.Value > 3)
        {
            TV.Store(c03, c + (3 * TV.Count));
        }

        if (TM.Value > 1)
        {
            TV.Store(c10, c + ldc);

            if (TN.Value > 1)
            {
                TV.Store(c11, c + ldc + TV.Count);
            }

            if (TN.Value > 2)
            {
                TV.Store(c12, c + ldc + (2 * TV.Count));
            }

            if (TN.Value > 3)
            {
                TV.Store(c13, c + ldc + (3 * TV.Count));
            }
        }

        if (TM.Value > 2)
        {
            TV.Store(c20, c + (2 * ldc));

            if (TN.Value > 1)
            {
                TV.Store(c21, c + (2 * ldc) + TV.Count);
            }

            if (TN.Value > 2)
            {
                TV.Store(c22, c + (2 * ldc) + (2 * TV.Count));
            }

            if (TN.Value > 3)
            {
                TV.Store(c23, c + (2 * ldc) + (3 * TV.Count));
            }
        }

        if (TM.Value > 3)
        {
            TV.Store(c30, c + (3 * ldc));

            if (TN.Value > 1)
            {
                TV.Store(c31, c + (3 * ldc) + TV.Count);
            }

            if (TN.Value > 2)
            {
                TV.Store(c32, c + (3 * ldc) + (2 * TV.Count));
            }

            if (TN.Value > 3)
            {
                TV.Store(c33, c + (3 * ldc) + (3 * TV.Count));
            }
        }

        if (TM.Value > 4)
        {
            TV.Store(c40, c + (4 * ldc));

            if (TN.Value > 1)
            {
                TV.Store(c41, c + (4 * ldc) + TV.Count);
            }

            if (TN.Value > 2)
            {
                TV.Store(c42, c + (4 * ldc) + (2 * TV.Count));
            }

            if (TN.Value > 3)
            {
                TV.Store(c43, c + (4 * ldc) + (3 * TV.Count));
            }
        }

        if (TM.Value > 5)
        {
            TV.Store(c50, c + (5 * ldc));

            if (TN.Value > 1)
            {
                TV.Store(c51, c + (5 * ldc) + TV.Count);
            }

            if (TN.Value > 2)
            {
                TV.Store(c52, c + (5 * ldc) + (2 * TV.Count));
            }

            if (TN.Value > 3)
            {
                TV.Store(c53, c + (5 * ldc) + (3 * TV.Count));
            }
        }
    }

    /// <summary>What a tile is made of: in one place, which is cheaper to hand on than as many arguments.</summary>
    private struct TileArguments
    {
        public nint K;
        public float* A;
        public nint ARow;
        public nint AStep;
        public float* B;
        public nint BRow;
        public float* C;
        public nint CRow;
        public float* X;
        public float* W;
        public nint Line;
        public nint LineStep;
        public Factors Second;
        public bool Accumulates;
    }

    /// <summary>The factors of a product: rows of A that lie <c>ARow</c> floats apart, and of B, <c>K</c> of them.</summary>
    public struct Factors
    {
        public float* A;
        public nint ARow;
        public float* B;
        public nint BRow;
        public nint K;
    }
}
