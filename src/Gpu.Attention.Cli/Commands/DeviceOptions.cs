using System.CommandLine;
using System.Globalization;

namespace Gpu.Attention.Cli.Commands;

/// <summary>The options of commands that compute: which device, how much of it, and what when it cannot.</summary>
internal sealed class DeviceOptions
{
    private const string Auto = "auto";

    private readonly Option<string> _device = new("--device")
    {
        Description = "Where to run: auto is the best device, cuda, opencl, cpu and simulator the first usable one of a kind, cuda:1 the second.",
        HelpName = "id",
        DefaultValueFactory = _ => Auto,
    };

    private readonly Option<long> _memoryBudget = new("--memory-budget")
    {
        Description = "The most bytes that a call takes of the device, such as 512M; K, M and G count in 1024. Most of what it has when not given.",
        HelpName = "bytes",
        CustomParser = result =>
        {
            if (!TryParseBytes(result.Tokens[0].Value, out long bytes))
            {
                result.AddError($"--memory-budget takes a number of bytes above zero, such as 512M, not '{result.Tokens[0].Value}'.");
            }

            return bytes;
        },
    };

    private readonly Option<bool> _noFallback = new("--no-fallback") { Description = "Fail when the device cannot run it, instead of going on with the next device." };

    public void AddTo(Command command)
    {
        command.Add(_device);
        command.Add(_memoryBudget);
        command.Add(_noFallback);
    }

    /// <summary>Opens the device asked for.</summary>
    /// <exception cref="UsageException">There is none, or it is refused; the message says why.</exception>
    public ComputeDevice Open(Terminal terminal, ParseResult parsed)
    {
        string id = parsed.GetValue(_device)!;
        ComputeDevice device;
        try
        {
            device = ComputeDevice.Open(
                id, new ComputeDeviceOptions { MemoryBudgetBytes = parsed.GetValue(_memoryBudget), AllowFallback = !parsed.GetValue(_noFallback) });
        }
        catch (Exception e) when (e is ArgumentException or NotSupportedException)
        {
            throw new UsageException($"--device {id}: {e.Message}");
        }

        if (device.Info.Kind == DeviceKind.Cpu && parsed.IsGiven(_memoryBudget))
        {
            terminal.Note("note: --memory-budget changes nothing; the host's engine copies nothing and has no budget.");
        }

        return device;
    }

    private static bool TryParseBytes(string text, out long bytes)
    {
        int shift = text.Length == 0 ? 0 : char.ToUpperInvariant(text[^1]) switch
        {
            'K' => 10,
            'M' => 20,
            'G' => 30,
            _ => 0,
        };
        string digits = shift == 0 ? text : text[..^1];
        bytes = long.TryParse(digits, NumberStyles.None, CultureInfo.InvariantCulture, out long number) && number <= long.MaxValue >> shift ? number << shift : 0;
        return bytes > 0;
    }
}
