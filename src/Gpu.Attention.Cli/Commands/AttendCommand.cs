using System.CommandLine;
using System.Diagnostics;
using Gpu.Attention.Cli.Files;

namespace Gpu.Attention.Cli.Commands;

/// <summary><c>attend</c>: attention over <c>.npy</c> files.</summary>
internal static class AttendCommand
{
    public static Command Create(Terminal terminal)
    {
        var options = new AttendOptions();
        var command = new Command("attend", "Computes attention of the queries, keys and values in .npy files.");
        options.AddTo(command);
        command.SetAction((parsed, token) => Application.Guard(terminal, () => Run(terminal, options, parsed, token)));
        return command;
    }

    private static int Run(Terminal terminal, AttendOptions options, ParseResult parsed, CancellationToken cancellationToken)
    {
        string features = parsed.GetValue(options.Features)!;
        string outputPath = parsed.GetValue(options.Output)!;
        string? finalStatePath = parsed.GetValue(options.FinalState);
        RequireSense(terminal, options, parsed, features);
        RequireSupport(options, parsed);
        AtomicFile.RequireWritable(outputPath);
        string? weightsPath = parsed.GetValue(options.Weights);
        foreach (string path in new[] { finalStatePath, weightsPath }.OfType<string>())
        {
            AtomicFile.RequireWritable(path);
        }

        using ComputeDevice device = options.Device.Open(terminal, parsed);
        var tensors = AttendTensors.Read(
            parsed.GetValue(options.Storage)!, parsed.GetValue(options.Query)!, parsed.GetValue(options.Key)!, parsed.GetValue(options.Value)!);
        AttentionShape shape = tensors.Shape;
        SequenceLayout? layout = options.Layout.Make(parsed, shape);
        AttentionState? state = null;
        Func<float[]>? weightsOf = null;
        Operation operation;
        if (features == FeatureKind.Softmax)
        {
            var attention = new SoftmaxAttention(device, ToSoftmaxOptions(options, parsed));
            operation = tensors.Attend(attention, layout);
        }
        else
        {
            FeatureMap map = FeatureKind.Create(features, MakeProjection(options, parsed, features, shape.KeyDimension));
            var attention = new LinearAttention(device, map, ToLinearOptions(options, parsed));
            int sequences = layout?.Sequences ?? shape.Batch;
            AttentionState? initialState = parsed.GetValue(options.InitialState) is { } initial ? StateFile.Read(initial, attention, sequences, shape) : null;
            state = finalStatePath is null ? null : attention.CreateState(sequences, shape.KeyHeads, shape.ValueDimension, shape.KeyDimension);
            operation = tensors.Attend(attention, layout, initialState, state);
            weightsOf = weightsPath is null ? null : () => tensors.Weights(attention, layout, parsed.GetValue(options.WeightsOf)!);
        }

        using (operation)
        {
            double milliseconds = terminal.Busy("attend", () => Time(operation.Forward));
            terminal.NoteFallbacks(operation.Fallbacks);
            cancellationToken.ThrowIfCancellationRequested();
            float[]? weights = weightsOf?.Invoke();
            Write(tensors, outputPath, state, finalStatePath, weights, weightsPath, cancellationToken);
            Report(terminal, options, parsed, device, shape, layout, operation, milliseconds);
        }

        return ExitCode.Done;
    }

    // Options that are fine one by one but contradict each other, or would silently do nothing.
    private static void RequireSense(Terminal terminal, AttendOptions options, ParseResult parsed, string features)
    {
        Option[] recipe = [options.NumFeatures, options.Seed, options.OrthoScaling];
        Option? drawn = Array.Find(recipe, parsed.IsGiven);
        bool hasProjection = parsed.GetValue(options.Projection) is not null;
        if (hasProjection && drawn is not null)
        {
            throw new UsageException($"--projection and {drawn.Name} exclude each other: the projection is read or drawn.");
        }

        if (hasProjection && !FeatureKind.TakesProjection(features))
        {
            throw new UsageException($"--projection: the features '{features}' have no projection.");
        }

        bool draws = FeatureKind.NeedsProjection(features) || (features == FeatureKind.Relu && parsed.IsGiven(options.NumFeatures));
        if (drawn is not null && !draws)
        {
            terminal.Note(features == FeatureKind.Relu
                ? $"note: {drawn.Name} changes nothing; relu has a projection when --num-features or --projection is given."
                : $"note: {drawn.Name} changes nothing; the features '{features}' have no projection.");
        }

        if (features == FeatureKind.Softmax)
        {
            Option[] linearOnly = [options.InitialState, options.FinalState, options.WeightsOf, options.Weights, options.NoNormalize, options.FeatureEpsilon];
            Option? misplaced = Array.Find(linearOnly, parsed.IsGiven);
            if (misplaced is not null || parsed.GetValue(options.Compat) != "none")
            {
                throw new UsageException($"{(misplaced ?? options.Compat).Name}: exact attention (--features softmax) has no such thing.");
            }
        }

        options.Layout.RequireSense(parsed);
        if (parsed.IsGiven(options.CausalBlock) && !parsed.GetValue(options.Causal))
        {
            throw new UsageException($"{options.CausalBlock.Name} says something of {options.Causal.Name}, which is not given.");
        }

        RequireWeights(options, parsed);
        Option<string?>[] written = [options.Output, options.FinalState, options.Weights];
        (Option<string?> Option, string Path)[] files =
            [.. written.Where(option => parsed.GetValue(option) is not null).Select(option => (option, Path.GetFullPath(parsed.GetValue(option)!)))];
        for (int i = 1; i < files.Length; i++)
        {
            if (Array.FindIndex(files, file => file.Path == files[i].Path) is int first && first < i)
            {
                throw new UsageException($"{files[first].Option.Name} and {files[i].Option.Name} name the same file.");
            }
        }
    }

    private static void RequireWeights(AttendOptions options, ParseResult parsed)
    {
        bool isWanted = parsed.IsGiven(options.Weights);
        if (isWanted != parsed.IsGiven(options.WeightsOf))
        {
            throw new UsageException($"{options.WeightsOf.Name} says whose weights are wanted and {options.Weights.Name} where to: one needs the other.");
        }

        if (isWanted && parsed.GetValue(options.Storage) != AttendTensors.Storages[0])
        {
            throw new UsageException($"{options.Weights.Name} are those of float32 tensors, not of {options.Storage.Name} {parsed.GetValue(options.Storage)}.");
        }

        if (isWanted && parsed.IsGiven(options.InitialState))
        {
            throw new UsageException($"{options.Weights.Name} are over the call's own keys; what {options.InitialState.Name} has seen has none.");
        }
    }

    private static void RequireSupport(AttendOptions options, ParseResult parsed)
    {
        (Option? option, string? missing) = options.Later.FirstOrDefault(later => parsed.IsGiven(later.Option));
        if (option is not null)
        {
            throw new NotSupportedException($"{option.Name} is not supported yet; what is missing: {missing}.");
        }
    }

    private static RandomProjection? MakeProjection(AttendOptions options, ParseResult parsed, string features, int dimension)
    {
        if (parsed.GetValue(options.Projection) is { } path)
        {
            NpyArray matrix = NpyFile.Read(path);
            return matrix.Shape is [int rows, int columns]
                ? RandomProjection.FromMatrix(rows, columns, matrix.Data)
                : throw new ArgumentException($"{path}: the projection is {NpyHeader.Describe(matrix.Shape)}; it has two dimensions, [m, D].");
        }

        if (!FeatureKind.NeedsProjection(features) && !(features == FeatureKind.Relu && parsed.IsGiven(options.NumFeatures)))
        {
            return null;
        }

        RowLength length = parsed.GetValue(options.OrthoScaling) == 1 ? RowLength.SqrtDimension : RowLength.Chi;
        return RandomProjection.Orthogonal(parsed.GetValue(options.NumFeatures), dimension, parsed.GetValue(options.Seed), length);
    }

    private static SoftmaxAttentionOptions ToSoftmaxOptions(AttendOptions options, ParseResult parsed) => new()
    {
        Causal = parsed.GetValue(options.Causal),
        CausalBlock = parsed.GetValue(options.CausalBlock),
        Scale = parsed.GetValue(options.Scale),
    };

    private static LinearAttentionOptions ToLinearOptions(AttendOptions options, ParseResult parsed) => new()
    {
        Causal = parsed.GetValue(options.Causal),
        CausalBlock = parsed.GetValue(options.CausalBlock),
        Scale = parsed.GetValue(options.Scale),
        Normalize = !parsed.GetValue(options.NoNormalize),
        FeatureEpsilon = parsed.GetValue(options.FeatureEpsilon),
        Compatibility = parsed.GetValue(options.Compat) switch
        {
            "jax" => ReferenceConvention.Jax,
            "lucidrains" => ReferenceConvention.Lucidrains,
            _ => ReferenceConvention.None,
        },
    };

    private static double Time(Action forward)
    {
        long start = Stopwatch.GetTimestamp();
        forward();
        return Stopwatch.GetElapsedTime(start).TotalMilliseconds;
    }

    // All files are complete before any gets its name.
    private static void Write(
        AttendTensors tensors, string outputPath, AttentionState? state, string? statePath, float[]? weights, string? weightsPath,
        CancellationToken cancellationToken)
    {
        using var file = new AtomicFile(outputPath);
        using AtomicFile? stateFile = statePath is null ? null : new AtomicFile(statePath);
        using AtomicFile? weightsFile = weightsPath is null ? null : new AtomicFile(weightsPath);
        tensors.WriteOutput(file.Stream, cancellationToken);
        if (weightsFile is not null)
        {
            AttentionShape s = tensors.Shape;
            long keys = (long)s.Batch * s.Heads * s.KeyLength;
            int queries = keys == 0 ? 0 : (int)(weights!.Length / keys);
            NpyFile.Write(weightsFile.Stream, [s.Batch, s.Heads, queries, s.KeyLength], weights, cancellationToken);
        }

        if (stateFile is not null)
        {
            StateFile.Write(statePath!, stateFile.Stream, state!, cancellationToken);
        }

        stateFile?.Commit();
        weightsFile?.Commit();
        file.Commit();
    }

    private static void Report(
        Terminal terminal, AttendOptions options, ParseResult parsed, ComputeDevice device, AttentionShape shape, SequenceLayout? layout, Operation operation,
        double milliseconds)
    {
        string features = parsed.GetValue(options.Features)!;
        string outputPath = parsed.GetValue(options.Output)!;
        double tokensPerSecond = (double)shape.Batch * shape.QueryLength / (milliseconds / 1e3);
        int[] outputShape = [shape.Batch, shape.QueryLength, shape.Heads, shape.ValueDimension];
        if (parsed.GetValue(options.Json))
        {
            terminal.WriteJson(new
            {
                Device = operation.LastDevice.ToString(),
                Chosen = device.ToString(),
                device.Reason,
                operation.Fallbacks,
                Features = features,
                Direction = parsed.GetValue(options.Causal) ? "causal" : "bidirectional",
                Shapes = new
                {
                    Query = (int[])[shape.Batch, shape.QueryLength, shape.Heads, shape.KeyDimension],
                    Key = (int[])[shape.Batch, shape.KeyLength, shape.KeyHeads, shape.KeyDimension],
                    Value = (int[])[shape.Batch, shape.KeyLength, shape.KeyHeads, shape.ValueDimension],
                    Output = outputShape,
                },
                Storage = parsed.GetValue(options.Storage),
                Layout = layout?.ToString(),
                Ms = milliseconds,
                TokensPerSecond = tokensPerSecond,
                operation.WorkspaceBytes,
                Output = outputPath,
                FinalState = parsed.GetValue(options.FinalState),
                Weights = parsed.GetValue(options.Weights),
            });
            return;
        }

        string sequences = layout is null ? "" : $" of {layout}";
        string summary =
            $"{outputPath} {NpyHeader.Describe(outputShape)}: {features}{sequences} on {operation.LastDevice}, {Format.Short(milliseconds)} ms, " +
            $"{Format.Short(tokensPerSecond)} tokens/s, {Format.Bytes(operation.WorkspaceBytes)} workspace";
        if (AtomicFile.IsDevice(outputPath))
        {
            // It may be standard output itself.
            terminal.Note(summary);
        }
        else
        {
            terminal.WriteLine(summary);
        }
    }
}
