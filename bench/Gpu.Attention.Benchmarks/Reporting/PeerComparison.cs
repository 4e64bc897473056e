using System.Globalization;
using System.Text.Json;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>PyTorch, in processes of its own, round by round in turn with this library.</summary>
internal static class PeerComparison
{
    private const string Training = "-training";
    private const double SampleSeconds = 0.05;

    // What the peer's script may be asked for; a case of training is the forward and the backward pass together.
    private static readonly string[] Cases =
    [
        "favor-causal", "favor-bidirectional", "elu-causal", "elu-bidirectional", "softmax-causal", "favor-causal-training", "elu-causal-training", "softmax-causal-training",
    ];

    /// <summary>Runs both; a case that the peer fails at is left out and said.</summary>
    /// <param name="peer">The command that runs a script.</param>
    /// <param name="scale">Lengths and rounds.</param>
    /// <param name="device">Where this library runs.</param>
    /// <param name="tensors">Of the longest length.</param>
    /// <param name="notes">Receives what went wrong.</param>
    public static IReadOnlyList<PeerRatioLine> Run(string peer, ReportScale scale, ComputeDevice device, ReportTensors tensors, ICollection<string> notes)
    {
        string script = Path.Combine(Tree.Root, "bench", "peers", "torch_attention.py");
        string lengths = string.Join(',', scale.PeerLengths);
        var theirs = new List<PeerLine>();
        using var ours = new DisposableList<ReportOperator>();
        var samples = new Dictionary<(string Case, int Length), Sample>();
        foreach (string name in Cases)
        {
            string[] parts = name.Split('-');
            var attention = new ReportOperator(device, parts[0], parts[1] == "causal");
            ours.Add(attention);
            bool isTraining = name.EndsWith(Training, StringComparison.Ordinal);
            if (isTraining && attention.WhyNoBackward() is not null)
            {
                continue;
            }

            foreach (int length in scale.PeerLengths)
            {
                AttentionShape shape = ReportTensors.Shape(length);
                Action call = isTraining ? attention.TrainingCall(shape, tensors) : attention.ForwardCall(shape, tensors);
                samples.Add((name, length), new Sample(call, Sampler.Warm(call)));
            }
        }

        int cores = Environment.ProcessorCount;
        (int Operators, int Products)[] settings = cores == 1 ? [(1, 1)] : [(1, 1), (cores, 1), (cores, cores)];
        var failed = new HashSet<string>();
        for (int round = 0; round < scale.PeerRounds; round++)
        {
            foreach ((int operators, int products) in settings)
            {
                foreach (bool isTraining in new[] { false, true })
                {
                    string[] names = [.. Cases.Where(c => c.EndsWith(Training, StringComparison.Ordinal) == isTraining)];
                    string list = string.Join(',', names);
                    if (failed.Contains(list))
                    {
                        continue;
                    }

                    CommandResult result = Python(peer, [script, "--lengths", lengths, "--cases", list], operators, products);
                    if (result.ExitCode != 0)
                    {
                        failed.Add(list);
                        notes.Add($"The peer failed at {list}: {result.Complaint}");
                        continue;
                    }

                    theirs.AddRange(result.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => JsonSerializer.Deserialize<PeerLine>(line)!));
                }

                // Between two of the peer's processes, so that both see the same weather.
                foreach (Sample sample in samples.Values)
                {
                    sample.Take(SampleSeconds);
                }
            }
        }

        return [.. theirs.Select(l => (l.Case, l.Length)).Distinct().Where(samples.ContainsKey).Select(key => Line(key, [.. theirs.Where(l => (l.Case, l.Length) == key)], samples[key]))];
    }

    /// <summary>One case: the peer at its best setting.</summary>
    internal static PeerRatioLine Line((string Case, int Length) key, IReadOnlyList<PeerLine> theirs, Sample ours)
    {
        string[] parts = key.Case.Split('-');
        IGrouping<string, PeerLine> best = theirs.GroupBy(l => l.Threads).MinBy(setting => Median.Of(setting.Select(l => l.Ms)))!;
        return new PeerRatioLine
        {
            Peer = best.First().Peer, Map = parts[0], Direction = parts[1], Pass = parts.Length > 2 ? Passes.Training : Passes.Forward, Length = key.Length,
            PeerMs = Median.Of(best.Select(l => l.Ms)), PeerFastestMs = theirs.Min(l => l.FastestMs), PeerThreads = best.Key, Ms = ours.Median * 1e3,
            FastestMs = ours.Fastest * 1e3,
        };
    }

    private static CommandResult Python(string peer, string[] arguments, int operators, int products)
    {
        string[] words = peer.Split(' ', StringSplitOptions.RemoveEmptyEntries);
        string count = products.ToString(CultureInfo.InvariantCulture);
        return Command.Run(words[0], [.. words[1..], .. arguments], environment: new Dictionary<string, string>
        {
            ["OMP_NUM_THREADS"] = operators.ToString(CultureInfo.InvariantCulture), ["OPENBLAS_NUM_THREADS"] = count, ["MKL_NUM_THREADS"] = count,
        });
    }

    private sealed class DisposableList<T> : List<T>, IDisposable
        where T : IDisposable
    {
        public void Dispose() => ForEach(item => item.Dispose());
    }
}
