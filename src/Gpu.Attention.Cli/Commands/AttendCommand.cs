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
        if (finalStatePath is not null)
        {
            AtomicFile.RequireWritable(finalStatePath);
        }

        using ComputeDevice device = options.Device.Open(terminal, parsed);
        (AttentionShape shape, float[] query, float[] key, float[] value) = ReadInputs(
            parsed.GetValue(options.Query)!, parsed.GetValue(options.Key)!, parsed.GetValue(options.Value)!);
        RequireFits(shape);
        float[] output = new float[shape.OutputElements];
        AttentionState? state = null;
        Operation operation;
        if (features == FeatureKind.Softmax)
        {
            var attention = new SoftmaxAttention(
                device, new SoftmaxAttentionOptions { Causal = parsed.GetValue(options.Causal), Scale = parsed.GetValue(options.Scale) });
            operation = new Operation(attention, shape, () => attention.Forward(shape, query, key, value, output));
        }
        else
        {
            FeatureMap map = FeatureKind.Create(features, MakeProjection(options, parsed, features, shape.KeyDimension));
            var attention = new LinearAttention(device, map, ToLinearOptions(options, parsed));
            AttentionState? initialState = null;
            if (parsed.GetValue(options.InitialState) is { } path)
            {
                initialState = attention.CreateState(shape.Batch, shape.KeyHeads, shape.ValueDimension, shape.KeyDimension);
                StateFile.Read(path, initialState);
            }

            state = finalStatePath is null ? null : attention.CreateState(shape.Batch, shape.KeyHeads, shape.ValueDimension, shape.KeyDimension);
            operation = new Operation(attention, shape, () => attention.Forward(shape, query, key, value, output, initialState, state));
        }

        using (operation)
        {
            double milliseconds = terminal.Busy("attend", () => Time(operation.Forward));
            terminal.NoteFallbacks(operation.Fallbacks);
            cancellationToken.ThrowIfCancellationRequested();
            Write(shape, output, outputPath, state, finalStatePath, cancellationToken);
            Report(
                terminal, parsed.GetValue(options.Json), device, shape, features, operation, milliseconds, parsed.GetValue(options.Causal), outputPath,
                finalStatePath);
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
            Option[] linearOnly = [options.InitialState, options.FinalState, options.NoNormalize, options.FeatureEpsilon];
            Option? misplaced = Array.Find(linearOnly, parsed.IsGiven);
            if (misplaced is not null || parsed.GetValue(options.Compat) != "none")
            {
                throw new UsageException($"{(misplaced ?? options.Compat).Name}: exact attention (--features softmax) has no such thing.");
            }
        }

        string output = Path.GetFullPath(parsed.GetValue(options.Output)!);
        if (parsed.GetValue(options.FinalState) is { } state && Path.GetFullPath(state) == output)
        {
            throw new UsageException("--output and --final-state name the same file.");
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

    private static (AttentionShape Shape, float[] Query, float[] Key, float[] Value) ReadInputs(string queryPath, string keyPath, string valuePath)
    {
        NpyArray query = Read(queryPath, "query", "[B, T, H, D]");
        NpyArray key = Read(keyPath, "key", "[B, S, Hk, D]");
        NpyArray value = Read(valuePath, "value", "[B, S, Hk, Dv]");
        int[] q = query.Shape;
        int[] k = key.Shape;
        int[] v = value.Shape;
        return q[0] != k[0] || q[3] != k[3] || !k.AsSpan(0, 3).SequenceEqual(v.AsSpan(0, 3))
            ? throw new ArgumentException(
                $"The shapes do not fit: query {NpyHeader.Describe(q)} is [B, T, H, D], key {NpyHeader.Describe(k)} is [B, S, Hk, D], " +
                $"value {NpyHeader.Describe(v)} is [B, S, Hk, Dv].")
            : (new AttentionShape(q[0], q[1], k[1], q[2], k[2], q[3], v[3]), query.Data, key.Data, value.Data);
    }

    private static NpyArray Read(string path, string role, string layout)
    {
        NpyArray array = NpyFile.Read(path);
        return array.Shape.Length == 4
            ? array
            : throw new ArgumentException($"{path}: the {role} is {NpyHeader.Describe(array.Shape)}; it has four dimensions, {layout}.");
    }

    private static void RequireFits(AttentionShape shape)
    {
        if (shape.OutputElements > Array.MaxLength)
        {
            throw new ArgumentException($"The output of {shape} has more elements than fit in memory at once ({Array.MaxLength}).");
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

    private static LinearAttentionOptions ToLinearOptions(AttendOptions options, ParseResult parsed) => new()
    {
        Causal = parsed.GetValue(options.Causal),
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

    // Both files are complete before either gets its name.
    private static void Write(
        AttentionShape shape, float[] output, string outputPath, AttentionState? state, string? statePath, CancellationToken cancellationToken)
    {
        using var file = new AtomicFile(outputPath);
        using AtomicFile? stateFile = statePath is null ? null : new AtomicFile(statePath);
        NpyFile.Write(file.Stream, [shape.Batch, shape.QueryLength, shape.Heads, shape.ValueDimension], output, cancellationToken);
        if (stateFile is not null)
        {
            StateFile.Write(stateFile.Stream, state!, cancellationToken);
        }

        stateFile?.Commit();
        file.Commit();
    }

    private static void Report(
        Terminal terminal, bool json, ComputeDevice device, AttentionShape shape, string features, Operation operation, double milliseconds,
        bool causal, string outputPath, string? statePath)
    {
        double tokensPerSecond = (double)shape.Batch * shape.QueryLength / (milliseconds / 1e3);
        int[] outputShape = [shape.Batch, shape.QueryLength, shape.Heads, shape.ValueDimension];
        if (json)
        {
            terminal.WriteJson(new
            {
                Device = operation.LastDevice.ToString(),
                Chosen = device.ToString(),
                device.Reason,
                operation.Fallbacks,
                Features = features,
                Direction = causal ? "causal" : "bidirectional",
                Shapes = new
                {
                    Query = (int[])[shape.Batch, shape.QueryLength, shape.Heads, shape.KeyDimension],
                    Key = (int[])[shape.Batch, shape.KeyLength, shape.KeyHeads, shape.KeyDimension],
                    Value = (int[])[shape.Batch, shape.KeyLength, shape.KeyHeads, shape.ValueDimension],
                    Output = outputShape,
                },
                Ms = milliseconds,
                TokensPerSecond = tokensPerSecond,
                operation.WorkspaceBytes,
                Output = outputPath,
                FinalState = statePath,
            });
            return;
        }

        string summary =
            $"{outputPath} {NpyHeader.Describe(outputShape)}: {features} on {operation.LastDevice}, {Format.Short(milliseconds)} ms, " +
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
