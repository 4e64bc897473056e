using ILGPU;

namespace Gpu.Attention;

/// <summary>What <see cref="RowGradientKernels"/> read and write.</summary>
internal struct RowGradientArguments
{
    /// <summary>The workspace; offsets count its floats.</summary>
    public ArrayView<float> Workspace;

    /// <summary>Which rows an item is.</summary>
    public ItemMap Items;

    /// <summary>The form that rows went through.</summary>
    public DeviceForm Form;

    /// <summary>The sizes.</summary>
    public PaddedSizes Sizes;

    /// <summary>Non-zero when the term that all of a row's features share has a gradient.</summary>
    public int HasRowTerm;

    /// <summary>Receives the rows' gradient.</summary>
    public KernelTensor Target;

    /// <summary>Reads <c>X'ᵀ</c>, <c>[item, member, d↑, C]</c>.</summary>
    public long Inputs;

    /// <summary>Reads gradients of log features or arguments, <c>[item, member, C, r↑]</c>.</summary>
    public long LogGradients;

    /// <summary>Their sum over a row's features, <c>[item, member, C]</c>.</summary>
    public long LogSums;

    /// <summary>dl W, <c>[item, member, C, d]</c> with d rounded up to a multiple of C.</summary>
    public long InputGradients;

    /// <summary>d rounded up to a multiple of C.</summary>
    public int InputStride;
}

/// <summary>
/// Gradients of log features or arguments to those of the rows that they were made of: <c>dy = Wᵀdl − 2β(Σ dl) y</c> and <c>dx = Pᵀdy + (Σ dl) u</c>.
/// </summary>
internal static class RowGradientKernels
{
    /// <summary>
    /// <c>dl W</c> and the sums of dl. A group takes C inputs of a member; explicitly grouped: <c>items · members · d/C</c> groups. Shared memory, C = 64: two
    /// slices of 4 KB.
    /// </summary>
    /// <param name="arguments">The arguments.</param>
    public static void Project<TTile, TBlock>(RowGradientArguments arguments)
        where TTile : unmanaged, ITileSize
        where TBlock : unmanaged, IBlock<TBlock>
    {
        ArrayView<Float4> left = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<Float4> right = SharedMemory.Allocate<Float4>(TileProduct.Depth * TTile.Edge / 4);
        ArrayView<float> sums = SharedMemory.Allocate<float>(TTile.Edge);
        ArrayView<float> staged = left.Cast<float>();
        ArrayView<Float4> quads = arguments.Workspace.Cast<Float4>();
        ArrayView<Float4> form = arguments.Form.Elements.Cast<Float4>();
        PaddedSizes sizes = arguments.Sizes;
        int tiles = arguments.InputStride / TTile.Edge;
        int member = Grid.IdxX / tiles;
        int firstInput = Grid.IdxX % tiles * TTile.Edge;
        if (arguments.Items.IsMissing(member / arguments.Items.HeadGroup, TTile.Edge))
        {
            return;
        }

        for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
        {
            sums[token] = 0;
        }

        int row = TileProduct.Row<TTile, TBlock>();
        int column = TileProduct.Column<TTile, TBlock>();
        long gradients = (arguments.LogGradients + ((long)member * TTile.Edge * sizes.PaddedFeatures)) / 4;
        long projection = (arguments.Form.Projection + ((long)firstInput * sizes.PaddedFeatures)) / 4;
        TBlock inputs = default;
        for (int start = 0; start < sizes.Features; start += TileProduct.Depth)
        {
            Group.Barrier();
            TileProduct.StageTransposed<TTile>(quads, gradients + (start / 4), sizes.PaddedFeatures / 4, TTile.Edge, left);
            TileProduct.StageTransposed<TTile>(form, projection + (start / 4), sizes.PaddedFeatures / 4, sizes.PaddedInputs - firstInput, right);
            Group.Barrier();
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                float sum = sums[token];
                for (int k = 0; k < TileProduct.Depth; k++)
                {
                    sum += staged[(k * TTile.Edge) + token];
                }

                sums[token] = sum;
            }

            inputs = TileProduct.AddSlice<TTile, TBlock>(inputs, left, row / 4, right, column / 4);
        }

        TBlock.Store(
            inputs, quads, (arguments.InputGradients + ((((long)member * TTile.Edge) + row) * arguments.InputStride) + firstInput + column) / 4,
            arguments.InputStride / 4);
        if (firstInput == 0)
        {
            for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
            {
                arguments.Workspace[arguments.LogSums + ((long)member * TTile.Edge) + token] = sums[token];
            }
        }
    }

    /// <summary>The rows' terms and the way back through the affine map. A group takes a member; explicitly grouped: <c>items · members</c> groups.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Store<TTile>(RowGradientArguments arguments)
        where TTile : unmanaged, ITileSize
    {
        int member = Grid.IdxX;
        int item = member / arguments.Items.HeadGroup;
        int tokens = arguments.Items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        DeviceForm form = arguments.Form;
        ArrayView<float> w = arguments.Workspace;
        int width = arguments.Sizes.Inputs;
        long rows = arguments.Items.Row(arguments.Target, item, member % arguments.Items.HeadGroup, TTile.Edge);
        int gathered = arguments.Items.Gathered(item, TTile.Edge);
        long inputs = arguments.Inputs + ((long)member * arguments.Sizes.PaddedInputs * TTile.Edge);
        long gradients = arguments.InputGradients + ((long)member * TTile.Edge * arguments.InputStride);
        for (int i = Group.IdxX; i < tokens * width; i += Group.DimX)
        {
            int token = i / width;
            int input = i - (token * width);
            float sum = arguments.HasRowTerm != 0 ? w[arguments.LogSums + ((long)member * TTile.Edge) + token] : 0;
            float norm = 2 * form.NormCoefficient * sum;
            bool hasNorm = arguments.HasRowTerm != 0 && form.NormCoefficient != 0;
            long row = gradients + ((long)token * arguments.InputStride);
            float gradient = 0;
            if (form.PreMatrix < 0)
            {
                gradient = w[row + input];
                if (hasNorm)
                {
                    gradient -= norm * w[inputs + ((long)input * TTile.Edge) + token];
                }
            }
            else
            {
                for (int k = 0; k < width; k++)
                {
                    float mapped = w[row + k];
                    if (hasNorm)
                    {
                        mapped -= norm * w[inputs + ((long)k * TTile.Edge) + token];
                    }

                    gradient += form.Elements[form.PreMatrix + (k * width) + input] * mapped;
                }
            }

            if (arguments.HasRowTerm != 0 && form.Linear >= 0)
            {
                gradient += sum * form.Elements[form.Linear + input];
            }

            int at = gathered < 0 ? token : arguments.Items.Tables[gathered + token];
            arguments.Target.Store(rows + (at * arguments.Target.TokenStride) + input, gradient);
        }
    }
}
