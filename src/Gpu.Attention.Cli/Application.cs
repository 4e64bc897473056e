using System.CommandLine;
using System.CommandLine.Invocation;
using Gpu.Attention.Cli.Commands;

namespace Gpu.Attention.Cli;

/// <summary>The program: parses, runs one command, and turns how it ended into an exit code.</summary>
internal static class Application
{
    /// <summary>Runs the program in this process.</summary>
    /// <param name="args">The arguments.</param>
    /// <param name="output">Receives results.</param>
    /// <param name="error">Receives messages.</param>
    /// <param name="terminationTimeout">How long a command may take to end on Ctrl-C; null to leave signals alone.</param>
    /// <returns>An <see cref="ExitCode"/>.</returns>
    public static int Run(string[] args, TextWriter output, TextWriter error, TimeSpan? terminationTimeout = null)
    {
        var terminal = new Terminal(output, error);
        var root = new RootCommand("Linear-time attention on files, the devices it runs on, and how fast it is there.")
        {
            DevicesCommand.Create(terminal),
            AttendCommand.Create(terminal),
            BenchCommand.Create(terminal),
        };
        ParseResult parsed = root.Parse(args, new ParserConfiguration { ResponseFileTokenReplacer = null });
        if (parsed.Action is ParseErrorAction)
        {
            foreach (string message in parsed.Errors.Select(e => e.Message).Distinct())
            {
                terminal.Complain(message);
            }

            terminal.Note($"See '{CommandPath(parsed)} --help'.");
            return ExitCode.BadUsage;
        }

        return parsed.InvokeAsync(new InvocationConfiguration
        {
            Output = output,
            Error = error,
            EnableDefaultExceptionHandler = false,
            ProcessTerminationTimeout = terminationTimeout,
        }).GetAwaiter().GetResult();
    }

    /// <summary>Runs a command's work off the thread that waits for signals, and turns what it throws into a message and an exit code.</summary>
    public static Task<int> Guard(Terminal terminal, Func<int> work) => Task.Run(() =>
    {
        try
        {
            return work();
        }
        catch (Exception exception)
        {
            return ExitCode.Of(exception, terminal);
        }
    });

    private static string CommandPath(ParseResult parsed) =>
        parsed.CommandResult.Command is RootCommand ? "gpu-attention" : $"gpu-attention {parsed.CommandResult.Command.Name}";
}
