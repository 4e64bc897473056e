namespace Gpu.Attention;

/// <summary>A feature map of the oracles, in float64 and written out as its formula reads. For tests and verification.</summary>
/// <remarks>Shares no code with the feature maps that engines run, so that an error in one doesn't hide in the other.</remarks>
public sealed record ReferenceKernel
{
    private readonly Func<double[][], double[][]> _query;
    private readonly Func<double[][], double[][]> _key;

    internal ReferenceKernel(bool isLogarithmic, Func<double[][], double[][]> query, Func<double[][], double[][]> key) =>
        (IsLogarithmic, _query, _key) = (isLogarithmic, query, key);

    /// <summary>True when the map yields the logarithms of features.</summary>
    public bool IsLogarithmic { get; }

    /// <summary>What a normaliser of at most this magnitude is moved away from zero by, twice: JAX's guard. 0 for none.</summary>
    public double NormalizerGuard { get; init; }

    /// <summary>What is added to every summed key feature of a causal normaliser: lucidrains' guard. 0 for none.</summary>
    public double CausalNormalizerEpsilon { get; init; }

    /// <summary>The features, or log features, of all queries of one head.</summary>
    /// <param name="rows">The queries, each <c>[d]</c>.</param>
    /// <returns>A row <c>[r]</c> for each query.</returns>
    public double[][] MapQueries(double[][] rows) => _query(rows);

    /// <summary>The features, or log features, of all visible keys of one head: published conventions let these depend on one another.</summary>
    /// <param name="rows">The keys, each <c>[d]</c>.</param>
    /// <returns>A row <c>[r]</c> for each key.</returns>
    public double[][] MapKeys(double[][] rows) => _key(rows);
}
