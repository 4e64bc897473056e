using Gpu.Attention.Plotting;

namespace Gpu.Attention.Samples.Training;

/// <summary>Writes pictures.</summary>
internal static class Pictures
{
    public static void Save(string folder, string name, LineChart chart, TextWriter output)
    {
        Directory.CreateDirectory(folder);
        string path = Path.Combine(folder, name);
        File.WriteAllText(path, chart.ToSvg());
        output.WriteLine($"Written: {path}");
    }
}
