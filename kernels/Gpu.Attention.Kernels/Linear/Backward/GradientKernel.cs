using ILGPU;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>What <see cref="GradientKernel"/> reads beside the workspace.</summary>
internal struct GradientArguments
{
    /// <summary>The pass.</summary>
    public LinearBackwardArguments Pass;

    /// <summary>The output's gradient.</summary>
    public KernelTensor OutputGradient;

    /// <summary>The output.</summary>
    public KernelTensor Output;
}

/// <summary>
/// The gradient of a row's sums and of its normaliser, <c>Ĝ = [g / D̂, −(g·o) / D̂]</c>, or <c>[g · factor, 0]</c> without one. Rows that are not there, or
/// whose output is 0 whatever their sums are, have none. A group takes a member of an item.
/// </summary>
internal static class GradientKernel
{
    /// <summary>Explicitly grouped: <c>items · members</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Run<TTile>(GradientArguments arguments)
        where TTile : unmanaged, ITileSize
    {
        ArrayView<float> factors = SharedMemory.Allocate<float>(TTile.Edge);
        LinearBackwardArguments pass = arguments.Pass;
        ArrayView<float> w = pass.Workspace;
        int member = Grid.IdxX;
        int item = member / pass.Items.HeadGroup;
        int head = member % pass.Items.HeadGroup;
        int tokens = pass.Items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        if (pass.Blank == 1 || (pass.Blank == 2 && pass.Items.HasNoKeys(item)))
        {
            tokens = 0;
        }

        long gradient = pass.Items.Row(arguments.OutputGradient, item, head, TTile.Edge);
        long output = pass.Items.Row(arguments.Output, item, head, TTile.Edge);
        for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
        {
            long row = ((long)member * TTile.Edge) + token;
            float factor = 0;
            float normalizer = 0;
            if (token < tokens)
            {
                if (pass.Normalize != 0)
                {
                    factor = w[pass.Denominators + row];
                    float sum = 0;
                    for (int value = 0; value < pass.Sizes.Values; value++)
                    {
                        sum += arguments.OutputGradient.Load(gradient + (token * arguments.OutputGradient.TokenStride) + value)
                            * arguments.Output.Load(output + (token * arguments.Output.TokenStride) + value);
                    }

                    normalizer = factor == 0 ? 0 : -(sum / factor);
                }
                else if (pass.IsLogarithmic != 0)
                {
                    factor = XMath.Exp((w[pass.RowMaxima + row] + w[pass.QueryTerms + row]) / 2);
                }
                else
                {
                    factor = pass.Factor;
                }
            }

            factors[token] = factor;
            w[pass.RowGradients + row] = normalizer;
        }

        Group.Barrier();
        int width = pass.Sizes.PaddedValues;
        long target = pass.Gradients + ((long)member * TTile.Edge * width);
        for (int i = Group.IdxX; i < TTile.Edge * width; i += Group.DimX)
        {
            int token = i / width;
            int value = i - (token * width);
            float element = 0;
            if (token < tokens && value < pass.Sizes.Values)
            {
                float factor = factors[token];
                element = arguments.OutputGradient.Load(gradient + (token * arguments.OutputGradient.TokenStride) + value);
                if (pass.Normalize != 0)
                {
                    element = factor == 0 ? 0 : element / factor;
                }
                else
                {
                    // In two steps, as the output is.
                    element = pass.IsLogarithmic != 0 ? element * factor * factor : element * factor;
                }
            }

            w[target + i] = element;
        }
    }
}
