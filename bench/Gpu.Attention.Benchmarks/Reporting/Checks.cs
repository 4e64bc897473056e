namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>Holds every case's output and gradients against the float64 reference, at a length that the reference is quick at, before anything is timed.</summary>
internal sealed class Checks(ComputeDevice device)
{
    /// <summary>Over the largest element of the reference. Rounding leaves about a hundredth of it.</summary>
    private const double Limit = 1e-4;

    // Two chunks and a bit, in heads enough for one to be mistaken for another.
    private const int Length = 137;
    private const int Heads = 2;

    private readonly List<CheckLine> _lines = [];

    public IReadOnlyList<CheckLine> Lines => _lines;

    /// <summary>What is off by more than it may be.</summary>
    public IEnumerable<string> Failures => _lines.Where(l => !(l.LargestError <= l.Limit))
        .Select(l => FormattableString.Invariant($"{l.Case}: {l.What} differs from the float64 reference by {l.LargestError:g3} of its largest element; {l.Limit:g1} is allowed"));

    /// <summary>One map and direction, forward and, where there is one, backward.</summary>
    public void Run(ReportOperator attention, bool hasBackward)
    {
        AttentionShape shape = ReportTensors.Shape(Length, Heads);
        using var tensors = new ReportTensors(Length, Heads);
        long count = shape.QueryElements;
        float[] query = tensors.Query(count).ToArray();
        float[] key = tensors.Key(count).ToArray();
        float[] value = tensors.Value(count).ToArray();
        var options = new ReferenceOptions { Causal = attention.Causal };
        double scale = 1 / Math.Sqrt(shape.KeyDimension);
        double[] expected = attention.Map == MapNames.Exact
            ? ReferenceAttention.Softmax(shape, scale, query, key, value, options)
            : ReferenceAttention.Linear(shape, Kernel(attention.Map, scale), query, key, value, options);
        string name = $"{MapNames.Of(attention.Map)}, {attention.Direction}";
        attention.Forward(shape, tensors);
        Add(name, "output", tensors.Output(count), expected);
        if (!hasBackward)
        {
            return;
        }

        attention.Backward(shape, tensors);
        float[] gradient = tensors.OutputGradient(count).ToArray();
        ReferenceGradient gradients;
        if (attention.Map == MapNames.Exact)
        {
            gradients = ReferenceGradients.Softmax(shape, scale, query, key, value, gradient, options);
        }
        else
        {
            FeatureMap map = new AttentionCase(attention.Map, attention.Causal, Length).Map;
            gradients = ReferenceGradients.Linear(
                shape, map.Lower(shape.KeyDimension, map.DefaultScale(shape.KeyDimension)), query, key, value, gradient, options);
        }

        Add(name, "query gradient", tensors.QueryGradient(count), gradients.Query);
        Add(name, "key gradient", tensors.KeyGradient(count), gradients.Key);
        Add(name, "value gradient", tensors.ValueGradient(count), gradients.Value);
    }

    /// <summary>Token by token, as streams are decoded.</summary>
    public void RunStream(string map)
    {
        AttentionShape shape = ReportTensors.Shape(Length, Heads);
        AttentionShape token = ReportTensors.Shape(1, Heads);
        using var tensors = new ReportTensors(Length, Heads, hasGradients: false);
        long count = shape.QueryElements;
        using var attention = new LinearAttention(device, new AttentionCase(map, true, 1).Map);
        AttentionState state = attention.CreateState(1, Heads, AttentionCase.Dimension, AttentionCase.Dimension);
        int width = (int)token.QueryElements;
        for (int i = 0; i < Length; i++)
        {
            Range row = (i * width)..((i + 1) * width);
            attention.Step(state, token, tensors.Query(count)[row], tensors.Key(count)[row], tensors.Value(count)[row], tensors.Output(count)[row]);
        }

        double[] expected = ReferenceAttention.Linear(
            shape, Kernel(map, 1 / Math.Sqrt(shape.KeyDimension)), tensors.Query(count).ToArray(), tensors.Key(count).ToArray(), tensors.Value(count).ToArray(),
            new ReferenceOptions { Causal = true });
        Add($"{MapNames.Of(map)}, token by token", "output", tensors.Output(count), expected);
    }

    /// <summary>How far numbers are from others, as a share of the largest of those.</summary>
    internal static double LargestError(ReadOnlySpan<float> actual, double[] expected)
    {
        double error = 0;
        double largest = 0;
        for (int i = 0; i < expected.Length; i++)
        {
            // Math.Max hands NaN on.
            error = Math.Max(error, Math.Abs(actual[i] - expected[i]));
            largest = Math.Max(largest, Math.Abs(expected[i]));
        }

        return largest > 0 ? error / largest : error;
    }

    private static ReferenceKernel Kernel(string map, double scale)
    {
        const int M = AttentionCase.NumFeatures;
        return map switch
        {
            MapNames.Favor => ReferenceFeatures.FavorPlus(Projection(M), M, scale),
            MapNames.Hyperbolic => ReferenceFeatures.FavorPlusHyperbolic(Projection(M / 2), M / 2, scale),
            MapNames.Elu => ReferenceFeatures.EluPlusOne(),
            MapNames.Relu => ReferenceFeatures.Relu(),
            _ => throw new InvalidOperationException($"{map} has no reference."),
        };
    }

    private static float[] Projection(int rows) => RandomProjection.Orthogonal(rows, AttentionCase.Dimension, AttentionCase.Seed).Matrix.ToArray();

    private void Add(string name, string what, ReadOnlySpan<float> actual, double[] expected) =>
        _lines.Add(new CheckLine(name, what, LargestError(actual, expected), Limit));
}
