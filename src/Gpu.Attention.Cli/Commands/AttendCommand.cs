using System.CommandLine;
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
        RequireSense(terminal, options, parsed, features);
        foreach (Option<string?> option in Written(options).Where(parsed.IsGiven))
        {
            AtomicFile.RequireWritable(parsed.GetValue(option)!);
        }

        using ComputeDevice device = options.Device.Open(terminal, parsed);
        var tensors = AttendTensors.Read(
            parsed.GetValue(options.Storage)!, parsed.GetValue(options.Query)!, parsed.GetValue(options.Key)!, parsed.GetValue(options.Value)!);
        AttentionShape shape = tensors.Shape;
        SequenceLayout? layout = options.Layout.Make(parsed, shape);
        if (parsed.GetValue(options.Gradients.Output) is { } outputGradient)
        {
            tensors.ReadOutputGradient(options.Gradients.Output.Name, outputGradient, options.Gradients.Tensors(parsed).Select(file => file.Tensor));
        }

        Operation operation;
        IEnumerable<OutputFile> files = [];
        if (features == FeatureKind.Softmax)
        {
            operation = tensors.Attend(new SoftmaxAttention(device, ToSoftmaxOptions(options, parsed)), layout);
        }
        else
        {
            FeatureMap map = FeatureKind.Create(features, MakeProjection(options, parsed, features, shape.KeyDimension));
            var attention = new LinearAttention(device, map, ToLinearOptions(options, parsed));
            var states = AttendStates.Read(options, parsed, attention, layout?.Sequences ?? shape.Batch, shape);
            operation = tensors.Attend(attention, layout, states.Initial, states.Final, states.Gradients);
            files = LinearFiles(options, parsed, tensors, layout, attention, states);
        }

        using (operation)
        {
            AttendRun run = terminal.Busy("attend", () => AttendRun.Of(operation));
            terminal.NoteFallbacks(run.Fallbacks);
            cancellationToken.ThrowIfCancellationRequested();
            IEnumerable<OutputFile> gradients = options.Gradients.Tensors(parsed)
                .Select(file => new OutputFile(file.Path, (stream, token) => tensors.WriteGradient(file.Tensor, stream, token)));
            OutputFile.WriteAll([.. files, .. gradients, new OutputFile(parsed.GetValue(options.Output)!, tensors.WriteOutput)], cancellationToken);
            Report(terminal, options, parsed, device, shape, layout, operation, run);
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
            Option[] linearOnly =
            [
                options.InitialState, options.FinalState, options.WeightsOf, options.Weights, options.NoNormalize, options.FeatureEpsilon,
                .. options.Gradients.OfStates,
            ];
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
        options.Gradients.RequireSense(parsed, options.InitialState);
        (Option<string?> Option, string Path)[] files =
            [.. Written(options).Where(option => parsed.GetValue(option) is not null).Select(option => (option, Path.GetFullPath(parsed.GetValue(option)!)))];
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

    private static Option<string?>[] Written(AttendOptions options) => [options.Output, options.FinalState, options.Weights, .. options.Gradients.Written];

    // What only linear attention leaves.
    private static IEnumerable<OutputFile> LinearFiles(
        AttendOptions options, ParseResult parsed, AttendTensors tensors, SequenceLayout? layout, LinearAttention attention, AttendStates states)
    {
        if (parsed.GetValue(options.FinalState) is { } statePath)
        {
            yield return new OutputFile(statePath, (stream, token) => StateFile.Write(statePath, stream, states.Final!, token));
        }

        if (parsed.GetValue(options.Gradients.InitialState) is { } gradientPath)
        {
            yield return new OutputFile(gradientPath, (stream, token) => StateGradientFile.Write(stream, states.Initial!, states.InitialGradient!, token));
        }

        if (parsed.GetValue(options.Weights) is { } weightsPath)
        {
            int[] queries = parsed.GetValue(options.WeightsOf)!;
            AttentionShape s = tensors.Shape;
            yield return new OutputFile(
                weightsPath,
                (stream, token) => NpyFile.Write(stream, [s.Batch, s.Heads, queries.Length, s.KeyLength], tensors.Weights(attention, layout, queries), token));
        }
    }

    private static void Report(
        Terminal terminal, AttendOptions options, ParseResult parsed, ComputeDevice device, AttentionShape shape, SequenceLayout? layout, Operation operation,
        AttendRun run)
    {
        string features = parsed.GetValue(options.Features)!;
        string outputPath = parsed.GetValue(options.Output)!;
        double tokensPerSecond = (double)shape.Batch * shape.QueryLength / (run.Milliseconds / 1e3);
        int[] outputShape = [shape.Batch, shape.QueryLength, shape.Heads, shape.ValueDimension];
        if (parsed.GetValue(options.Json))
        {
            terminal.WriteJson(new
            {
                Device = run.Device.ToString(),
                Chosen = device.ToString(),
                device.Reason,
                run.Fallbacks,
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
                Ms = run.Milliseconds,
                TokensPerSecond = tokensPerSecond,
                operation.WorkspaceBytes,
                Output = outputPath,
                FinalState = parsed.GetValue(options.FinalState),
                Weights = parsed.GetValue(options.Weights),
                Backward = run.Backward is not { } backward ? null : new
                {
                    Device = backward.Device.ToString(),
                    Ms = backward.Milliseconds,
                    WorkspaceBytes = operation.BackwardWorkspaceBytes,
                    QueryGradient = parsed.GetValue(options.Gradients.Query),
                    KeyGradient = parsed.GetValue(options.Gradients.Key),
                    ValueGradient = parsed.GetValue(options.Gradients.Value),
                    InitialStateGradient = parsed.GetValue(options.Gradients.InitialState),
                },
            });
            return;
        }

        string sequences = layout is null ? "" : $" of {layout}";
        string gradients = run.Backward is not { } pass ? ""
            : $"; gradients on {pass.Device}, {Format.Short(pass.Milliseconds)} ms, {Format.Bytes(operation.BackwardWorkspaceBytes)} workspace";
        string summary =
            $"{outputPath} {NpyHeader.Describe(outputShape)}: {features}{sequences} on {run.Device}, {Format.Short(run.Milliseconds)} ms, " +
            $"{Format.Short(tokensPerSecond)} tokens/s, {Format.Bytes(operation.WorkspaceBytes)} workspace{gradients}";
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
