using System.Reflection;

namespace Gpu.Attention.Kernels.Tests;

public class AssemblyTests
{
    [Fact]
    public void Kernels_are_built_exactly_when_ILGPU_is_there()
    {
        var assembly = Assembly.Load("Gpu.Attention.Kernels");
        bool refersToIlgpu = assembly.GetReferencedAssemblies().Any(name => name.Name == "ILGPU");
        bool hasTypes = assembly.GetTypes().Any(type => type.Namespace == "Gpu.Attention");
        Assert.Equal(refersToIlgpu, hasTypes);
    }
}
