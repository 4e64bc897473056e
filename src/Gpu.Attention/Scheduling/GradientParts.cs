namespace Gpu.Attention;

/// <summary>Which of a backward pass's gradients there are: those that come in, and those that are wanted.</summary>
/// <param name="Output">The output's comes in; else it is zero.</param>
/// <param name="Query">The queries' is wanted.</param>
/// <param name="Key">The keys' is wanted.</param>
/// <param name="Value">The values' is wanted.</param>
/// <param name="FinalState">The final state's comes in; else it is zero.</param>
/// <param name="InitialState">The initial state's is wanted.</param>
internal sealed record GradientParts(bool Output, bool Query, bool Key, bool Value, bool FinalState, bool InitialState)
{
    /// <summary>All that a problem may have.</summary>
    /// <param name="problem">The problem.</param>
    public static GradientParts All(AttentionProblem problem) => new(true, true, true, true, problem.WantsFinalState, problem.HasInitialState);

    /// <summary>Those that buffers hold.</summary>
    /// <param name="gradients">The buffers.</param>
    public static GradientParts Of(in GradientBuffers gradients) => new(
        !gradients.OutputGradient.Memory.IsEmpty, !gradients.QueryGradient.Memory.IsEmpty, !gradients.KeyGradient.Memory.IsEmpty,
        !gradients.ValueGradient.Memory.IsEmpty, !gradients.FinalStateGradient.IsEmpty, !gradients.InitialStateGradient.IsEmpty);
}
