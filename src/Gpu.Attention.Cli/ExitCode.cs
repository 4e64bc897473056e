namespace Gpu.Attention.Cli;

/// <summary>The options were understood one by one but make no sense together.</summary>
internal sealed class UsageException(string message) : Exception(message);

/// <summary>The exit codes, and which failure has which.</summary>
internal static class ExitCode
{
    public const int Done = 0;
    public const int Failed = 1;
    public const int BadUsage = 2;
    public const int Interrupted = 130;

    /// <summary>Says what went wrong, in one line, and how the program ends.</summary>
    public static int Of(Exception exception, Terminal terminal)
    {
        switch (exception)
        {
            case OperationCanceledException:
                terminal.Complain("interrupted; nothing was written.");
                return Interrupted;
            case UsageException:
                terminal.Complain(WithoutParameter(exception.Message));
                return BadUsage;
            case OutOfMemoryException:
                terminal.Complain("out of memory: the arrays are too large for this machine.");
                return Failed;
            case ArgumentException or InvalidOperationException or NotSupportedException or InvalidDataException or IOException or UnauthorizedAccessException
                or DeviceException:
                terminal.Complain(WithoutParameter(exception.Message));
                return Failed;
            default:
                terminal.Complain($"unexpected {exception.GetType().Name}: {exception.Message}");
                return Failed;
        }
    }

    // "… (Parameter 'x')" names a parameter of the library, which is no name of this program.
    private static string WithoutParameter(string message)
    {
        int start = message.LastIndexOf(" (Parameter '", StringComparison.Ordinal);
        return start < 0 ? message : message[..start];
    }
}
