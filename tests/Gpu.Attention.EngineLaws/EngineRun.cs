using System.Runtime.InteropServices;
using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>Which gradients a backward pass is asked for.</summary>
[Flags]
internal enum Wanted
{
    None = 0,
    Query = 1,
    Key = 2,
    Value = 4,
    State = 8,
    All = Query | Key | Value | State,
}

/// <summary>Runs an engine with poison in and around everything that it is to write, workspace included.</summary>
internal static class EngineRun
{
    public static float[] Forward(
        IAttentionEngine engine, EngineMemory memory, AttentionProblem problem, float[] query, float[] key, float[] value,
        AttentionState? initialState = null, AttentionState? finalState = null, long? workspaceBytes = null)
    {
        problem = problem with { HasInitialState = initialState is not null, WantsFinalState = finalState is not null };
        AttentionShape shape = problem.Shape;
        StoredTensor storedQuery = StoredTensor.Of(query, problem.Storage);
        StoredTensor storedKey = StoredTensor.Of(key, problem.Storage);
        StoredTensor storedValue = StoredTensor.Of(value, problem.Storage);
        using PlacedBuffer q = memory.Place(new PoisonedBuffer(storedQuery.Words, misalignment: 1));
        using PlacedBuffer k = memory.Place(new PoisonedBuffer(storedKey.Words, misalignment: 3));
        using PlacedBuffer v = memory.Place(new PoisonedBuffer(storedValue.Words, misalignment: 5));
        using PlacedBuffer o = memory.Place(new PoisonedBuffer(StoredTensor.WordsOf(shape.OutputElements, problem.Storage), misalignment: 7));
        using PlacedBuffer workspace = memory.Place(new PoisonedBuffer(((workspaceBytes ?? engine.WorkspaceBytes(problem)) + 3) / 4, misalignment: 1));
        using PlacedState? initial = initialState is null ? null : new PlacedState(memory, initialState, hasContent: true);

        // The state that comes in may be the one that goes out.
        bool inPlace = ReferenceEquals(initialState, finalState);
        using PlacedState? separate = finalState is null || inPlace ? null : new PlacedState(memory, finalState, hasContent: false);
        PlacedState? final = inPlace ? initial : separate;
        try
        {
            engine.Forward(problem, new AttentionBuffers
            {
                Query = TensorBuffer.Dense(Stored(q, shape.QueryElements), shape.QueryLength, shape.Heads, shape.KeyDimension),
                Key = TensorBuffer.Dense(Stored(k, shape.KeyElements), shape.KeyLength, shape.KeyHeads, shape.KeyDimension),
                Value = TensorBuffer.Dense(Stored(v, shape.ValueElements), shape.KeyLength, shape.KeyHeads, shape.ValueDimension),
                Output = TensorBuffer.Dense(Stored(o, shape.OutputElements), shape.QueryLength, shape.Heads, shape.ValueDimension),
                InitialState = initial?.Buffers ?? default,
                FinalState = final?.Buffers ?? default,
                Workspace = workspace.Region,
            });
        }
        catch when (inPlace)
        {
            // What a call leaves that throws.
            final?.CopyTo(finalState!);
            throw;
        }

        foreach (PlacedBuffer buffer in new[] { q, k, v, o, workspace })
        {
            buffer.Refresh();
        }

        final?.CopyTo(finalState!);
        if (separate is not null)
        {
            initial?.RequireUnchanged(initialState!);
        }

        o.Image.RequireFullyWritten();
        workspace.Image.RequireGuardsIntact();
        storedQuery.RequireUnchanged(q.Image.Span);
        storedKey.RequireUnchanged(k.Image.Span);
        storedValue.RequireUnchanged(v.Image.Span);
        return StoredTensor.Read(o.Image.Span, shape.OutputElements, problem.Storage);

        MemoryRegion Stored(PlacedBuffer buffer, long elements) => buffer.Region with { Length = elements, Type = problem.Storage };
    }

    /// <summary>
    /// Runs a backward pass; also the gradient of the initial state, at that state's scale. The final state's gradient
    /// has the scale that the forward pass left; an output gradient of null is left out.
    /// </summary>
    public static (AttentionGradients Gradients, AttentionState? Initial) Backward(
        IAttentionEngine engine, EngineMemory memory, AttentionProblem problem, float[] query, float[] key, float[] value, float[] output,
        float[]? outputGradient, AttentionState? initialState = null, AttentionState? finalGradient = null, Wanted wanted = Wanted.All,
        long? workspaceBytes = null)
    {
        problem = problem with { HasInitialState = initialState is not null, WantsFinalState = finalGradient is not null };
        AttentionShape shape = problem.Shape;
        float[]?[] inputs = [query, key, value, output, outputGradient];
        StoredTensor[] stored = [.. inputs.Select(input => StoredTensor.Of(input ?? [], problem.Storage))];
        PlacedBuffer[] placed = [.. stored.Select((tensor, n) => memory.Place(new PoisonedBuffer(tensor.Words, misalignment: (2 * n) + 1)))];
        long[] sizes = [shape.QueryElements, shape.KeyElements, shape.ValueElements];
        PlacedBuffer?[] gradients = [.. sizes.Select((size, n) => wanted.HasFlag((Wanted)(1 << n))
            ? memory.Place(new PoisonedBuffer(StoredTensor.WordsOf(size, problem.Storage), misalignment: 7 - (2 * n)))
            : null)];
        using PlacedBuffer workspace = memory.Place(new PoisonedBuffer(((workspaceBytes ?? engine.BackwardWorkspaceBytes(problem)) + 3) / 4, misalignment: 1));
        using PlacedState? initial = initialState is null ? null : new PlacedState(memory, initialState, hasContent: true);
        using PlacedState? final = finalGradient is null ? null : new PlacedState(memory, finalGradient, hasContent: true);
        AttentionState? stateGradient = wanted.HasFlag(Wanted.State) ? initialState?.Fork() : null;
        using PlacedState? initialGradient = stateGradient is null ? null : new PlacedState(memory, stateGradient, hasContent: false);
        try
        {
            engine.Backward(
                problem,
                new AttentionBuffers
                {
                    Query = Queries(placed[0], shape.QueryElements, shape.KeyDimension),
                    Key = Keys(placed[1], shape.KeyElements, shape.KeyDimension),
                    Value = Keys(placed[2], shape.ValueElements, shape.ValueDimension),
                    Output = Queries(placed[3], shape.OutputElements, shape.ValueDimension),
                    InitialState = initial?.Buffers ?? default,
                    Workspace = workspace.Region,
                },
                new GradientBuffers
                {
                    OutputGradient = outputGradient is null ? default : Queries(placed[4], shape.OutputElements, shape.ValueDimension),
                    FinalStateGradient = final?.Buffers ?? default,
                    QueryGradient = Queries(gradients[0], shape.QueryElements, shape.KeyDimension),
                    KeyGradient = Keys(gradients[1], shape.KeyElements, shape.KeyDimension),
                    ValueGradient = Keys(gradients[2], shape.ValueElements, shape.ValueDimension),
                    InitialStateGradient = initialGradient is null ? default : initialGradient.Buffers with { LogScale = default },
                });
            foreach (PlacedBuffer? buffer in placed.Concat(gradients).Append(workspace))
            {
                buffer?.Refresh();
            }

            initialGradient?.CopyTo(stateGradient!, hasScale: false);
            workspace.Image.RequireGuardsIntact();
            for (int n = 0; n < stored.Length; n++)
            {
                stored[n].RequireUnchanged(placed[n].Image.Span);
            }

            return (new AttentionGradients(Result(0), Result(1), Result(2)), stateGradient);
        }
        finally
        {
            foreach (PlacedBuffer? buffer in placed.Concat(gradients))
            {
                buffer?.Dispose();
            }
        }

        TensorBuffer Queries(PlacedBuffer? buffer, long elements, int dimension) => Dense(buffer, elements, shape.QueryLength, shape.Heads, dimension);

        TensorBuffer Keys(PlacedBuffer? buffer, long elements, int dimension) => Dense(buffer, elements, shape.KeyLength, shape.KeyHeads, dimension);

        TensorBuffer Dense(PlacedBuffer? buffer, long elements, int tokens, int heads, int dimension) => buffer is null
            ? default
            : TensorBuffer.Dense(buffer.Region with { Length = elements, Type = problem.Storage }, tokens, heads, dimension);

        float[] Result(int n)
        {
            gradients[n]?.Image.RequireFullyWritten();
            return gradients[n] is { } written ? StoredTensor.Read(written.Image.Span, sizes[n], problem.Storage) : [];
        }
    }

    /// <summary>Runs a causal problem a segment of tokens after the other, with a state between them that keeps its scale; also the state's last maximum.</summary>
    public static (float[] Output, float[] Maximum) ForwardInSegments(
        IAttentionEngine engine, EngineMemory memory, AttentionProblem problem, float[] query, float[] key, float[] value, int segment)
    {
        AttentionShape shape = problem.Shape;
        AttentionState sizes = State(problem);
        using PlacedBuffer q = memory.Place(new PoisonedBuffer(query, misalignment: 1));
        using PlacedBuffer k = memory.Place(new PoisonedBuffer(key, misalignment: 3));
        using PlacedBuffer v = memory.Place(new PoisonedBuffer(value, misalignment: 5));
        using PlacedBuffer o = memory.Place(new PoisonedBuffer(shape.OutputElements, misalignment: 7));
        using PlacedBuffer logScale = memory.Place(new PoisonedBuffer(sizes.LogScale.Length, misalignment: 3));
        using PlacedBuffer maximum = memory.Place(new PoisonedBuffer(sizes.LogScale.Length, misalignment: 5));
        using PlacedBuffer sums = memory.Place(new PoisonedBuffer(sizes.Sums.Length, misalignment: 3));
        using PlacedBuffer normalizers = memory.Place(new PoisonedBuffer(sizes.Normalizers.Length, misalignment: 3));
        var state = new StateBuffers(logScale.Region, sums.Region, normalizers.Region) { Maximum = maximum.Region };
        for (int start = 0; start < shape.QueryLength; start += segment)
        {
            int n = Math.Min(segment, shape.QueryLength - start);
            AttentionProblem part = problem with
            {
                Shape = new AttentionShape(shape.Batch, n, n, shape.Heads, shape.KeyHeads, shape.KeyDimension, shape.ValueDimension),
                HasInitialState = start > 0,
                WantsFinalState = true,
            };
            using PlacedBuffer workspace = memory.Place(new PoisonedBuffer((engine.WorkspaceBytes(part) + 3) / 4, misalignment: 1));
            engine.Forward(part, new AttentionBuffers
            {
                Query = From(q, start, shape.Heads, shape.KeyDimension),
                Key = From(k, start, shape.KeyHeads, shape.KeyDimension),
                Value = From(v, start, shape.KeyHeads, shape.ValueDimension),
                Output = From(o, start, shape.Heads, shape.ValueDimension),
                InitialState = start > 0 ? state : default,
                FinalState = state,
                Workspace = workspace.Region,
            });
            workspace.Refresh();
            workspace.Image.RequireGuardsIntact();
        }

        foreach (PlacedBuffer written in new[] { o, logScale, maximum, sums, normalizers })
        {
            written.Refresh();
            written.Image.RequireFullyWritten();
        }

        return (o.Image.Span.ToArray(), maximum.Image.Span.ToArray());

        TensorBuffer From(PlacedBuffer buffer, int token, int heads, int dimension)
        {
            MemoryRegion region = buffer.Region;
            int skipped = token * heads * dimension;
            return TensorBuffer.Dense(
                region with { Address = region.Address + (skipped * sizeof(float)), Length = region.Length - skipped }, shape.QueryLength, heads, dimension);
        }
    }

    /// <summary>Adds keys and values to a state.</summary>
    public static void Append(
        IAttentionEngine engine, EngineMemory memory, AttentionProblem problem, float[] key, float[] value, AttentionState state) =>
        Forward(engine, memory, WithLengths(problem, 0, problem.Shape.KeyLength), [], key, value, state, state);

    /// <summary>Reads a state with queries.</summary>
    public static float[] Read(IAttentionEngine engine, EngineMemory memory, AttentionProblem problem, float[] query, AttentionState state) =>
        Forward(engine, memory, WithLengths(problem, problem.Shape.QueryLength, 0), query, [], [], state);

    public static AttentionState State(AttentionProblem problem) => new(
        problem.Sequences, problem.Shape.KeyHeads, problem.Features!.FeatureDimension, problem.Shape.ValueDimension, problem.Features.Family);

    private static AttentionProblem WithLengths(AttentionProblem problem, int queries, int keys)
    {
        AttentionShape s = problem.Shape;
        return problem with { Shape = new AttentionShape(s.Batch, queries, keys, s.Heads, s.KeyHeads, s.KeyDimension, s.ValueDimension), Causal = false };
    }

    /// <summary>A state in an engine's memory.</summary>
    private sealed class PlacedState(EngineMemory memory, AttentionState state, bool hasContent) : IDisposable
    {
        private readonly PlacedBuffer _logScale = Place(memory, state.LogScale, hasContent);
        private readonly PlacedBuffer _sums = Place(memory, state.Sums, hasContent);
        private readonly PlacedBuffer _normalizers = Place(memory, state.Normalizers, hasContent);

        public StateBuffers Buffers => new(_logScale.Region, _sums.Region, _normalizers.Region);

        public void CopyTo(AttentionState target, bool hasScale = true)
        {
            foreach (PlacedBuffer part in hasScale ? new[] { _logScale, _sums, _normalizers } : [_sums, _normalizers])
            {
                part.Refresh();
                part.Image.RequireFullyWritten();
            }

            if (hasScale)
            {
                _logScale.Image.Span.CopyTo(target.LogScale);
            }

            _sums.Image.Span.CopyTo(target.Sums);
            _normalizers.Image.Span.CopyTo(target.Normalizers);
        }

        public void RequireUnchanged(AttentionState state)
        {
            RequireUnchanged(_logScale, state.LogScale);
            RequireUnchanged(_sums, state.Sums);
            RequireUnchanged(_normalizers, state.Normalizers);
        }

        public void Dispose()
        {
            _logScale.Dispose();
            _sums.Dispose();
            _normalizers.Dispose();
        }

        private static void RequireUnchanged(PlacedBuffer part, Span<float> content)
        {
            part.Refresh();
            if (!MemoryMarshal.AsBytes(part.Image.Span).SequenceEqual(MemoryMarshal.AsBytes(content)))
            {
                throw new InvalidOperationException("The initial state has changed.");
            }
        }

        private static PlacedBuffer Place(EngineMemory memory, Span<float> content, bool hasContent) =>
            memory.Place(hasContent ? new PoisonedBuffer(content, misalignment: 3) : new PoisonedBuffer(content.Length, misalignment: 3));
    }
}
