using ILGPU;

namespace Gpu.Attention;

/// <summary>What the kernels of a linear backward pass read and write; offsets count floats of the workspace.</summary>
internal struct LinearBackwardArguments
{
    /// <summary>The workspace.</summary>
    public ArrayView<float> Workspace;

    /// <summary>Which tokens an item is: of queries, with their members, or of keys.</summary>
    public ItemMap Items;

    /// <summary>The sizes.</summary>
    public PaddedSizes Sizes;

    /// <summary>Non-zero in the exponential family.</summary>
    public int IsLogarithmic;

    /// <summary>Non-zero to divide by the sum of the weights.</summary>
    public int Normalize;

    /// <summary>The factor on a direct output that is not normalised.</summary>
    public float Factor;

    /// <summary>ε, added to every direct feature.</summary>
    public float Epsilon;

    /// <summary>1 when queries see a part of a chunk of keys and the state before it, 0 when they read the state of their chain.</summary>
    public int HasKeys;

    /// <summary>1 when what is added up begins here, 0 when it goes on.</summary>
    public int IsFirst;

    /// <summary>Queries that see nothing at all have no gradient: 1 when all are such, 2 when those of sequences without keys are.</summary>
    public int Blank;

    /// <summary>Log features of keys, or arguments of direct features, <c>[item, r↑, C]</c>.</summary>
    public long KeyFeatures;

    /// <summary>K̂ at the scale that the chunk is read at, or direct features, <c>[item, r↑, C]</c>.</summary>
    public long KeysRead;

    /// <summary>K̂ at the scale behind the chunk, or derivatives of direct features, <c>[item, r↑, C]</c>.</summary>
    public long KeysBehind;

    /// <summary>V, <c>[item, C, dv↑]</c>.</summary>
    public long Values;

    /// <summary>The scale of Δ, <c>[item, r↑]</c>.</summary>
    public long Reference;

    /// <summary>The first steep token, <c>[item, r↑ / C]</c>.</summary>
    public long Steep;

    /// <summary>s, <c>[item or chain, r↑]</c>.</summary>
    public long Scale;

    /// <summary>Ŝ, <c>[item or chain, r↑, dv↑]</c>.</summary>
    public long Sums;

    /// <summary>ẑ, <c>[item or chain, r↑]</c>.</summary>
    public long Normalizers;

    /// <summary>The scale of the chains' states, <c>[chain, r↑]</c>.</summary>
    public long StateScale;

    /// <summary>Log features of queries, or arguments of direct features, <c>[item, member, r↑, C]</c>.</summary>
    public long QueryFeatures;

    /// <summary>The rows' terms of queries, <c>[item, member, C]</c>.</summary>
    public long QueryTerms;

    /// <summary>Each row's maximum over a tile's features, <c>[item, member, r↑ / C, C]</c>.</summary>
    public long Maxima;

    /// <summary>M, <c>[item, member, C]</c>.</summary>
    public long RowMaxima;

    /// <summary>Q̂, or direct features, <c>[item, member, r↑, C]</c>.</summary>
    public long Queries;

    /// <summary>What takes a query feature's gradient to that of its logarithm or argument: Q̂ again, or derivatives, <c>[item, member, r↑, C]</c>.</summary>
    public long QueryDerivatives;

    /// <summary>D̂, <c>[item, member, C]</c>.</summary>
    public long Denominators;

    /// <summary>Ĝ, <c>[item, member, C, dv↑]</c>.</summary>
    public long Gradients;

    /// <summary>The gradient of D̂, <c>[item, member, C]</c>.</summary>
    public long RowGradients;

    /// <summary>A, a row for each key, <c>[item, member, C, C]</c>.</summary>
    public long Scores;

    /// <summary>P, a row for each key, <c>[item, member, C, C]</c>.</summary>
    public long Products;

    /// <summary>What an item's queries ask of the sums before it, <c>[item, r↑, dv↑]</c>.</summary>
    public long AskedSums;

    /// <summary>What an item's queries ask of the normalisers before it, <c>[item, r↑]</c>.</summary>
    public long AskedNormalizers;

    /// <summary>R̂, <c>[item or chain, r↑, dv↑]</c>.</summary>
    public long ReverseSums;

    /// <summary>R̂'s column of the normalisers, <c>[item or chain, r↑]</c>.</summary>
    public long ReverseNormalizers;

    /// <summary>dK̂ of the chunk's own queries, <c>[item, C, r↑]</c>.</summary>
    public long KeyParts;

    /// <summary>The same of steep rows, with respect to log features, <c>[item, C, r↑]</c>.</summary>
    public long SteepParts;

    /// <summary>dV of the chunk's own queries, <c>[item, C, dv↑]</c>.</summary>
    public long ValueParts;

    /// <summary>Gradients of log features or arguments, <c>[item, member, C, r↑]</c>.</summary>
    public long LogGradients;
}
