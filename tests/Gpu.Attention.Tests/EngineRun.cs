using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>Runs an engine on host memory with poison in and around everything that it is to write, workspace included.</summary>
internal static unsafe class EngineRun
{
    private delegate void Call(AttentionProblem problem, in AttentionBuffers buffers);

    public static float[] Forward(
        IAttentionEngine engine, AttentionProblem problem, float[] query, float[] key, float[] value,
        AttentionState? initialState = null, AttentionState? finalState = null) =>
        Run(engine.Forward, engine, problem, query, key, value, initialState, finalState);

    /// <summary>Adds keys and values to a state.</summary>
    public static void Append(IAttentionEngine engine, AttentionProblem problem, float[] key, float[] value, AttentionState state) =>
        Run(engine.Append, engine, WithLengths(problem, 0, problem.Shape.KeyLength), [], key, value, state, state);

    /// <summary>Reads a state with queries.</summary>
    public static float[] Read(IAttentionEngine engine, AttentionProblem problem, float[] query, AttentionState state) =>
        Run(engine.Read, engine, WithLengths(problem, problem.Shape.QueryLength, 0), query, [], [], state, null);

    private static AttentionProblem WithLengths(AttentionProblem problem, int queries, int keys)
    {
        AttentionShape s = problem.Shape;
        return problem with { Shape = new AttentionShape(s.Batch, queries, keys, s.Heads, s.KeyHeads, s.KeyDimension, s.ValueDimension) };
    }

    private static float[] Run(
        Call call, IAttentionEngine engine, AttentionProblem problem, float[] query, float[] key, float[] value,
        AttentionState? initialState, AttentionState? finalState)
    {
        problem = problem with { HasInitialState = initialState is not null, WantsFinalState = finalState is not null };
        AttentionShape shape = problem.Shape;
        using var q = new PoisonedBuffer(query, misalignment: 1);
        using var k = new PoisonedBuffer(key, misalignment: 3);
        using var v = new PoisonedBuffer(value, misalignment: 5);
        using var o = new PoisonedBuffer(shape.OutputElements, misalignment: 7);
        using var workspace = new PoisonedBuffer((engine.WorkspaceBytes(problem) + 3) / 4, misalignment: 1);
        fixed (float* ic = initialState is null ? default : initialState.LogScale)
        fixed (float* s = initialState is null ? default : initialState.Sums)
        fixed (float* iz = initialState is null ? default : initialState.Normalizers)
        fixed (float* fc = finalState is null ? default : finalState.LogScale)
        fixed (float* fs = finalState is null ? default : finalState.Sums)
        fixed (float* fz = finalState is null ? default : finalState.Normalizers)
        {
            call(problem, new AttentionBuffers
            {
                Query = TensorBuffer.Dense(q.Region, shape.QueryLength, shape.Heads, shape.KeyDimension),
                Key = TensorBuffer.Dense(k.Region, shape.KeyLength, shape.KeyHeads, shape.KeyDimension),
                Value = TensorBuffer.Dense(v.Region, shape.KeyLength, shape.KeyHeads, shape.ValueDimension),
                Output = TensorBuffer.Dense(o.Region, shape.QueryLength, shape.Heads, shape.ValueDimension),
                InitialState = HostBuffers.Of(initialState, ic, s, iz),
                FinalState = HostBuffers.Of(finalState, fc, fs, fz),
                Workspace = workspace.Region,
            });
        }

        o.RequireFullyWritten();
        workspace.RequireGuardsIntact();
        Assert.Equal(query, q.Span.ToArray());
        Assert.Equal(key, k.Span.ToArray());
        Assert.Equal(value, v.Span.ToArray());
        return o.Span.ToArray();
    }

    public static AttentionState State(AttentionProblem problem) => new(
        problem.Shape.Batch, problem.Shape.KeyHeads, problem.Features!.FeatureDimension, problem.Shape.ValueDimension, problem.Features.Family);
}
