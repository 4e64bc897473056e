using System.Reflection;
using ILGPU;
using ILGPU.Runtime.OpenCL;

namespace Gpu.Attention.Kernels.Tests;

/// <summary>OpenCL devices, those among them that the library refuses but kernels can be tested on. The benchmarks compile this file too.</summary>
internal static class Pocl
{
    /// <summary>A context with all of them.</summary>
    public static Lazy<Context> Context { get; } = new(() => ILGPU.Context.Create(builder =>
        builder.EnableAlgorithms().Optimize(OptimizationLevel.O2).OpenCL(device => AcceleratorList.Refuse(device) is null || TryPatch(device))));

    /// <summary>
    /// PoCL before 4.0 lacks the generic address space, but compiles what ILGPU emits at O2 for kernels without atomics: there no pointer is
    /// generic. It is made to look like a device that has it. A hardware driver that refuses is left alone.
    /// </summary>
    private static bool TryPatch(CLDevice device)
    {
        if (!device.PlatformName.Contains("Portable Computing Language", StringComparison.Ordinal))
        {
            return false;
        }

        Set(device.Capabilities, nameof(CLCapabilityContext.GenericAddressSpace), true);
        Set(device, nameof(CLDevice.DeviceVersion), CLDeviceVersion.CL20);
        return AcceleratorList.Refuse(device) is null;
    }

    // The setters are not public, and those of a base type are found only on it.
    private static void Set(object target, string property, object value) =>
        target.GetType().GetProperty(property)!.DeclaringType!
            .GetProperty(property, BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic)!
            .SetMethod!.Invoke(target, [value]);
}
