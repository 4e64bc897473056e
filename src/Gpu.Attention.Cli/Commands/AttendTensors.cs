using System.Numerics.Tensors;
using Gpu.Attention.Cli.Files;

namespace Gpu.Attention.Cli.Commands;

/// <summary>The tensors of one call: read from files, stored as asked for, and the output on its way to a file.</summary>
internal abstract class AttendTensors(AttentionShape shape)
{
    private const string Float16 = "float16";
    private const string BFloat = "bfloat16";

    private delegate void WriteArray<T>(Stream stream, ReadOnlySpan<int> shape, ReadOnlySpan<T> data, CancellationToken cancellationToken);

    /// <summary>How tensors can be stored; the first unless another is asked for.</summary>
    public static string[] Storages { get; } = ["float32", Float16, BFloat];

    public AttentionShape Shape { get; } = shape;

    /// <summary>Reads queries, keys and values.</summary>
    /// <exception cref="ArgumentException">They do not fit together.</exception>
    public static AttendTensors Read(string storage, string queryPath, string keyPath, string valuePath)
    {
        NpyArray query = Read(queryPath, "query", "[B, T, H, D]");
        NpyArray key = Read(keyPath, "key", "[B, S, Hk, D]");
        NpyArray value = Read(valuePath, "value", "[B, S, Hk, Dv]");
        int[] q = query.Shape;
        int[] k = key.Shape;
        int[] v = value.Shape;
        if (q[0] != k[0] || q[3] != k[3] || !k.AsSpan(0, 3).SequenceEqual(v.AsSpan(0, 3)))
        {
            throw new ArgumentException(
                $"The shapes do not fit: query {NpyHeader.Describe(q)} is [B, T, H, D], key {NpyHeader.Describe(k)} is [B, S, Hk, D], " +
                $"value {NpyHeader.Describe(v)} is [B, S, Hk, Dv].");
        }

        var shape = new AttentionShape(q[0], q[1], k[1], q[2], k[2], q[3], v[3]);
        return shape.OutputElements > Array.MaxLength
            ? throw new ArgumentException($"The output of {shape} has more elements than fit in memory at once ({Array.MaxLength}).")
            : storage switch
            {
                Float16 => new Stored<Half>(shape, ToHalf(query.Data), ToHalf(key.Data), ToHalf(value.Data), NpyFile.Write),
                BFloat => new Stored<BFloat16>(shape, ToBFloat16(query.Data), ToBFloat16(key.Data), ToBFloat16(value.Data), WriteWidened),
                _ => new Stored<float>(shape, query.Data, key.Data, value.Data, NpyFile.Write),
            };
    }

    /// <summary>Linear attention of these tensors.</summary>
    public abstract Operation Attend(LinearAttention attention, SequenceLayout? layout, AttentionState? initialState, AttentionState? finalState);

    /// <summary>Exact attention of these tensors.</summary>
    public abstract Operation Attend(SoftmaxAttention attention, SequenceLayout? layout);

    /// <summary>The weights of some queries of linear attention over the keys, <c>[B, H, n, S]</c>; of float32 tensors.</summary>
    /// <exception cref="ArgumentException">There are too many, or a query is none of the tensors'.</exception>
    public abstract float[] Weights(LinearAttention attention, SequenceLayout? layout, int[] queries);

    /// <summary>Writes the output as an <c>.npy</c> array.</summary>
    public abstract void WriteOutput(Stream stream, CancellationToken cancellationToken);

    private static NpyArray Read(string path, string role, string layout)
    {
        NpyArray array = NpyFile.Read(path);
        return array.Shape.Length == 4
            ? array
            : throw new ArgumentException($"{path}: the {role} is {NpyHeader.Describe(array.Shape)}; it has four dimensions, {layout}.");
    }

    private static Half[] ToHalf(float[] values)
    {
        var stored = new Half[values.Length];
        TensorPrimitives.ConvertToHalf(values, stored);
        return stored;
    }

    private static BFloat16[] ToBFloat16(float[] values) => Array.ConvertAll(values, x => (BFloat16)x);

    // The format of the files has no type for them.
    private static void WriteWidened(Stream stream, ReadOnlySpan<int> shape, ReadOnlySpan<BFloat16> values, CancellationToken cancellationToken)
    {
        float[] widened = new float[values.Length];
        for (int i = 0; i < widened.Length; i++)
        {
            widened[i] = values[i];
        }

        NpyFile.Write(stream, shape, widened, cancellationToken);
    }

    private sealed class Stored<T>(AttentionShape shape, T[] query, T[] key, T[] value, WriteArray<T> write) : AttendTensors(shape)
        where T : unmanaged
    {
        private readonly T[] _output = new T[shape.OutputElements];

        public override Operation Attend(LinearAttention attention, SequenceLayout? layout, AttentionState? initialState, AttentionState? finalState) =>
            new(attention, Shape, () => attention.Forward<T>(Shape, query, key, value, _output, initialState, finalState, layout), layout);

        public override Operation Attend(SoftmaxAttention attention, SequenceLayout? layout) =>
            new(attention, Shape, () => attention.Forward<T>(Shape, query, key, value, _output, layout), layout);

        public override float[] Weights(LinearAttention attention, SequenceLayout? layout, int[] queries)
        {
            Int128 elements = (Int128)Shape.Batch * Shape.Heads * queries.Length * Shape.KeyLength;
            if (elements > Array.MaxLength)
            {
                throw new ArgumentException($"The weights of {queries.Length} queries of {Shape} are more than fit in memory at once ({Array.MaxLength}).");
            }

            float[] weights = new float[(int)elements];
            attention.Weights(Shape, (float[])(object)query, (float[])(object)key, queries, weights, layout);
            return weights;
        }

        public override void WriteOutput(Stream stream, CancellationToken cancellationToken) =>
            write(stream, [Shape.Batch, Shape.QueryLength, Shape.Heads, Shape.ValueDimension], _output, cancellationToken);
    }
}
