using Gpu.Attention.Benchmarks.Reporting;

namespace Gpu.Attention.Benchmarks;

/// <summary>A case on a command line: a map, a direction, and <c>-training</c> where the backward pass follows the forward pass.</summary>
internal sealed record CaseName(string Map, bool Causal, bool IsTraining)
{
    private const string TrainingSuffix = "-training";
    private static readonly string[] Maps = [.. MapNames.Linear, MapNames.Exact];

    public override string ToString() => $"{Map}-{(Causal ? "causal" : "bidirectional")}{(IsTraining ? TrainingSuffix : "")}";

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

    public ReportOperator Open(ComputeDevice device) => new(device, Map, Causal);

    /// <summary>A call of this case's operator, ready to be timed.</summary>
    public Action CallOf(ReportOperator attention, AttentionShape shape, ReportTensors tensors) =>
        IsTraining ? attention.TrainingCall(shape, tensors) : attention.ForwardCall(shape, tensors);
}
