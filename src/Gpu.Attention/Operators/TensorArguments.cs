using System.Numerics.Tensors;

namespace Gpu.Attention;

/// <summary>Checks a caller's tensors before any work is done.</summary>
internal static class TensorArguments
{
    private const string QueryLayout = "[B, T, H, D]";
    private const string KeyLayout = "[B, S, Hk, D]";
    private const string ValueLayout = "[B, S, Hk, Dv]";
    private const string OutputLayout = "[B, T, H, Dv]";

    /// <summary>The shape that four tensors describe together.</summary>
    /// <exception cref="ArgumentException">A tensor is not dense, has another rank than 4, or does not fit the others.</exception>
    public static AttentionShape Shape<T>(
        in ReadOnlyTensorSpan<T> query, in ReadOnlyTensorSpan<T> key, in ReadOnlyTensorSpan<T> value, in TensorSpan<T> output)
    {
        return Shape(
            Read(query.Lengths, query.IsDense, nameof(query), QueryLayout), Read(key.Lengths, key.IsDense, nameof(key), KeyLayout),
            Read(value.Lengths, value.IsDense, nameof(value), ValueLayout), Read(output.Lengths, output.IsDense, nameof(output), OutputLayout));
    }

    /// <summary>The shape that four tensors and their gradients describe together.</summary>
    /// <exception cref="ArgumentException">A tensor is not dense, has another rank than 4, or does not fit the others.</exception>
    public static AttentionShape Shape<T>(
        in ReadOnlyTensorSpan<T> query, in ReadOnlyTensorSpan<T> key, in ReadOnlyTensorSpan<T> value, in ReadOnlyTensorSpan<T> output,
        in ReadOnlyTensorSpan<T> outputGradient, in TensorSpan<T> queryGradient, in TensorSpan<T> keyGradient, in TensorSpan<T> valueGradient)
    {
        Sizes q = Read(query.Lengths, query.IsDense, nameof(query), QueryLayout);
        Sizes k = Read(key.Lengths, key.IsDense, nameof(key), KeyLayout);
        Sizes v = Read(value.Lengths, value.IsDense, nameof(value), ValueLayout);
        Sizes o = Read(output.Lengths, output.IsDense, nameof(output), OutputLayout);
        AttentionShape shape = Shape(q, k, v, o);
        RequireGradient(Read(outputGradient.Lengths, outputGradient.IsDense, nameof(outputGradient), OutputLayout), o, nameof(outputGradient), "output");
        RequireGradient(Read(queryGradient.Lengths, queryGradient.IsDense, nameof(queryGradient), QueryLayout), q, nameof(queryGradient), "query");
        RequireGradient(Read(keyGradient.Lengths, keyGradient.IsDense, nameof(keyGradient), KeyLayout), k, nameof(keyGradient), "key");
        RequireGradient(Read(valueGradient.Lengths, valueGradient.IsDense, nameof(valueGradient), ValueLayout), v, nameof(valueGradient), "value");
        return shape;
    }

    /// <summary>The shape that four tensors of a device describe together.</summary>
    /// <exception cref="ArgumentException">A tensor lies on another device, has another rank than 4, does not fit the others, or is both input and output.</exception>
    public static AttentionShape Shape(ComputeDevice device, DeviceTensor query, DeviceTensor key, DeviceTensor value, DeviceTensor output)
    {
        RequireOn(device, query, nameof(query));
        RequireOn(device, key, nameof(key));
        RequireOn(device, value, nameof(value));
        RequireOn(device, output, nameof(output));
        if (output == query || output == key || output == value)
        {
            throw new ArgumentException($"The output {output} is an input too.", nameof(output));
        }

        RequireStoredAs(query.ElementType, key, nameof(key));
        RequireStoredAs(query.ElementType, value, nameof(value));
        RequireStoredAs(query.ElementType, output, nameof(output));

        return Shape(
            Read(query.Lengths, true, nameof(query), QueryLayout), Read(key.Lengths, true, nameof(key), KeyLayout),
            Read(value.Lengths, true, nameof(value), ValueLayout), Read(output.Lengths, true, nameof(output), OutputLayout));
    }

    /// <summary>The shape that four tensors of a device and their gradients describe together; unwanted gradients are null.</summary>
    /// <exception cref="ArgumentException">A tensor lies on another device, has another rank than 4, or does not fit the others.</exception>
    public static AttentionShape Shape(
        ComputeDevice device, DeviceTensor query, DeviceTensor key, DeviceTensor value, DeviceTensor output, DeviceTensor outputGradient,
        DeviceTensor? queryGradient, DeviceTensor? keyGradient, DeviceTensor? valueGradient)
    {
        AttentionShape shape = Shape(device, query, key, value, output);
        ArgumentNullException.ThrowIfNull(outputGradient);
        RequireGradient(outputGradient, output, nameof(outputGradient), "output", OutputLayout);
        RequireGradient(queryGradient, query, nameof(queryGradient), "query", QueryLayout);
        RequireGradient(keyGradient, key, nameof(keyGradient), "key", KeyLayout);
        RequireGradient(valueGradient, value, nameof(valueGradient), "value", ValueLayout);
        return shape;

        void RequireGradient(DeviceTensor? gradient, DeviceTensor of, string name, string other, string layout)
        {
            if (gradient is not null)
            {
                RequireOn(device, gradient, name);
                RequireStoredAs(query.ElementType, gradient, name);
                TensorArguments.RequireGradient(Read(gradient.Lengths, true, name, layout), Read(of.Lengths, true, other, layout), name, other);
            }
        }
    }

    /// <summary>The shape of keys and values alone: no queries, and as many heads.</summary>
    /// <exception cref="ArgumentException">A tensor is not dense, has another rank than 4, or does not fit the other.</exception>
    public static AttentionShape KeyShape<T>(in ReadOnlyTensorSpan<T> key, in ReadOnlyTensorSpan<T> value)
    {
        Sizes k = Read(key.Lengths, key.IsDense, nameof(key), KeyLayout);
        Sizes v = Read(value.Lengths, value.IsDense, nameof(value), ValueLayout);
        RequireValues(v, k);
        return new AttentionShape(k.Batch, 0, k.Tokens, k.Heads, k.Heads, k.Width, v.Width);
    }

    /// <summary>The shape of queries and outputs that read <paramref name="keyHeads"/> heads of a state: no keys.</summary>
    /// <exception cref="ArgumentException">A tensor is not dense, has another rank than 4, or does not fit the other or the state's heads.</exception>
    public static AttentionShape QueryShape<T>(in ReadOnlyTensorSpan<T> query, in TensorSpan<T> output, int keyHeads)
    {
        Sizes q = Read(query.Lengths, query.IsDense, nameof(query), QueryLayout);
        Sizes o = Read(output.Lengths, output.IsDense, nameof(output), OutputLayout);
        RequireOutputs(o, q);
        if (q.Heads % keyHeads != 0)
        {
            throw new ArgumentException($"query {q} does not fit a state of {keyHeads} heads: they must divide the query's.", nameof(query));
        }

        return new AttentionShape(q.Batch, q.Tokens, 0, q.Heads, keyHeads, q.Width, o.Width);
    }

    /// <summary>The shape of queries and keys alone, with values of one element.</summary>
    /// <exception cref="ArgumentException">A tensor is not dense, has another rank than 4, or does not fit the other.</exception>
    public static AttentionShape WeightsShape(in ReadOnlyTensorSpan<float> query, in ReadOnlyTensorSpan<float> key)
    {
        Sizes q = Read(query.Lengths, query.IsDense, nameof(query), QueryLayout);
        Sizes k = Read(key.Lengths, key.IsDense, nameof(key), KeyLayout);
        RequireKeys(k, q);
        return new AttentionShape(q.Batch, q.Tokens, k.Tokens, q.Heads, k.Heads, q.Width, 1);
    }

    /// <summary>Checks the sizes of a tensor that has those of others.</summary>
    /// <exception cref="ArgumentException">It is not dense, or has other sizes.</exception>
    public static void RequireSizes(string name, ReadOnlySpan<nint> lengths, bool dense, string layout, params ReadOnlySpan<nint> expected)
    {
        if (!lengths.SequenceEqual(expected))
        {
            throw new ArgumentException($"{name} {Describe(lengths)} is not {layout} = {Describe(expected)}.", name);
        }

        RequireDense(dense, name, lengths, layout);
    }

    /// <summary>Checks that a shape was made by a constructor.</summary>
    /// <exception cref="ArgumentException">It was not.</exception>
    public static void RequireMade(AttentionShape shape)
    {
        if (shape.Heads == 0)
        {
            throw new ArgumentException("The shape is empty; make one with a constructor of AttentionShape.", nameof(shape));
        }
    }

    /// <summary>Checks flat memory against a shape.</summary>
    /// <exception cref="ArgumentException">A length is wrong.</exception>
    public static void RequireLengths(AttentionShape shape, long query, long key, long value, long output)
    {
        RequireMade(shape);
        RequireLength("query", query, shape.QueryElements, shape);
        RequireLength("key", key, shape.KeyElements, shape);
        RequireLength("value", value, shape.ValueElements, shape);
        RequireLength("output", output, shape.OutputElements, shape);
    }

    /// <summary>Checks flat memory of gradients against a shape; unwanted ones are empty.</summary>
    /// <exception cref="ArgumentException">A length is wrong.</exception>
    public static void RequireGradientLengths(AttentionShape shape, long output, long query, long key, long value)
    {
        RequireLength("outputGradient", output, shape.OutputElements, shape);
        RequireLength("queryGradient", query, query == 0 ? 0 : shape.QueryElements, shape);
        RequireLength("keyGradient", key, key == 0 ? 0 : shape.KeyElements, shape);
        RequireLength("valueGradient", value, value == 0 ? 0 : shape.ValueElements, shape);
    }

    /// <summary>Throws when a gradient that is written shares memory with an input or with another.</summary>
    /// <exception cref="ArgumentException">It does.</exception>
    public static void RequireDisjoint(AttentionShape shape, in AttentionBuffers buffers, in GradientBuffers gradients)
    {
        ReadOnlySpan<(string Name, MemoryRegion Region)> written =
        [
            ("queryGradient", gradients.QueryGradient.Memory), ("keyGradient", gradients.KeyGradient.Memory),
            ("valueGradient", gradients.ValueGradient.Memory),
        ];
        ReadOnlySpan<(string Name, MemoryRegion Region)> read =
        [
            ("query", buffers.Query.Memory), ("key", buffers.Key.Memory), ("value", buffers.Value.Memory), ("output", buffers.Output.Memory),
            ("outputGradient", gradients.OutputGradient.Memory),
        ];
        for (int i = 0; i < written.Length; i++)
        {
            foreach ((string name, MemoryRegion region) in read)
            {
                RequireDisjoint(name, region, written[i].Region, shape, written[i].Name);
            }

            foreach ((string name, MemoryRegion region) in written[..i])
            {
                RequireDisjoint(name, region, written[i].Region, shape, written[i].Name);
            }
        }
    }

    /// <summary>Checks flat queries and keys against a shape.</summary>
    /// <exception cref="ArgumentException">A length is wrong.</exception>
    public static void RequireLengths(AttentionShape shape, long query, long key)
    {
        RequireMade(shape);
        RequireLength("query", query, shape.QueryElements, shape);
        RequireLength("key", key, shape.KeyElements, shape);
    }

    /// <summary>Checks the length of a result <c>[B, H, n]</c>, or <c>[B, H, n, last]</c>, for n chosen tokens.</summary>
    /// <exception cref="ArgumentException">It is another.</exception>
    public static void RequireLength(string name, long length, AttentionShape shape, int chosen, string layout, long last = 1)
    {
        Int128 expected = (Int128)shape.Batch * shape.Heads * chosen * last;
        if (length != expected)
        {
            throw new ArgumentException($"{name} has {length} elements where {layout} has {expected}, n being {chosen} ({shape}).", name);
        }
    }

    /// <summary>Checks that chosen tokens are tokens.</summary>
    /// <exception cref="ArgumentException">One is not.</exception>
    public static void RequireTokens(string name, ReadOnlySpan<int> tokens, int length, AttentionShape shape)
    {
        for (int i = 0; i < tokens.Length; i++)
        {
            if ((uint)tokens[i] >= (uint)length)
            {
                throw new ArgumentException($"{name}[{i}] is {tokens[i]}, where tokens are from 0 to {length - 1} ({shape}).", name);
            }
        }
    }

    /// <summary>Throws when the output shares memory with an input.</summary>
    /// <exception cref="ArgumentException">It does.</exception>
    public static void RequireDisjoint(AttentionShape shape, in AttentionBuffers buffers)
    {
        RequireDisjoint("query", buffers.Query.Memory, buffers.Output.Memory, shape);
        RequireDisjoint("key", buffers.Key.Memory, buffers.Output.Memory, shape);
        RequireDisjoint("value", buffers.Value.Memory, buffers.Output.Memory, shape);
    }

    /// <summary>Throws when two regions of one allocation, or of host memory, overlap.</summary>
    /// <exception cref="ArgumentException">They do.</exception>
    public static void RequireDisjoint(string name, MemoryRegion input, MemoryRegion output, AttentionShape shape, string written = "output")
    {
        if (input.Length > 0 && output.Length > 0 && input.Owner == output.Owner
            && input.Address < output.Address + (output.Length * output.Type.Size()) && output.Address < input.Address + (input.Length * input.Type.Size()))
        {
            throw new ArgumentException($"{written} overlaps the {name} in memory ({shape}).", written);
        }
    }

    /// <summary>Throws when a result shares memory with the queries or keys.</summary>
    /// <exception cref="ArgumentException">It does.</exception>
    public static unsafe void RequireDisjoint(AttentionShape shape, float* query, float* key, string name, float* result, long resultLength)
    {
        MemoryRegion written = MemoryRegion.Host(result, resultLength);
        RequireDisjoint("query", MemoryRegion.Host(query, shape.QueryElements), written, shape, name);
        RequireDisjoint("key", MemoryRegion.Host(key, shape.KeyElements), written, shape, name);
    }

    /// <summary>How elements of a type are stored.</summary>
    /// <exception cref="NotSupportedException">Tensors of the type are not attended to.</exception>
    public static ElementType StorageOf<T>() =>
        typeof(T) == typeof(float) ? ElementType.Single
        : typeof(T) == typeof(Half) ? ElementType.Half
        : typeof(T) == typeof(BFloat16) ? ElementType.BFloat16
        : throw new NotSupportedException($"Tensors of {typeof(T)} are not attended to; use float, Half or BFloat16.");

    /// <summary>Throws when a layout does not describe tensors of a shape: its queries and its keys, or those that there are.</summary>
    /// <exception cref="ArgumentException">It does not.</exception>
    public static void RequireFit(SequenceLayout? layout, AttentionShape shape, bool needsBoth)
    {
        if (layout is null)
        {
            return;
        }

        string? reason = layout.WhyUnfit(shape);
        if (reason is null && needsBoth && (layout.KeyLength != shape.KeyLength || (layout.QueryLength ?? shape.QueryLength) != shape.QueryLength))
        {
            reason = $"{layout} are not {shape}";
        }

        if (reason is not null)
        {
            throw new ArgumentException($"The layout does not fit: {reason}.", nameof(layout));
        }
    }

    /// <summary>Throws when there are more tokens than causal blocks are told apart for.</summary>
    /// <exception cref="NotSupportedException">There are.</exception>
    public static void RequireBlocks(AttentionShape shape)
    {
        if ((long)shape.Batch * shape.KeyLength > Array.MaxLength)
        {
            throw new NotSupportedException($"A CausalBlock of more than 1 takes up to {Array.MaxLength} tokens, not {shape}.");
        }
    }

    /// <summary>Throws when a feature map does not take rows of the shape's dimension.</summary>
    /// <exception cref="ArgumentException">It does not.</exception>
    public static void RequireRows(string name, FeatureMap features, AttentionShape shape)
    {
        if (features.InputDimension is int taken && taken != shape.KeyDimension)
        {
            throw new ArgumentException($"The feature map {features} takes rows of dimension {taken}, not {shape.KeyDimension}: {shape}.", name);
        }
    }

    /// <summary>Throws when a number of tokens is not positive.</summary>
    /// <exception cref="ArgumentException">It is not.</exception>
    public static void RequirePositive(int value, string name, string parameter)
    {
        if (value < 1)
        {
            throw new ArgumentException($"{name} is {value}; it must be at least 1.", parameter);
        }
    }

    /// <summary>Throws when a factor is not a finite number.</summary>
    /// <exception cref="ArgumentException">It is not.</exception>
    public static void RequireFinite(float? value, string name, string parameter)
    {
        if (value is float number && !float.IsFinite(number))
        {
            throw new ArgumentException($"{name} is {number}; it must be finite.", parameter);
        }
    }

    private static AttentionShape Shape(Sizes q, Sizes k, Sizes v, Sizes o)
    {
        RequireKeys(k, q);
        RequireValues(v, k);
        RequireOutputs(o, q);
        Require(o.Width == v.Width, "output", o, "value", v, "the last dimensions must agree");
        return new AttentionShape(q.Batch, q.Tokens, k.Tokens, q.Heads, k.Heads, q.Width, v.Width);
    }

    private static void RequireKeys(Sizes k, Sizes q)
    {
        Require(k.Batch == q.Batch && k.Width == q.Width, "key", k, "query", q, "batch and row dimensions must agree");
        Require(q.Heads % k.Heads == 0, "key", k, "query", q, "its heads must divide the query's");
    }

    private static void RequireValues(Sizes v, Sizes k) =>
        Require((v.Batch, v.Tokens, v.Heads) == (k.Batch, k.Tokens, k.Heads), "value", v, "key", k, "all but the last dimension must agree");

    private static void RequireOutputs(Sizes o, Sizes q) =>
        Require((o.Batch, o.Tokens, o.Heads) == (q.Batch, q.Tokens, q.Heads), "output", o, "query", q, "all but the last dimension must agree");

    private static void RequireGradient(Sizes gradient, Sizes of, string name, string other) =>
        Require(gradient == of, name, gradient, other, of, "a gradient has the sizes of what it is the gradient of");

    private static void RequireOn(ComputeDevice device, DeviceTensor tensor, string name)
    {
        ArgumentNullException.ThrowIfNull(tensor, name);
        if (tensor.Device != device)
        {
            throw new ArgumentException($"{name} {tensor} does not lie on the operator's device, {device}.", name);
        }
    }

    private static void RequireStoredAs(ElementType type, DeviceTensor tensor, string name)
    {
        if (tensor.ElementType != type)
        {
            throw new ArgumentException($"{name} {tensor} is stored as {tensor.ElementType}, the query as {type}.", name);
        }
    }

    private static void RequireLength(string name, long length, long expected, AttentionShape shape)
    {
        if (length != expected)
        {
            throw new ArgumentException($"{name} has {length} elements where the shape asks for {expected} ({shape}).", name);
        }
    }

    private static Sizes Read(ReadOnlySpan<nint> lengths, bool dense, string name, string layout)
    {
        if (lengths.Length != 4)
        {
            throw new ArgumentException($"{name} {Describe(lengths)} has rank {lengths.Length}; expected rank 4, {layout}.", name);
        }

        RequireDense(dense, name, lengths, layout);
        if (lengths[2] == 0 || lengths[3] == 0)
        {
            throw new ArgumentException($"{name} {Describe(lengths)} has no heads, or heads of no elements; expected {layout}.", name);
        }

        foreach (nint length in lengths)
        {
            if (length > int.MaxValue)
            {
                throw new ArgumentException($"{name} {Describe(lengths)} has a dimension above {int.MaxValue}.", name);
            }
        }

        return new Sizes((int)lengths[0], (int)lengths[1], (int)lengths[2], (int)lengths[3]);
    }

    private static void RequireDense(bool dense, string name, ReadOnlySpan<nint> lengths, string layout)
    {
        if (!dense)
        {
            throw new ArgumentException(
                $"{name} {Describe(lengths)} is not dense; copy it to a tensor of its own ({layout}, row-major) first.", name);
        }
    }

    private static void Require(bool condition, string name, Sizes sizes, string other, Sizes otherSizes, string rule)
    {
        if (!condition)
        {
            throw new ArgumentException($"{name} {sizes} does not fit {other} {otherSizes}: {rule}.", name);
        }
    }

    private static string Describe(ReadOnlySpan<nint> lengths) => $"[{string.Join(", ", lengths.ToArray())}]";

    private readonly record struct Sizes(int Batch, int Tokens, int Heads, int Width)
    {
        public override string ToString() => $"[{Batch}, {Tokens}, {Heads}, {Width}]";
    }
}
