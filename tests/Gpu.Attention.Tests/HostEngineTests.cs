namespace Gpu.Attention.Tests;

/// <summary>The laws on the host engine.</summary>
public sealed class HostEngineTests : EngineLaws
{
    private protected override IAttentionEngine Engine { get; } = new SimdEngine();

    private protected override IEnumerable<IAttentionEngine> OtherDegrees { get; } = [new SimdEngine(1), new SimdEngine(3), new SimdEngine(7)];
}
