namespace Gpu.Attention.Cli.Files;

/// <summary>
/// An <see cref="AttentionState"/> as a file. Named <c>.state</c> it is the library's own, which knows its feature map and is checked; else an
/// <c>.npz</c>: <c>S [N, H, r, dv]</c>, <c>z [N, H, r]</c> and, for the exponential family, <c>c [N, H, r]</c>.
/// </summary>
internal static class StateFile
{
    private const string Checked = ".state";

    /// <summary>Whether a path is named as the library's own format is.</summary>
    public static bool IsChecked(string path) => Path.GetExtension(path).Equals(Checked, StringComparison.OrdinalIgnoreCase);

    /// <summary>Reads a state of one operator, of the sizes that the problem needs.</summary>
    /// <param name="path">The file.</param>
    /// <param name="attention">The operator.</param>
    /// <param name="sequences">N.</param>
    /// <param name="shape">The problem's sizes.</param>
    /// <exception cref="InvalidDataException">The file is not a state, or one of other sizes or of other features; the message names the file and says why.</exception>
    public static AttentionState Read(string path, LinearAttention attention, int sequences, AttentionShape shape)
    {
        AttentionState needed = attention.CreateState(sequences, shape.KeyHeads, shape.ValueDimension, shape.KeyDimension);
        if (!IsChecked(path))
        {
            Read(path, needed);
            return needed;
        }

        using FileStream stream = File.OpenRead(path);
        AttentionState state;
        try
        {
            state = attention.LoadState(stream, shape.KeyDimension);
        }
        catch (InvalidDataException e)
        {
            throw new InvalidDataException($"{path}: {e.Message}", e);
        }

        return Sizes(state) == Sizes(needed) ? state
            : throw new InvalidDataException($"{path}: the state is [{Sizes(state)}] where [{Sizes(needed)}] is needed.");
    }

    /// <summary>Reads an archive over a state of the sizes that the problem needs.</summary>
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

    /// <summary>Writes a state in the format that a path's ending stands for.</summary>
    /// <exception cref="InvalidOperationException">The format is the library's own, and the state holds a number that it refuses.</exception>
    public static void Write(string path, Stream stream, AttentionState state, CancellationToken cancellationToken)
    {
        if (IsChecked(path))
        {
            state.Save(stream);
        }
        else
        {
            Write(stream, state, cancellationToken);
        }
    }

    /// <summary>Writes an archive.</summary>
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

    private static string Sizes(AttentionState state) => $"{state.Sequences}, {state.Heads}, {state.FeatureDimension}, {state.ValueDimension}";
}
