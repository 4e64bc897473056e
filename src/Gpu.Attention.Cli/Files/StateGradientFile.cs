namespace Gpu.Attention.Cli.Files;

/// <summary>
/// An <see cref="AttentionStateGradient"/> as an <c>.npz</c>: <c>dS [N, H, r, dv]</c>, <c>dz [N, H, r]</c> and, for the exponential family,
/// <c>c [N, H, r]</c>, the scale of the state whose gradient it is: what S and z mean depends on it, so a gradient goes with the state of that very scale only.
/// </summary>
internal static class StateGradientFile
{
    /// <summary>Reads a gradient of a state that has its sizes but need not have been computed yet.</summary>
    /// <param name="path">The file.</param>
    /// <param name="state">The state.</param>
    /// <param name="scale">The scale that the gradient is taken at, to be held against the state's: see <see cref="RequireScale"/>.</param>
    /// <exception cref="InvalidDataException">The file is no gradient of such a state.</exception>
    public static AttentionStateGradient Read(string path, AttentionState state, out float[] scale)
    {
        using var file = new NpzFile(path);
        bool isExponential = state.Family == FeatureFamily.Exponential;
        if (file.Contains("c") != isExponential)
        {
            throw new InvalidDataException(isExponential
                ? $"{path}: the gradient has no 'c', so it is not of a state of an exponential feature map such as this one."
                : $"{path}: the gradient has a 'c', so it is of a state of an exponential feature map, unlike this one.");
        }

        var gradient = new AttentionStateGradient(state);
        file.Read("dS", state.Sequences, state.Heads, state.FeatureDimension, state.ValueDimension).CopyTo(gradient.Sums);
        file.Read("dz", state.Sequences, state.Heads, state.FeatureDimension).CopyTo(gradient.Normalizers);
        scale = isExponential ? file.Read("c", state.Sequences, state.Heads, state.FeatureDimension) : [];
        return gradient;
    }

    /// <summary>Refuses a gradient that is taken at another scale than the state has.</summary>
    /// <exception cref="InvalidDataException">It is.</exception>
    public static void RequireScale(string path, ReadOnlySpan<float> scale, AttentionState state)
    {
        int same = scale.CommonPrefixLength(state.LogScale);
        if (same < scale.Length)
        {
            throw new InvalidDataException(
                $"{path}: the gradient is that of another state: element {same} of c is {scale[same]}, " +
                $"and {state.LogScale[same]} in the state that this call leaves.");
        }
    }

    /// <summary>Writes a gradient.</summary>
    public static void Write(Stream stream, AttentionState state, AttentionStateGradient gradient, CancellationToken cancellationToken)
    {
        int[] rows = [state.Sequences, state.Heads, state.FeatureDimension];
        (string, int[], ReadOnlyMemory<float>) sums = ("dS", [.. rows, state.ValueDimension], gradient.Sums.ToArray());
        (string, int[], ReadOnlyMemory<float>) normalizers = ("dz", rows, gradient.Normalizers.ToArray());
        if (state.Family == FeatureFamily.Exponential)
        {
            NpzFile.Write(stream, cancellationToken, sums, normalizers, ("c", rows, state.LogScale.ToArray()));
        }
        else
        {
            NpzFile.Write(stream, cancellationToken, sums, normalizers);
        }
    }
}
