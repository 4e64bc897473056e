using System.CommandLine;

namespace Gpu.Attention.Cli.Commands;

/// <summary><c>devices</c>: every device, with memory, limits, and why one was refused.</summary>
internal static class DevicesCommand
{
    public static Command Create(Terminal terminal)
    {
        Option<bool> json = CommonOptions.Json();
        var command = new Command("devices", "Lists every device, with its memory and limits, and why one was refused.") { json };
        command.SetAction((parsed, _) => Application.Guard(terminal, () => Run(terminal, parsed.GetValue(json))));
        return command;
    }

    private static int Run(Terminal terminal, bool json)
    {
        IReadOnlyList<DeviceInfo> devices = ComputeDevice.Enumerate();
        DeviceInfo chosen;
        using (ComputeDevice device = ComputeDevice.OpenDefault())
        {
            chosen = device.Info;
        }

        MissingKind[] missing =
        [
            .. Enum.GetValues<DeviceKind>().Except(devices.Select(d => d.Kind)).Select(kind => new MissingKind(kind, DeviceList.WhyNone(kind))),
        ];
        if (json)
        {
            terminal.WriteJson(new { Default = chosen.Id, Devices = devices, Missing = missing });
            return ExitCode.Done;
        }

        terminal.WriteTable(
            [
                ("--device", false), ("Name", false), ("Memory", true), ("Units", true), ("Warp", true), ("Group", true), ("Shared", true),
                ("Used", false),
            ],
            devices.Select(device => Describe(device, device == chosen)));
        foreach (DeviceInfo device in devices)
        {
            string capabilities = device.Capabilities.Length == 0 ? "no capabilities known" : device.Capabilities;
            terminal.WriteLine($"{device.Id}: {capabilities}{(device.IsUsable ? "" : $"; refused: {device.Refusal}")}");
        }

        foreach ((DeviceKind kind, string reason) in missing)
        {
            terminal.WriteLine($"{kind.ToString().ToLowerInvariant()}: none; {reason}");
        }

        return ExitCode.Done;
    }

    private static string[] Describe(DeviceInfo device, bool isDefault) =>
    [
        device.Id,
        device.Name,
        Format.Bytes(device.MemoryBytes),
        Format.Number(device.ComputeUnits),
        Format.Number(device.WarpSize),
        Format.Number(device.MaxGroupSize),
        Format.Bytes(device.SharedMemoryBytes),
        isDefault ? "by default" : !device.IsUsable ? "no" : device.OnlyWhenAskedFor ? "only when asked for" : "as a fallback",
    ];

    private sealed record MissingKind(DeviceKind Kind, string Reason);
}
