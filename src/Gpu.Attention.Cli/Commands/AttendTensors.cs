using System.Numerics.Tensors;
using Gpu.Attention.Cli.Files;

namespace Gpu.Attention.Cli.Commands;

/// <summary>A tensor whose gradient is written.</summary>
internal enum GradientOf
{
    Query,
    Key,
    Value,
}

/// <summary>The tensors of one call: read from files, stored as asked for, and the output and the gradients on their way to files.</summary>
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
                Float16 => new Stored<Half>(shape, query.Data, key.Data, value.Data, ToHalf, NpyFile.Write),
                BFloat => new Stored<BFloat16>(shape, query.Data, key.Data, value.Data, ToBFloat16, WriteWidened),
                _ => new Stored<float>(shape, query.Data, key.Data, value.Data, values => values, NpyFile.Write),
            };
    }

    /// <summary>Reads the loss's gradient at the output, and makes room for those that are wanted.</summary>
    /// <exception cref="ArgumentException">It does not fit the output.</exception>
    public abstract void ReadOutputGradient(string option, string path, IEnumerable<GradientOf> wanted);

    /// <summary>Linear attention of these tensors, and its gradients where <see cref="ReadOutputGradient"/> has been called.</summary>
    /// <param name="attention">The operator.</param>
    /// <param name="layout">Their layout.</param>
    /// <param name="initialState">The state to begin with.</param>
    /// <param name="finalState">Receives the state at the end.</param>
    /// <param name="states">Gradients of the states, asked for when the forward pass is done.</param>
    public abstract Operation Attend(
        LinearAttention attention, SequenceLayout? layout, AttentionState? initialState, AttentionState? finalState, Func<StateGradients> states);

    /// <summary>Exact attention of these tensors, and its gradients where <see cref="ReadOutputGradient"/> has been called.</summary>
    public abstract Operation Attend(SoftmaxAttention attention, SequenceLayout? layout);

    /// <summary>The weights of some queries of linear attention over the keys, <c>[B, H, n, S]</c>; of float32 tensors.</summary>
    /// <exception cref="ArgumentException">There are too many, or a query is none of the tensors'.</exception>
    public abstract float[] Weights(LinearAttention attention, SequenceLayout? layout, int[] queries);

    /// <summary>Writes the output as an <c>.npy</c> array.</summary>
    public abstract void WriteOutput(Stream stream, CancellationToken cancellationToken);

    /// <summary>Writes a gradient as an <c>.npy</c> array.</summary>
    public abstract void WriteGradient(GradientOf tensor, Stream stream, CancellationToken cancellationToken);

    /// <summary>The shape of a tensor, which is that of its gradient.</summary>
    protected int[] ShapeOf(GradientOf tensor) => tensor switch
    {
        GradientOf.Query => [Shape.Batch, Shape.QueryLength, Shape.Heads, Shape.KeyDimension],
        GradientOf.Key => [Shape.Batch, Shape.KeyLength, Shape.KeyHeads, Shape.KeyDimension],
        _ => [Shape.Batch, Shape.KeyLength, Shape.KeyHeads, Shape.ValueDimension],
    };

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

    private sealed class Stored<T>(
        AttentionShape shape, float[] query, float[] key, float[] value, Converter<float[], T[]> store, WriteArray<T> write) : AttendTensors(shape)
        where T : unmanaged
    {
        private readonly T[] _query = store(query);
        private readonly T[] _key = store(key);
        private readonly T[] _value = store(value);
        private readonly T[] _output = new T[shape.OutputElements];
        private readonly T[][] _gradients = [[], [], []];
        private T[]? _outputGradient;

        private int[] OutputShape => [Shape.Batch, Shape.QueryLength, Shape.Heads, Shape.ValueDimension];

        public override void ReadOutputGradient(string option, string path, IEnumerable<GradientOf> wanted)
        {
            NpyArray gradient = NpyFile.Read(path);
            if (!gradient.Shape.AsSpan().SequenceEqual(OutputShape))
            {
                throw new ArgumentException(
                    $"{option} {path} is {NpyHeader.Describe(gradient.Shape)}, and the output {NpyHeader.Describe(OutputShape)}: " +
                    "they have one shape, [B, T, H, Dv].");
            }

            _outputGradient = store(gradient.Data);
            foreach (GradientOf tensor in wanted)
            {
                _gradients[(int)tensor] = new T[tensor == GradientOf.Query ? _query.Length : tensor == GradientOf.Key ? _key.Length : _value.Length];
            }
        }

        public override Operation Attend(
            LinearAttention attention, SequenceLayout? layout, AttentionState? initialState, AttentionState? finalState, Func<StateGradients> states) =>
            new(
                attention, Shape, () => attention.Forward<T>(Shape, _query, _key, _value, _output, initialState, finalState, layout),
                _outputGradient is null ? null : () => attention.Backward<T>(
                    Shape, _query, _key, _value, _output, _outputGradient, _gradients[0], _gradients[1], _gradients[2], states(), layout),
                layout);

        public override Operation Attend(SoftmaxAttention attention, SequenceLayout? layout) =>
            new(
                attention, Shape, () => attention.Forward<T>(Shape, _query, _key, _value, _output, layout),
                _outputGradient is null ? null : () => attention.Backward<T>(
                    Shape, _query, _key, _value, _output, _outputGradient, _gradients[0], _gradients[1], _gradients[2], layout),
                layout);

        public override float[] Weights(LinearAttention attention, SequenceLayout? layout, int[] queries)
        {
            Int128 elements = (Int128)Shape.Batch * Shape.Heads * queries.Length * Shape.KeyLength;
            if (elements > Array.MaxLength)
            {
                throw new ArgumentException($"The weights of {queries.Length} queries of {Shape} are more than fit in memory at once ({Array.MaxLength}).");
            }

            float[] weights = new float[(int)elements];
            attention.Weights(Shape, (float[])(object)_query, (float[])(object)_key, queries, weights, layout);
            return weights;
        }

        public override void WriteOutput(Stream stream, CancellationToken cancellationToken) =>
            write(stream, OutputShape, _output, cancellationToken);

        public override void WriteGradient(GradientOf tensor, Stream stream, CancellationToken cancellationToken) =>
            write(stream, ShapeOf(tensor), _gradients[(int)tensor], cancellationToken);
    }
}
