using System.Runtime.CompilerServices;
using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>
/// Features as the products of a backward pass take them, written down: at a row's maximum and the scale that its chunk is read at, or direct features
/// with their derivatives. A group takes C features of a member, or of an item of keys.
/// </summary>
internal static class GradientFeatureKernels
{
    /// <summary>
    /// The largest exponent of a key: beyond the range of a chunk that is not steep. A steep token's key lies above it only where no plain product reads
    /// it, and is to be a number that 0 can be multiplied by.
    /// </summary>
    private const float MaxExponent = 80;

    /// <summary>Explicitly grouped: <c>items · members · r↑/C</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Queries<TTile, TActivation>(LinearBackwardArguments arguments)
        where TTile : unmanaged, ITileSize
        where TActivation : unmanaged, IActivation
    {
        ArrayView<Float4> maxima = SharedMemory.Allocate<Float4>(TTile.Edge / 4);
        ArrayView<float> scales = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<float> w = arguments.Workspace;
        ArrayView<Float4> quads = w.Cast<Float4>();
        int tiles = arguments.Sizes.PaddedFeatures / TTile.Edge;
        int member = Grid.IdxX / tiles;
        int firstFeature = Grid.IdxX % tiles * TTile.Edge;
        int item = member / arguments.Items.HeadGroup;
        if (arguments.Items.IsMissing(item, TTile.Edge))
        {
            return;
        }

        if (TActivation.IsLogarithmic)
        {
            int state = arguments.HasKeys != 0 ? arguments.Items.KeyItem(item) : arguments.Items.Chain(item);
            ArrayView<float> maximum = maxima.Cast<float>();
            for (int i = Group.IdxX; i < TTile.Edge; i += Group.DimX)
            {
                float largest = float.NegativeInfinity;
                for (int tile = 0; tile < tiles; tile++)
                {
                    float of = w[arguments.Maxima + ((((long)member * tiles) + tile) * TTile.Edge) + i];
                    largest = of > largest ? of : largest;
                }

                // Of a row that sees nothing all features are 0.
                largest = largest == float.NegativeInfinity ? 0 : largest;
                maximum[i] = largest;
                scales[i] = w[arguments.Scale + ((long)state * arguments.Sizes.PaddedFeatures) + firstFeature + i];
                if (firstFeature == 0)
                {
                    w[arguments.RowMaxima + ((long)member * TTile.Edge) + i] = largest;
                }
            }
        }

        Group.Barrier();
        long first = (long)Grid.IdxX * (TTile.Edge * TTile.Edge / 4);
        for (int at = Group.IdxX; at < TTile.Edge * TTile.Edge / 4; at += Group.DimX)
        {
            int row = at / (TTile.Edge / 4);
            bool isThere = firstFeature + row < arguments.Sizes.Features;
            Float4 value = quads[(arguments.QueryFeatures / 4) + first + at];
            Float4 feature;
            if (TActivation.IsLogarithmic)
            {
                float scale = scales[row];
                Float4 top = maxima[at - (row * (TTile.Edge / 4))];
                feature.X = XMath.Exp(value.X + scale - top.X);
                feature.Y = XMath.Exp(value.Y + scale - top.Y);
                feature.Z = XMath.Exp(value.Z + scale - top.Z);
                feature.W = XMath.Exp(value.W + scale - top.W);
                quads[(arguments.Queries / 4) + first + at] = Masked(feature, isThere ? 4 : 0);
            }
            else
            {
                quads[(arguments.Queries / 4) + first + at] = Masked(Applied<TActivation>(value, arguments.Epsilon), isThere ? 4 : 0);
                quads[(arguments.QueryDerivatives / 4) + first + at] = Masked(Derived<TActivation>(value), isThere ? 4 : 0);
            }
        }
    }

    /// <summary>Explicitly grouped: <c>items · r↑/C</c> groups, of items of keys.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Keys<TTile, TActivation>(LinearBackwardArguments arguments)
        where TTile : unmanaged, ITileSize
        where TActivation : unmanaged, IActivation
    {
        ArrayView<float> read = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<float> behind = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<float> w = arguments.Workspace;
        ArrayView<Float4> quads = w.Cast<Float4>();
        int width = arguments.Sizes.PaddedFeatures;
        int tiles = width / TTile.Edge;
        int item = Grid.IdxX / tiles;
        int firstFeature = Grid.IdxX % tiles * TTile.Edge;
        int tokens = arguments.Items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        if (TActivation.IsLogarithmic)
        {
            for (int i = Group.IdxX; i < TTile.Edge; i += Group.DimX)
            {
                long at = ((long)item * width) + firstFeature + i;
                float scale;
                if (arguments.HasKeys != 0)
                {
                    float own = w[arguments.Scale + at];
                    float reference = w[arguments.Reference + at];
                    read[i] = Finite(own);
                    scale = reference <= own ? own : reference;
                }
                else
                {
                    scale = w[arguments.StateScale + ((long)arguments.Items.Chain(item) * width) + firstFeature + i];
                }

                behind[i] = Finite(scale);
            }
        }

        Group.Barrier();
        long first = (long)Grid.IdxX * (TTile.Edge * TTile.Edge / 4);
        for (int at = Group.IdxX; at < TTile.Edge * TTile.Edge / 4; at += Group.DimX)
        {
            int row = at / (TTile.Edge / 4);
            int there = firstFeature + row < arguments.Sizes.Features ? tokens - (4 * (at - (row * (TTile.Edge / 4)))) : 0;
            Float4 value = quads[(arguments.KeyFeatures / 4) + first + at];
            if (TActivation.IsLogarithmic)
            {
                if (arguments.HasKeys != 0)
                {
                    quads[(arguments.KeysRead / 4) + first + at] = Masked(Exponential(value, read[row]), there);
                }

                quads[(arguments.KeysBehind / 4) + first + at] = Masked(Exponential(value, behind[row]), there);
            }
            else
            {
                quads[(arguments.KeysRead / 4) + first + at] = Masked(Applied<TActivation>(value, arguments.Epsilon), there);
                quads[(arguments.KeysBehind / 4) + first + at] = Masked(Derived<TActivation>(value), there);
            }
        }
    }

    // At −∞ a feature is switched off: its keys are 0, not NaN.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Finite(float scale) => scale == float.NegativeInfinity ? 0 : scale;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Float4 Exponential(Float4 log, float scale)
    {
        log.X = Exponential(log.X - scale);
        log.Y = Exponential(log.Y - scale);
        log.Z = Exponential(log.Z - scale);
        log.W = Exponential(log.W - scale);
        return log;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Exponential(float exponent) => XMath.Exp(exponent > MaxExponent ? MaxExponent : exponent);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Float4 Applied<TActivation>(Float4 value, float epsilon)
        where TActivation : unmanaged, IActivation
    {
        value.X = TActivation.Apply(value.X) + epsilon;
        value.Y = TActivation.Apply(value.Y) + epsilon;
        value.Z = TActivation.Apply(value.Z) + epsilon;
        value.W = TActivation.Apply(value.W) + epsilon;
        return value;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Float4 Derived<TActivation>(Float4 value)
        where TActivation : unmanaged, IActivation
    {
        value.X = TActivation.Derivative(value.X);
        value.Y = TActivation.Derivative(value.Y);
        value.Z = TActivation.Derivative(value.Z);
        value.W = TActivation.Derivative(value.W);
        return value;
    }

    /// <summary>Four elements, those from <paramref name="there"/> on being 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Float4 Masked(Float4 value, int there)
    {
        value.X = there > 0 ? value.X : 0;
        value.Y = there > 1 ? value.Y : 0;
        value.Z = there > 2 ? value.Z : 0;
        value.W = there > 3 ? value.W : 0;
        return value;
    }
}
