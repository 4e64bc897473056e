using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace Gpu.Attention;

// A sequence token by token, or in blocks: append to a state, read it, or both.
public sealed unsafe partial class LinearAttention
{
    /// <summary>Adds float32 keys and values to what a state has seen.</summary>
    /// <inheritdoc cref="Append{T}(AttentionState, in ReadOnlyTensorSpan{T}, in ReadOnlyTensorSpan{T}, SequenceLayout?)"/>
    public void Append(
        AttentionState state, in ReadOnlyTensorSpan<float> key, in ReadOnlyTensorSpan<float> value, SequenceLayout? layout = null) =>
        Append<float>(state, key, value, layout);

    /// <summary>Adds keys and values to what a state has seen.</summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>: how tensors are stored; the state is float32.</typeparam>
    /// <param name="state">The state; see <see cref="CreateState"/>.</param>
    /// <param name="key">Keys <c>[N, S, Hk, D]</c>, one token or a block of them.</param>
    /// <param name="value">Values <c>[N, S, Hk, Dv]</c>.</param>
    /// <param name="layout">Which tokens belong to which sequence and which keys take part; null when sequences fill their rows of the batch.</param>
    /// <exception cref="ArgumentException">A rank, size or stride is wrong, or the state does not fit.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem, or the convention has no state; the message says why.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Append<T>(AttentionState state, in ReadOnlyTensorSpan<T> key, in ReadOnlyTensorSpan<T> value, SequenceLayout? layout = null)
        where T : unmanaged
    {
        AttentionShape shape = TensorArguments.KeyShape(key, value);
        fixed (T* k = &TensorMarshal.GetReference(key))
        fixed (T* v = &TensorMarshal.GetReference(value))
        {
            RunState(Call.Append, state, shape, TensorArguments.StorageOf<T>(), null, k, v, null, layout);
        }
    }

    /// <summary>Adds keys and values in flat memory to what a state has seen.</summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>: how tensors are stored; the state is float32.</typeparam>
    /// <param name="state">The state; see <see cref="CreateState"/>.</param>
    /// <param name="shape">The sizes; its query length and heads are not looked at.</param>
    /// <param name="key">Keys, <c>N·S·Hk·D</c> elements.</param>
    /// <param name="value">Values, <c>N·S·Hk·Dv</c> elements.</param>
    /// <param name="layout">Which tokens belong to which sequence and which keys take part; null when sequences fill their rows of the batch.</param>
    /// <exception cref="ArgumentException">A length is wrong, or the state does not fit.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem, or the convention has no state; the message says why.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Append<T>(AttentionState state, AttentionShape shape, ReadOnlySpan<T> key, ReadOnlySpan<T> value, SequenceLayout? layout = null)
        where T : unmanaged
    {
        TensorArguments.RequireMade(shape);
        shape = new AttentionShape(shape.Batch, 0, shape.KeyLength, shape.KeyHeads, shape.KeyHeads, shape.KeyDimension, shape.ValueDimension);
        TensorArguments.RequireLengths(shape, 0, key.Length, value.Length, 0);
        fixed (T* k = key)
        fixed (T* v = value)
        {
            RunState(Call.Append, state, shape, TensorArguments.StorageOf<T>(), null, k, v, null, layout);
        }
    }

    /// <summary>Reads a state with float32 queries: every query sees all that it has seen. The state does not change.</summary>
    /// <inheritdoc cref="Read{T}(AttentionState, in ReadOnlyTensorSpan{T}, in TensorSpan{T}, SequenceLayout?)"/>
    public void Read(AttentionState state, in ReadOnlyTensorSpan<float> query, in TensorSpan<float> output, SequenceLayout? layout = null) =>
        Read<float>(state, query, output, layout);

    /// <summary>Reads a state: every query sees all that it has seen. The state does not change.</summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>: how tensors are stored; the state is float32.</typeparam>
    /// <param name="state">The state; see <see cref="CreateState"/>.</param>
    /// <param name="query">Queries <c>[N, T, H, D]</c>; query head <c>i</c> reads the state's head <c>i / (H / Hk)</c>.</param>
    /// <param name="output">Receives the outputs <c>[N, T, H, Dv]</c>, 0 where the state has seen nothing; may not overlap the queries.</param>
    /// <param name="layout">Which queries belong to which sequence; null when sequences fill their rows of the batch. Its keys do not matter.</param>
    /// <exception cref="ArgumentException">A rank, size or stride is wrong, the state does not fit, or the output overlaps the queries.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem, or the convention has no state; the message says why.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Read<T>(AttentionState state, in ReadOnlyTensorSpan<T> query, in TensorSpan<T> output, SequenceLayout? layout = null)
        where T : unmanaged
    {
        ArgumentNullException.ThrowIfNull(state);
        AttentionShape shape = TensorArguments.QueryShape(query, output, state.Heads);
        fixed (T* q = &TensorMarshal.GetReference(query))
        fixed (T* o = &TensorMarshal.GetReference(output))
        {
            RunState(Call.Read, state, shape, TensorArguments.StorageOf<T>(), q, null, null, o, layout);
        }
    }

    /// <summary>Reads a state with queries in flat memory.</summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>: how tensors are stored; the state is float32.</typeparam>
    /// <param name="state">The state; see <see cref="CreateState"/>.</param>
    /// <param name="shape">The sizes; its key length is not looked at.</param>
    /// <param name="query">Queries, <c>N·T·H·D</c> elements.</param>
    /// <param name="output">Receives the outputs, <c>N·T·H·Dv</c> elements; may not overlap the queries.</param>
    /// <param name="layout">Which queries belong to which sequence; null when sequences fill their rows of the batch. Its keys do not matter.</param>
    /// <exception cref="ArgumentException">A length is wrong, the state does not fit, or the output overlaps the queries.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem, or the convention has no state; the message says why.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Read<T>(AttentionState state, AttentionShape shape, ReadOnlySpan<T> query, Span<T> output, SequenceLayout? layout = null)
        where T : unmanaged
    {
        TensorArguments.RequireMade(shape);
        shape = new AttentionShape(shape.Batch, shape.QueryLength, 0, shape.Heads, shape.KeyHeads, shape.KeyDimension, shape.ValueDimension);
        TensorArguments.RequireLengths(shape, query.Length, 0, 0, output.Length);
        fixed (T* q = query)
        fixed (T* o = output)
        {
            RunState(Call.Read, state, shape, TensorArguments.StorageOf<T>(), q, null, null, o, layout);
        }
    }

    /// <summary>Appends float32 tokens and reads the state.</summary>
    /// <inheritdoc cref="Step{T}(AttentionState, in ReadOnlyTensorSpan{T}, in ReadOnlyTensorSpan{T}, in ReadOnlyTensorSpan{T}, in TensorSpan{T}, SequenceLayout?)"/>
    public void Step(
        AttentionState state, in ReadOnlyTensorSpan<float> query, in ReadOnlyTensorSpan<float> key, in ReadOnlyTensorSpan<float> value,
        in TensorSpan<float> output, SequenceLayout? layout = null) =>
        Step<float>(state, query, key, value, output, layout);

    /// <summary>
    /// Appends one token, or a block of them, and reads the state: query <c>i</c> sees all that the state had seen, and the block's keys
    /// <c>0..i</c>, or of its own causal block, whatever <see cref="LinearAttentionOptions.Causal"/> says.
    /// </summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>: how tensors are stored; the state is float32.</typeparam>
    /// <remarks>
    /// <para>Time and memory do not depend on how much the state has seen; on the host a second call of the same shape allocates nothing. On another device
    /// the state goes up and comes down with every call, so that blocks of some hundred tokens pay there and single ones do not.</para>
    /// <para>Bits, on one device: a step gives those of a causal <c>Forward</c> over the same block with <paramref name="state"/> as initial and final state, alone or
    /// in any batch. With a direct feature map on the host, and no layout or causal blocks, blocks of multiples of 64 tokens, the last of any length,
    /// give the bits of one call over them all. Otherwise another cut of a sequence changes its rounding: of exponential features a state is handed out at the scale of their
    /// running maximum, to which it is rounded.</para>
    /// </remarks>
    /// <param name="state">The state; see <see cref="CreateState"/>.</param>
    /// <param name="query">Queries <c>[N, T, H, D]</c>.</param>
    /// <param name="key">Keys <c>[N, T, Hk, D]</c>.</param>
    /// <param name="value">Values <c>[N, T, Hk, Dv]</c>.</param>
    /// <param name="output">Receives the outputs <c>[N, T, H, Dv]</c>; may not overlap an input.</param>
    /// <param name="layout">Which tokens belong to which sequence and which keys take part; null when sequences fill their rows of the batch.</param>
    /// <exception cref="ArgumentException">A rank, size or stride is wrong, the state does not fit, or the output overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem, or the convention has no state; the message says why.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Step<T>(
        AttentionState state, in ReadOnlyTensorSpan<T> query, in ReadOnlyTensorSpan<T> key, in ReadOnlyTensorSpan<T> value, in TensorSpan<T> output,
        SequenceLayout? layout = null)
        where T : unmanaged
    {
        AttentionShape shape = TensorArguments.Shape(query, key, value, output);
        fixed (T* q = &TensorMarshal.GetReference(query))
        fixed (T* k = &TensorMarshal.GetReference(key))
        fixed (T* v = &TensorMarshal.GetReference(value))
        fixed (T* o = &TensorMarshal.GetReference(output))
        {
            RunState(Call.Step, state, shape, TensorArguments.StorageOf<T>(), q, k, v, o, layout);
        }
    }

    /// <summary>Appends one token, or a block of them, in flat memory, and reads the state: see the other overload.</summary>
    /// <typeparam name="T"><see cref="float"/>, <see cref="Half"/> or <see cref="BFloat16"/>: how tensors are stored; the state is float32.</typeparam>
    /// <param name="state">The state; see <see cref="CreateState"/>.</param>
    /// <param name="shape">The sizes; as many queries as keys.</param>
    /// <param name="query">Queries, <c>N·T·H·D</c> elements.</param>
    /// <param name="key">Keys, <c>N·T·Hk·D</c> elements.</param>
    /// <param name="value">Values, <c>N·T·Hk·Dv</c> elements.</param>
    /// <param name="output">Receives the outputs, <c>N·T·H·Dv</c> elements; may not overlap an input.</param>
    /// <param name="layout">Which tokens belong to which sequence and which keys take part; null when sequences fill their rows of the batch.</param>
    /// <exception cref="ArgumentException">A length is wrong, the state does not fit, or the output overlaps an input.</exception>
    /// <exception cref="NotSupportedException">The device cannot run the problem, or the convention has no state; the message says why.</exception>
    /// <exception cref="ObjectDisposedException">The operator or its device is disposed.</exception>
    public void Step<T>(
        AttentionState state, AttentionShape shape, ReadOnlySpan<T> query, ReadOnlySpan<T> key, ReadOnlySpan<T> value, Span<T> output,
        SequenceLayout? layout = null)
        where T : unmanaged
    {
        TensorArguments.RequireLengths(shape, query.Length, key.Length, value.Length, output.Length);
        fixed (T* q = query)
        fixed (T* k = key)
        fixed (T* v = value)
        fixed (T* o = output)
        {
            RunState(Call.Step, state, shape, TensorArguments.StorageOf<T>(), q, k, v, o, layout);
        }
    }

    private void RunState(
        Call call, AttentionState state, AttentionShape shape, ElementType storage, void* query, void* key, void* value, void* output, SequenceLayout? layout)
    {
        ArgumentNullException.ThrowIfNull(state);
        if (call == Call.Step && shape.QueryLength != shape.KeyLength)
        {
            throw new ArgumentException($"A step takes as many keys as queries, not {shape}.", nameof(key));
        }

        if (Options is { Compatibility: ReferenceConvention.Lucidrains, Causal: true })
        {
            throw new NotSupportedException("The Lucidrains convention of causal attention adds to the normaliser what a state cannot carry.");
        }

        AttentionProblem problem = Problem(
            call, shape, storage, causal: call == Call.Step, hasInitialState: true, wantsFinalState: call != Call.Read, layout);
        RequireFit(state, problem, nameof(state));
        Run(problem, DenseBuffers.Of(shape, storage, query, key, value, output), state, call == Call.Read ? null : state);
    }
}
