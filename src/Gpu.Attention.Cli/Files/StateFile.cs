namespace Gpu.Attention.Cli.Files;

/// <summary>
/// An <see cref="AttentionState"/> as an <c>.npz</c>: <c>S [N, H, r, dv]</c>, <c>z [N, H, r]</c> and, for the exponential family, <c>c [N, H, r]</c>.
/// </summary>
internal static class StateFile
{
    /// <summary>Reads a state over one of the sizes that the problem needs.</summary>
    /// <exception cref="InvalidDataException">The file is not a state, or one of other sizes or of another family.</exception>
    public static void Read(string path, AttentionState state)
    {
        using var file = new NpzFile(path);
        bool isExponential = state.Family == FeatureFamily.Exponential;
        if (file.Contains("c") != isExponential)
        {
            throw new InvalidDataException(isExponential
                ? $"{path}: the state has no 'c', so it was not made by an exponential feature map such as this one."
                : $"{path}: the state has a 'c', so it was made by an exponential feature map, unlike this one.");
        }

        file.Read("S", state.Sequences, state.Heads, state.FeatureDimension, state.ValueDimension).CopyTo(state.Sums);
        file.Read("z", state.Sequences, state.Heads, state.FeatureDimension).CopyTo(state.Normalizers);
        if (isExponential)
        {
            file.Read("c", state.Sequences, state.Heads, state.FeatureDimension).CopyTo(state.LogScale);
        }
    }

    public static void Write(Stream stream, AttentionState state, CancellationToken cancellationToken)
    {
        int[] rows = [state.Sequences, state.Heads, state.FeatureDimension];
        (string, int[], ReadOnlyMemory<float>) sums = ("S", [.. rows, state.ValueDimension], state.Sums.ToArray());
        (string, int[], ReadOnlyMemory<float>) normalizers = ("z", rows, state.Normalizers.ToArray());
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
