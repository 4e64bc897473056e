using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;
using ILGPU.Runtime.Cuda;

namespace Gpu.Attention.Kernels.Tests;

/// <summary>Assembles every kernel where NVIDIA's assembler is at hand: <c>ptxas</c> on the path, or what <c>PTXAS</c> names.</summary>
public sealed partial class PtxasTests(ITestOutputHelper output)
{
    // The newest that ptxas 11.8 knows.
    private static readonly CudaInstructionSet InstructionSet = new(7, 8);

    [Fact]
    public void Every_kernel_is_assembled_without_spills()
    {
        string? ptxas = Environment.GetEnvironmentVariable("PTXAS") ?? Find("ptxas");
        Assert.SkipWhen(ptxas is null, "ptxas is not on the path, and PTXAS does not name it.");
        var table = new StringBuilder("| kernel | architecture | registers | spilled bytes | shared bytes |\n| --- | --- | ---: | ---: | ---: |\n");
        var spilling = new List<string>();
        string folder = Directory.CreateTempSubdirectory("ptxas").FullName;
        try
        {
            foreach ((string kernel, var method) in PtxCode.Instantiations)
            {
                foreach ((int major, int minor) in new[] { (8, 0), (9, 0) })
                {
                    string ptx = Path.Combine(folder, "kernel.ptx");
                    File.WriteAllText(ptx, PtxCode.Compile(method, new CudaArchitecture(major, minor), InstructionSet));
                    Usage usage = Assemble(ptxas!, ptx, $"sm_{major}{minor}");
                    table.Append(CultureInfo.InvariantCulture, $"| `{kernel}` | sm_{major}{minor} | {usage.Registers} | {usage.Spilled} | {usage.Shared} |\n");
                    if (usage.Spilled > 0 || usage.Stack > 0)
                    {
                        spilling.Add($"{kernel} for sm_{major}{minor}: {usage}");
                    }
                }
            }
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }

        output.WriteLine(table.ToString());

        // artifacts/bin/PROJECT/CONFIGURATION is where this runs.
        File.WriteAllText(Path.Combine(AppContext.BaseDirectory, "..", "..", "..", "ptxas.md"), table.ToString());
        Assert.Empty(spilling);
    }

    private static string? Find(string name) => (Environment.GetEnvironmentVariable("PATH") ?? "")
        .Split(Path.PathSeparator, StringSplitOptions.RemoveEmptyEntries)
        .Select(folder => Path.Combine(folder, OperatingSystem.IsWindows() ? name + ".exe" : name))
        .FirstOrDefault(File.Exists);

    private static Usage Assemble(string ptxas, string ptx, string architecture)
    {
        var start = new ProcessStartInfo(ptxas, ["-v", $"-arch={architecture}", "-o", ptx + ".cubin", ptx]) { RedirectStandardError = true, RedirectStandardOutput = true };
        using Process process = Process.Start(start)!;
        Task<string> errors = process.StandardError.ReadToEndAsync();
        string said = process.StandardOutput.ReadToEnd() + errors.GetAwaiter().GetResult();
        process.WaitForExit();
        Assert.True(process.ExitCode == 0, said);
        return new Usage(Number(Registers(), said), Number(Spills(), said), Number(Stack(), said), Number(Shared(), said));
    }

    // The largest: a module may hold functions beside the kernel.
    private static int Number(Regex regex, string text) =>
        regex.Matches(text).Select(match => int.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture)).DefaultIfEmpty(0).Max();

    [GeneratedRegex(@"Used (\d+) registers")]
    private static partial Regex Registers();

    [GeneratedRegex(@"(\d+) bytes spill stores")]
    private static partial Regex Spills();

    [GeneratedRegex(@"(\d+) bytes stack frame")]
    private static partial Regex Stack();

    [GeneratedRegex(@"(\d+) bytes smem")]
    private static partial Regex Shared();

    private readonly record struct Usage(int Registers, int Spilled, int Stack, int Shared);
}
