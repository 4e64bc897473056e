using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>
/// Outputs of the rows of a chunk from the first key on whose log features lie too far above the chunk's first key's for float32. The
/// rows are taken one after the other with weights <c>w_j = Σ_f e^{l_q + l_j − M}</c>, M the largest of all terms that the row sees: exact however
/// steeply log features rise, at <c>r</c> exponentials a pair. Which rows these are depends on earlier keys only.
/// </summary>
/// <remarks>
/// A group takes a member of an item; most leave at once. The rows' earlier outputs, by <see cref="ReadKernel"/>, are replaced. Shared memory: 4 KB.
/// </remarks>
internal static class SteepReadKernel
{
    /// <summary>The most features that a group keeps.</summary>
    public const int MaxFeatures = 1024;

    /// <summary>Explicitly grouped: <c>items · members</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Run<TTile>(ReadArguments arguments)
        where TTile : unmanaged, ITileSize
    {
        ArrayView<float> features = SharedMemory.Allocate<float>(MaxFeatures);
        ArrayView<float> weights = SharedMemory.Allocate<float>(TTile.Edge);
        PaddedSizes sizes = arguments.Sizes;
        ArrayView<float> w = arguments.Workspace;
        int member = Grid.IdxX;
        int item = member / arguments.Items.HeadGroup;
        int tokens = arguments.Items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        int keyItem = arguments.Items.KeyItem(item);
        int tiles = sizes.PaddedFeatures / TTile.Edge;
        int first = TTile.Edge;
        for (int i = 0; i < tiles; i++)
        {
            int of = (int)w[arguments.Steep + ((long)keyItem * tiles) + i];
            first = of < first ? of : first;
        }

        long queries = arguments.Queries + ((long)member * sizes.PaddedFeatures * TTile.Edge);
        long keys = arguments.Keys + ((long)keyItem * sizes.PaddedFeatures * TTile.Edge);
        long values = arguments.Values + ((long)keyItem * TTile.Edge * sizes.PaddedValues);
        long state = (long)keyItem * sizes.PaddedFeatures;
        long output = arguments.Items.Row(arguments.Output, item, member % arguments.Items.HeadGroup, TTile.Edge);

        // The first row that sees that token; no later row sees less.
        int start = 0;
        while (start < tokens && arguments.Items.Seen(item, start, TTile.Edge) <= first)
        {
            start++;
        }

        for (int token = start; token < tokens; token++)
        {
            int seen = arguments.Items.Seen(item, token, TTile.Edge);
            Group.Barrier();
            for (int key = Group.IdxX; key < seen; key += Group.DimX)
            {
                float largest = float.NegativeInfinity;
                for (int f = 0; f < sizes.Features; f++)
                {
                    float log = w[queries + ((long)f * TTile.Edge) + token] + w[keys + ((long)f * TTile.Edge) + key];
                    largest = log > largest ? log : largest;
                }

                weights[key] = largest;
            }

            Group.Barrier();
            float maximum = ReadKernel.RowMaximum<TTile>(arguments, member, token);
            for (int key = 0; key < seen; key++)
            {
                maximum = weights[key] > maximum ? weights[key] : maximum;
            }

            Group.Barrier();
            for (int key = Group.IdxX; key < seen; key += Group.DimX)
            {
                float sum = 0;
                for (int f = 0; f < sizes.Features; f++)
                {
                    sum += XMath.Exp(w[queries + ((long)f * TTile.Edge) + token] + w[keys + ((long)f * TTile.Edge) + key] - maximum);
                }

                weights[key] = sum;
            }

            for (int f = Group.IdxX; f < sizes.Features; f += Group.DimX)
            {
                features[f] = XMath.Exp(w[queries + ((long)f * TTile.Edge) + token] + w[arguments.Scale + state + f] - maximum);
            }

            Group.Barrier();
            float denominator = 0;
            for (int f = 0; f < sizes.Features; f++)
            {
                denominator += features[f] * w[arguments.Normalizers + state + f];
            }

            for (int key = 0; key < seen; key++)
            {
                denominator += weights[key];
            }

            float factor = ReadKernel.RowFactor<TTile, LogarithmicActivation>(arguments, member, token, denominator, maximum);
            for (int value = Group.IdxX; value < sizes.Values; value += Group.DimX)
            {
                float sum = 0;
                for (int f = 0; f < sizes.Features; f++)
                {
                    sum += features[f] * w[arguments.Sums + ((state + f) * sizes.PaddedValues) + value];
                }

                for (int key = 0; key < seen; key++)
                {
                    sum += weights[key] * w[values + ((long)key * sizes.PaddedValues) + value];
                }

                arguments.Output.Store(
                    output + (token * arguments.Output.TokenStride) + value, ReadKernel.Finish<LogarithmicActivation>(arguments, sum, factor));
            }
        }
    }
}
