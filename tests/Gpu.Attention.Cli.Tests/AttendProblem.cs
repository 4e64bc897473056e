using Gpu.Attention.TestKit;

namespace Gpu.Attention.Cli.Tests;

/// <summary>The tensors of one problem, as arrays and as files beside each other, and the command that attends to them.</summary>
internal sealed class AttendProblem : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public AttendProblem(AttentionShape shape, ulong seed = 3)
        : this(shape, TestData.Inputs(shape, seed, std: 0.7))
    {
    }

    public AttendProblem(AttentionShape shape, float[] query, float[] key, float[] value)
        : this(shape, (query, key, value))
    {
    }

    private AttendProblem(AttentionShape shape, (float[] Query, float[] Key, float[] Value) inputs)
    {
        Shape = shape;
        (Query, Key, Value) = inputs;
        _folder.WriteArray("q.npy", [shape.Batch, shape.QueryLength, shape.Heads, shape.KeyDimension], Query);
        _folder.WriteArray("k.npy", [shape.Batch, shape.KeyLength, shape.KeyHeads, shape.KeyDimension], Key);
        _folder.WriteArray("v.npy", [shape.Batch, shape.KeyLength, shape.KeyHeads, shape.ValueDimension], Value);
    }

    public AttentionShape Shape { get; }

    public float[] Query { get; }

    public float[] Key { get; }

    public float[] Value { get; }

    public TemporaryFolder Folder => _folder;

    /// <summary>Attends on the host; the output is <c>o.npy</c>.</summary>
    public CommandRun Attend(params string[] options) => CommandRun.Of(
    [
        "attend", "--query", _folder["q.npy"], "--key", _folder["k.npy"], "--value", _folder["v.npy"], "--output", _folder["o.npy"], "--device", "cpu", .. options,
    ]);

    public void Dispose() => _folder.Dispose();
}
