using ILGPU;

namespace Gpu.Attention;

/// <summary>What the kernels of <see cref="PackKernels"/> read and write.</summary>
internal struct PackArguments
{
    /// <summary>The workspace; offsets count its floats.</summary>
    public ArrayView<float> Workspace;

    /// <summary>Queries, keys or values.</summary>
    public KernelTensor Source;

    /// <summary>Which rows an item is.</summary>
    public ItemMap Items;

    /// <summary>Queries that see nothing at all are not read, for they may be NaN, and are 0: 1 when all are such, 2 when those of sequences without keys are.</summary>
    public int Blank;

    /// <summary>The form that rows are packed for; not for values.</summary>
    public DeviceForm Form;

    /// <summary>The sizes.</summary>
    public PaddedSizes Sizes;

    /// <summary>Receives <c>X'ᵀ</c>, <c>[item, d↑, C]</c>, or values, <c>[item, C, dv↑]</c>.</summary>
    public long Target;

    /// <summary>Receives <c>−β|x'|² + u·x</c>, <c>[item, C]</c>.</summary>
    public long RowTerms;
}

/// <summary>What <see cref="PackKernels.Clear"/> writes.</summary>
internal struct ClearArguments
{
    /// <summary>The tensor.</summary>
    public KernelTensor Target;

    /// <summary>Sequences, or rows that they are packed in.</summary>
    public int Batch;

    /// <summary>Tokens of each.</summary>
    public int Tokens;

    /// <summary>Heads.</summary>
    public int Heads;

    /// <summary>Elements of a row.</summary>
    public int Width;
}

/// <summary>
/// Copies chunks out of the caller's tensors into the workspace: aligned, padded with zeros, and rows already through the form's affine map
/// <c>x' = P x + p</c>. A group takes a chunk of one head.
/// </summary>
internal static class PackKernels
{
    /// <summary>Rows of queries or keys, transposed, with the term that all features of a row share. A thread takes a row.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Rows<TTile>(PackArguments arguments)
        where TTile : unmanaged, ITileSize
    {
        int item = Grid.IdxX / arguments.Items.HeadGroup;
        int member = Grid.IdxX % arguments.Items.HeadGroup;
        int tokens = arguments.Items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        long rows = arguments.Items.Row(arguments.Source, item, member, TTile.Edge);
        int gathered = arguments.Items.Gathered(item, TTile.Edge);
        bool isBlank = arguments.Blank == 1 || (arguments.Blank == 2 && arguments.Items.HasNoKeys(item));
        long target = arguments.Target + ((long)Grid.IdxX * arguments.Sizes.PaddedInputs * TTile.Edge);
        DeviceForm form = arguments.Form;
        KernelTensor x = arguments.Source;
        for (int token = Group.IdxX; token < TTile.Edge; token += Group.DimX)
        {
            bool isThere = token < tokens && !isBlank;
            int inputs = isThere ? arguments.Sizes.Inputs : 0;
            long row = rows + ((isThere && gathered >= 0 ? arguments.Items.Tables[gathered + token] : token) * x.TokenStride);
            float norm = 0;
            float linear = 0;
            for (int i = 0; i < inputs; i++)
            {
                float value = x.Load(row + i);
                if (form.Linear >= 0)
                {
                    linear += form.Elements[form.Linear + i] * value;
                }

                if (form.PreMatrix >= 0)
                {
                    value = 0;
                    for (int k = 0; k < inputs; k++)
                    {
                        value += form.Elements[form.PreMatrix + (i * inputs) + k] * x.Load(row + k);
                    }
                }

                if (form.PreOffset >= 0)
                {
                    value += form.Elements[form.PreOffset + i];
                }

                norm += value * value;
                arguments.Workspace[target + ((long)i * TTile.Edge) + token] = value;
            }

            for (int i = inputs; i < arguments.Sizes.PaddedInputs; i++)
            {
                arguments.Workspace[target + ((long)i * TTile.Edge) + token] = 0;
            }

            // β = 0 must not meet a norm that overflows.
            float term = form.NormCoefficient == 0 ? linear : linear - (form.NormCoefficient * norm);
            arguments.Workspace[arguments.RowTerms + ((long)Grid.IdxX * TTile.Edge) + token] = term;
        }
    }

    /// <summary>Rows of values, or others that are to lie as values do.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Values<TTile>(PackArguments arguments)
        where TTile : unmanaged, ITileSize
    {
        int item = Grid.IdxX / arguments.Items.HeadGroup;
        int tokens = arguments.Items.Tokens(item, TTile.Edge);
        if (tokens <= 0)
        {
            return;
        }

        long rows = arguments.Items.Row(arguments.Source, item, Grid.IdxX % arguments.Items.HeadGroup, TTile.Edge);
        int gathered = arguments.Items.Gathered(item, TTile.Edge);
        int width = arguments.Sizes.PaddedValues;
        long target = arguments.Target + ((long)Grid.IdxX * TTile.Edge * width);
        for (int i = Group.IdxX; i < TTile.Edge * width; i += Group.DimX)
        {
            int token = i / width;
            int column = i - (token * width);
            float value = 0;
            if (token < tokens && column < arguments.Sizes.Values)
            {
                int at = gathered < 0 ? token : arguments.Items.Tables[gathered + token];
                value = arguments.Source.Load(rows + (at * arguments.Source.TokenStride) + column);
            }

            arguments.Workspace[target + i] = value;
        }
    }

    /// <summary>Writes zeros, a tensor's every element: what has no gradient. Explicitly grouped; threads stride over the elements.</summary>
    /// <param name="arguments">The arguments.</param>
    public static void Clear(ClearArguments arguments)
    {
        long elements = (long)arguments.Batch * arguments.Tokens * arguments.Heads * arguments.Width;
        for (long i = ((long)Grid.IdxX * Group.DimX) + Group.IdxX; i < elements; i += (long)Grid.DimX * Group.DimX)
        {
            long row = i / arguments.Width;
            long token = row / arguments.Heads;
            int batch = (int)(token / arguments.Tokens);
            long at = arguments.Target.Row(batch, (int)(token - ((long)batch * arguments.Tokens)), (int)(row - (token * arguments.Heads)));
            arguments.Target.Store(at + (i - (row * arguments.Width)), 0);
        }
    }
}
