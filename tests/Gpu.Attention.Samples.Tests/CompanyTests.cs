using System.Runtime.Loader;
using System.Text.RegularExpressions;
using Gpu.Attention.Benchmarks;
using Xunit;

namespace Gpu.Attention.Samples.Tests;

/// <summary>Two builds call by call; what they take is not asked.</summary>
public sealed partial class CompanyTests
{
    [Fact]
    public void AnotherBuildsLibrary_IsTheOneThatIsCalled()
    {
        string directory = Directory.CreateTempSubdirectory().FullName;
        try
        {
            foreach (string name in (string[])["Gpu.Attention.dll", "Gpu.Attention.Core.dll"])
            {
                File.Copy(Path.Combine(AppContext.BaseDirectory, name), Path.Combine(directory, name));
            }

            (int exit, string output) = Run("0.01", "--cases", "elu-causal,softmax-bidirectional-training", "--tokens", "5", "--heads", "3", "--beside", directory);

            Assert.Equal(0, exit);
            string[] rows = [.. RowHead().Matches(output).Select(m => m.Groups[1].Value)];
            Assert.Equal(
                [
                    "elu-causal, ns a token of a head", "elu-causal, ns a token of a head, beside",
                    "softmax-bidirectional-training, ns a token of a head", "softmax-bidirectional-training, ns a token of a head, beside",
                    "multiply-add peak, GFLOP/s", "elu-causal", "softmax-bidirectional-training",
                ],
                rows);
            IEnumerable<string> loaded = AssemblyLoadContext.All.SelectMany(context => context.Assemblies).Select(assembly => assembly.Location);
            Assert.Contains(Path.Combine(directory, "Gpu.Attention.dll"), loaded);
            Assert.Contains(Path.Combine(directory, "Gpu.Attention.Core.dll"), loaded);
        }
        finally
        {
            if (!OperatingSystem.IsWindows())
            {
                // There, nobody deletes a library that is loaded.
                Directory.Delete(directory, recursive: true);
            }
        }
    }

    [Fact]
    public void Ratios_AreThisBuildsTimeToTheOthers_OfPairsByWhatTheyTookTogether()
    {
        // Pairs in the order of their calls; by their sums the order is 3, 4 | 10, 10, 12, 14 | 100, 130.
        double[] here = [50, 4, 1, 6, 5, 3, 30, 6];
        double[] beside = [50, 6, 2, 8, 5, 1, 100, 6];

        (double fastest, double all, double slowest) = Company.Ratios(here, beside);

        Assert.Equal(0.5, fastest);
        Assert.Equal(0.75, all);
        Assert.Equal(0.3, slowest);
    }

    [Theory]
    [InlineData("0")]
    [InlineData("NaN")]
    [InlineData("1", "2")]
    [InlineData("1", "--cases", "copy-causal")]
    [InlineData("1", "--tokens", "0")]
    [InlineData("1", "--heads", "-1")]
    [InlineData("1", "--tokens", "1048576", "--heads", "9")]
    [InlineData("1", "--beside")]
    [InlineData("1", "--beside", "no-such-directory")]
    public void WhatIsNotKnown_IsRefused(params string[] args) => Assert.Equal((2, ""), Run(args));

    private static (int Exit, string Output) Run(params string[] args)
    {
        TextWriter console = Console.Out;
        using var output = new StringWriter();
        Console.SetOut(output);
        try
        {
            return (Company.Run(args), output.ToString());
        }
        finally
        {
            Console.SetOut(console);
        }
    }

    // Rows with numbers alone behind their first cell.
    [GeneratedRegex(@"^\| ([^|]+) (?:\| [\d.]+ )+\|\r?$", RegexOptions.Multiline)]
    private static partial Regex RowHead();
}
