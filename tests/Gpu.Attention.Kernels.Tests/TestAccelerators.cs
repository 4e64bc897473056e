using ILGPU;
using ILGPU.Runtime;
using ILGPU.Runtime.CPU;
using ILGPU.Runtime.OpenCL;

namespace Gpu.Attention.Kernels.Tests;

/// <summary>Opens the accelerators that kernels are tested on; skips the test where there is none.</summary>
internal static class TestAccelerators
{
    /// <summary>
    /// The classes that run kernels on simulators, one after the other: a simulator's lanes are threads that meet at barriers, and wait there for whoever
    /// else has the cores.
    /// </summary>
    public const string Simulators = "Simulators";

    /// <summary>The classes that run kernels on drivers, one after the other. OpenCL on a processor compiles kernels, in one thread, most of the time.</summary>
    public const string Drivers = "Drivers";

    private static readonly Lock SharedLock = new();
    private static readonly Dictionary<string, Accelerator> Shared = [];

    /// <summary>
    /// A simulator that tests share and nobody disposes. Kernels are compiled once an accelerator, and to compile them anew for each of hundreds of
    /// tests would take most of their time.
    /// </summary>
    public static Accelerator SharedSimulator(int warpSize, int warps) => Share($"{warpSize} x {warps}", () => OpenSimulator(warpSize, warps));

    /// <summary>An OpenCL device that tests share.</summary>
    public static Accelerator SharedOpenCL() => Share("OpenCL", OpenOpenCL);

    /// <summary>A CUDA device that tests share.</summary>
    public static Accelerator SharedCuda() => Share("CUDA", OpenCuda);

    /// <summary>One simulated multiprocessor whose groups have up to <paramref name="warpSize"/> × <paramref name="warps"/> threads.</summary>
    public static Accelerator OpenSimulator(int warpSize, int warps) =>
        new CPUDevice(warpSize, warps, 1).CreateCPUAccelerator(AcceleratorList.Context);

    /// <summary>The first CUDA device.</summary>
    public static Accelerator OpenCuda()
    {
        AcceleratorDescription? device = AcceleratorList.Devices.FirstOrDefault(d => d.Type == AcceleratorType.Cuda);
        Assert.SkipWhen(device is null, device is null ? $"No CUDA device: {AcceleratorList.WhyNone(AcceleratorType.Cuda)}." : "");
        Assert.SkipWhen(device!.Refusal is not null, $"{device.Name}: {device.Refusal}");
        return device.Device.CreateAccelerator(AcceleratorList.Context);
    }

    /// <summary>The first OpenCL device, be it a GPU or not.</summary>
    public static Accelerator OpenOpenCL()
    {
        // The list first: it lets ILGPU find the loader.
        IEnumerable<string> found = AcceleratorList.Devices.Where(d => d.Type == AcceleratorType.OpenCL).Select(d => $"{d.Name}: {d.Refusal}");
        Context.DeviceCollection<CLDevice> devices = Pocl.Context.Value.GetCLDevices();
        Assert.SkipWhen(devices.Count == 0, string.Join("; ", found.DefaultIfEmpty(AcceleratorList.WhyNone(AcceleratorType.OpenCL))));
        return devices[0].CreateCLAccelerator(Pocl.Context.Value);
    }

    private static Accelerator Share(string key, Func<Accelerator> open)
    {
        lock (SharedLock)
        {
            if (!Shared.TryGetValue(key, out Accelerator? accelerator))
            {
                Shared.Add(key, accelerator = open());
            }

            return accelerator;
        }
    }
}
