using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace Gpu.Attention;

/// <summary>The weights that a feature map gives to keys, for a few rows of the matrix that linear attention never makes.</summary>
/// <remarks>
/// <para><c>w_ij = φ(q_i)·φ(k_j)</c>, divided by its sum over the keys that row i sees: <c>O(S·(d·m + n·r))</c> operations a head for n rows, and beside the
/// result <c>n·(r + S / C)</c> numbers a head and a chunk of C keys for each thread. Every number is summed in one order, whatever the threads.</para>
/// <para>Exponential features stay logarithms until each pair's own maximum is known, and terms that grow with the square of a norm are kept in float64 beside
/// them: norms that no float32 could hold the exponentials of give weights all the same.</para>
/// </remarks>
internal static unsafe class FeatureWeights
{
    /// <summary>Weights that <see cref="TopKeys"/> holds at once, if a row of every head is not more: 32 MB.</summary>
    private const long MaxHeldWeights = 1 << 23;

    /// <summary>Why a problem has no weights here; null when it has.</summary>
    /// <param name="problem">A well-posed problem of linear attention.</param>
    public static string? WhyNot(AttentionProblem problem) => problem switch
    {
        { Convention: not ReferenceConvention.None, Features.Family: FeatureFamily.Exponential } =>
            $"the {problem.Convention} convention scales features by a maximum over all keys, and so a row's weights depend on keys that it does not see",
        { Convention: ReferenceConvention.Lucidrains, Causal: true } => "the Lucidrains convention adds to the normaliser what belongs to no key",
        _ => null,
    };

    /// <summary>The weights of chosen rows.</summary>
    /// <param name="problem">The problem; its value dimension is not looked at.</param>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="queryTokens">The n rows, by token.</param>
    /// <param name="weights">Receives the weights <c>[B, H, n, S]</c>, 0 for keys that a row does not see.</param>
    /// <param name="degree">The most threads.</param>
    public static void Rows(AttentionProblem problem, float* query, float* key, ReadOnlySpan<int> queryTokens, float* weights, int degree) =>
        Create(problem, Plan(problem), query, key, degree).Run(queryTokens, weights);

    /// <summary>The keys of the largest weights of chosen rows.</summary>
    /// <param name="problem">The problem; its value dimension is not looked at.</param>
    /// <param name="query">Queries <c>[B, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[B, S, Hk, D]</c>.</param>
    /// <param name="queryTokens">The n rows, by token.</param>
    /// <param name="count">k.</param>
    /// <param name="tokens">
    /// Receives the keys' tokens <c>[B, H, n, k]</c>, falling by weight and where weights are equal rising; −1 where a row sees no more keys.
    /// </param>
    /// <param name="weights">Receives their weights <c>[B, H, n, k]</c>.</param>
    /// <param name="degree">The most threads.</param>
    public static void TopKeys(
        AttentionProblem problem, float* query, float* key, ReadOnlySpan<int> queryTokens, int count, int* tokens, float* weights, int degree)
    {
        AttentionShape shape = problem.Shape;
        long heads = (long)shape.Batch * shape.Heads;
        int step = (int)Math.Clamp(MaxHeldWeights / Math.Max(1, heads * shape.KeyLength), 1, Math.Max(1, queryTokens.Length));
        RowPass pass = Create(problem, Plan(problem), query, key, degree);
        float* held = (float*)NativeMemory.Alloc(checked((nuint)(heads * step * shape.KeyLength)), sizeof(float));
        try
        {
            for (int first = 0; first < queryTokens.Length; first += step)
            {
                int rows = Math.Min(step, queryTokens.Length - first);
                pass.Run(queryTokens.Slice(first, rows), held);
                for (long head = 0; head < heads; head++)
                {
                    long target = ((head * queryTokens.Length) + first) * count;
                    pass.Select(held, head, count, tokens + target, weights + target);
                }
            }
        }
        finally
        {
            NativeMemory.Free(held);
        }
    }

    private static SequencePlan Plan(AttentionProblem problem) =>
        (problem.Layout ?? SequenceLayout.Whole(problem.Shape.Batch, problem.Shape.KeyLength)).Plan(problem, LinearLayout.Chunk);

    private static RowPass Create(AttentionProblem problem, SequencePlan plan, float* query, float* key, int degree)
    {
        degree = degree > 0 ? degree : Environment.ProcessorCount;
        return Vector512.IsHardwareAccelerated ? new RowPass<V512>(problem, plan, query, key, degree)
            : Vector256.IsHardwareAccelerated ? new RowPass<V256>(problem, plan, query, key, degree)
            : Vector128.IsHardwareAccelerated ? new RowPass<V128>(problem, plan, query, key, degree)
            : new RowPass<V32>(problem, plan, query, key, degree);
    }

    /// <summary>Rows of one problem's weights, at any vector width.</summary>
    private abstract class RowPass(AttentionProblem problem, SequencePlan plan)
    {
        // Places' rows stand together, by rising token: in packed sequences a row is in one place, else in each.
        private int[] _rows = [];
        private int[] _tokens = [];

        protected AttentionProblem Problem { get; } = problem;

        protected SequencePlan Plan { get; } = plan;

        /// <summary>n.</summary>
        protected int Count => _rows.Length;

        public void Run(ReadOnlySpan<int> queryTokens, float* weights)
        {
            _tokens = queryTokens.ToArray();
            _rows = [.. Enumerable.Range(0, _tokens.Length)];
            Array.Sort(_tokens, _rows);
            Run(weights);
        }

        /// <summary>The largest weights of all rows of a head, heads being counted over the batch.</summary>
        public void Select(float* weights, long head, int count, int* tokens, float* selected)
        {
            int batch = (int)(head / Problem.Shape.Heads);
            for (int place = 0; place < Plan.Sequences; place++)
            {
                (int first, int end) = Plan.Batch[place] == batch ? RowsOf(place) : default;
                for (int i = first; i < end; i++)
                {
                    (int row, int seen) = Row(place, i);
                    float* source = weights + (((head * Count) + row) * Problem.Shape.KeyLength);
                    long target = (long)row * count;
                    ReadOnlySpan<int> visible = Plan.KeyTokens.AsSpan(Plan.FirstKey[place], seen);
                    Select(source, visible, new Span<int>(tokens + target, count), new Span<float>(selected + target, count));
                }
            }
        }

        protected abstract void Run(float* weights);

        /// <summary>Chosen rows of a place, to be asked for by <see cref="Row"/>.</summary>
        protected (int First, int End) RowsOf(int place)
        {
            int first = Plan.FirstQuery[place];
            return (LowerBound(first), LowerBound(first + Plan.Queries(place)));
        }

        /// <summary>A chosen row's position in the result, and how many of its place's keys it sees.</summary>
        protected (int Row, int Seen) Row(int place, int index) =>
            (_rows[index], Plan.Visible[Plan.FirstRow[place] + _tokens[index] - Plan.FirstQuery[place]]);

        /// <summary>A chosen row's token.</summary>
        protected int Token(int index) => _tokens[index];

        private static void Select(float* weights, ReadOnlySpan<int> visible, Span<int> tokens, Span<float> selected)
        {
            var kept = new PriorityQueue<int, (float Weight, int Token)>(Math.Min(tokens.Length, visible.Length), WeakestFirst.Instance);
            foreach (int token in visible)
            {
                (float, int) priority = (weights[token], token);
                if (kept.Count < tokens.Length)
                {
                    kept.Enqueue(token, priority);
                }
                else
                {
                    kept.EnqueueDequeue(token, priority);
                }
            }

            tokens[kept.Count..].Fill(-1);
            selected[kept.Count..].Clear();
            while (kept.TryDequeue(out int token, out (float Weight, int Token) priority))
            {
                (tokens[kept.Count], selected[kept.Count]) = (token, priority.Weight);
            }
        }

        private int LowerBound(int token)
        {
            int low = 0;
            for (int high = _tokens.Length; low < high;)
            {
                int middle = (low + high) / 2;
                (low, high) = _tokens[middle] < token ? (middle + 1, high) : (low, middle);
            }

            return low;
        }
    }

    private sealed class RowPass<TV>(AttentionProblem problem, SequencePlan plan, float* query, float* key, int degree) : RowPass(problem, plan), IParallelBody
        where TV : struct, ISimdVector<TV>
    {
        private const int Chunk = LinearLayout.Chunk;

        private readonly PackedForm<TV> _query = PackedForm<TV>.Of(problem.Features!.Query);
        private readonly PackedForm<TV> _key = PackedForm<TV>.Of(problem.Features!.Key);
        private readonly bool _isLogarithmic = problem.Features!.Family == FeatureFamily.Exponential;
        private readonly ParallelLoop _loop = new(degree);

        private Phase _phase;
        private float* _weights;
        private float* _features; // [B, H, n, r]
        private double* _terms; // [B, H, n]: what all log features of a query have in common
        private double* _tops; // [B, H, n, chunks]: the scales of the weights, which stay relative to them until the last phase
        private Scratch[] _scratch = [];

        private enum Phase
        {
            Queries,
            Keys,
            Normalize,
        }

        private int Stride => _key.FeatureStride;

        public void Run(long item, int slot)
        {
            AttentionShape shape = Problem.Shape;
            switch (_phase)
            {
                case Phase.Queries:
                    MapQueries((int)(item / shape.Heads), (int)(item % shape.Heads), _scratch[slot]);
                    break;
                case Phase.Keys:
                    Weigh((int)(item / shape.KeyHeads), (int)(item % shape.KeyHeads), _scratch[slot]);
                    break;
                default:
                    Normalize((int)(item / shape.Heads), (int)(item % shape.Heads));
                    break;
            }
        }

        protected override void Run(float* weights)
        {
            AttentionShape shape = Problem.Shape;
            long rows = (long)shape.Batch * shape.Heads * Count;
            _weights = weights;
            try
            {
                _features = (float*)NativeMemory.Alloc(checked((nuint)(rows * Stride)), sizeof(float));
                _terms = (double*)NativeMemory.Alloc(checked((nuint)rows), sizeof(double));
                _tops = (double*)NativeMemory.Alloc(checked((nuint)(rows * Plan.MaxKeyChunks)), sizeof(double));
                _scratch = [.. Enumerable.Range(0, degree).Select(_ => new Scratch(_key.InputStride, Stride))];
                Do(Phase.Queries, (long)Plan.Sequences * shape.Heads);
                Do(Phase.Keys, (long)Plan.FirstChunk[^1] * shape.KeyHeads);
                Do(Phase.Normalize, (long)Plan.Sequences * shape.Heads);
            }
            finally
            {
                NativeMemory.Free(_features);
                NativeMemory.Free(_terms);
                NativeMemory.Free(_tops);
                _features = null;
                _terms = null;
                _tops = null;
            }
        }

        private void Do(Phase phase, long items)
        {
            _phase = phase;
            _loop.Run(this, items);
        }

        private long ResultRow(int place, int head, int row) => ((((long)Plan.Batch[place] * Problem.Shape.Heads) + head) * Count) + row;

        private void MapQueries(int place, int head, Scratch scratch)
        {
            AttentionShape shape = Problem.Shape;
            int d = shape.KeyDimension;
            (int first, int end) = RowsOf(place);
            for (int start = first; start < end; start += Chunk)
            {
                int n = Math.Min(Chunk, end - start);
                for (int i = 0; i < n; i++)
                {
                    long row = ((((long)Plan.Batch[place] * shape.QueryLength) + Token(start + i)) * shape.Heads) + head;
                    new ReadOnlySpan<float>(query + (row * d), d).CopyTo(scratch.Input(i));
                }

                Map(_query, n, scratch);
                for (int i = 0; i < n; i++)
                {
                    long row = ResultRow(place, head, Row(place, start + i).Row);
                    scratch.Feature(i).CopyTo(new Span<float>(_features + (row * Stride), Stride));
                    _terms[row] = scratch.Terms[i];
                    new Span<double>(_tops + (row * Plan.MaxKeyChunks), Plan.MaxKeyChunks).Fill(double.NegativeInfinity);
                    new Span<float>(_weights + (row * shape.KeyLength), shape.KeyLength).Clear();
                }
            }
        }

        // A chunk of keys, counted over all places, for all rows that see some of it.
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void Weigh(int chunk, int keyHead, Scratch scratch)
        {
            AttentionShape shape = Problem.Shape;
            int d = shape.KeyDimension;
            int place = PlaceOf(chunk);
            chunk -= Plan.FirstChunk[place];
            ReadOnlySpan<int> tokens = Plan.KeyTokens.AsSpan(Plan.FirstKey[place] + (chunk * Chunk), Math.Min(Chunk, Plan.Keys(place) - (chunk * Chunk)));
            (int first, int end) = RowsOf(place);

            // The last row sees the most.
            if (first == end || Row(place, end - 1).Seen <= chunk * Chunk)
            {
                return;
            }

            for (int j = 0; j < tokens.Length; j++)
            {
                long row = ((((long)Plan.Batch[place] * shape.KeyLength) + tokens[j]) * shape.KeyHeads) + keyHead;
                new ReadOnlySpan<float>(key + (row * d), d).CopyTo(scratch.Input(j));
            }

            Map(_key, tokens.Length, scratch);
            fixed (float* keys = scratch.Features)
            {
                for (int i = first; i < end; i++)
                {
                    (int row, int seen) = Row(place, i);
                    for (int head = keyHead * shape.HeadGroup; head < (keyHead + 1) * shape.HeadGroup; head++)
                    {
                        Weigh(ResultRow(place, head, row), chunk, tokens[..Math.Clamp(seen - (chunk * Chunk), 0, tokens.Length)], keys, scratch);
                    }
                }
            }
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private void Weigh(long row, int chunk, ReadOnlySpan<int> tokens, float* keys, Scratch scratch)
        {
            float* features = _features + (row * Stride);
            float* target = _weights + (row * Problem.Shape.KeyLength);
            if (!_isLogarithmic)
            {
                for (int j = 0; j < tokens.Length; j++)
                {
                    target[tokens[j]] = SimdBlas<TV>.Dot(Stride, features, keys + (j * Stride));
                }

                return;
            }

            double top = double.NegativeInfinity;
            for (int j = 0; j < tokens.Length; j++)
            {
                (float maximum, scratch.Sums[j]) = LogDot(Stride, features, keys + (j * Stride));
                scratch.Maxima[j] = maximum + scratch.Terms[j];
                top = Math.Max(top, scratch.Maxima[j]);
            }

            double shift = double.IsNegativeInfinity(top) ? 0 : top;
            for (int j = 0; j < tokens.Length; j++)
            {
                target[tokens[j]] = (float)(scratch.Sums[j] * Math.Exp(scratch.Maxima[j] - shift));
            }

            _tops[(row * Plan.MaxKeyChunks) + chunk] = top;
        }

        /// <summary>The largest of <c>q_r + k_r</c>, and the sum of all their exponentials divided by its own.</summary>
        private static (float Maximum, float Sum) LogDot(int n, float* q, float* k)
        {
            TV maximum = TV.Broadcast(float.NegativeInfinity);
            for (int i = 0; i < n; i += TV.Count)
            {
                maximum = TV.Max(maximum, TV.Add(TV.Load(q + i), TV.Load(k + i)));
            }

            float top = TV.MaxAcross(maximum);
            TV shift = TV.Broadcast(float.IsNegativeInfinity(top) ? 0 : top);
            TV sum = default;
            for (int i = 0; i < n; i += TV.Count)
            {
                sum = TV.Add(sum, SimdExp.Exp(TV.Subtract(TV.Add(TV.Load(q + i), TV.Load(k + i)), shift)));
            }

            return (top, TV.Sum(sum));
        }

        private void Normalize(int place, int head)
        {
            (int first, int end) = RowsOf(place);
            for (int i = first; i < end; i++)
            {
                (int row, int seen) = Row(place, i);
                Normalize(ResultRow(place, head, row), Plan.KeyTokens.AsSpan(Plan.FirstKey[place], seen));
            }
        }

        private void Normalize(long row, ReadOnlySpan<int> tokens)
        {
            float* weights = _weights + (row * Problem.Shape.KeyLength);
            int chunks = LinearLayout.Pieces(tokens.Length, Chunk);
            var tops = new Span<double>(_tops + (row * Plan.MaxKeyChunks), chunks);
            double top = _isLogarithmic && chunks > 0 ? TensorPrimitives.Max<double>(tops) : 0;
            if (double.IsNegativeInfinity(top))
            {
                return;
            }

            for (int chunk = 0; chunk < chunks; chunk++)
            {
                tops[chunk] = _isLogarithmic ? tops[chunk] - top : 0;
            }

            double factor = Problem.Scale;
            if (Problem.Normalize)
            {
                double sum = 0;
                for (int chunk = 0; chunk < chunks; chunk++)
                {
                    double part = 0;
                    foreach (int token in ChunkOf(tokens, chunk))
                    {
                        part += weights[token];
                    }

                    sum += part * Math.Exp(tops[chunk]);
                }

                factor = sum == 0 ? 0 : 1 / sum;
                top = 0;
            }
            else if (_isLogarithmic)
            {
                top += _terms[row];
            }

            for (int chunk = 0; chunk < chunks; chunk++)
            {
                double scale = factor * Math.Exp(tops[chunk] + top);
                foreach (int token in ChunkOf(tokens, chunk))
                {
                    // A weight of zero stays zero where the scale is infinite.
                    weights[token] = weights[token] == 0 ? 0 : (float)(weights[token] * scale);
                }
            }
        }

        private static ReadOnlySpan<int> ChunkOf(ReadOnlySpan<int> tokens, int chunk) =>
            tokens.Slice(chunk * Chunk, Math.Min(Chunk, tokens.Length - (chunk * Chunk)));

        private int PlaceOf(int chunk)
        {
            // The last place that begins at or before it: places without keys begin where the next one does.
            int low = 0;
            for (int high = Plan.Sequences - 1; low < high;)
            {
                int middle = (low + high + 1) / 2;
                (low, high) = Plan.FirstChunk[middle] <= chunk ? (middle, high) : (low, middle - 1);
            }

            return low;
        }

        /// <summary>
        /// Features of the scratch's rows, padded to whole vectors with what changes no sum. Log features are without their row's own term and maximum, which
        /// stand apart, in float64.
        /// </summary>
        private void Map(PackedForm<TV> form, int n, Scratch scratch)
        {
            int d = Problem.Shape.KeyDimension;
            int r = form.Form.FeatureDimension;
            fixed (float* inputs = scratch.Inputs)
            fixed (float* mapped = scratch.Mapped)
            fixed (float* features = scratch.Features)
            {
                float* x = inputs;
                if (form.HasPreMap)
                {
                    x = mapped;
                    PreMap(form, n, inputs, mapped);
                }

                if (form.Panels is null)
                {
                    SimdBlas<TV>.CopyRows(n, d, x, form.InputStride, features, Stride);
                }
                else
                {
                    PackedForm<TV>.MultiplyPanels(n, r, d, x, form.InputStride, form.Panels, features, Stride);
                }

                for (int row = 0; row < n; row++)
                {
                    scratch.Terms[row] = RowTerm(form.Form, scratch.Input(row), new ReadOnlySpan<float>(x + ((nint)row * form.InputStride), d));
                    Activate(form, scratch.Feature(row), ref scratch.Terms[row]);
                }
            }
        }

        private static void PreMap(PackedForm<TV> form, int n, float* inputs, float* mapped)
        {
            int d = form.Form.InputDimension;
            if (form.PrePanels is null)
            {
                SimdBlas<TV>.CopyRows(n, d, inputs, form.InputStride, mapped, form.InputStride);
            }
            else
            {
                PackedForm<TV>.MultiplyPanels(n, d, d, inputs, form.InputStride, form.PrePanels, mapped, form.InputStride);
            }

            for (int row = 0; form.PreOffset is not null && row < n; row++)
            {
                var target = new Span<float>(mapped + ((nint)row * form.InputStride), d);
                TensorPrimitives.Add(target, new ReadOnlySpan<float>(form.PreOffset, d), target);
            }
        }

        private static double RowTerm(FeatureForm form, ReadOnlySpan<float> x, ReadOnlySpan<float> mapped)
        {
            double squares = 0;
            for (int i = 0; form.NormCoefficient != 0 && i < mapped.Length; i++)
            {
                squares += (double)mapped[i] * mapped[i];
            }

            double linear = 0;
            for (int i = 0; form.Linear is not null && i < form.Linear.Length; i++)
            {
                linear += (double)form.Linear[i] * x[i];
            }

            return linear - (form.NormCoefficient * squares);
        }

        // A row of W x', to features or log features.
        private void Activate(PackedForm<TV> form, Span<float> row, ref double term)
        {
            int r = form.Form.FeatureDimension;
            var offset = new ReadOnlySpan<float>(form.Offset, Stride);
            if (_isLogarithmic)
            {
                // The constant is added to exp(l) before the factor e^b, as engines add it.
                for (int i = 0; Problem.FeatureEpsilon != 0 && i < r; i++)
                {
                    row[i] = (float)LogAdd(row[i] + term, Math.Log(Problem.FeatureEpsilon));
                }

                term = Problem.FeatureEpsilon != 0 ? 0 : term;
                TensorPrimitives.Add(row, offset, row);

                // What is left is near zero where it counts, so that sums of a query's and a key's round little away.
                float top = TensorPrimitives.Max<float>(row[..r]);
                if (!float.IsNegativeInfinity(top))
                {
                    TensorPrimitives.Subtract(row, top, row);
                    term += top;
                }

                return;
            }

            Span<float> features = row[..r];
            if (form.HasRowTerm || form.Form.Offset is not null)
            {
                TensorPrimitives.Add(features, (float)term, features);
                TensorPrimitives.Add(features, offset[..r], features);
            }

            form.Form.Activation.Apply(features, features);
            TensorPrimitives.Add(features, Problem.FeatureEpsilon, features);
            row[r..].Clear();
        }

        private static double LogAdd(double x, double y) => Math.Max(x, y) + Math.Log(1 + Math.Exp(-Math.Abs(x - y)));
    }

    /// <summary>A thread's chunk of rows.</summary>
    private sealed class Scratch(int inputStride, int featureStride)
    {
        public float[] Inputs { get; } = new float[LinearLayout.Chunk * inputStride];

        public float[] Mapped { get; } = new float[LinearLayout.Chunk * inputStride];

        public float[] Features { get; } = new float[LinearLayout.Chunk * featureStride];

        public double[] Terms { get; } = new double[LinearLayout.Chunk];

        public double[] Maxima { get; } = new double[LinearLayout.Chunk];

        public float[] Sums { get; } = new float[LinearLayout.Chunk];

        public Span<float> Input(int row) => Inputs.AsSpan(row * inputStride, inputStride);

        public Span<float> Feature(int row) => Features.AsSpan(row * featureStride, featureStride);
    }

    /// <summary>Orders keys by rising weight, and those of one weight by falling token. NaN is the least.</summary>
    private sealed class WeakestFirst : IComparer<(float Weight, int Token)>
    {
        public static WeakestFirst Instance { get; } = new();

        public int Compare((float Weight, int Token) x, (float Weight, int Token) y) =>
            x.Weight.CompareTo(y.Weight) is var order and not 0 ? order : y.Token.CompareTo(x.Token);
    }
}
