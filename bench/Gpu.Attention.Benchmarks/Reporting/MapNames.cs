namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>Names of what is timed: short in the JSON, in full for readers.</summary>
internal static class MapNames
{
    public const string Favor = "favor";
    public const string Hyperbolic = "favor-hyperbolic";
    public const string Elu = "elu";
    public const string Relu = "relu";
    public const string Exact = "softmax";
    public const string Copy = "copy";

    /// <summary>The feature maps, those with curves first.</summary>
    public static readonly string[] Linear = [Favor, Elu, Hyperbolic, Relu];

    public static string Of(string map) => map switch
    {
        Favor => "FAVOR+",
        Hyperbolic => "FAVOR+ hyperbolic",
        Elu => "elu+1",
        Relu => "ReLU",
        Exact => "exact attention",
        Copy => "copying V",
        _ => map,
    };

    /// <summary>The colour and marker that a map has in every chart; null for the next in order.</summary>
    public static int? Style(string map) => map switch
    {
        Exact => 1,
        Favor => 0,
        Elu => 2,
        Hyperbolic => 3,
        Relu => 4,
        _ => null,
    };
}

/// <summary>The two passes that are timed.</summary>
internal static class Passes
{
    public const string Forward = "forward";
    public const string Training = "forward+backward";
}
