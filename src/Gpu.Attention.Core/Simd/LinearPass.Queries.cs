using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using Scratch = Gpu.Attention.LinearLayout.Scratch;

namespace Gpu.Attention;

// Queries: their features, and what they share with keys.
internal abstract unsafe partial class LinearPass<TV>
{
    private const int RowsTogether = 8;

    /// <summary>Q̂ (C × r), and the part of each normaliser that comes from the state.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void QueryFeatures(float* x, int n, nint stride, in Scratch scratch, float* scale, float* normalizers)
    {
        if (ReadsFeatures(_query))
        {
            for (int row = 0; row < n; row++)
            {
                TV sums = ActivateRow(
                    _query.Form.Activation, _layout.Features, x + (row * stride), scratch.Queries + ((nint)row * _layout.FeatureStride), normalizers);
                scratch.Denominator[row] = TV.Sum(sums);
            }

            return;
        }

        // A row's own term scales all of its features alike: it cancels under the normaliser unless a constant is added to them.
        bool needsTerm = !_problem.Normalize || _epsilon != 0 || _mode != FeatureMode.Logarithmic;
        ProjectRows(_query, n, x, stride, scratch.Queries, needsTerm ? scratch.RowTerm : null, scratch);
        ActivateQueries(0, n, scratch, scale, normalizers);
    }

    /// <summary>Q̂ of some projected rows and their terms, and the part of each normaliser that comes from the state.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void ActivateQueries(int firstRow, int n, in Scratch scratch, float* scale, float* normalizers)
    {
        (int width, int rs) = (_layout.FeatureWidth, _layout.FeatureStride);
        if (_mode == FeatureMode.Logarithmic)
        {
            ExponentiateQueries(firstRow, n, scratch, scale, normalizers);
            return;
        }

        int endRow = firstRow + n;
        for (int row = firstRow; _mode == FeatureMode.Direct && row < endRow; row++)
        {
            AddTerms(_query, scratch.RowTerm[row], scratch.Queries + ((nint)row * rs));
        }

        if (_mode == FeatureMode.Direct)
        {
            ActivateRows(_query.Form.Activation, n, _layout.Features, scratch.Queries + ((nint)firstRow * rs), rs);
        }

        for (int row = firstRow; row < endRow; row++)
        {
            float* q = scratch.Queries + ((nint)row * rs);
            if (_mode == FeatureMode.Stabilized)
            {
                var features = new Span<float>(q, _layout.Features);
                float shift = scratch.RowTerm[row] - TensorPrimitives.Max<float>(features);
                for (int i = 0; i < features.Length; i++)
                {
                    features[i] = MathF.Exp(_query.Offset[i]) * (MathF.Exp(features[i] + shift) + _epsilon);
                }
            }

            if (width > _layout.Features)
            {
                new Span<float>(q + _layout.Features, width - _layout.Features).Clear();
            }

            scratch.Denominator[row] = SimdBlas<TV>.Dot(width, q, normalizers);
        }
    }

    /// <summary>Completes the arguments of a row's activations: its own term and the offsets b.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void AddTerms(PackedForm<TV> form, float rowTerm, float* row)
    {
        TV term = TV.Broadcast(rowTerm);
        bool hasTerms = form.HasRowTerm || form.Form.Offset is not null;
        for (int i = 0; hasTerms && i < _layout.FeatureWidth; i += TV.Count)
        {
            TV.Store(TV.Add(TV.Load(row + i), TV.Add(term, TV.Load(form.Offset + i))), row + i);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void ExponentiateQueries(int firstRow, int n, in Scratch scratch, float* scale, float* normalizers)
    {
        (int width, int rs) = (_layout.FeatureWidth, _layout.FeatureStride);
        float* bias = scratch.Bias;
        for (int i = 0; i < width; i += TV.Count)
        {
            TV.Store(TV.Add(TV.Load(scale + i), TV.Load(_query.Offset + i)), bias + i);
        }

        new Span<float>(bias + _layout.Features, width - _layout.Features).Fill(float.NegativeInfinity);

        // Maxima of some rows first, then their exponentials: a row's alone would wait for its maximum.
        for (int first = firstRow; first < firstRow + n; first += RowsTogether)
        {
            int end = Math.Min(first + RowsTogether, firstRow + n);
            for (int row = first; row < end; row++)
            {
                float* q = scratch.Queries + ((nint)row * rs);
                if (_epsilon != 0)
                {
                    AddEpsilonToQuery(q, scratch.RowTerm[row]);
                    scratch.RowTerm[row] = 0;
                }

                TV maximum = TV.Broadcast(float.NegativeInfinity);
                for (int i = 0; i < width; i += TV.Count)
                {
                    maximum = TV.Max(maximum, TV.Add(TV.Load(q + i), TV.Load(bias + i)));
                }

                scratch.RowMaximum[row] = TV.MaxAcross(maximum);
            }

            for (int row = first; row < end; row++)
            {
                // −∞ throughout: the state is empty and nothing inside the chunk counts either; every feature is 0.
                float* q = scratch.Queries + ((nint)row * rs);
                float top = scratch.RowMaximum[row];
                TV down = TV.Broadcast(float.IsNegativeInfinity(top) ? 0 : top);
                scratch.Denominator[row] = TV.Sum(Exponentiate<Weighted>(width, q, bias, down, normalizers));
            }
        }
    }

    /// <summary>Q̂K̂ᵀ as far as rows see, and its row sums to the normalisers.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void Scores(int n, int* seen, in Scratch scratch, float* keysTransposed)
    {
        MultiplyVisible(n, seen, _layout.Features, scratch.Queries, _layout.FeatureStride, keysTransposed, scratch.Scores);
        for (int row = 0; row < n; row++)
        {
            scratch.Denominator[row] += SimdBlas<TV>.Sum(seen[row], scratch.Scores + ((nint)row * Chunk));
        }
    }

    /// <summary><c>A B</c>, a row for each query and a column for each key, as far as rows see; what stands beyond is of no meaning.</summary>
    private protected static void MultiplyVisible(int n, int* seen, int inner, float* a, nint aStride, float* b, float* product)
    {
        for (int row = 0; row < n; row += MicroKernel<TV>.Rows)
        {
            int height = Math.Min(MicroKernel<TV>.Rows, n - row);
            MicroKernel<TV>.Multiply(
                height, PackedForm<TV>.RoundUp(seen[row + height - 1]), inner, a + (row * aStride), aStride, b, Chunk, product + ((nint)row * Chunk), Chunk,
                false);
        }
    }
}
