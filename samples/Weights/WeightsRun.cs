namespace Gpu.Attention.Samples.Weights;

/// <summary>Weighs the words of a text in several ways, draws the weights, and says how far each way is from exact attention.</summary>
/// <param name="options">What to look at.</param>
/// <param name="output">Where the tables go.</param>
internal sealed class WeightsRun(WeightsOptions options, TextWriter output)
{
    private const ulong Seed = 1851;
    private const int ShownQueries = 4;
    private const int ShownKeys = 3;

    /// <summary>Runs everything.</summary>
    /// <returns>The maps, exact attention's first.</returns>
    public IReadOnlyList<AttentionMap> Run()
    {
        string[] words = WordEmbedding.Words(options.Text);
        float[] rows = WordEmbedding.Rows(words, options.Temperature);
        using ComputeDevice device = ComputeDevice.OpenDefault();
        AttentionMap exact = AttentionMap.Exact(device, rows, words.Length);
        var maps = new List<AttentionMap> { exact };
        int[] queries = QueriesWorthShowing(words);
        var largest = new List<IReadOnlyList<(int Key, float Weight)[]>> { Array.ConvertAll(queries, query => Largest(exact, query)) };
        foreach ((string name, FeatureMap features) in Methods())
        {
            using var attention = new LinearAttention(device, features, new LinearAttentionOptions { Causal = true, Scale = 1 });
            maps.Add(Implied(attention, name, rows, words.Length));
            largest.Add(TopKeys(attention, rows, words.Length, queries));
        }

        output.WriteLine($"{words.Length} words; exact weights are proportional to exp({options.Temperature} · cosine) over a word and those before it.");
        output.WriteLine();
        WriteErrors(maps);
        output.WriteLine();
        for (int i = 0; i < queries.Length; i++)
        {
            output.WriteLine($"\"{words[queries[i]]}\", word {queries[i]}, attends most to");
            foreach ((AttentionMap map, IReadOnlyList<(int Key, float Weight)[]> keys) in maps.Zip(largest))
            {
                output.WriteLine($"  {map.Name,-18}" + string.Concat(keys[i].Select(k => $"{words[k.Key],14}:{k.Key,-3} {k.Weight:0.00}")));
            }
        }

        output.WriteLine();
        Draw(maps);
        return maps;
    }

    private IEnumerable<(string Name, FeatureMap Features)> Methods() =>
    [
        .. options.Features.Select(m => ($"FAVOR+, m = {m}", FeatureMap.FavorPlus(RandomProjection.Orthogonal(m, WordEmbedding.Dimension, Seed)))),
        ("elu+1", FeatureMap.EluPlusOne),
    ];

    // Linear attention never makes these weights. They are asked for row by row, here for all rows.
    private static AttentionMap Implied(LinearAttention attention, string name, float[] rows, int length)
    {
        var shape = new AttentionShape(batch: 1, length, heads: 1, WordEmbedding.Dimension);
        float[] weights = new float[length * length];
        attention.Weights(shape, rows, rows, [.. Enumerable.Range(0, length)], weights);
        return new AttentionMap(name, length, weights);
    }

    private static IReadOnlyList<(int Key, float Weight)[]> TopKeys(LinearAttention attention, float[] rows, int length, int[] queries)
    {
        var shape = new AttentionShape(batch: 1, length, heads: 1, WordEmbedding.Dimension);
        int[] keys = new int[queries.Length * ShownKeys];
        float[] weights = new float[keys.Length];
        attention.TopKeys(shape, rows, rows, queries, keys, weights);
        return [.. keys.Zip(weights).Chunk(ShownKeys).Select(row => row.TakeWhile(k => k.First >= 0).ToArray())];
    }

    private static (int Key, float Weight)[] Largest(AttentionMap map, int query) =>
        [.. Enumerable.Range(0, query + 1).Select(key => (Key: key, Weight: map[query, key])).OrderByDescending(k => k.Weight).Take(ShownKeys)];

    // Words that occur a second time have something to find; if there are too few, the last words.
    private static int[] QueriesWorthShowing(string[] words)
    {
        IEnumerable<int> repeated = Enumerable.Range(0, words.Length).Where(i => words[i].Length > 1 && words.AsSpan(0, i).Contains(words[i]));
        IEnumerable<int> last = Enumerable.Range(0, words.Length).Reverse();
        return [.. repeated.Concat(last).Distinct().Take(ShownQueries).Order()];
    }

    private void WriteErrors(List<AttentionMap> maps)
    {
        AttentionMap exact = maps[0];
        output.WriteLine($"  {"",-18}{"mean error of a weight",24}{"KL of a row, nats",20}{"worst row",12}");
        foreach (AttentionMap map in maps.Skip(1).Append(AttentionMap.Uniform(exact.Length)))
        {
            (double MeanError, double Divergence)[] errors = [.. Enumerable.Range(0, exact.Length).Select(query => map.RowError(exact, query))];
            output.WriteLine(
                $"  {map.Name,-18}{errors.Average(e => e.MeanError),24:0.0000}{errors.Average(e => e.Divergence),20:0.0000}" +
                $"{errors.Max(e => e.Divergence),12:0.0000}");
        }
    }

    private void Draw(List<AttentionMap> maps)
    {
        var heat = new HeatMaps(maps);
        string path = Path.GetFullPath(options.Output);
        Directory.CreateDirectory(Path.GetDirectoryName(path)!);
        using FileStream file = File.Create(path);
        heat.Draw().Save(file);
        output.WriteLine($"""
            {options.Output}: from left to right {string.Join("; ", maps.Select(map => map.Name))}. A row is a word, top to bottom, and a column a word that it
            sees; ticks stand every ten words. Colours go from 0 to {heat.LargestShare:0.0} times an even share; the strip below has a tick at each whole one.
            """);
    }
}
