namespace Gpu.Attention;

internal sealed class SimdEngine(int maxDegreeOfParallelism) : IAttentionEngine
{
    public string Name => "SIMD " + maxDegreeOfParallelism;

    public EngineSupport Supports(AttentionProblem problem) => throw new NotImplementedException();

    public long WorkspaceBytes(AttentionProblem problem) => throw new NotImplementedException();

    public void Forward(AttentionProblem problem, in AttentionBuffers buffers) => throw new NotImplementedException();

    public void Append(AttentionProblem problem, in AttentionBuffers buffers) => throw new NotImplementedException();

    public void Read(AttentionProblem problem, in AttentionBuffers buffers) => throw new NotImplementedException();

    public void Backward(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients) => throw new NotImplementedException();
}
