using System.Runtime.CompilerServices;

namespace Gpu.Attention;

/// <summary>Rows of exact attention, a tile of keys at a time: weights under a running shift, with what was summed so far brought to it when it rises.</summary>
/// <remarks>
/// Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). The shift is not always the largest logit: it stays while the weights of a whole tile
/// come to little enough, so that most tiles need no maximum.
/// </remarks>
internal static unsafe class OnlineSoftmax<TV>
    where TV : struct, ISimdVector<TV>
{
    /// <summary>Keys of a tile.</summary>
    public const int TileKeys = LinearLayout.Chunk;

    /// <summary>The most rows that are weighed at once.</summary>
    public const int RowsTogether = 8 * MicroKernel<TV>.Rows;

    /// <summary>What a tile's weights may come to before the shift is raised to the largest logit: little more than the 64 that they come to when all logits are equal.</summary>
    private const float MaxTileSum = 256;

    /// <summary>Weighs the first keys of a tile for one row.</summary>
    /// <param name="seen">How many keys.</param>
    /// <param name="scale">What scores are multiplied by to be logits.</param>
    /// <param name="scores">Scores, room for a tile; what stands beyond <paramref name="seen"/> is lost.</param>
    /// <param name="weights">Where the weights go, up to a whole vector; those of keys that are not seen are 0.</param>
    /// <param name="shift">What logits are lowered by, −∞ before the first key; perhaps raised.</param>
    /// <param name="sum">The sum of all weights.</param>
    /// <param name="width">Floats of <paramref name="sums"/>, whole vectors.</param>
    /// <param name="sums">What was summed with weights under the shift.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Weigh(int seen, float scale, float* scores, float* weights, float* shift, float* sum, int width, float* sums)
    {
        TV scales = TV.Broadcast(scale);
        if (seen == TileKeys && TileKeys % (4 * TV.Count) == 0)
        {
            float total = WeighWhole(scales, scores, *shift, weights);
            if (!(total <= MaxTileSum))
            {
                TV high = TV.Broadcast(float.NegativeInfinity);
                for (int j = 0; j < TileKeys; j += TV.Count)
                {
                    high = TV.Max(high, TV.Multiply(scales, TV.Load(scores + j)));
                }

                total = WeighWhole(scales, scores, Raise(TV.MaxAcross(high), shift, sum, width, sums), weights);
            }

            *sum += total;
            return;
        }

        int padded = PackedForm<TV>.RoundUp(seen);
        TV highest = TV.Broadcast(float.NegativeInfinity);
        for (int j = 0; j < padded; j += TV.Count)
        {
            TV.Store(TV.Multiply(scales, TV.Load(scores + j)), scores + j);
            if (j + TV.Count > seen)
            {
                new Span<float>(scores + seen, padded - seen).Fill(float.NegativeInfinity);
            }

            highest = TV.Max(highest, TV.Load(scores + j));
        }

        TV lower = TV.Broadcast(Raise(TV.MaxAcross(highest), shift, sum, width, sums));
        TV weight = default;
        for (int j = 0; j < padded; j += TV.Count)
        {
            TV value = SimdExp.Exp(TV.Subtract(TV.Load(scores + j), lower));
            weight = TV.Add(weight, value);
            TV.Store(value, weights + j);
        }

        *sum += TV.Sum(weight);
    }

    /// <summary>A whole tile, four vectors at a time. Returns the sum of its weights.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float WeighWhole(TV scale, float* scores, float shift, float* weights)
    {
        // Rounded as the largest logit is, which must come to 0: fused, a large one would not.
        TV lower = TV.Broadcast(shift);
        TV total = default;
        for (int j = 0; j < TileKeys; j += 4 * TV.Count)
        {
            TV x0 = TV.Subtract(TV.Multiply(scale, TV.Load(scores + j)), lower);
            TV x1 = TV.Subtract(TV.Multiply(scale, TV.Load(scores + j + TV.Count)), lower);
            TV x2 = TV.Subtract(TV.Multiply(scale, TV.Load(scores + j + (2 * TV.Count))), lower);
            TV x3 = TV.Subtract(TV.Multiply(scale, TV.Load(scores + j + (3 * TV.Count))), lower);
            SimdExp.Exp(ref x0, ref x1, ref x2, ref x3);
            TV.Store(x0, weights + j);
            TV.Store(x1, weights + j + TV.Count);
            TV.Store(x2, weights + j + (2 * TV.Count));
            TV.Store(x3, weights + j + (3 * TV.Count));
            total = TV.Add(total, TV.Add(TV.Add(x0, x1), TV.Add(x2, x3)));
        }

        return TV.Sum(total);
    }

    /// <summary>Brings a row's sums to its largest logit so far. Returns what logits are to be lowered by.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Raise(float top, float* shift, float* sum, int width, float* sums)
    {
        float before = *shift;
        if (top > before)
        {
            float factor = MathF.Exp(before - top);
            *shift = top;
            *sum *= factor;
            SimdBlas<TV>.Scale(width, factor, sums, sums);
        }
        else
        {
            top = before;
        }

        // Nothing but −∞ seen yet: any finite shift gives the weight 0.
        return float.IsNegativeInfinity(top) ? 0 : top;
    }
}
