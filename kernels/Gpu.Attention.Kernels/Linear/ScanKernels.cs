using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>What the kernels of <see cref="ScanKernels"/> read and write; offsets count floats of the workspace.</summary>
internal struct ScanArguments
{
    /// <summary>The workspace.</summary>
    public ArrayView<float> Workspace;

    /// <summary>The caller's state, read by <see cref="ScanKernels.Import"/> and written by <see cref="ScanKernels.Export"/>.</summary>
    public DeviceState Caller;

    /// <summary>Non-zero when there is a caller's state to import.</summary>
    public int HasCaller;

    /// <summary>Non-zero in the exponential family.</summary>
    public int IsLogarithmic;

    /// <summary>Which items' sums are scanned, and which chains these are.</summary>
    public ItemMap Items;

    /// <summary>Chains.</summary>
    public int Chains;

    /// <summary>The sizes.</summary>
    public PaddedSizes Sizes;

    /// <summary>The states' scale c, <c>[chain, r↑]</c>.</summary>
    public long StateScale;

    /// <summary>The largest log feature so far, <c>[chain, r↑]</c>.</summary>
    public long StateTop;

    /// <summary>The states' z, <c>[chain, r↑]</c>.</summary>
    public long StateNormalizers;

    /// <summary>The states' S, <c>[chain, r↑, dv↑]</c>.</summary>
    public long StateSums;

    /// <summary>Reads ρ of the chunk's first key, <c>[item, r↑]</c>.</summary>
    public long First;

    /// <summary>Reads Δ's scale, <c>[item, r↑]</c>.</summary>
    public long Reference;

    /// <summary>Reads the chunk's largest log feature, <c>[item, r↑]</c>.</summary>
    public long Top;

    /// <summary>Reads Δ's normalisers, <c>[item, r↑]</c>.</summary>
    public long Normalizers;

    /// <summary>Reads Δ, <c>[item, r↑, dv↑]</c>.</summary>
    public long Sums;

    /// <summary>Receives the scale s that the chunk is read at, <c>[item, r↑]</c>.</summary>
    public long ReadScale;

    /// <summary>Receives the factor on the state before the chunk is read, <c>[item, r↑]</c>.</summary>
    public long Before;

    /// <summary>Receives the factor on the state after the chunk was read, <c>[item, r↑]</c>.</summary>
    public long After;

    /// <summary>Receives the factor on Δ when it is added, <c>[item, r↑]</c>.</summary>
    public long Factor;

    /// <summary>Receives the state's normalisers before the chunk, <c>[item, r↑]</c>.</summary>
    public long ReadNormalizers;

    /// <summary>Causal: receives the state's sums before the chunk, <c>[item, r↑, dv↑]</c>.</summary>
    public long ReadSums;

    /// <summary>Non-zero when chunks are read: the scan is causal.</summary>
    public int IsCausal;
}

/// <summary>
/// The exclusive scan of the chunks' sums. Before a chunk <c>S ← e^{c−s}S</c> with <c>s = max(c, ρ)</c>, which its readers get; after it
/// <c>S ← e^{s−c'}S + e^{ρ'−c'}Δ</c> with <c>c' = max(s, ρ')</c>, where ρ' is ρ unless the chunk is steep.
/// </summary>
/// <remarks>
/// <para>A thread takes a row or four of its elements through all chunks; any number of groups, of any size.</para>
/// <para>Nothing is scanned in place: ILGPU's optimiser moves a load down to its use, past a store to the same element.</para>
/// </remarks>
internal static class ScanKernels
{
    /// <summary>The state before the first key: the caller's, or nothing.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Import(ScanArguments arguments)
    {
        PaddedSizes sizes = arguments.Sizes;
        long rows = (long)arguments.Chains * sizes.PaddedFeatures;
        for (long at = FirstThread(); at < rows * sizes.PaddedValues; at += Threads())
        {
            long row = at / sizes.PaddedValues;
            int value = (int)(at - (row * sizes.PaddedValues));
            int chain = (int)(row / sizes.PaddedFeatures);
            int feature = (int)(row - ((long)chain * sizes.PaddedFeatures));
            long source = ((long)arguments.Items.StateChain(chain) * sizes.Features) + feature;
            bool isThere = arguments.HasCaller != 0 && feature < sizes.Features;
            float sum = 0;
            if (isThere && value < sizes.Values)
            {
                sum = arguments.Caller.Sums[arguments.Caller.SumsStart + (source * sizes.Values) + value];
            }

            arguments.Workspace[arguments.StateSums + at] = sum;
            if (value == 0)
            {
                float normalizer = 0;
                float scale = feature < sizes.Features ? float.NegativeInfinity : 0;
                float top = scale;
                if (isThere)
                {
                    normalizer = arguments.Caller.Normalizers[arguments.Caller.NormalizersStart + source];
                    if (arguments.IsLogarithmic != 0)
                    {
                        scale = arguments.Caller.LogScale[arguments.Caller.LogScaleStart + source];
                        top = scale;
                        if (arguments.Caller.HasMaximum != 0)
                        {
                            top = arguments.Caller.Maximum[arguments.Caller.MaximumStart + source];
                        }
                    }
                }

                arguments.Workspace[arguments.StateNormalizers + row] = normalizer;
                arguments.Workspace[arguments.StateScale + row] = scale;
                arguments.Workspace[arguments.StateTop + row] = top;
            }
        }
    }

    /// <summary>The state after the last key: at the scale of the largest log feature, or as it is with that maximum beside it.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Export(ScanArguments arguments)
    {
        PaddedSizes sizes = arguments.Sizes;
        long count = (long)arguments.Chains * sizes.Features * sizes.Values;
        for (long at = FirstThread(); at < count; at += Threads())
        {
            long row = at / sizes.Values;
            int value = (int)(at - (row * sizes.Values));
            int chain = (int)(row / sizes.Features);
            long padded = ((long)chain * sizes.PaddedFeatures) + (row - ((long)chain * sizes.Features));
            long target = ((long)arguments.Items.StateChain(chain) * sizes.Features) + (row - ((long)chain * sizes.Features));
            float top = arguments.Workspace[arguments.StateTop + padded];
            float scale = arguments.Workspace[arguments.StateScale + padded];
            float factor = 1;
            if (arguments.Caller.HasMaximum == 0)
            {
                if (arguments.IsLogarithmic != 0 && !(top == float.NegativeInfinity))
                {
                    factor = XMath.Exp(scale - top);
                }

                scale = top;
            }

            arguments.Caller.Sums[arguments.Caller.SumsStart + (target * sizes.Values) + value] =
                factor * arguments.Workspace[arguments.StateSums + (padded * sizes.PaddedValues) + value];
            if (value == 0)
            {
                arguments.Caller.Normalizers[arguments.Caller.NormalizersStart + target] =
                    factor * arguments.Workspace[arguments.StateNormalizers + padded];
                if (arguments.IsLogarithmic != 0)
                {
                    arguments.Caller.LogScale[arguments.Caller.LogScaleStart + target] = scale;
                    if (arguments.Caller.HasMaximum != 0)
                    {
                        arguments.Caller.Maximum[arguments.Caller.MaximumStart + target] = top;
                    }
                }
            }
        }
    }

    /// <summary>Scales, their factors, and the normalisers. A thread takes a feature of a chain.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Scales(ScanArguments arguments)
    {
        int width = arguments.Sizes.PaddedFeatures;
        ArrayView<float> w = arguments.Workspace;
        for (long row = FirstThread(); row < (long)arguments.Chains * width; row += Threads())
        {
            long chain = row / width;
            long at = (chain * arguments.Items.Chunks * width) + (row - (chain * width));
            int chunks = arguments.Items.ChunksOf((int)chain);
            bool isLogarithmic = arguments.IsLogarithmic != 0 && row - (chain * width) < arguments.Sizes.Features;
            float scale = w[arguments.StateScale + row];
            float top = w[arguments.StateTop + row];
            float normalizer = w[arguments.StateNormalizers + row];
            for (int chunk = 0; chunk < chunks; chunk++)
            {
                float read = 0;
                float before = 1;
                float after = 1;
                float factor = 1;
                if (isLogarithmic)
                {
                    float first = w[arguments.First + at];
                    float reference = w[arguments.Reference + at];
                    float highest = w[arguments.Top + at];
                    read = Larger(first, scale);
                    before = Factor(scale, read);
                    scale = Larger(reference, read);
                    after = Factor(read, scale);
                    factor = Factor(reference, scale);
                    top = Larger(highest, top);
                }

                w[arguments.ReadScale + at] = read;
                w[arguments.Before + at] = before;
                w[arguments.After + at] = after;
                w[arguments.Factor + at] = factor;
                float delta = w[arguments.Normalizers + at];
                normalizer *= before;
                w[arguments.ReadNormalizers + at] = normalizer;
                normalizer = (after * normalizer) + (factor * delta);
                at += width;
            }

            w[arguments.StateScale + row] = scale;

            // A NaN may be lost in a maximum, but not in a sum.
            w[arguments.StateTop + row] = normalizer >= float.NegativeInfinity ? top : float.NaN;
            w[arguments.StateNormalizers + row] = normalizer;
        }
    }

    /// <summary>The sums, by the factors that <see cref="Scales"/> left. A thread takes four elements of a chain.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Sums(ScanArguments arguments)
    {
        int width = arguments.Sizes.PaddedFeatures;
        int valueQuads = arguments.Sizes.PaddedValues / 4;
        ArrayView<float> w = arguments.Workspace;
        ArrayView<Float4> quads = w.Cast<Float4>();
        long chainQuads = (long)width * valueQuads;
        for (long i = FirstThread(); i < arguments.Chains * chainQuads; i += Threads())
        {
            long chain = i / chainQuads;
            long rest = i - (chain * chainQuads);
            long factors = (chain * arguments.Items.Chunks * width) + (rest / valueQuads);
            long at = (arguments.Sums / 4) + (chain * arguments.Items.Chunks * chainQuads) + rest;
            int chunks = arguments.Items.ChunksOf((int)chain);
            long read = (arguments.ReadSums - arguments.Sums) / 4;
            Float4 state = quads[(arguments.StateSums / 4) + i];

            // A padding feature is 0, but its product with an infinite value is NaN.
            bool isPadding = rest / valueQuads >= arguments.Sizes.Features;
            for (int chunk = 0; chunk < chunks; chunk++)
            {
                Float4 delta = default;
                if (!isPadding)
                {
                    delta = quads[at];
                }

                float before = w[arguments.Before + factors];
                float after = w[arguments.After + factors];
                float factor = w[arguments.Factor + factors];
                state.X *= before;
                state.Y *= before;
                state.Z *= before;
                state.W *= before;
                if (arguments.IsCausal != 0)
                {
                    quads[at + read] = state;
                }

                state.X = (after * state.X) + (factor * delta.X);
                state.Y = (after * state.Y) + (factor * delta.Y);
                state.Z = (after * state.Z) + (factor * delta.Z);
                state.W = (after * state.W) + (factor * delta.W);
                at += chainQuads;
                factors += width;
            }

            quads[(arguments.StateSums / 4) + i] = state;
        }
    }

    private static long FirstThread() => ((long)Grid.IdxX * Group.DimX) + Group.IdxX;

    private static long Threads() => (long)Grid.DimX * Group.DimX;

    // A maximum that keeps a NaN of a key.
    private static float Larger(float key, float other) => key <= other ? other : key;

    // Equal scales may be −∞ both.
    private static float Factor(float from, float to) => from == to ? 1 : XMath.Exp(from - to);
}
