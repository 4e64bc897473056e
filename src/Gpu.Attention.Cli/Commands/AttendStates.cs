using System.CommandLine;
using Gpu.Attention.Cli.Files;

namespace Gpu.Attention.Cli.Commands;

/// <summary>The states that a call of linear attention begins with and leaves, and their gradients.</summary>
internal sealed class AttendStates
{
    private string? _finalGradientPath;
    private AttentionStateGradient? _finalGradient;
    private float[] _finalScale = [];

    /// <summary>What the sequences had seen before; null for nothing.</summary>
    public AttentionState? Initial { get; private init; }

    /// <summary>Receives what they have seen after; null when nobody asks.</summary>
    public AttentionState? Final { get; private init; }

    /// <summary>Receives the gradient of <see cref="Initial"/>; null when not wanted.</summary>
    public AttentionStateGradient? InitialGradient { get; private init; }

    /// <summary>Reads what the command line names, and makes room for what it asks for.</summary>
    /// <exception cref="InvalidDataException">A file is no state, or no gradient of one, of these sizes and features.</exception>
    public static AttendStates Read(AttendOptions options, ParseResult parsed, LinearAttention attention, int sequences, AttentionShape shape)
    {
        string? gradientPath = parsed.GetValue(options.Gradients.FinalState);
        AttentionState? initial = parsed.GetValue(options.InitialState) is { } path ? StateFile.Read(path, attention, sequences, shape) : null;
        var states = new AttendStates
        {
            Initial = initial,
            InitialGradient = parsed.IsGiven(options.Gradients.InitialState) ? new AttentionStateGradient(initial!) : null,
            Final = gradientPath is null && !parsed.IsGiven(options.FinalState)
                ? null : attention.CreateState(sequences, shape.KeyHeads, shape.ValueDimension, shape.KeyDimension),
        };
        if (gradientPath is not null)
        {
            states._finalGradientPath = gradientPath;
            states._finalGradient = StateGradientFile.Read(gradientPath, states.Final!, out states._finalScale);
        }

        return states;
    }

    /// <summary>What a backward pass is told of the states, once the forward pass has filled the final one.</summary>
    /// <exception cref="InvalidDataException">The final state's gradient is that of another one.</exception>
    public StateGradients Gradients()
    {
        if (_finalGradient is not null)
        {
            StateGradientFile.RequireScale(_finalGradientPath!, _finalScale, Final!);
        }

        return new StateGradients { InitialState = Initial, InitialStateGradient = InitialGradient, FinalState = Final, FinalStateGradient = _finalGradient };
    }
}
