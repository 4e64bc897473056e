using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using Scratch = Gpu.Attention.LinearLayout.Scratch;

namespace Gpu.Attention;

/// <summary>What the passes of linear attention have in common: sequences, features, and states; <c>Simd/README.md</c> derives them.</summary>
/// <remarks>Shape tags: C tokens of a chunk, r features, d inputs, dv values; strides round up to whole vectors.</remarks>
internal abstract unsafe partial class LinearPass<TV>
    where TV : struct, ISimdVector<TV>
{
    private protected const int Chunk = LinearLayout.Chunk;

    /// <summary>e^60: what a feature may come to at its scale. Summed over any length and squared by nothing, that stays finite.</summary>
    private protected const float MaxFeature = 1.142e26f;

    private protected readonly ChunkRelay _chunkRelay = new();
    private readonly Lock _expecting = new();
    private protected AttentionProblem _problem = null!;
    private protected AttentionBuffers _buffers;
    private protected LinearLayout _layout;
    private protected SequencePlan? _plan;
    private protected PackedForm<TV> _query = null!;
    private protected PackedForm<TV> _key = null!;
    private protected FeatureMode _mode;
    private protected float _epsilon;

    /// <summary>How many chunks further the next one of the same thread is likely to be.</summary>
    private protected int _chunksApart = 1;

    /// <summary>A sum of terms as they are.</summary>
    private protected readonly struct Plain : IConstant
    {
        public static int Value => 0;
    }

    /// <summary>A sum of terms, each times a weight.</summary>
    private protected readonly struct Weighted : IConstant
    {
        public static int Value => 1;
    }

    /// <summary>How features are computed and kept.</summary>
    private protected enum FeatureMode
    {
        /// <summary>As they are.</summary>
        Direct,

        /// <summary>As logarithms, with a running maximum.</summary>
        Logarithmic,

        /// <summary>As exponentials below a maximum over the whole sequence, plus an epsilon: a published convention.</summary>
        Stabilized,
    }

    private protected void Start(AttentionProblem problem, in AttentionBuffers buffers, in LinearLayout layout)
    {
        _problem = problem;
        _buffers = buffers;
        _layout = layout;
        _plan = layout.Plan;
        _query = PackedForm<TV>.Of(problem.Features!.Query);
        _key = PackedForm<TV>.Of(problem.Features.Key);
        _epsilon = problem.FeatureEpsilon;
        _mode = problem.Features.Family == FeatureFamily.Direct ? FeatureMode.Direct
            : problem.Convention == ReferenceConvention.None ? FeatureMode.Logarithmic : FeatureMode.Stabilized;
    }

    // ---- sequences ----

    // A chain is a key head of the sequence at a place in the plan. Without a plan, places are rows of the batch.
    private protected int Place(long chain) => (int)(chain / _problem.Shape.KeyHeads);

    private protected int KeyHead(long chain) => (int)(chain % _problem.Shape.KeyHeads);

    private protected int BatchRow(int place) => _plan is null ? place : _plan.Batch[place];

    /// <summary>Where a chain's state stands among the caller's.</summary>
    private protected nint StateRow(long chain) =>
        _plan is null ? (nint)chain : ((nint)_plan.Order[Place(chain)] * _problem.Shape.KeyHeads) + KeyHead(chain);

    private protected int KeysOf(int place) => _plan is null ? _problem.Shape.KeyLength : _plan.Keys(place);

    private protected int KeyChunks(int place) => _plan is null ? _layout.KeyChunks : _plan.KeyChunks(place);

    private protected TokenList KeyTokens(int place, int chunk) =>
        TokenList.OfKeys(_plan, place, chunk * Chunk, Math.Min(Chunk, KeysOf(place) - (chunk * Chunk)));

    /// <summary>The blocks of queries that read a chunk, or with chunk −1 those that read nothing but a state.</summary>
    private protected (int First, int End) BlocksOf(int place, int chunk) =>
        _plan is not null ? _plan.BlocksOf(place, chunk)
        : chunk >= 0 ? (chunk, chunk + 1)
        : (0, _problem.Causal ? 0 : _layout.QueryBlocks);

    private protected QueryBlock BlockAt(int block) => _plan is not null ? _plan.Blocks[block]
        : new QueryBlock(block * Chunk, Math.Min(Chunk, _problem.Shape.QueryLength - (block * Chunk)), _problem.Causal ? block : -1);

    /// <summary>How many of its sequence's keys a causal query sees.</summary>
    private protected int Seen(int place, int query) =>
        _plan is null ? query + 1 : _plan.Visible[_plan.FirstRow[place] + query - _plan.FirstQuery[place]];

    // ---- chunks that are taken ahead of their states ----

    /// <summary>
    /// The log scale that a state will have before a chunk whose turn it is, from the log features of first keys alone. Behind a chunk that was cut it may have another, since what cut it was in no first key,
    /// until the state has got there.
    /// </summary>
    private protected void ExpectScale(long chain, float* expected, float* first, float* before)
    {
        lock (_expecting)
        {
            Copy(expected, before, _layout.FeatureWidth);
            RaiseTo(first, expected);
        }

        _chunkRelay.EndTurn((int)chain);
    }

    /// <summary>What is expected once a state has a chunk that was cut: first keys from there on may have been looked at already.</summary>
    private protected void ExpectAtLeast(float* logScale, float* expected)
    {
        lock (_expecting)
        {
            RaiseTo(logScale, expected);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void RaiseTo(float* logScale, float* target)
    {
        for (int i = 0; i < _layout.FeatureWidth; i += TV.Count)
        {
            TV.Store(TV.MaxOrNaN(TV.Load(target + i), TV.Load(logScale + i)), target + i);
        }
    }

    // ---- the parts of the normal form ----

    /// <summary>W x' of some rows, and their terms where those are wanted, while lines are on their way.</summary>
    private protected void ProjectRows(
        PackedForm<TV> form, int n, float* x, nint stride, float* target, float* terms, in Scratch scratch, LinesAhead* ahead = null)
    {
        float* mapped = PreMap(form, n, x, stride, scratch, out nint mappedStride);
        if (form.Panels is null)
        {
            SimdBlas<TV>.CopyRows(n, _layout.Features, mapped, mappedStride, target, _layout.FeatureStride);
        }
        else
        {
            PackedForm<TV>.MultiplyPanels(n, _layout.Features, _layout.InputDimension, mapped, mappedStride, form.Panels, target, _layout.FeatureStride, ahead);
        }

        if (terms is not null)
        {
            RowTerms(form, n, x, stride, mapped, mappedStride, terms);
        }
    }

    /// <summary>x' = P x + p, or x itself.</summary>
    private protected float* PreMap(PackedForm<TV> form, int n, float* x, nint stride, in Scratch scratch, out nint mappedStride)
    {
        mappedStride = form.HasPreMap ? form.InputStride : stride;
        if (!form.HasPreMap)
        {
            return x;
        }

        int d = _layout.InputDimension;
        if (form.PrePanels is null)
        {
            SimdBlas<TV>.CopyRows(n, d, x, stride, scratch.Mapped, form.InputStride);
        }
        else
        {
            PackedForm<TV>.MultiplyPanels(n, d, d, x, stride, form.PrePanels, scratch.Mapped, form.InputStride);
        }

        for (int row = 0; form.PreOffset is not null && row < n; row++)
        {
            var target = new Span<float>(scratch.Mapped + ((nint)row * form.InputStride), d);
            TensorPrimitives.Add(target, new ReadOnlySpan<float>(form.PreOffset, d), target);
        }

        return scratch.Mapped;
    }

    /// <summary>−β|x'|² + u·x of every row.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void RowTerms(PackedForm<TV> form, int n, float* x, nint stride, float* mapped, nint mappedStride, float* terms)
    {
        int d = _layout.InputDimension;
        for (int row = 0; row < n; row++)
        {
            float term = 0;
            if (form.Form.NormCoefficient != 0)
            {
                float* y = mapped + (row * mappedStride);
                float squares = d % TV.Count == 0 ? SimdBlas<TV>.Dot(d, y, y) : TensorPrimitives.SumOfSquares(new ReadOnlySpan<float>(y, d));
                term = -form.Form.NormCoefficient * squares;
            }

            if (form.Linear is not null)
            {
                term += TensorPrimitives.Dot(new ReadOnlySpan<float>(form.Linear, d), new ReadOnlySpan<float>(x + (row * stride), d));
            }

            terms[row] = term;
        }
    }

    /// <summary>A direct activation of rows of n elements in place, epsilon included. Rows are padded to whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private protected void ActivateRows(FeatureActivation activation, int rows, int n, float* first, int stride)
    {
        // Where nothing lies between rows, they are one. A function of the caller's sees one at a time.
        if (n == stride && IsElementwise(activation))
        {
            (rows, n) = (1, rows * n);
        }

        for (int row = 0; row < rows; row++)
        {
            Activate(activation, n, first + ((nint)row * stride));
        }
    }

    /// <summary>A direct activation of n elements in place, epsilon included. The row is padded to whole vectors.</summary>
    private protected void Activate(FeatureActivation activation, int n, float* row)
    {
        if (IsElementwise(activation))
        {
            ActivateRow(activation, n, row, row, null);
        }
        else
        {
            var elements = new Span<float>(row, n);
            activation.Apply(elements, elements);
            if (_epsilon != 0)
            {
                TensorPrimitives.Add(elements, _epsilon, elements);
            }
        }
    }

    /// <summary>Activations that the engine has vector instructions for.</summary>
    private protected static bool IsElementwise(FeatureActivation activation) =>
        activation == FeatureActivation.EluPlusOne || activation == FeatureActivation.Relu;

    /// <summary>True when features are activations of the caller's elements and nothing else, in whole vectors: they are made as rows are first read.</summary>
    private protected bool ReadsFeatures(PackedForm<TV> form) =>
        _mode == FeatureMode.Direct && IsElementwise(form.Form.Activation) && form.Panels is null && !form.HasPreMap && !form.HasRowTerm &&
        form.Form.Offset is null && _layout.Features % TV.Count == 0;

    /// <summary>elu+1 or ReLU of a row of whole vectors, epsilon included. Returns the lanes of the result times weights, where there are weights.</summary>
    private protected TV ActivateRow(FeatureActivation activation, int n, float* x, float* target, float* weights) =>
        activation == FeatureActivation.EluPlusOne ? ActivateRow<N1>(n, x, target, weights) : ActivateRow<N2>(n, x, target, weights);

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private TV ActivateRow<TElu>(int n, float* x, float* target, float* weights)
        where TElu : struct, IConstant
    {
        TV epsilon = TV.Broadcast(_epsilon);
        TV product = default;
        int i = 0;
        for (; i <= n - (4 * TV.Count); i += 4 * TV.Count)
        {
            TV x0 = TV.Load(x + i);
            TV x1 = TV.Load(x + i + TV.Count);
            TV x2 = TV.Load(x + i + (2 * TV.Count));
            TV x3 = TV.Load(x + i + (3 * TV.Count));
            (TV y0, TV y1, TV y2, TV y3) = (x0, x1, x2, x3);
            if (TElu.Value == 1)
            {
                SimdExp.Exp(ref y0, ref y1, ref y2, ref y3);
            }

            y0 = Activated<TElu>(x0, y0, epsilon);
            y1 = Activated<TElu>(x1, y1, epsilon);
            y2 = Activated<TElu>(x2, y2, epsilon);
            y3 = Activated<TElu>(x3, y3, epsilon);
            TV.Store(y0, target + i);
            TV.Store(y1, target + i + TV.Count);
            TV.Store(y2, target + i + (2 * TV.Count));
            TV.Store(y3, target + i + (3 * TV.Count));
            if (weights is not null)
            {
                product = TV.MultiplyAdd(y0, TV.Load(weights + i), product);
                product = TV.MultiplyAdd(y1, TV.Load(weights + i + TV.Count), product);
                product = TV.MultiplyAdd(y2, TV.Load(weights + i + (2 * TV.Count)), product);
                product = TV.MultiplyAdd(y3, TV.Load(weights + i + (3 * TV.Count)), product);
            }
        }

        for (; i < n; i += TV.Count)
        {
            TV value = TV.Load(x + i);
            TV result = Activated<TElu>(value, TElu.Value == 1 ? SimdExp.Exp(value) : default, epsilon);
            TV.Store(result, target + i);
            product = weights is null ? default : TV.MultiplyAdd(result, TV.Load(weights + i), product);
        }

        return product;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TV Activated<TElu>(TV x, TV exponential, TV epsilon)
        where TElu : struct, IConstant =>
        TV.Add(TElu.Value == 1 ? TV.SelectPositive(x, TV.Add(x, TV.Broadcast(1)), exponential) : TV.Max(default, x), epsilon);

    // The constant is added to exp(l) before the factor e^b, as the published implementations place it.
    private protected void AddEpsilonToKeys(int n, float* transposed, float* term)
    {
        if (_epsilon == 0)
        {
            return;
        }

        for (int feature = 0; feature < _layout.Features; feature++)
        {
            float* row = transposed + ((nint)feature * Chunk);
            for (int j = 0; j < n; j++)
            {
                row[j] = LogAddEpsilon(row[j] + term[j]);
            }
        }

        new Span<float>(term, n).Clear();
    }

    private protected void AddEpsilonToQuery(float* logs, float term)
    {
        for (int i = 0; i < _layout.Features; i++)
        {
            logs[i] = LogAddEpsilon(logs[i] + term);
        }
    }

    private float LogAddEpsilon(float log)
    {
        float other = MathF.Log(_epsilon);
        float larger = MathF.Max(log, other);
        return larger + MathF.Log(1 + MathF.Exp(MathF.Min(log, other) - larger));
    }

    /// <summary>x ← e^(x + y − shift) over whole vectors. Returns the lanes' sums of the results, each times its weight where there are weights.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private protected static TV Exponentiate<TWeights>(int n, float* x, float* y, TV shift, float* weights)
        where TWeights : struct, IConstant
    {
        TV sum = default;
        int i = 0;
        for (; i <= n - (4 * TV.Count); i += 4 * TV.Count)
        {
            TV x0 = TV.Subtract(TV.Add(TV.Load(x + i), TV.Load(y + i)), shift);
            TV x1 = TV.Subtract(TV.Add(TV.Load(x + i + TV.Count), TV.Load(y + i + TV.Count)), shift);
            TV x2 = TV.Subtract(TV.Add(TV.Load(x + i + (2 * TV.Count)), TV.Load(y + i + (2 * TV.Count))), shift);
            TV x3 = TV.Subtract(TV.Add(TV.Load(x + i + (3 * TV.Count)), TV.Load(y + i + (3 * TV.Count))), shift);
            SimdExp.Exp(ref x0, ref x1, ref x2, ref x3);
            TV.Store(x0, x + i);
            TV.Store(x1, x + i + TV.Count);
            TV.Store(x2, x + i + (2 * TV.Count));
            TV.Store(x3, x + i + (3 * TV.Count));
            sum = Add(sum, x0, i);
            sum = Add(sum, x1, i + TV.Count);
            sum = Add(sum, x2, i + (2 * TV.Count));
            sum = Add(sum, x3, i + (3 * TV.Count));
        }

        for (; i < n; i += TV.Count)
        {
            TV value = SimdExp.Exp(TV.Subtract(TV.Add(TV.Load(x + i), TV.Load(y + i)), shift));
            TV.Store(value, x + i);
            sum = Add(sum, value, i);
        }

        return sum;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        TV Add(TV sum, TV value, int at) => TWeights.Value == 0 ? TV.Add(sum, value) : TV.MultiplyAdd(value, TV.Load(weights + at), sum);
    }

    private protected static bool IsAnyAbove(float limit, int n, float* x)
    {
        for (int i = 0; i < n; i++)
        {
            if (x[i] > limit)
            {
                return true;
            }
        }

        return false;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private protected static void Copy(float* source, float* target, long count) =>
        new ReadOnlySpan<float>(source, checked((int)count)).CopyTo(new Span<float>(target, (int)count));
}
