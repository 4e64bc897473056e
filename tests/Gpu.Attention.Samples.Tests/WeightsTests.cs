using System.Buffers.Binary;
using System.IO.Compression;
using System.Text;
using Gpu.Attention.Samples.Weights;
using Xunit;

namespace Gpu.Attention.Samples.Tests;

public sealed class WeightsTests
{
    [Fact]
    public void Picture_HasTheColoursOfTheWeights()
    {
        // Even shares in one map; in the other each word attends to the first one alone.
        var heat = new HeatMaps([AttentionMap.Of(3, "first", (_, key) => key == 0 ? 1 : 0), AttentionMap.Uniform(3)]);
        Assert.Equal(3, heat.LargestShare);
        Color[,] pixels = Decode(Saved(heat.Draw()));

        for (int query = 0; query < 3; query++)
        {
            for (int key = 0; key < 3; key++)
            {
                RequireCell(0, query, key, key > query ? HeatMaps.Background : heat.ColorOf(key == 0 ? query + 1 : 0));
                RequireCell(1, query, key, key > query ? HeatMaps.Background : heat.ColorOf(1));
            }
        }

        void RequireCell(int map, int query, int key, Color expected)
        {
            (int x, int y) = heat.CellAt(map, query, key);
            for (int i = 0; i < heat.CellSize * heat.CellSize; i++)
            {
                Assert.Equal(expected, pixels[y + (i / heat.CellSize), x + (i % heat.CellSize)]);
            }
        }
    }

    [Fact]
    public void Colours_RiseFromDarkToBright()
    {
        var heat = new HeatMaps([AttentionMap.Uniform(2)]);
        double[] brightness = [.. Enumerable.Range(0, 101)
            .Select(i => heat.ColorOf(heat.LargestShare * i / 100))
            .Select(c => (0.299 * c.Red) + (0.587 * c.Green) + (0.114 * c.Blue))];

        Assert.Equal(new Color(68, 1, 84), heat.ColorOf(0));
        Assert.Equal(new Color(253, 231, 37), heat.ColorOf(heat.LargestShare));
        Assert.Equal(heat.ColorOf(heat.LargestShare), heat.ColorOf(7 * heat.LargestShare));
        Assert.All(brightness.Zip(brightness.Skip(1)), pair => Assert.True(pair.Second > pair.First));
    }

    [Fact]
    public void Run_DrawsEveryMapAndErrsLessWithMoreFeatures()
    {
        DirectoryInfo folder = Directory.CreateTempSubdirectory("gpu-attention-weights-");
        try
        {
            using var console = new StringWriter();
            var options = new WeightsOptions { Features = [32, 256, 4096], Output = Path.Combine(folder.FullName, "new", "weights.png") };
            IReadOnlyList<AttentionMap> maps = new WeightsRun(options, console).Run();

            Assert.Equal(["exact softmax", "FAVOR+, m = 32", "FAVOR+, m = 256", "FAVOR+, m = 4096", "elu+1"], maps.Select(map => map.Name));
            Assert.All(maps, map => Assert.All(Enumerable.Range(0, map.Length), query => Assert.Equal(
                1, Enumerable.Range(0, map.Length).Sum(key => map[query, key]), 1e-5)));
            double[] errors = [.. maps.Append(AttentionMap.Uniform(maps[0].Length)).Select(map => Error(map, maps[0]).Mean)];
            double[] divergences = [.. maps.Append(AttentionMap.Uniform(maps[0].Length)).Select(map => Error(map, maps[0]).Divergence)];
            foreach (double[] falling in new[] { errors[1..4], divergences[1..4] })
            {
                Assert.True(falling[1] < falling[0] && falling[2] < falling[1], string.Join(' ', falling));
            }

            Assert.Equal(0, errors[0]);
            Assert.True(divergences[3] < divergences[^1] / 5, "with many features FAVOR+ is far closer than uniform weights are");

            var heat = new HeatMaps(maps);
            Color[,] pixels = Decode(File.ReadAllBytes(options.Output));
            (int right, int bottom) = heat.CellAt(maps.Count - 1, maps[0].Length - 1, maps[0].Length - 1);
            Assert.True(pixels.GetLength(1) > right + heat.CellSize && pixels.GetLength(0) > bottom + heat.CellSize);
            Assert.Equal(heat.ColorOf(maps[1][20, 3] * 21), At(1, 20, 3));
            Assert.Equal(HeatMaps.Background, At(1, 3, 20));
            Assert.All(maps, map => Assert.Contains(console.ToString().Split('\n'), line => line.Contains(map.Name, StringComparison.Ordinal)));

            Color At(int map, int query, int key)
            {
                (int x, int y) = heat.CellAt(map, query, key);
                return pixels[y, x];
            }
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    // Exact attention finds a word's earlier self, and so do enough random features.
    [Fact]
    public void Run_FindsTheSameWordEarlier()
    {
        DirectoryInfo folder = Directory.CreateTempSubdirectory("gpu-attention-weights-");
        try
        {
            using var console = new StringWriter();
            var options = new WeightsOptions
            {
                Text = "whale ship harpoon captain ocean whale",
                Features = [4096],
                Output = Path.Combine(folder.FullName, "weights.png"),
            };
            foreach (AttentionMap map in new WeightsRun(options, console).Run().Take(2))
            {
                Assert.Equal([5, 0], Enumerable.Range(0, 6).OrderByDescending(key => map[5, key]).Take(2));
            }

            Assert.Contains("\"whale\", word 5, attends most to", console.ToString(), StringComparison.Ordinal);
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    [Fact]
    public void Rows_HaveTheLengthThatIsAskedForAndKnowEqualWords()
    {
        string[] words = WordEmbedding.Words("The ship, the SHIP's; a ship's \"7\".");
        Assert.Equal(["the", "ship", "the", "ship's", "a", "ship's", "7"], words);

        float[] rows = WordEmbedding.Rows(words, squaredLength: 2);
        Assert.All(Enumerable.Range(0, words.Length), i => Assert.Equal(2, Dot(i, i), 1e-5));
        Assert.True(Dot(3, 5) > 1.28, "equal words");
        Assert.True(Dot(1, 3) > Dot(1, 2) && Dot(1, 3) > 0.5, "words with letters in common");

        double Dot(int i, int j) => Row(i).Zip(Row(j), (x, y) => (double)x * y).Sum();

        IEnumerable<float> Row(int i) => rows.Skip(i * WordEmbedding.Dimension).Take(WordEmbedding.Dimension);
    }

    [Fact]
    public void Crc_IsThatOfPng() => Assert.Equal(0xCBF43926, Bitmap.Crc32("12345"u8.ToArray(), "6789"u8.ToArray()));

    private static (double Mean, double Divergence) Error(AttentionMap map, AttentionMap truth)
    {
        (double MeanError, double Divergence)[] rows = [.. Enumerable.Range(0, map.Length).Select(query => map.RowError(truth, query))];
        return (rows.Average(r => r.MeanError), rows.Average(r => r.Divergence));
    }

    private static byte[] Saved(Bitmap bitmap)
    {
        using var stream = new MemoryStream();
        bitmap.Save(stream);
        return stream.ToArray();
    }

    /// <summary>Reads a PNG file of 24 bits a pixel whose rows are not filtered, and checks all that a reader would.</summary>
    private static Color[,] Decode(byte[] file)
    {
        Assert.Equal([0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A], file[..8]);
        var chunks = new List<(string Type, byte[] Data)>();
        for (int at = 8; at < file.Length;)
        {
            int length = BinaryPrimitives.ReadInt32BigEndian(file.AsSpan(at));
            byte[] typeAndData = file[(at + 4)..(at + 8 + length)];
            Assert.Equal(Bitmap.Crc32(typeAndData), BinaryPrimitives.ReadUInt32BigEndian(file.AsSpan(at + 8 + length)));
            chunks.Add((Encoding.ASCII.GetString(typeAndData, 0, 4), typeAndData[4..]));
            at += 12 + length;
        }

        Assert.Equal(["IHDR", "IDAT", "IEND"], chunks.Select(chunk => chunk.Type));
        byte[] header = chunks[0].Data;
        int width = BinaryPrimitives.ReadInt32BigEndian(header);
        int height = BinaryPrimitives.ReadInt32BigEndian(header.AsSpan(4));
        Assert.Equal([8, 2, 0, 0, 0], header[8..]);

        using var zlib = new ZLibStream(new MemoryStream(chunks[1].Data), CompressionMode.Decompress);
        using var raw = new MemoryStream();
        zlib.CopyTo(raw);
        byte[] bytes = raw.ToArray();
        Assert.Equal(height * (1 + (3 * width)), bytes.Length);
        var pixels = new Color[height, width];
        for (int y = 0; y < height; y++)
        {
            int row = y * (1 + (3 * width));
            Assert.Equal(0, bytes[row]);
            for (int x = 0; x < width; x++)
            {
                pixels[y, x] = new Color(bytes[row + 1 + (3 * x)], bytes[row + 2 + (3 * x)], bytes[row + 3 + (3 * x)]);
            }
        }

        return pixels;
    }
}
