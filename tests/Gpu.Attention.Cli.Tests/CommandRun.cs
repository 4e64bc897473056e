using System.Text.Json;

namespace Gpu.Attention.Cli.Tests;

/// <summary>What one run of the program, in this process, came to.</summary>
internal sealed record CommandRun(int ExitCode, string Output, string Error)
{
    public static CommandRun Of(params string[] args)
    {
        using var output = new StringWriter();
        using var error = new StringWriter();
        int exitCode = Application.Run(args, output, error);
        return new CommandRun(exitCode, output.ToString(), error.ToString());
    }

    public static CommandRun OfLine(string line) => Of(line.Split(' ', StringSplitOptions.RemoveEmptyEntries));

    public JsonElement[] Json() => [.. Output.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => JsonDocument.Parse(line).RootElement)];
}
