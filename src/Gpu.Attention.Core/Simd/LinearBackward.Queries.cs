using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using Room = Gpu.Attention.LinearBackwardLayout.Room;
using Scratch = Gpu.Attention.LinearLayout.Scratch;

namespace Gpu.Attention;

// Queries: what they ask of what they read, and the way of every gradient back through a feature map to rows.
internal sealed unsafe partial class LinearBackward<TV>
{
    /// <summary>
    /// Queries of every head that reads a key head: their own gradients, and what they add to those of the keys and of R̂, or are the first to put there.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void RunQueries(long chain, int token, int n, in View view, bool isFirst, bool leavesProduct, in Room room)
    {
        if (_gradients.OutputGradient.Memory.IsEmpty)
        {
            ClearQueries(chain, token, n);
            if (isFirst)
            {
                ClearTile(view);
            }

            return;
        }

        AttentionShape shape = _problem.Shape;
        Scratch scratch = room.Scratch;
        int place = Place(chain);
        int batch = BatchRow(place);
        int rs = _layout.FeatureStride;
        var tokens = new TokenList(token, n);

        // How many keys each query sees, and the first query that sees each key.
        int* seen = stackalloc int[Chunk];
        int* first = stackalloc int[Chunk];
        int known = 0;
        for (int row = 0; view.Keys > 0 && row < n; row++)
        {
            seen[row] = Seen(place, token + row) - view.Before;
            for (; known < seen[row]; known++)
            {
                first[known] = row;
            }
        }

        new Span<int>(first + known, Chunk - known).Fill(n);
        int firstHead = KeyHead(chain) * shape.HeadGroup;
        for (int head = firstHead; head < firstHead + shape.HeadGroup; head++)
        {
            bool adds = !isFirst || head > firstHead;
            float* x = StoredRows.Read(_buffers.Query, batch, head, tokens, shape.KeyDimension, scratch.Rows, out nint stride);
            QueryFeatures(x, n, stride, scratch, view.Scale, view.Sums + ((nint)shape.ValueDimension * rs));
            if (view.Keys > 0)
            {
                Scores(n, seen, scratch, room.KeysTransposed);
            }

            SumGradients(batch, head, tokens, room);
            if (view.Keys > 0)
            {
                AddToKeys(n, seen, first, view, adds, room);
            }

            if (_wantsReverse && !leavesProduct)
            {
                LinesAhead ahead = default;
                AskAhead(ref ahead, token, n, head, batch);
                MicroKernel<TV>.MultiplyTransposed(
                    shape.ValueDimension + 1, _layout.FeatureWidth, n, room.Gradient, room.GradientStride, scratch.Queries, rs, view.Tile.Asked, rs, adds, &ahead);
            }

            if (_wantsQueries)
            {
                // One buffer less in the cache where the keys' gradients begin after the queries' end.
                float* gradient = leavesProduct ? view.Tile.KeyFeatureGradient : room.QueryFeatureGradient;

                // Rows that are about to be written, or read again.
                LinesAhead ahead = default;
                ahead.AddRows(_gradients.QueryGradient, batch, token, head, shape.KeyDimension, n);
                if (view.Keys > 0 && _wantsKeys)
                {
                    ahead.AddRows(_buffers.Key, batch, Math.Min(token, shape.KeyLength - 1), KeyHead(chain), shape.KeyDimension, n);
                }

                if (view.Keys > 0 && _wantsValues)
                {
                    ahead.AddRows(_gradients.ValueGradient, batch, Math.Min(token, shape.KeyLength - 1), KeyHead(chain), shape.ValueDimension, n);
                }

                int inner = shape.ValueDimension + 1;
                if (view.Keys > 0)
                {
                    SimdBlas<TV>.CausalProduct(
                        n, _layout.FeatureWidth, inner, room.Gradient, room.GradientStride, view.Sums, rs, seen, room.Products, Chunk, view.KeyRows, rs, gradient, rs,
                        &ahead);
                }
                else
                {
                    MicroKernel<TV>.Multiply(n, _layout.FeatureWidth, inner, room.Gradient, room.GradientStride, view.Sums, rs, gradient, rs, false, &ahead);
                }

                // Under the normaliser a row's own term has no part in the output: the sum of its log features' gradients is 0.
                bool hasRowTerm = _query.HasRowTerm && !(_problem.Normalize && _mode == FeatureMode.Logarithmic);
                WriteRows(
                    _query, n, x, stride, scratch.Queries, gradient, hasRowTerm, room, _gradients.QueryGradient, batch, head, tokens);
            }

            if (_wantsKeys && view.Keys > 0)
            {
                SimdBlas<TV>.AddSuffixProduct(
                    view.Keys, n, first, room.Products, Chunk, true, scratch.Queries, rs, _layout.FeatureWidth, view.Tile.KeyFeatureGradient, rs, adds);
            }
        }
    }

    /// <summary>Adds what queries of one head ask to R̂, with the bits of <see cref="AddAsked"/>: their Q̂ and Ĝ are still there.</summary>
    private void AddProduct(long chain, int chunk, int token, int n, in Room room)
    {
        AttentionShape shape = _problem.Shape;
        int rs = _layout.FeatureStride;
        LinesAhead ahead = default;
        AskAhead(ref ahead, token, n, KeyHead(chain), BatchRow(Place(chain)));
        if (chunk > 0)
        {
            ahead.AddStretch(room.KeysAt(chunk - 1).Sums, SumFloats);
        }

        MicroKernel<TV>.AddTransposedProduct(
            shape.ValueDimension + 1, _layout.FeatureWidth, n, room.Gradient, room.GradientStride, room.Scratch.Queries, rs, room.Reverse, rs, room.Reverse, null, &ahead);
    }

    /// <summary>
    /// What this thread is likely to read next of queries and outputs: of the group's next head, or of tokens before these, or behind them where the order of
    /// chunks does not matter.
    /// </summary>
    private void AskAhead(ref LinesAhead ahead, int token, int n, int head, int batch)
    {
        AttentionShape shape = _problem.Shape;
        bool isLast = (head + 1) % shape.HeadGroup == 0;
        int nextHead = isLast ? head + 1 - shape.HeadGroup : head + 1;
        int next = !isLast ? token : token + ((_problem.Causal ? -n : n) * _chunksApart);
        if (next >= 0 && next < shape.QueryLength)
        {
            int rows = Math.Min(isLast ? Chunk : n, shape.QueryLength - next);
            ahead.AddRows(_buffers.Query, batch, next, nextHead, shape.KeyDimension, rows);
            ahead.AddRows(_gradients.OutputGradient, batch, next, nextHead, shape.ValueDimension, rows);
            ahead.AddRows(_buffers.Output, batch, next, nextHead, shape.ValueDimension, rows);
        }
    }

    /// <summary>Ĝ: the gradient of the sums that a query reads, and of its normaliser.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void SumGradients(int batch, int head, TokenList tokens, in Room room)
    {
        Scratch scratch = room.Scratch;
        int dv = _problem.Shape.ValueDimension;
        float* source = room.Gradient;
        nint sourceStride = room.GradientStride;
        if (_problem.Normalize && dv % TV.Count == 0 && _problem.Storage == ElementType.Single && tokens.IsRun)
        {
            source = (float*)_gradients.OutputGradient.Row(batch, tokens[0], head);
            sourceStride = (nint)_gradients.OutputGradient.TokenStride;
        }
        else
        {
            StoredRows.Copy(_gradients.OutputGradient, batch, head, tokens, dv, room.Gradient, room.GradientStride);
        }

        float* output = StoredRows.Read(_buffers.Output, batch, head, tokens, dv, scratch.Output, out nint stride);
        for (int row = 0; row < tokens.Count; row++)
        {
            float* gradient = room.Gradient + ((nint)row * room.GradientStride);
            var sums = new Span<float>(gradient, dv);
            if (_problem.Normalize)
            {
                float denominator = scratch.Denominator[row];
                if (denominator == 0)
                {
                    sums.Clear();
                    gradient[dv] = 0;
                    continue;
                }

                float* g = source + (row * sourceStride);
                float* o = output + (row * stride);
                float dot = dv % TV.Count == 0 ? SimdBlas<TV>.Dot(dv, g, o) : TensorPrimitives.Dot(sums, new ReadOnlySpan<float>(o, dv));
                gradient[dv] = -dot / denominator;
                SimdBlas<TV>.Divide(dv, g, denominator, gradient);
            }
            else if (_mode == FeatureMode.Logarithmic)
            {
                // In two steps, as the output is.
                float root = MathF.Exp((scratch.RowMaximum[row] + scratch.RowTerm[row]) / 2);
                TensorPrimitives.Multiply(sums, root, sums);
                TensorPrimitives.Multiply(sums, root, sums);
            }
            else
            {
                TensorPrimitives.Multiply(sums, _problem.Scale, sums);
            }
        }
    }

    /// <summary>What the scores give to the values that queries see, and P, the gradient of the scores.</summary>
    private void AddToKeys(int n, int* seen, int* first, in View view, bool adds, in Room room)
    {
        Scratch scratch = room.Scratch;
        if (_wantsValues)
        {
            SimdBlas<TV>.AddSuffixProduct(
                view.Keys, n, first, scratch.Scores, Chunk, true, room.Gradient, room.GradientStride, _layout.ValueStride, view.Tile.ValueGradient, _layout.ValueStride,
                adds);
        }

        if (_wantsQueries || _wantsKeys)
        {
            MultiplyVisible(
                n, seen, _problem.Shape.ValueDimension + 1, room.Gradient, room.GradientStride, room.ValuesTransposed, room.Products);
        }
    }

    private void ClearQueries(long chain, int token, int n)
    {
        int firstHead = KeyHead(chain) * _problem.Shape.HeadGroup;
        for (int head = firstHead; _wantsQueries && head < firstHead + _problem.Shape.HeadGroup; head++)
        {
            StoredRows.Clear(_gradients.QueryGradient, BatchRow(Place(chain)), head, new TokenList(token, n), _layout.InputDimension);
        }
    }

    // ---- through a feature map ----

    /// <summary>Gradients of features to those of the rows x that they were made of.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void WriteRows(
        PackedForm<TV> form, int n, float* x, nint stride, float* features, float* gradient, bool hasRowTerm, in Room room, in TensorBuffer target,
        int batch, int head, TokenList tokens)
    {
        ArgumentGradients(form, n, x, stride, features, gradient, room);
        int rs = _layout.FeatureStride;
        int d = _layout.InputDimension;
        for (int row = 0; hasRowTerm && row < n; row++)
        {
            room.RowSums[row] = SimdBlas<TV>.Sum(_layout.Features, gradient + ((nint)row * rs));
        }

        // dy = Wᵀ dl − 2β(Σ dl) y. The last product leaves its rows where they are to be, if they may lie there.
        bool isDirect = target.Memory.Type == ElementType.Single && tokens.IsRun && d % TV.Count == 0;
        float* rows = gradient;
        nint rowStride = rs;
        if (form.BackPanels is not null)
        {
            isDirect &= form.BackPrePanels is null;
            rows = isDirect ? (float*)target.Row(batch, tokens[0], head) : room.ProjectedGradient;
            rowStride = isDirect ? (nint)target.TokenStride : form.InputStride;
            PackedForm<TV>.MultiplyPanels(n, d, _layout.Features, gradient, rs, form.BackPanels, rows, rowStride);
        }
        else
        {
            isDirect = false;
        }

        if (hasRowTerm && form.Form.NormCoefficient != 0)
        {
            float* mapped = PreMap(form, n, x, stride, room.Scratch, out nint mappedStride);
            for (int row = 0; row < n; row++)
            {
                AddMultiple(d, -2 * form.Form.NormCoefficient * room.RowSums[row], mapped + (row * mappedStride), rows + (row * rowStride));
            }
        }

        // dx = Pᵀ dy + (Σ dl) u.
        if (form.BackPrePanels is not null)
        {
            PackedForm<TV>.MultiplyPanels(n, d, d, rows, rowStride, form.BackPrePanels, room.InputGradient, form.InputStride);
            rows = room.InputGradient;
            rowStride = form.InputStride;
        }

        for (int row = 0; hasRowTerm && form.Linear is not null && row < n; row++)
        {
            AddMultiple(d, room.RowSums[row], form.Linear, rows + (row * rowStride));
        }

        if (!isDirect)
        {
            StoredRows.Write(target, batch, head, tokens, d, rows, (int)rowStride);
        }
    }

    /// <summary>Gradients of features to those of log features, or of the arguments of direct activations, in place.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void ArgumentGradients(PackedForm<TV> form, int n, float* x, nint stride, float* features, float* gradient, in Room room)
    {
        (int width, int rs) = (_layout.FeatureWidth, _layout.FeatureStride);
        if (_mode == FeatureMode.Logarithmic)
        {
            for (int row = 0; row < n; row++, features += rs, gradient += rs)
            {
                for (int i = 0; i < width; i += TV.Count)
                {
                    TV.Store(TV.Multiply(TV.Load(features + i), TV.Load(gradient + i)), gradient + i);
                }
            }

            return;
        }

        FeatureActivation activation = form.Form.Activation;
        if (_epsilon == 0 && (activation == FeatureActivation.EluPlusOne || activation == FeatureActivation.Relu))
        {
            // The derivative is seen from the feature itself: min(φ, 1), and 1 where φ > 0.
            bool isElu = activation == FeatureActivation.EluPlusOne;
            TV bound = TV.Broadcast(isElu ? 1 : 0);
            for (int row = 0; row < n; row++, features += rs, gradient += rs)
            {
                for (int i = 0; i < width; i += TV.Count)
                {
                    TV feature = TV.Load(features + i);
                    TV value = TV.Load(gradient + i);
                    TV.Store(TV.SelectGreater(feature, bound, value, isElu ? TV.Multiply(value, feature) : default), gradient + i);
                }
            }

            return;
        }

        ProjectRows(form, n, x, stride, room.Arguments, room.Scratch.RowTerm, room.Scratch);
        for (int row = 0; row < n; row++)
        {
            float* arguments = room.Arguments + ((nint)row * rs);
            AddTerms(form, room.Scratch.RowTerm[row], arguments);
            MultiplyDerivative(form.Form.Activation, arguments, gradient + ((nint)row * rs));
        }
    }

    private void MultiplyDerivative(FeatureActivation activation, float* arguments, float* gradient)
    {
        if (activation == FeatureActivation.EluPlusOne)
        {
            for (int i = 0; i < _layout.FeatureWidth; i += TV.Count)
            {
                TV argument = TV.Load(arguments + i);
                TV value = TV.Load(gradient + i);
                TV.Store(TV.SelectPositive(argument, value, TV.Multiply(value, SimdExp.Exp(argument))), gradient + i);
            }
        }
        else if (activation == FeatureActivation.Relu)
        {
            for (int i = 0; i < _layout.FeatureWidth; i += TV.Count)
            {
                TV.Store(TV.SelectPositive(TV.Load(arguments + i), TV.Load(gradient + i), default), gradient + i);
            }
        }
        else
        {
            activation.MultiplyDerivative(new ReadOnlySpan<float>(arguments, _layout.Features), new Span<float>(gradient, _layout.Features));
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void AddMultiple(int n, float factor, float* x, float* y)
    {
        if (n % TV.Count == 0)
        {
            SimdBlas<TV>.MultiplyAdd(n, factor, x, y);
            return;
        }

        var target = new Span<float>(y, n);
        TensorPrimitives.MultiplyAdd(new ReadOnlySpan<float>(x, n), factor, target, target);
    }
}
