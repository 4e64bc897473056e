using System.CommandLine;
using System.Globalization;

namespace Gpu.Attention.Cli.Commands;

/// <summary>The options of <c>attend</c>.</summary>
internal sealed class AttendOptions
{
    public Option<string?> Query { get; } = CommonOptions.Path("--query", "Queries, .npy [B, T, H, D], float32 or float64.", "q.npy", required: true);

    public Option<string?> Key { get; } = CommonOptions.Path("--key", "Keys, .npy [B, S, Hk, D]; Hk divides H.", "k.npy", required: true);

    public Option<string?> Value { get; } = CommonOptions.Path("--value", "Values, .npy [B, S, Hk, Dv].", "v.npy", required: true);

    public Option<string?> Output { get; } = CommonOptions.Path("--output", "Receives the outputs, .npy [B, T, H, Dv], float32.", "o.npy", required: true);

    public Option<string?> Features { get; } =
        CommonOptions.Choice("--features", "The feature map; softmax is exact attention.", FeatureKind.All, FeatureKind.FavorPlus);

    public Option<string?> Projection { get; } =
        CommonOptions.Path("--projection", "The projection W of the feature map, .npy [m, D]; otherwise it is drawn.", "w.npy");

    public Option<int> NumFeatures { get; } = CommonOptions.NumFeatures();

    public Option<ulong> Seed { get; } = new("--seed")
    {
        Description = "The seed that the projection is drawn from.",
        HelpName = "n",
        DefaultValueFactory = _ => 42,
        CustomParser = result =>
        {
            if (!ulong.TryParse(result.Tokens[0].Value, NumberStyles.None, CultureInfo.InvariantCulture, out ulong seed))
            {
                result.AddError($"--seed takes a whole number from 0 to {ulong.MaxValue}, not '{result.Tokens[0].Value}'.");
            }

            return seed;
        },
    };

    public Option<int> OrthoScaling { get; } =
        CommonOptions.Number("--ortho-scaling", "The length of the projection's rows: 0 as standard normal vectors have, 1 for √D.", 0, 1, 0);

    public Option<float?> FeatureEpsilon { get; } =
        CommonOptions.Real("--feature-epsilon", "A constant added to every feature; the convention's own when not given.", least: 0);

    public Option<string?> Compat { get; } = CommonOptions.Choice(
        "--compat", "A published implementation whose conventions are reproduced, epsilon and all.", ["none", "jax", "lucidrains"], "none");

    public Option<bool> Causal { get; } = CommonOptions.Causal();

    public Option<float?> Scale { get; } = CommonOptions.Real("--scale", "The factor on q·k; 1/√D when not given.");

    public Option<bool> NoNormalize { get; } = new("--no-normalize") { Description = "Return the weighted sums without dividing by the sum of the weights." };

    public Option<int[]?> KeyLengths { get; } = CommonOptions.Numbers(
        "--key-lengths", "Keys that take part in each sequence. Not supported yet.", "3,7,0", 0, int.MaxValue);

    public Option<string?> KeyMask { get; } =
        CommonOptions.Path("--key-mask", "Keys that take part, .npy [B, S], uint8 or bool. Not supported yet.", "mask.npy");

    public Option<int[]?> CuSeqlens { get; } = CommonOptions.Numbers(
        "--cu-seqlens", "Where packed sequences start and end. Not supported yet.", "0,1,4,9", 0, int.MaxValue,
        objection: offsets => offsets[0] == 0 && offsets.Order().SequenceEqual(offsets) ? null : "starts at 0 and never falls");

    public Option<string?> InitialState { get; } = CommonOptions.Path("--initial-state", "What the sequences had seen before, .npz.", "s.npz");

    public Option<string?> FinalState { get; } = CommonOptions.Path("--final-state", "Receives what they have seen after, .npz.", "s.npz");

    public Option<string?> OutputGradient { get; } =
        CommonOptions.Path("--output-gradient", "The loss's gradient at the output, .npy. Not supported yet.", "do.npy");

    public Option<string?> QueryGradient { get; } = CommonOptions.Path("--query-gradient", "Receives the query gradient. Not supported yet.", "dq.npy");

    public Option<string?> KeyGradient { get; } = CommonOptions.Path("--key-gradient", "Receives the key gradient. Not supported yet.", "dk.npy");

    public Option<string?> ValueGradient { get; } = CommonOptions.Path("--value-gradient", "Receives the value gradient. Not supported yet.", "dv.npy");

    public DeviceOptions Device { get; } = new();

    public Option<bool> Json { get; } = CommonOptions.Json();

    /// <summary>What is parsed but not carried out, with what is missing.</summary>
    public IReadOnlyList<(Option Option, string Missing)> Later =>
    [
        (KeyLengths, "sequences of different lengths in one batch"),
        (KeyMask, "a mask over keys"),
        (CuSeqlens, "packed sequences"),
        (OutputGradient, "the backward pass"),
        (QueryGradient, "the backward pass"),
        (KeyGradient, "the backward pass"),
        (ValueGradient, "the backward pass"),
    ];

    public void AddTo(Command command)
    {
        Option[] options =
        [
            Query, Key, Value, Output, Features, Projection, NumFeatures, Seed, OrthoScaling, FeatureEpsilon, Compat, Causal, Scale, NoNormalize,
            KeyLengths, KeyMask, CuSeqlens, InitialState, FinalState, OutputGradient, QueryGradient, KeyGradient, ValueGradient, Json,
        ];
        Array.ForEach(options, command.Options.Add);
        Device.AddTo(command);
    }
}
