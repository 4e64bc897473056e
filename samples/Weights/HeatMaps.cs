namespace Gpu.Attention.Samples.Weights;

/// <summary>
/// Draws maps side by side in one picture. A cell's colour says how many times its even share a key has, that is the weight times the number of keys that
/// the query sees: so the first rows, whose few keys have much each, do not outshine the last.
/// </summary>
/// <param name="maps">The maps, all of one length; the first one sets the scale.</param>
internal sealed class HeatMaps(IReadOnlyList<AttentionMap> maps)
{
    private const int Margin = 16;
    private const int Gap = 24;
    private const int TickLength = 5;
    private const int WordsPerTick = 10;
    private const int LegendHeight = 12;

    // Evenly spaced along viridis, whose lightness rises evenly too.
    private static readonly Color[] Stops =
    [
        new(68, 1, 84), new(72, 36, 117), new(65, 68, 135), new(53, 95, 141), new(42, 120, 142), new(33, 145, 140), new(34, 168, 132), new(68, 191, 112),
        new(122, 209, 81), new(189, 223, 38), new(253, 231, 37),
    ];

    private readonly int _length = maps[0].Length;

    public static Color Background { get; } = new(255, 255, 255);

    public static Color Ink { get; } = new(64, 64, 64);

    /// <summary>Pixels of a cell's side.</summary>
    public int CellSize => Math.Clamp(400 / _length, 1, 16);

    /// <summary>The share that has the brightest colour; what lies above has it too.</summary>
    public float LargestShare { get; } = Shares(maps[0]).Max();

    /// <summary>The colour of a share.</summary>
    public Color ColorOf(float share)
    {
        float place = Math.Clamp(share / LargestShare, 0, 1) * (Stops.Length - 1);
        int stop = Math.Min((int)place, Stops.Length - 2);
        (Color low, Color high) = (Stops[stop], Stops[stop + 1]);
        return new Color(Mix(low.Red, high.Red), Mix(low.Green, high.Green), Mix(low.Blue, high.Blue));

        byte Mix(byte from, byte to) => (byte)MathF.Round(from + ((to - from) * (place - stop)));
    }

    /// <summary>The upper left pixel of a cell.</summary>
    public (int X, int Y) CellAt(int map, int query, int key) =>
        (Margin + (map * ((_length * CellSize) + Gap)) + (key * CellSize), Margin + (query * CellSize));

    public Bitmap Draw()
    {
        int side = _length * CellSize;
        int width = (2 * Margin) + (maps.Count * side) + ((maps.Count - 1) * Gap);
        int legend = Margin + side + Gap;
        var picture = new Bitmap(width, legend + LegendHeight + TickLength + Margin, Background);
        for (int map = 0; map < maps.Count; map++)
        {
            DrawMap(picture, map);
        }

        int legendWidth = width - (2 * Margin);
        for (int x = 0; x < legendWidth; x++)
        {
            picture.Fill(Margin + x, legend, 1, LegendHeight, ColorOf(LargestShare * x / (legendWidth - 1)));
        }

        // A tick at each whole share: none, an even one, twice that, ...
        for (int share = 0; share <= LargestShare; share++)
        {
            picture.Fill(Margin + (int)(share / LargestShare * (legendWidth - 1)), legend + LegendHeight, 1, TickLength, Ink);
        }

        return picture;
    }

    private static IEnumerable<float> Shares(AttentionMap map) =>
        from query in Enumerable.Range(0, map.Length)
        from key in Enumerable.Range(0, query + 1)
        select map[query, key] * (query + 1);

    private void DrawMap(Bitmap picture, int map)
    {
        for (int query = 0; query < _length; query++)
        {
            for (int key = 0; key <= query; key++)
            {
                (int x, int y) = CellAt(map, query, key);
                picture.Fill(x, y, CellSize, CellSize, ColorOf(maps[map][query, key] * (query + 1)));
            }
        }

        for (int word = 0; word < _length; word += WordsPerTick)
        {
            (int x, int y) = CellAt(map, word, word);
            (int left, int top) = CellAt(map, 0, 0);
            picture.Fill(x, top - TickLength, 1, TickLength - 1, Ink);
            picture.Fill(left - TickLength, y, TickLength - 1, 1, Ink);
        }
    }
}
