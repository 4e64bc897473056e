using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>The feature maps that every law is held at, by name.</summary>
internal static class Maps
{
    public static readonly string[] Names =
        ["favor+", "favor+ iid", "favor+hyperbolic", "elu", "relu", "relu projected", "identity", "softplus", "general exponential", "general direct"];

    public static FeatureMap Create(string name, int dimension) => name switch
    {
        "favor+" => FeatureMap.FavorPlus(RandomProjection.Orthogonal(37, dimension, seed: 11)),
        "favor+ iid" => FeatureMap.FavorPlus(RandomProjection.Gaussian(64, dimension, seed: 12)),
        "favor+hyperbolic" => FeatureMap.FavorPlusHyperbolic(RandomProjection.Orthogonal(20, dimension, seed: 13, RowLength.SqrtDimension)),
        "favor+ wide" => FeatureMap.FavorPlus(RandomProjection.Orthogonal(256, dimension, seed: 15)),
        "relu wide" => FeatureMap.Relu(RandomProjection.Orthogonal(120, dimension, seed: 16)),
        "elu" => FeatureMap.EluPlusOne,
        "relu" => FeatureMap.Relu(),
        "relu projected" => FeatureMap.Relu(RandomProjection.Orthogonal(50, dimension, seed: 14)),
        "identity" => FeatureMap.Identity,
        "softplus" => FeatureMap.FromFunction("softplus", x => MathF.Log(1 + MathF.Exp(x)), derivative: x => 1 / (1 + MathF.Exp(-x))),
        "general exponential" => new GeneralMap(FeatureActivation.Exp),
        "general direct" => new GeneralMap(FeatureActivation.Relu),
        _ => throw new ArgumentOutOfRangeException(nameof(name), name, null),
    };

    /// <summary>Identity features of non-negative rows are a kernel; of any rows they are not.</summary>
    public static bool NeedsPositiveRows(string name) => name == "identity";

    /// <summary>A problem as the operator poses it.</summary>
    public static AttentionProblem Problem(string name, AttentionShape shape, bool causal, bool normalize = true)
    {
        FeatureMap map = Create(name, shape.KeyDimension);
        float scale = map.DefaultScale(shape.KeyDimension);
        FeaturePair features = map.Lower(shape.KeyDimension, scale);
        return new AttentionProblem
        {
            Shape = shape,
            Features = features,
            Causal = causal,
            Normalize = normalize,
            Scale = normalize || features.Family == FeatureFamily.Exponential ? 1 : scale,
        };
    }

    /// <summary>Every part of the normal form at once, different for queries and keys.</summary>
    private sealed class GeneralMap(FeatureActivation activation) : FeatureMap("general")
    {
        public override FeaturePair Lower(int dimension, float scale) => new(Form(dimension, 21, 1), Form(dimension, 22, 2));

        private FeatureForm Form(int dimension, ulong seed, int step) => new()
        {
            InputDimension = dimension,
            FeatureDimension = 29,
            Activation = activation,
            Projection = RandomProjection.Gaussian(29, dimension, seed).Matrix.ToArray(),
            PreMatrix = RandomProjection.Orthogonal(dimension, dimension, seed + 10, RowLength.SqrtDimension).Matrix.ToArray()
                .Select(x => x / MathF.Sqrt(dimension)).ToArray(),
            PreOffset = [.. Enumerable.Range(0, dimension).Select(i => 0.1f * (step * i % 3))],
            // Direct features are kept well above zero: next to it their relative error is the argument's, and says nothing of an engine.
            Offset = [.. Enumerable.Range(0, 29).Select(i => (activation == FeatureActivation.Exp ? 0 : 4) + (0.05f * (step * i % 7)))],
            NormCoefficient = activation == FeatureActivation.Exp ? 0.45f - (0.05f * step) : 0.01f * step,
            Linear = [.. Enumerable.Range(0, dimension).Select(i => 0.2f * ((step * i % 5) - 2))],
        };
    }

    /// <summary>Two chunks of plain exponentials: the second begins 80 below the scale that the first leaves, and is 80 higher from its fifth key on.</summary>
    public static (AttentionProblem Problem, float[] Query, float[] Key, float[] Value) RisingKeys()
    {
        var shape = new AttentionShape(1, 128, 1, 2);
        var form = new FeatureForm { InputDimension = 2, FeatureDimension = 2, Activation = FeatureActivation.Exp, Projection = [1, 0, 0, 1] };
        (float[] q, float[] k, float[] v) = TestData.Inputs(shape, 42);
        for (int token = 0; token < 128; token++)
        {
            float level = token < 64 ? 100 : token < 68 ? 20 : 99;
            k[2 * token] += level;
            k[(2 * token) + 1] += level;
        }

        return (new AttentionProblem { Shape = shape, Features = new FeaturePair(form, form), Causal = true }, q, k, v);
    }
}
