using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace Gpu.Attention;

/// <summary>A constant that the compiler sees through a type argument.</summary>
internal interface IConstant
{
    static abstract int Value { get; }
}

internal readonly struct N0 : IConstant
{
    public static int Value => 0;
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
/// The engine's one matrix product, <c>C (+)= A B</c>: A row-major with its elements broadcast, B and C row-major in whole vectors. A tile of C, up to
/// <see cref="ISimdVector{TSelf}.TileSums"/> vectors, stays in registers while the inner dimension runs.
/// </summary>
/// <remarks>Every element of C is summed in the order of the inner dimension, so its bits depend on nothing but its row and column.</remarks>
internal static unsafe class MicroKernel<TV>
    where TV : struct, ISimdVector<TV>
{
    /// <summary>The most rows of a tile.</summary>
    public const int Rows = 6;

    /// <summary>What tiles below each other may go through of B: half of a first-level cache of 32 KB.</summary>
    private const int MaxColumnBytes = 16384;

    /// <summary>
    /// Where lines are asked for: with each step of a tile where a step is 24 multiply-adds of 512 bits, which have room for it, and tiles are few (11 in a product of elu+1); between
    /// the tiles where it is 12, and every other instruction counts.
    /// </summary>
    private static bool AsksInside
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => TV.TileSums == 24;
    }

    /// <summary>The most columns of a tile.</summary>
    public static int Columns
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => TV.TileVectors * TV.Count;
    }

    /// <summary>Rows of the widest tile.</summary>
    private static nint RowsOfWidest
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => HeightFor(TV.TileVectors);
    }

    /// <summary>Tiles of a product, if its inner dimension is short.</summary>
    public static nint Tiles(nint m, nint n)
    {
        nint rest = n % Columns / TV.Count;
        return (n / Columns * Pieces(m, RowsOfWidest)) + (rest > 0 ? Pieces(m, HeightFor(rest)) : 0);

        static nint Pieces(nint rows, nint most) => (rows + most - 1) / most;
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
            ahead->Expect(Tiles(m, n));
        }

        TileArguments tile = default;
        tile.Ahead = ahead;
        tile.K = k;
        tile.ARow = aRow;
        tile.AStep = aStep;
        tile.BRow = ldb;
        tile.CRow = ldc;
        tile.Accumulates = accumulate;
        tile.Second = second;

        // Tiles below each other go through the same columns of B. Where those would fill the first-level cache, half as many are taken, by tiles twice as high.
        bool isTall = RowsOfWidest < Rows && m > RowsOfWidest && k * Columns * sizeof(float) > MaxColumnBytes;
        nint width = isTall ? Columns / 2 : Columns;
        for (nint column = 0; column < n; column += width)
        {
            int vectors = (int)nint.Min(n - column, width) / TV.Count;
            nint most = HeightFor(vectors);
            nint inPanel = column % Columns;
            tile.B = b + ((column - inPanel) * bColumn) + inPanel;
            tile.Second.B = second.B + column;
            tile.A = a;
            tile.Second.A = second.A;
            tile.C = c + column;
            tile.X = x is null ? null : x + column;
            tile.W = w;
            for (nint left = m, height; left > 0; left -= tile.Count * height)
            {
                // A tile of few rows waits for its own sums: rather two of four than one of six and one of two.
                height = left <= most ? left : left < 2 * most ? (left + 1) / 2 : most;
                tile.Count = left < 2 * most ? left / height : (left / most) - (left % most == 0 ? 0 : 1);
                Tile((int)height, vectors, &tile);
            }
        }
    }

    /// <summary>The most rows of a tile of so many vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static nint HeightFor(nint vectors) => nint.Min(Rows, TV.TileSums / vectors);

    /// <summary>Tiles below each other, of any size up to the largest.</summary>
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
        for (nint left = tile->Count; left > 0; left--)
        {
            nint line = (nint)tile->A;
            nint lineStep = 0;
            if (AsksInside)
            {
                if (tile->Ahead is not null && tile->Ahead->TryTake(tile->K, out nint start, out nint step))
                {
                    line = start;
                    lineStep = step;
                }
            }
            else if (tile->Ahead is not null)
            {
                tile->Ahead->Ask();
            }

            float* a = tile->A;
            nint aRow = tile->ARow;
            nint aStep = tile->AStep;
            float* b = tile->B;
            nint ldb = tile->BRow;
            float* c = tile->C;
            nint ldc = tile->CRow;
            TV c00 = default, c01 = default, c02 = default, c03 = default;
            TV c10 = default, c11 = default, c12 = default, c13 = default;
            TV c20 = default, c21 = default, c22 = default, c23 = default;
            TV c30 = default, c31 = default, c32 = default, c33 = default;
            TV c40 = default, c41 = default, c42 = default, c43 = default;
            TV c50 = default, c51 = default, c52 = default, c53 = default;
            if (tile->Accumulates)
            {
                LoadRow<N0, TM, TN>(c, ldc, ref c00, ref c01, ref c02, ref c03);
                LoadRow<N1, TM, TN>(c, ldc, ref c10, ref c11, ref c12, ref c13);
                LoadRow<N2, TM, TN>(c, ldc, ref c20, ref c21, ref c22, ref c23);
                LoadRow<N3, TM, TN>(c, ldc, ref c30, ref c31, ref c32, ref c33);
                LoadRow<N4, TM, TN>(c, ldc, ref c40, ref c41, ref c42, ref c43);
                LoadRow<N5, TM, TN>(c, ldc, ref c50, ref c51, ref c52, ref c53);
            }

            for (nint k = tile->K, next = tile->Second.K; ; k = next, next = 0)
            {
                // Two pointers and two distances reach six rows: more of either would not fit the registers.
                float* a3 = a + (3 * aRow);
                nint twoRows = 2 * aRow;

                // Two steps at once, addressed by what a load can add up: on a shared core every instruction counts. A lies in rows or in columns.
                if (aStep == 1)
                {
                    for (; k > 1; k -= 2)
                    {
                        Step<TM, TN, N0>(
                            a, a3, aRow, twoRows, b, ldb,
                            ref c00, ref c01, ref c02, ref c03, ref c10, ref c11, ref c12, ref c13,
                            ref c20, ref c21, ref c22, ref c23, ref c30, ref c31, ref c32, ref c33,
                            ref c40, ref c41, ref c42, ref c43, ref c50, ref c51, ref c52, ref c53);
                        Step<TM, TN, N1>(
                            a, a3, aRow, twoRows, b, ldb,
                            ref c00, ref c01, ref c02, ref c03, ref c10, ref c11, ref c12, ref c13,
                            ref c20, ref c21, ref c22, ref c23, ref c30, ref c31, ref c32, ref c33,
                            ref c40, ref c41, ref c42, ref c43, ref c50, ref c51, ref c52, ref c53);
                        a += 2;
                        a3 += 2;
                        b += 2 * ldb;
                        Ask(ref line, lineStep);
                        Ask(ref line, lineStep);
                    }
                }
                else
                {
                    for (; k > 1; k -= 2)
                    {
                        Step<TM, TN, N0>(
                            a, a + 3, 1, 2, b, ldb,
                            ref c00, ref c01, ref c02, ref c03, ref c10, ref c11, ref c12, ref c13,
                            ref c20, ref c21, ref c22, ref c23, ref c30, ref c31, ref c32, ref c33,
                            ref c40, ref c41, ref c42, ref c43, ref c50, ref c51, ref c52, ref c53);
                        Step<TM, TN, N0>(
                            a + aStep, a + aStep + 3, 1, 2, b + ldb, ldb,
                            ref c00, ref c01, ref c02, ref c03, ref c10, ref c11, ref c12, ref c13,
                            ref c20, ref c21, ref c22, ref c23, ref c30, ref c31, ref c32, ref c33,
                            ref c40, ref c41, ref c42, ref c43, ref c50, ref c51, ref c52, ref c53);
                        a += 2 * aStep;
                        b += 2 * ldb;
                        Ask(ref line, lineStep);
                        Ask(ref line, lineStep);
                    }

                    a3 = a + 3;
                }

                if (k == 1)
                {
                    Step<TM, TN, N0>(
                        a, a3, aRow, twoRows, b, ldb,
                        ref c00, ref c01, ref c02, ref c03, ref c10, ref c11, ref c12, ref c13,
                        ref c20, ref c21, ref c22, ref c23, ref c30, ref c31, ref c32, ref c33,
                        ref c40, ref c41, ref c42, ref c43, ref c50, ref c51, ref c52, ref c53);
                    Ask(ref line, lineStep);
                }

                if (next == 0)
                {
                    break;
                }

                a = tile->Second.A;
                aRow = tile->Second.ARow;
                aStep = 1;
                b = tile->Second.B;
                ldb = tile->Second.BRow;
                lineStep = 0;
            }

            float* x = tile->X;
            if (x is not null)
            {
                float* w = tile->W;
                AddScaledRow<N0, TM, TN>(w, x, ldc, ref c00, ref c01, ref c02, ref c03);
                AddScaledRow<N1, TM, TN>(w, x, ldc, ref c10, ref c11, ref c12, ref c13);
                AddScaledRow<N2, TM, TN>(w, x, ldc, ref c20, ref c21, ref c22, ref c23);
                AddScaledRow<N3, TM, TN>(w, x, ldc, ref c30, ref c31, ref c32, ref c33);
                AddScaledRow<N4, TM, TN>(w, x, ldc, ref c40, ref c41, ref c42, ref c43);
                AddScaledRow<N5, TM, TN>(w, x, ldc, ref c50, ref c51, ref c52, ref c53);
            }

            StoreRow<N0, TM, TN>(c, ldc, c00, c01, c02, c03);
            StoreRow<N1, TM, TN>(c, ldc, c10, c11, c12, c13);
            StoreRow<N2, TM, TN>(c, ldc, c20, c21, c22, c23);
            StoreRow<N3, TM, TN>(c, ldc, c30, c31, c32, c33);
            StoreRow<N4, TM, TN>(c, ldc, c40, c41, c42, c43);
            StoreRow<N5, TM, TN>(c, ldc, c50, c51, c52, c53);
            tile->A += TM.Value * tile->ARow;
            tile->Second.A += TM.Value * tile->Second.ARow;
            tile->C += TM.Value * ldc;
            tile->X = x is null ? null : x + (TM.Value * ldc);
            tile->W = tile->W is null ? null : tile->W + TM.Value;
        }
    }

    /// <summary>Asks for one line where a tile does so itself.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Ask(ref nint line, nint lineStep)
    {
        if (AsksInside && Sse.IsSupported)
        {
            Sse.Prefetch0((void*)line);
            line += lineStep;
        }
    }

    /// <summary>One step of the inner dimension. Beside the sums, registers hold the vectors of B and one element of A, or, where there are fewer of these, the elements of A and one vector of B.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Step<TM, TN, TK>(
        float* a, float* a3, nint aRow, nint twoRows, float* b, nint ldb,
        ref TV c00, ref TV c01, ref TV c02, ref TV c03, ref TV c10, ref TV c11, ref TV c12, ref TV c13,
        ref TV c20, ref TV c21, ref TV c22, ref TV c23, ref TV c30, ref TV c31, ref TV c32, ref TV c33,
        ref TV c40, ref TV c41, ref TV c42, ref TV c43, ref TV c50, ref TV c51, ref TV c52, ref TV c53)
        where TM : struct, IConstant
        where TN : struct, IConstant
        where TK : struct, IConstant
    {
        if (TM.Value < TN.Value)
        {
            TV f0 = TV.Broadcast(a[TK.Value]);
            TV f1 = TM.Value > 1 ? TV.Broadcast(*(a + aRow + TK.Value)) : default;
            TV f2 = TM.Value > 2 ? TV.Broadcast(*(a + twoRows + TK.Value)) : default;
            AddColumn<TM>(f0, f1, f2, TV.Load(b + (TK.Value * ldb)), ref c00, ref c10, ref c20);
            if (TN.Value > 1)
            {
                AddColumn<TM>(f0, f1, f2, TV.Load(b + (TK.Value * ldb) + TV.Count), ref c01, ref c11, ref c21);
            }

            if (TN.Value > 2)
            {
                AddColumn<TM>(f0, f1, f2, TV.Load(b + (TK.Value * ldb) + (2 * TV.Count)), ref c02, ref c12, ref c22);
            }

            if (TN.Value > 3)
            {
                AddColumn<TM>(f0, f1, f2, TV.Load(b + (TK.Value * ldb) + (3 * TV.Count)), ref c03, ref c13, ref c23);
            }

            return;
        }

        TV b0 = TV.Load(b + (TK.Value * ldb));
        TV b1 = TN.Value > 1 ? TV.Load(b + (TK.Value * ldb) + TV.Count) : default;
        TV b2 = TN.Value > 2 ? TV.Load(b + (TK.Value * ldb) + (2 * TV.Count)) : default;
        TV b3 = TN.Value > 3 ? TV.Load(b + (TK.Value * ldb) + (3 * TV.Count)) : default;
        AddRow<TN>(TV.Broadcast(a[TK.Value]), b0, b1, b2, b3, ref c00, ref c01, ref c02, ref c03);
        if (TM.Value > 1)
        {
            AddRow<TN>(TV.Broadcast(*(a + aRow + TK.Value)), b0, b1, b2, b3, ref c10, ref c11, ref c12, ref c13);
        }

        if (TM.Value > 2)
        {
            AddRow<TN>(TV.Broadcast(*(a + twoRows + TK.Value)), b0, b1, b2, b3, ref c20, ref c21, ref c22, ref c23);
        }

        if (TM.Value > 3)
        {
            AddRow<TN>(TV.Broadcast(a3[TK.Value]), b0, b1, b2, b3, ref c30, ref c31, ref c32, ref c33);
        }

        if (TM.Value > 4)
        {
            AddRow<TN>(TV.Broadcast(*(a3 + aRow + TK.Value)), b0, b1, b2, b3, ref c40, ref c41, ref c42, ref c43);
        }

        if (TM.Value > 5)
        {
            AddRow<TN>(TV.Broadcast(*(a3 + twoRows + TK.Value)), b0, b1, b2, b3, ref c50, ref c51, ref c52, ref c53);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddRow<TN>(TV f, TV b0, TV b1, TV b2, TV b3, ref TV c0, ref TV c1, ref TV c2, ref TV c3)
        where TN : struct, IConstant
    {
        TV.AddProduct(f, b0, ref c0);
        if (TN.Value > 1)
        {
            TV.AddProduct(f, b1, ref c1);
        }

        if (TN.Value > 2)
        {
            TV.AddProduct(f, b2, ref c2);
        }

        if (TN.Value > 3)
        {
            TV.AddProduct(f, b3, ref c3);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddColumn<TM>(TV f0, TV f1, TV f2, TV b, ref TV c0, ref TV c1, ref TV c2)
        where TM : struct, IConstant
    {
        TV.AddProduct(f0, b, ref c0);
        if (TM.Value > 1)
        {
            TV.AddProduct(f1, b, ref c1);
        }

        if (TM.Value > 2)
        {
            TV.AddProduct(f2, b, ref c2);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void LoadRow<TI, TM, TN>(float* c, nint ldc, ref TV c0, ref TV c1, ref TV c2, ref TV c3)
        where TI : struct, IConstant
        where TM : struct, IConstant
        where TN : struct, IConstant
    {
        if (TI.Value >= TM.Value)
        {
            return;
        }

        c0 = TV.Load(c + (TI.Value * ldc));
        if (TN.Value > 1)
        {
            c1 = TV.Load(c + (TI.Value * ldc) + TV.Count);
        }

        if (TN.Value > 2)
        {
            c2 = TV.Load(c + (TI.Value * ldc) + (2 * TV.Count));
        }

        if (TN.Value > 3)
        {
            c3 = TV.Load(c + (TI.Value * ldc) + (3 * TV.Count));
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddScaledRow<TI, TM, TN>(float* w, float* x, nint ldc, ref TV c0, ref TV c1, ref TV c2, ref TV c3)
        where TI : struct, IConstant
        where TM : struct, IConstant
        where TN : struct, IConstant
    {
        if (TI.Value >= TM.Value)
        {
            return;
        }

        TV factor = TV.Broadcast(w is null ? 1 : w[TI.Value]);
        c0 = TV.MultiplyAdd(factor, c0, TV.Load(x + (TI.Value * ldc)));
        if (TN.Value > 1)
        {
            c1 = TV.MultiplyAdd(factor, c1, TV.Load(x + (TI.Value * ldc) + TV.Count));
        }

        if (TN.Value > 2)
        {
            c2 = TV.MultiplyAdd(factor, c2, TV.Load(x + (TI.Value * ldc) + (2 * TV.Count)));
        }

        if (TN.Value > 3)
        {
            c3 = TV.MultiplyAdd(factor, c3, TV.Load(x + (TI.Value * ldc) + (3 * TV.Count)));
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void StoreRow<TI, TM, TN>(float* c, nint ldc, TV c0, TV c1, TV c2, TV c3)
        where TI : struct, IConstant
        where TM : struct, IConstant
        where TN : struct, IConstant
    {
        if (TI.Value >= TM.Value)
        {
            return;
        }

        TV.Store(c0, c + (TI.Value * ldc));
        if (TN.Value > 1)
        {
            TV.Store(c1, c + (TI.Value * ldc) + TV.Count);
        }

        if (TN.Value > 2)
        {
            TV.Store(c2, c + (TI.Value * ldc) + (2 * TV.Count));
        }

        if (TN.Value > 3)
        {
            TV.Store(c3, c + (TI.Value * ldc) + (3 * TV.Count));
        }
    }

    /// <summary>What tiles below each other are made of, beginning with the next: in one place, which is cheaper to hand on than as many arguments.</summary>
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
        public nint Count;
        public LinesAhead* Ahead;
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
