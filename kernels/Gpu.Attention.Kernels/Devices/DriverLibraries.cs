using System.Runtime.InteropServices;
using System.Runtime.Loader;
using ILGPU;
using ILGPU.Runtime.Cuda;
using ILGPU.Runtime.OpenCL;

namespace Gpu.Attention;

/// <summary>The drivers' native libraries: helps ILGPU to find them, and finds out why there is no device.</summary>
internal static unsafe class DriverLibraries
{
    private static readonly string[] CudaNames = OperatingSystem.IsWindows() ? ["nvcuda"] : ["libcuda.so.1", "libcuda.so"];

    private static readonly string[] OpenCLNames = OperatingSystem.IsWindows() ? ["opencl"] : ["libOpenCL.so.1", "libOpenCL.so", "OpenCL"];

    /// <summary>
    /// Lets ILGPU, which asks for <c>libcuda.so</c> and <c>libOpenCL.so</c>, find the versioned names: drivers and loaders often install no
    /// other, the plain ones being links that come with development packages and containers' set-up.
    /// </summary>
    public static void FindVersionedNames()
    {
        // Raised only when the runtime's own search has failed, and shared with whoever else listens, unlike an import resolver.
        AssemblyLoadContext? owner = AssemblyLoadContext.GetLoadContext(typeof(Context).Assembly);
        if (owner is not null)
        {
            owner.ResolvingUnmanagedDll += (assembly, name) =>
                assembly != typeof(Context).Assembly ? 0
                : name == "cuda" ? Load(CudaNames)
                : name == "OpenCL" ? Load(OpenCLNames)
                : 0;
        }
    }

    /// <summary>Why ILGPU sees no CUDA device.</summary>
    public static string WhyNoCudaDevice()
    {
        nint library = Load(CudaNames);
        if (library == 0)
        {
            return $"there is no NVIDIA driver: its library {CudaNames[0]} was not found";
        }

        if (!NativeLibrary.TryGetExport(library, "cuInit", out nint initialize) ||
            !NativeLibrary.TryGetExport(library, "cuDeviceGetCount", out nint count))
        {
            return $"the library {CudaNames[0]} is not a CUDA driver";
        }

        var result = (CudaError)((delegate* unmanaged<uint, int>)initialize)(0);
        int devices = 0;
        if (result == CudaError.CUDA_SUCCESS)
        {
            result = (CudaError)((delegate* unmanaged<int*, int>)count)(&devices);
        }

        return result is not (CudaError.CUDA_SUCCESS or CudaError.CUDA_ERROR_NO_DEVICE) ? $"NVIDIA's driver answers {result}"
            : devices == 0 ? "NVIDIA's driver has no device"
            : $"NVIDIA's driver has {devices} device(s), none of which ILGPU {Context.Version} knows";
    }

    /// <summary>Why ILGPU sees no OpenCL device.</summary>
    public static string WhyNoOpenCLDevice()
    {
        nint library = Load(OpenCLNames);
        if (library == 0)
        {
            return $"there is no OpenCL loader: its library {OpenCLNames[0]} was not found";
        }

        if (!NativeLibrary.TryGetExport(library, "clGetPlatformIDs", out nint getPlatforms))
        {
            return $"the library {OpenCLNames[0]} is not an OpenCL loader";
        }

        const int NoPlatform = -1001; // CL_PLATFORM_NOT_FOUND_KHR
        uint platforms = 0;
        int result = ((delegate* unmanaged<uint, nint*, uint*, int>)getPlatforms)(0, null, &platforms);
        return result is not (0 or NoPlatform) ? $"the OpenCL loader answers {(CLError)result}"
            : platforms == 0 ? "the OpenCL loader finds no driver: no installable client driver is registered"
            : $"the {platforms} OpenCL platform(s) of this machine have no device that is available";
    }

    private static nint Load(string[] names)
    {
        foreach (string name in names)
        {
            if (NativeLibrary.TryLoad(name, out nint library))
            {
                return library;
            }
        }

        return 0;
    }
}
