namespace Gpu.Attention.Samples.Training;

/// <summary>The sizes of a model.</summary>
/// <param name="Symbols">Different symbols.</param>
/// <param name="Context">The longest sequence.</param>
/// <param name="Width">Elements of a token's row.</param>
/// <param name="Heads">Attention heads; they share the width.</param>
/// <param name="Layers">Layers of attention and feed-forward.</param>
internal sealed record ModelSize(int Symbols, int Context, int Width, int Heads, int Layers)
{
    /// <summary>Elements of a head's row.</summary>
    public int HeadDimension => Width / Heads;

    /// <summary>Elements between the two halves of a feed-forward layer.</summary>
    public int Hidden => 4 * Width;
}

/// <summary>One of a model's tensors: a part of the flat array of parameters, and the same part of the array of gradients.</summary>
internal sealed record Parameter(string Name, Memory<float> Values, Memory<float> Gradients, int Offset, bool Decays);

/// <summary>A model's parameters in one flat array, with their gradients beside them.</summary>
internal sealed class Parameters
{
    private readonly List<Parameter> _all = [];
    private int _used;

    public Parameters(ModelSize size, ulong seed)
    {
        int width = size.Width;
        int perLayer = (4 * width * width) + (2 * width * size.Hidden) + size.Hidden + (5 * width);
        int count = ((2 * size.Symbols) + size.Context + 2) * width + (size.Layers * perLayer);
        (Values, Gradients) = (new float[count], new float[count]);
        var random = new RandomSource(seed);
        const float Small = 0.02f;
        float product = 1 / MathF.Sqrt(width);

        // What a layer adds starts smaller the more layers there are, so that their sum does not grow with depth.
        float added = product / MathF.Sqrt(2 * size.Layers);
        Tokens = Draw("tokens", size.Symbols * width, Small, random, decays: false);
        Positions = Draw("positions", size.Context * width, Small, random, decays: false);
        Layers =
        [
            .. Enumerable.Range(0, size.Layers).Select(layer => new LayerParameters(
                Fill($"{layer}.norm1.gain", width, 1), Fill($"{layer}.norm1.bias", width, 0),
                Draw($"{layer}.query", width * width, product, random), Draw($"{layer}.key", width * width, product, random),
                Draw($"{layer}.value", width * width, product, random), Draw($"{layer}.join", width * width, added, random),
                Fill($"{layer}.norm2.gain", width, 1), Fill($"{layer}.norm2.bias", width, 0),
                Draw($"{layer}.up", width * size.Hidden, product, random), Fill($"{layer}.up.bias", size.Hidden, 0),
                Draw($"{layer}.down", width * size.Hidden, added / 2, random), Fill($"{layer}.down.bias", width, 0))),
        ];
        NormGain = Fill("norm.gain", width, 1);
        NormBias = Fill("norm.bias", width, 0);
        Output = Draw("output", width * size.Symbols, product, random);
    }

    /// <summary>Every parameter.</summary>
    public float[] Values { get; }

    /// <summary>The loss's gradient with respect to every parameter.</summary>
    public float[] Gradients { get; }

    /// <summary>The tensors, in the order of their places.</summary>
    public IReadOnlyList<Parameter> All => _all;

    public Parameter Tokens { get; }

    public Parameter Positions { get; }

    public IReadOnlyList<LayerParameters> Layers { get; }

    public Parameter NormGain { get; }

    public Parameter NormBias { get; }

    public Parameter Output { get; }

    private Parameter Draw(string name, int count, float deviation, RandomSource random, bool decays = true)
    {
        Parameter parameter = Place(name, count, decays);
        foreach (ref float value in parameter.Values.Span)
        {
            value = deviation * random.Normal();
        }

        return parameter;
    }

    private Parameter Fill(string name, int count, float value)
    {
        Parameter parameter = Place(name, count, decays: false);
        parameter.Values.Span.Fill(value);
        return parameter;
    }

    private Parameter Place(string name, int count, bool decays)
    {
        var parameter = new Parameter(name, Values.AsMemory(_used, count), Gradients.AsMemory(_used, count), _used, decays);
        _all.Add(parameter);
        _used += count;
        return parameter;
    }
}

/// <summary>A layer's parameters.</summary>
internal sealed record LayerParameters(
    Parameter Norm1Gain, Parameter Norm1Bias, Parameter Query, Parameter Key, Parameter Value, Parameter Join,
    Parameter Norm2Gain, Parameter Norm2Bias, Parameter Up, Parameter UpBias, Parameter Down, Parameter DownBias);
