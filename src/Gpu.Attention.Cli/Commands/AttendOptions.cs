using System.CommandLine;
using System.Globalization;

namespace Gpu.Attention.Cli.Commands;

/// <summary>The options of <c>attend</c>.</summary>
internal sealed class AttendOptions
{
    public Option<string?> Query { get; } = CommonOptions.Path("--query", "Queries, .npy [B, T, H, D], float16, float32 or float64.", "q.npy", required: true);

    public Option<string?> Key { get; } = CommonOptions.Path("--key", "Keys, .npy [B, S, Hk, D]; Hk divides H.", "k.npy", required: true);

    public Option<string?> Value { get; } = CommonOptions.Path("--value", "Values, .npy [B, S, Hk, Dv].", "v.npy", required: true);

    public Option<string?> Output { get; } = CommonOptions.Path(
        "--output", "Receives the outputs, .npy [B, T, H, Dv], float16 with --storage float16, else float32.", "o.npy", required: true);

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

    public Option<int> CausalBlock { get; } = CommonOptions.Number(
        "--causal-block", "With --causal, tokens in a block: a query sees all of its own block too.", 1, int.MaxValue, 1);

    public Option<string?> Storage { get; } = CommonOptions.Choice(
        "--storage", "What tensors are converted to before the call; sums are float32 throughout.", AttendTensors.Storages, AttendTensors.Storages[0]);

    public LayoutOptions Layout { get; } = new();

    public Option<string?> InitialState { get; } = CommonOptions.Path(
        "--initial-state", "What the sequences had seen before: .state, which is checked, or .npz.", "s.state");

    public Option<string?> FinalState { get; } = CommonOptions.Path(
        "--final-state", "Receives what they have seen after, as .state or, named otherwise, .npz.", "s.state");

    public Option<int[]?> WeightsOf { get; } = CommonOptions.Numbers(
        "--weights-of", "Queries, by token, whose weights over the keys are wanted.", "0,17", 0, int.MaxValue);

    public Option<string?> Weights { get; } = CommonOptions.Path("--weights", "Receives those weights, .npy [B, H, n, S], float32.", "w.npy");

    public GradientOptions Gradients { get; } = new();

    public DeviceOptions Device { get; } = new();

    public Option<bool> Json { get; } = CommonOptions.Json();

    public void AddTo(Command command)
    {
        Option[] options =
        [
            Query, Key, Value, Output, Features, Projection, NumFeatures, Seed, OrthoScaling, FeatureEpsilon, Compat, Causal, CausalBlock, Scale, NoNormalize,
            Storage, InitialState, FinalState, WeightsOf, Weights, Json,
        ];
        Array.ForEach(options, command.Options.Add);
        Layout.AddTo(command);
        Gradients.AddTo(command);
        Device.AddTo(command);
    }
}
