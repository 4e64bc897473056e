namespace Gpu.Attention;

/// <summary>Stub.</summary>
public sealed class RandomProjection
{
    /// <summary>m.</summary>
    public int NumFeatures => throw new NotImplementedException();

    /// <summary>d.</summary>
    public int Dimension => throw new NotImplementedException();

    /// <summary>W.</summary>
    public ReadOnlySpan<float> Matrix => throw new NotImplementedException();

    /// <summary>[W; −W].</summary>
    public RandomProjection ToAntithetic() => throw new NotImplementedException();
}
