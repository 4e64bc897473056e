using System.CommandLine;
using Gpu.Attention.Cli.Files;

namespace Gpu.Attention.Cli.Commands;

/// <summary>
/// The options that ask for gradients: a loss's at the output and the final state, which are read, and those of all that was read, which are written.
/// </summary>
internal sealed class GradientOptions
{
    public Option<string?> Output { get; } = CommonOptions.Path(
        "--output-gradient", "The loss's gradient at the output, .npy [B, T, H, Dv].", "do.npy");

    public Option<string?> Query { get; } = CommonOptions.Path("--query-gradient", "Receives the gradient of the queries, .npy as the output is.", "dq.npy");

    public Option<string?> Key { get; } = CommonOptions.Path("--key-gradient", "Receives the gradient of the keys.", "dk.npy");

    public Option<string?> Value { get; } = CommonOptions.Path("--value-gradient", "Receives the gradient of the values.", "dv.npy");

    public Option<string?> FinalState { get; } = CommonOptions.Path(
        "--final-state-gradient", "The loss's gradient at the state that the call leaves, .npz; none when not given.", "ds.npz");

    public Option<string?> InitialState { get; } = CommonOptions.Path(
        "--initial-state-gradient", "Receives the gradient of --initial-state, .npz.", "ds.npz");

    /// <summary>Those that name files which are written.</summary>
    public IReadOnlyList<Option<string?>> Written => [Query, Key, Value, InitialState];

    /// <summary>Those that exact attention does not have.</summary>
    public IReadOnlyList<Option> OfStates => [FinalState, InitialState];

    public void AddTo(Command command)
    {
        foreach (Option option in (Option[])[Output, .. Written, FinalState])
        {
            command.Add(option);
        }
    }

    /// <summary>The tensors whose gradients are wanted, and where.</summary>
    public IEnumerable<(GradientOf Tensor, string Path)> Tensors(ParseResult parsed)
    {
        (GradientOf, Option<string?>)[] options = [(GradientOf.Query, Query), (GradientOf.Key, Key), (GradientOf.Value, Value)];
        foreach ((GradientOf tensor, Option<string?> option) in options)
        {
            if (parsed.GetValue(option) is { } path)
            {
                yield return (tensor, path);
            }
        }
    }

    /// <summary>Refuses options that contradict each other.</summary>
    /// <exception cref="UsageException">They do.</exception>
    public void RequireSense(ParseResult parsed, Option initialState)
    {
        Option? wanted = Written.FirstOrDefault(parsed.IsGiven);
        if (parsed.IsGiven(Output))
        {
            if (wanted is null)
            {
                throw new UsageException($"{Output.Name} is given, but no gradient is asked for: {string.Join(", ", Written.Select(option => option.Name))}.");
            }
        }
        else if ((wanted ?? (parsed.IsGiven(FinalState) ? FinalState : null)) is { } alone)
        {
            throw new UsageException($"{alone.Name} needs {Output.Name}, which is not given: where gradients start from.");
        }

        if (parsed.IsGiven(InitialState) && !parsed.IsGiven(initialState))
        {
            throw new UsageException($"{InitialState.Name} is that of {initialState.Name}, which is not given.");
        }

        foreach (Option<string?> option in (Option<string?>[])[FinalState, InitialState])
        {
            if (parsed.GetValue(option) is { } path && StateFile.IsChecked(path))
            {
                throw new UsageException($"{option.Name} {path}: a .state file is a state and would be taken for one; gradients of states are .npz files.");
            }
        }
    }
}
