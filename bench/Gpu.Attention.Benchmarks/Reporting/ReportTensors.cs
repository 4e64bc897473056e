using System.Runtime.InteropServices;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>The tensors of all lengths up to one, whose beginnings shorter problems use. Normal numbers, as <see cref="AttentionData"/> has them, over and over.</summary>
internal sealed unsafe class ReportTensors : IDisposable
{
    private const int PatternTokens = 4096;

    private readonly List<nint> _memory = [];
    private readonly long _elements;
    private readonly float* _query;
    private readonly float* _key;
    private readonly float* _value;
    private readonly float* _output;
    private readonly float* _outputGradient;
    private readonly float* _queryGradient;
    private readonly float* _keyGradient;
    private readonly float* _valueGradient;

    public ReportTensors(int length, int heads = AttentionCase.Heads, bool hasGradients = true)
    {
        AttentionShape shape = Shape(length, heads);
        _elements = shape.QueryElements;
        var pattern = new AttentionData(Shape(Math.Min(length, PatternTokens), heads));
        _query = Filled(pattern.Query);
        _key = Filled(pattern.Key);
        _value = Filled(pattern.Value);
        _output = Filled(pattern.Output);
        if (hasGradients)
        {
            // Anything that is like a value will do.
            Array.Reverse(pattern.Value);
            _outputGradient = Filled(pattern.Value);
            _queryGradient = Filled(pattern.Output);
            _keyGradient = Filled(pattern.Output);
            _valueGradient = Filled(pattern.Output);
        }
    }

    public static AttentionShape Shape(int length, int heads = AttentionCase.Heads) => new(batch: 1, length, heads, AttentionCase.Dimension);

    /// <summary>The bytes of so many tensors of a length.</summary>
    public static long Bytes(int length, int tensors) => tensors * sizeof(float) * Shape(length).QueryElements;

    public ReadOnlySpan<float> Query(long elements) => Span(_query, elements);

    public ReadOnlySpan<float> Key(long elements) => Span(_key, elements);

    public ReadOnlySpan<float> Value(long elements) => Span(_value, elements);

    public Span<float> Output(long elements) => Span(_output, elements);

    public ReadOnlySpan<float> OutputGradient(long elements) => Span(_outputGradient, elements);

    public Span<float> QueryGradient(long elements) => Span(_queryGradient, elements);

    public Span<float> KeyGradient(long elements) => Span(_keyGradient, elements);

    public Span<float> ValueGradient(long elements) => Span(_valueGradient, elements);

    public void Dispose()
    {
        _memory.ForEach(memory => NativeMemory.AlignedFree((void*)memory));
        _memory.Clear();
    }

    private float* Filled(float[] pattern)
    {
        var start = (nint)NativeMemory.AlignedAlloc((nuint)_elements * sizeof(float), 64);
        _memory.Add(start);
        Parallel.For(0, (_elements + pattern.Length - 1) / pattern.Length, block =>
        {
            long first = block * pattern.Length;
            int count = (int)Math.Min(pattern.Length, _elements - first);
            pattern.AsSpan(0, count).CopyTo(new Span<float>((float*)start + first, count));
        });
        return (float*)start;
    }

    private Span<float> Span(float* start, long elements)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(elements, _elements);
        return new Span<float>(start, checked((int)elements));
    }
}
