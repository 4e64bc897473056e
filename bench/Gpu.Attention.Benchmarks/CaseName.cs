using Gpu.Attention.Benchmarks.Reporting;

namespace Gpu.Attention.Benchmarks;

/// <summary>A case on a command line: a map, a direction, and <c>-training</c> where the backward pass follows the forward pass.</summary>
internal sealed record CaseName(string Map, bool Causal, bool IsTraining)
{
    private const string TrainingSuffix = "-training";
    private static readonly string[] Maps = [.. MapNames.Linear, MapNames.Exact];

    public override string ToString() => $"{Map}-{Direction(Causal)}{(IsTraining ? TrainingSuffix : "")}";

    /// <summary>Cases with commas between them.</summary>
    public static bool TryParseList(string text, out CaseName[] cases)
    {
        string[] names = text.Split(',');
        cases = [.. names.Select(Parse).OfType<CaseName>()];
        return cases.Length == names.Length;
    }

    public static CaseName? Parse(string text)
    {
        IEnumerable<CaseName> cases =
            from map in Maps
            from causal in (bool[])[true, false]
            from isTraining in (bool[])[true, false]
            select new CaseName(map, causal, isTraining);
        return cases.FirstOrDefault(c => c.ToString() == text);
    }

    /// <summary>A call of this case, ready to be timed.</summary>
    public Action Open(ComputeDevice device, AttentionShape shape, ReportTensors tensors)
    {
        var attention = new ReportOperator(device, Map, Causal);
        return IsTraining ? attention.TrainingCall(shape, tensors) : attention.ForwardCall(shape, tensors);
    }

    private static string Direction(bool causal) => causal ? "causal" : "bidirectional";
}
