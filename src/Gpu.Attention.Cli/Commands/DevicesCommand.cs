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
        MissingKind[] missing =
        [
            .. Enum.GetValues<DeviceKind>().Except(devices.Select(d => d.Kind)).Select(kind => new MissingKind(kind, DeviceList.WhyNone(kind))),
        ];
        if (json)
        {
            terminal.WriteJson(new { Devices = devices, Missing = missing });
            return ExitCode.Done;
        }

        terminal.WriteTable(
            [
                ("Kind", false), ("#", true), ("Name", false), ("Memory", true), ("Units", true), ("Warp", true), ("Group", true), ("Shared", true),
                ("Usable", false),
            ],
            devices.Select(Describe));
        foreach (DeviceInfo device in devices)
        {
            terminal.WriteLine($"{device.Kind} {device.Index}: {device.Refusal ?? device.Capabilities}");
        }

        foreach ((DeviceKind kind, string reason) in missing)
        {
            terminal.WriteLine($"{kind}: none; {reason}");
        }

        return ExitCode.Done;
    }

    private static string[] Describe(DeviceInfo device) =>
    [
        device.Kind.ToString(),
        Format.Number(device.Index),
        device.Name,
        Format.Bytes(device.MemoryBytes),
        Format.Number(device.ComputeUnits),
        Format.Number(device.WarpSize),
        Format.Number(device.MaxGroupSize),
        Format.Bytes(device.SharedMemoryBytes),
        device.IsUsable ? "yes" : "no",
    ];

    private sealed record MissingKind(DeviceKind Kind, string Reason);
}
