namespace Gpu.Attention.Benchmarks;

/// <summary>The device engine, stage by stage, on what ILGPU finds.</summary>
internal static partial class DeviceTable
{
    public static int Run(string[] args)
    {
        int? exitCode = null;
        Measure(args, ref exitCode);
        if (exitCode is null)
        {
            Console.Error.WriteLine("devices: this build has no device engine, since it was made without the ILGPU package");
        }

        return exitCode ?? 2;
    }

    // Filled in by the build that has ILGPU.
    static partial void Measure(string[] args, ref int? exitCode);
}
