using System.Diagnostics;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>What a command wrote, and how it ended.</summary>
internal sealed record CommandResult(int ExitCode, string Output, string Error)
{
    /// <summary>The last line of what it complained about.</summary>
    public string Complaint => (Error.Trim().Length > 0 ? Error : Output).Trim().Split('\n')[^1].Trim();
}

/// <summary>Runs other programs; they inherit the cores that this one may use.</summary>
internal static class Command
{
    public static CommandResult Run(string program, IEnumerable<string> arguments, string? folder = null, IReadOnlyDictionary<string, string>? environment = null)
    {
        var start = new ProcessStartInfo(program, arguments)
        {
            RedirectStandardOutput = true, RedirectStandardError = true, WorkingDirectory = folder ?? Environment.CurrentDirectory,
        };
        foreach ((string name, string value) in environment ?? new Dictionary<string, string>())
        {
            start.Environment[name] = value;
        }

        using Process process = Process.Start(start) ?? throw new InvalidOperationException($"{program} did not start.");
        Task<string> error = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return new CommandResult(process.ExitCode, output, error.GetAwaiter().GetResult());
    }

    /// <summary>Starts this program once more.</summary>
    public static CommandResult RunItself(IEnumerable<string> arguments, IReadOnlyDictionary<string, string>? environment = null)
    {
        string program = Environment.ProcessPath!;
        return Path.GetFileNameWithoutExtension(program) == "dotnet"
            ? Run(program, [typeof(Command).Assembly.Location, .. arguments], environment: environment)
            : Run(program, arguments, environment: environment);
    }

    /// <summary>Runs a program that has to succeed.</summary>
    /// <exception cref="InvalidOperationException">It failed; the message has its complaint.</exception>
    public static string Require(string program, IEnumerable<string> arguments, string? folder = null)
    {
        string[] words = [.. arguments];
        CommandResult result = Run(program, words, folder);
        return result.ExitCode == 0
            ? result.Output.Trim()
            : throw new InvalidOperationException($"{program} {string.Join(' ', words.Take(3))} failed: {result.Complaint}");
    }
}
