namespace Gpu.Attention.TestKit;

/// <summary>The float64 oracles for the problems that engines are given.</summary>
public static class Oracles
{
    /// <summary>The lowered feature maps of a problem, evaluated in float64 from the very arrays that an engine gets.</summary>
    /// <remarks>
    /// The published conventions of the exponential family aren't here: make them from <see cref="ReferenceFeatures.Jax"/> and
    /// <see cref="ReferenceFeatures.Lucidrains"/>, whose formulas know the projection and not its lowered form.
    /// </remarks>
    public static ReferenceKernel Kernel(AttentionProblem problem)
    {
        ArgumentNullException.ThrowIfNull(problem);
        FeaturePair features = problem.Features ?? throw new ArgumentException("Softmax attention has no features.", nameof(problem));
        bool exponential = features.Family == FeatureFamily.Exponential;
        if (exponential && (problem.Convention != ReferenceConvention.None || problem.FeatureEpsilon != 0))
        {
            throw new NotSupportedException("Published conventions of the exponential family are made from ReferenceFeatures.");
        }

        ReferenceKernel kernel = ReferenceFeatures.Pair(
            NormalForm(features.Query, problem.FeatureEpsilon), NormalForm(features.Key, problem.FeatureEpsilon));
        return problem.Convention == ReferenceConvention.Lucidrains ? kernel with { CausalNormalizerEpsilon = 1e-6 } : kernel;
    }

    /// <summary>How a problem asks to attend.</summary>
    public static ReferenceOptions Options(AttentionProblem problem, byte[]? keyMask = null)
    {
        ArgumentNullException.ThrowIfNull(problem);
        return new ReferenceOptions
        {
            Causal = problem.Causal,
            CausalBlock = problem.CausalBlock,
            Normalize = problem.Normalize,
            Factor = problem.Features is { Family: FeatureFamily.Direct } ? problem.Scale : 1,
            KeyMask = keyMask,
        };
    }

    /// <summary>The output that a problem asks for.</summary>
    public static double[] Output(AttentionProblem problem, float[] query, float[] key, float[] value, byte[]? keyMask = null)
    {
        ArgumentNullException.ThrowIfNull(problem);
        return problem.Features is null
            ? ReferenceAttention.Softmax(problem.Shape, problem.Scale, query, key, value, Options(problem, keyMask))
            : ReferenceAttention.Linear(problem.Shape, Kernel(problem), query, key, value, Options(problem, keyMask));
    }

    /// <summary>The gradients that a problem asks for.</summary>
    public static ReferenceGradient Gradients(
        AttentionProblem problem, float[] query, float[] key, float[] value, float[] outputGradient, byte[]? keyMask = null,
        ReferenceState? initial = null, ReferenceState? finalGradient = null)
    {
        ArgumentNullException.ThrowIfNull(problem);
        return problem.Features is null
            ? ReferenceGradients.Softmax(problem.Shape, problem.Scale, query, key, value, outputGradient, Options(problem, keyMask))
            : ReferenceGradients.Linear(
                problem.Shape, problem.Features, query, key, value, outputGradient, Options(problem, keyMask), problem.FeatureEpsilon, initial, finalGradient);
    }

    /// <summary>A state of an engine, or a gradient of one at the state's scale, as the oracles take it.</summary>
    public static ReferenceState State(AttentionState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        var copy = new ReferenceState(state.Normalizers.Length, state.ValueDimension, isLogarithmic: false);
        Copy(state.LogScale, copy.LogScale);
        Copy(state.Normalizers, copy.Normalizers);
        Copy(state.Sums, copy.Sums);
        return copy;

        static void Copy(ReadOnlySpan<float> from, double[] to)
        {
            for (int i = 0; i < from.Length; i++)
            {
                to[i] = from[i];
            }
        }
    }

    /// <summary>
    /// True when an argument of a rectifier is as small as <paramref name="distance"/>, by default so small that rounding decides on its sign, and with it on the derivative: then float32 gradients may rightly be others.
    /// </summary>
    public static bool IsNearKink(AttentionProblem problem, float[] query, float[] key, double distance = 1e-5)
    {
        ArgumentNullException.ThrowIfNull(problem);
        return problem.Features is { } features && (IsNear(features.Query, query) || IsNear(features.Key, key));

        bool IsNear(FeatureForm form, float[] rows) => form.Activation == FeatureActivation.Relu &&
            ReferenceFeatures.NormalForm(
                form.FeatureDimension, form.PreMatrix, form.PreOffset, form.Projection, form.Offset, form.NormCoefficient, form.Linear, activation: null)
                .MapKeys([.. rows.Chunk(form.InputDimension).Select(row => Array.ConvertAll(row, x => (double)x))])
                .Any(arguments => arguments.Any(x => Math.Abs(x) < distance));
    }

    private static ReferenceKernel NormalForm(FeatureForm form, double epsilon)
    {
        Func<double, double>? activation = Activation(form.Activation);
        return ReferenceFeatures.NormalForm(
            form.FeatureDimension,
            form.PreMatrix,
            form.PreOffset,
            form.Projection,
            form.Offset,
            form.NormCoefficient,
            form.Linear,
            activation is null ? null : x => activation(x) + epsilon);
    }

    private static Func<double, double>? Activation(FeatureActivation activation)
    {
        if (activation == FeatureActivation.Exp)
        {
            return null;
        }

        if (activation == FeatureActivation.EluPlusOne)
        {
            return x => x > 0 ? x + 1 : Math.Exp(x);
        }

        if (activation == FeatureActivation.Relu)
        {
            return x => Math.Max(x, 0);
        }

        if (activation == FeatureActivation.Identity)
        {
            return x => x;
        }

        // A caller's own function is known in float32 only.
        return x =>
        {
            Span<float> value = [(float)x];
            activation.Apply(value, value);
            return value[0];
        };
    }
}
