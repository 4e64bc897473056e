namespace Gpu.Attention;

/// <summary>
/// A loss's gradient with respect to an <see cref="AttentionState"/>'s sums S and normalisers z, the scale c being taken for a constant: what one piece of
/// a sequence hands back to the one before it.
/// </summary>
public sealed class AttentionStateGradient
{
    private readonly float[] _sums;
    private readonly float[] _normalizers;

    /// <summary>Creates a gradient of zero.</summary>
    /// <param name="state">The state whose gradient it is; of its sizes.</param>
    public AttentionStateGradient(AttentionState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        _sums = new float[state.Sums.Length];
        _normalizers = new float[state.Normalizers.Length];
    }

    /// <summary>∂L/∂S, <c>[N, Hk, r, Dv]</c>.</summary>
    public Span<float> Sums => _sums;

    /// <summary>∂L/∂z, <c>[N, Hk, r]</c>.</summary>
    public Span<float> Normalizers => _normalizers;
}
