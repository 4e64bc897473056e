using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>What the kernels of <see cref="ReverseScanKernels"/> read and write; offsets count floats of the workspace.</summary>
internal struct ReverseScanArguments
{
    /// <summary>The workspace.</summary>
    public ArrayView<float> Workspace;

    /// <summary>The gradient of the final state, or that of the initial one.</summary>
    public DeviceState Caller;

    /// <summary>Non-zero when there is a gradient of the final state.</summary>
    public int HasCaller;

    /// <summary>Non-zero when what arrives is still at the scale that the chains end at: it is brought to that of the initial state.</summary>
    public int IsBehind;

    /// <summary>The initial state, whose scale is read.</summary>
    public DeviceState Initial;

    /// <summary>Non-zero in the exponential family.</summary>
    public int IsLogarithmic;

    /// <summary>Which items are scanned, and which chains these are.</summary>
    public ItemMap Items;

    /// <summary>Tokens of a chunk.</summary>
    public int Chunk;

    /// <summary>Chains.</summary>
    public int Chains;

    /// <summary>The sizes.</summary>
    public PaddedSizes Sizes;

    /// <summary>The scale that the chains end at, <c>[chain, r↑]</c>.</summary>
    public long StateScale;

    /// <summary>R̂, <c>[chain, r↑, dv↑]</c>.</summary>
    public long StateSums;

    /// <summary>R̂'s column of the normalisers, <c>[chain, r↑]</c>.</summary>
    public long StateNormalizers;

    /// <summary>Reads the factor on the state before a chunk was read, <c>[item, r↑]</c>.</summary>
    public long Before;

    /// <summary>Reads the factor on the state after a chunk was read, <c>[item, r↑]</c>.</summary>
    public long After;

    /// <summary>Reads what queries ask, <c>[item, r↑, dv↑]</c>.</summary>
    public long AskedSums;

    /// <summary>Reads what queries ask of the normalisers, <c>[item, r↑]</c>.</summary>
    public long AskedNormalizers;

    /// <summary>Receives R̂ behind a chunk, <c>[item, r↑, dv↑]</c>.</summary>
    public long BehindSums;

    /// <summary>Receives R̂'s column of the normalisers behind a chunk, <c>[item, r↑]</c>.</summary>
    public long BehindNormalizers;
}

/// <summary>
/// The scan of what queries ask of states, from the last chunk to the first: behind a chunk R̂ is at the scale c' of the state there; before it, it is
/// <c>e^{c−s}(e^{s−c'}R̂ + Q̂ᵀĜ)</c>. The factors are those of <see cref="ScanKernels"/>, and never above 1.
/// </summary>
/// <remarks>A thread takes a row or four of its elements through all chunks; any number of groups, of any size.</remarks>
internal static class ReverseScanKernels
{
    /// <summary>Copies quads.</summary>
    /// <param name="workspace">The workspace.</param>
    /// <param name="source">The first float.</param>
    /// <param name="target">Where it goes.</param>
    /// <param name="count">Floats, whole quads.</param>
    public static void Copy(ArrayView<float> workspace, long source, long target, long count)
    {
        ArrayView<Float4> quads = workspace.Cast<Float4>();
        for (long i = FirstThread(); i < count / 4; i += Threads())
        {
            quads[(target / 4) + i] = quads[(source / 4) + i];
        }
    }

    /// <summary>R̂ behind the last key: the gradient of the final state, at the scale that the chains ended at, or nothing.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Import(ReverseScanArguments arguments)
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
            float factor = 1;
            if (isThere && arguments.IsLogarithmic != 0)
            {
                factor = Factor(arguments.Caller.LogScale[arguments.Caller.LogScaleStart + source], arguments.Workspace[arguments.StateScale + row]);
            }

            float sum = 0;
            if (isThere && value < sizes.Values)
            {
                sum = factor * arguments.Caller.Sums[arguments.Caller.SumsStart + (source * sizes.Values) + value];
            }

            arguments.Workspace[arguments.StateSums + at] = sum;
            if (value == 0)
            {
                float normalizer = 0;
                if (isThere)
                {
                    normalizer = factor * arguments.Caller.Normalizers[arguments.Caller.NormalizersStart + source];
                }

                arguments.Workspace[arguments.StateNormalizers + row] = normalizer;
            }
        }
    }

    /// <summary>The gradient of the initial state, at that state's scale.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Export(ReverseScanArguments arguments)
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
            float factor = 1;
            if (arguments.IsLogarithmic != 0 && arguments.IsBehind != 0)
            {
                factor = Factor(arguments.Workspace[arguments.StateScale + padded], arguments.Initial.LogScale[arguments.Initial.LogScaleStart + target]);
            }

            arguments.Caller.Sums[arguments.Caller.SumsStart + (target * sizes.Values) + value] =
                factor * arguments.Workspace[arguments.StateSums + (padded * sizes.PaddedValues) + value];
            if (value == 0)
            {
                arguments.Caller.Normalizers[arguments.Caller.NormalizersStart + target] = factor * arguments.Workspace[arguments.StateNormalizers + padded];
            }
        }
    }

    /// <summary>R̂ from behind the last of some chunks to before the first. A thread takes four elements of a chain.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Sums(ReverseScanArguments arguments)
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
            int chunks = arguments.Items.ChunksOf((int)chain);
            long item = (chain * arguments.Items.Chunks) + chunks - 1;
            long factors = (item * width) + (rest / valueQuads);
            long at = (item * chainQuads) + rest;
            Float4 state = quads[(arguments.StateSums / 4) + i];
            for (int chunk = 0; chunk < chunks; chunk++)
            {
                quads[(arguments.BehindSums / 4) + at] = state;
                Float4 asked = quads[(arguments.AskedSums / 4) + at];
                float after = w[arguments.After + factors];
                float before = w[arguments.Before + factors];
                state.X = before * ((after * state.X) + asked.X);
                state.Y = before * ((after * state.Y) + asked.Y);
                state.Z = before * ((after * state.Z) + asked.Z);
                state.W = before * ((after * state.W) + asked.W);
                at -= chainQuads;
                factors -= width;
            }

            quads[(arguments.StateSums / 4) + i] = state;
        }
    }

    /// <summary>R̂'s column of the normalisers, likewise. A thread takes a feature of a chain.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Normalizers(ReverseScanArguments arguments)
    {
        int width = arguments.Sizes.PaddedFeatures;
        ArrayView<float> w = arguments.Workspace;
        for (long row = FirstThread(); row < (long)arguments.Chains * width; row += Threads())
        {
            long chain = row / width;
            int chunks = arguments.Items.ChunksOf((int)chain);
            long at = (((chain * arguments.Items.Chunks) + chunks - 1) * width) + (row - (chain * width));
            float state = w[arguments.StateNormalizers + row];
            for (int chunk = 0; chunk < chunks; chunk++)
            {
                w[arguments.BehindNormalizers + at] = state;
                state = w[arguments.Before + at] * ((w[arguments.After + at] * state) + w[arguments.AskedNormalizers + at]);
                at -= width;
            }

            w[arguments.StateNormalizers + row] = state;
        }
    }

    /// <summary>Adds what items of queries ask of their chain's state, in the order of the items. A thread takes four elements of a chain.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void CollectSums(ReverseScanArguments arguments)
    {
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        long chainQuads = (long)arguments.Sizes.PaddedFeatures * (arguments.Sizes.PaddedValues / 4);
        for (long i = FirstThread(); i < arguments.Chains * chainQuads; i += Threads())
        {
            int chain = (int)(i / chainQuads);
            int first = chain * arguments.Items.Chunks;
            long at = (arguments.AskedSums / 4) + (first * chainQuads) + (i - (chain * chainQuads));
            Float4 state = quads[(arguments.StateSums / 4) + i];
            for (int chunk = 0; chunk < arguments.Items.Chunks && arguments.Items.Tokens(first + chunk, arguments.Chunk) > 0; chunk++)
            {
                state = Float4.Add(state, quads[at]);
                at += chainQuads;
            }

            quads[(arguments.StateSums / 4) + i] = state;
        }
    }

    /// <summary>Adds what items of queries ask of their chain's normalisers, likewise. A thread takes a feature of a chain.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void CollectNormalizers(ReverseScanArguments arguments)
    {
        int width = arguments.Sizes.PaddedFeatures;
        ArrayView<float> w = arguments.Workspace;
        for (long row = FirstThread(); row < (long)arguments.Chains * width; row += Threads())
        {
            int chain = (int)(row / width);
            int first = chain * arguments.Items.Chunks;
            long at = arguments.AskedNormalizers + ((long)first * width) + (row - ((long)chain * width));
            float state = w[arguments.StateNormalizers + row];
            for (int chunk = 0; chunk < arguments.Items.Chunks && arguments.Items.Tokens(first + chunk, arguments.Chunk) > 0; chunk++)
            {
                state += w[at];
                at += width;
            }

            w[arguments.StateNormalizers + row] = state;
        }
    }

    private static long FirstThread() => ((long)Grid.IdxX * Group.DimX) + Group.IdxX;

    private static long Threads() => (long)Grid.DimX * Group.DimX;

    // Where nothing was seen there is nothing to ask of it: e^−∞, even from −∞.
    private static float Factor(float from, float to) => to == float.NegativeInfinity ? 0 : XMath.Exp(to - from);
}
