using ILGPU;

namespace Gpu.Attention;

/// <summary>What <see cref="SoftmaxMeanKernel"/> reads and writes.</summary>
internal struct SoftmaxMeanArguments
{
    /// <summary>The workspace.</summary>
    public ArrayView<float> Workspace;

    /// <summary>The outputs.</summary>
    public KernelTensor Output;

    /// <summary>Their gradients.</summary>
    public KernelTensor Gradient;

    /// <summary>Which queries an item is.</summary>
    public ItemMap Items;

    /// <summary>Receives what is known of each query.</summary>
    public GradientRows Rows;

    /// <summary>dv.</summary>
    public int Values;
}

/// <summary>δ = g·o of every query: what its logits' gradients sum to when they are weighted.</summary>
internal static class SoftmaxMeanKernel
{
    /// <summary>Explicitly grouped: <c>items · members</c> groups, of which a thread takes a row.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Run<TTile>(SoftmaxMeanArguments arguments)
        where TTile : unmanaged, ITileSize
    {
        ItemMap items = arguments.Items;
        int item = Grid.IdxX / items.HeadGroup;
        int member = Grid.IdxX % items.HeadGroup;
        int tokens = items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        int chain = items.Chain(item);
        long means = arguments.Rows.Means + arguments.Rows.At(items, chain, Grid.IdxX - (chain * items.Chunks * items.HeadGroup), TTile.Edge);
        long output = items.Row(arguments.Output, item, member, TTile.Edge);
        long gradient = items.Row(arguments.Gradient, item, member, TTile.Edge);
        for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
        {
            int values = token < tokens ? arguments.Values : 0;
            float mean = 0;
            for (int i = 0; i < values; i++)
            {
                mean += arguments.Output.Load(output + (token * arguments.Output.TokenStride) + i)
                    * arguments.Gradient.Load(gradient + (token * arguments.Gradient.TokenStride) + i);
            }

            arguments.Workspace[means + token] = mean;
        }
    }
}
