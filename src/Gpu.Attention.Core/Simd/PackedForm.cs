using System.Runtime.CompilerServices;

namespace Gpu.Attention;

/// <summary>A feature form laid out for the micro-kernel, made once per form and kept as long as the form lives.</summary>
/// <remarks>Arrays are pinned and start on a cache line.</remarks>
internal sealed unsafe class PackedForm<TV>
    where TV : struct, ISimdVector<TV>
{
    private static readonly ConditionalWeakTable<FeatureForm, PackedForm<TV>> Cache = [];

    private readonly List<float[]> _pinned = [];

    private PackedForm(FeatureForm form)
    {
        Form = form;
        FeatureStride = RoundUp(form.FeatureDimension);
        InputStride = RoundUp(form.InputDimension);
        if (form.Projection is not null)
        {
            Rows = Pin(form.Projection);
            Panels = PackPanels(form.Projection, form.FeatureDimension, form.InputDimension);
        }

        if (form.PreMatrix is not null)
        {
            PrePanels = PackPanels(form.PreMatrix, form.InputDimension, form.InputDimension);
        }

        PreOffset = form.PreOffset is null ? null : Pin(form.PreOffset);
        Linear = form.Linear is null ? null : Pin(form.Linear);

        // Features beyond r are never read as features, but they pass through the same maximum and sum: log 0 leaves both alone.
        float[] offset = new float[FeatureStride];
        form.Offset?.CopyTo(offset, 0);
        offset.AsSpan(form.FeatureDimension).Fill(
            form.Activation.Family == FeatureFamily.Exponential ? float.NegativeInfinity : 0);
        Offset = Pin(offset);
    }

    public FeatureForm Form { get; }

    /// <summary>r rounded up to whole vectors.</summary>
    public int FeatureStride { get; }

    /// <summary>d rounded up to whole vectors.</summary>
    public int InputStride { get; }

    /// <summary>W, <c>r × d</c>; null without a projection.</summary>
    public float* Rows { get; }

    /// <summary>Wᵀ in panels of the micro-kernel's tile width, each <c>d × columns</c>.</summary>
    public float* Panels { get; }

    /// <summary>Pᵀ in panels; null without a pre-matrix.</summary>
    public float* PrePanels { get; }

    /// <summary>W in panels, to bring gradients back through the projection; null without one or before <see cref="PrepareBackward"/>.</summary>
    public float* BackPanels { get; private set; }

    /// <summary>P in panels; null without a pre-matrix or before <see cref="PrepareBackward"/>.</summary>
    public float* BackPrePanels { get; private set; }

    /// <summary>p, or null.</summary>
    public float* PreOffset { get; }

    /// <summary>u, or null.</summary>
    public float* Linear { get; }

    /// <summary>b, padded to <see cref="FeatureStride"/>.</summary>
    public float* Offset { get; }

    public bool HasPreMap => PrePanels is not null || PreOffset is not null;

    /// <summary>True when a row has a term of its own beside the projection: −β|x'|² + u·x.</summary>
    public bool HasRowTerm => Form.NormCoefficient != 0 || Form.Linear is not null;

    public static PackedForm<TV> Of(FeatureForm form) => Cache.GetValue(form, static f => new PackedForm<TV>(f));

    /// <summary>Makes what only a backward pass needs, once.</summary>
    public void PrepareBackward()
    {
        lock (_pinned)
        {
            if (BackPanels is null && Form.Projection is not null)
            {
                BackPanels = PackPanels(Transposed(Form.Projection, Form.InputDimension), Form.InputDimension, Form.FeatureDimension);
            }

            if (BackPrePanels is null && Form.PreMatrix is not null)
            {
                BackPrePanels = PackPanels(Transposed(Form.PreMatrix, Form.InputDimension), Form.InputDimension, Form.InputDimension);
            }
        }
    }

    public static int RoundUp(int length) => (length + TV.Count - 1) / TV.Count * TV.Count;

    /// <summary><c>Y[n, RoundUp(rows)] = X Mᵀ</c> for a matrix in panels.</summary>
    public static void MultiplyPanels(
        int n, int rows, int inner, float* x, nint xStride, float* panels, float* y, nint yStride, LinesAhead* ahead = null) =>
        MicroKernel<TV>.MultiplyPanels(n, RoundUp(rows), inner, x, xStride, panels, y, yStride, ahead);

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float[] Transposed(float[] matrix, int columns)
    {
        float[] transposed = new float[matrix.Length];
        int rows = matrix.Length / columns;
        for (int row = 0; row < rows; row++)
        {
            for (int column = 0; column < columns; column++)
            {
                transposed[((long)column * rows) + row] = matrix[((long)row * columns) + column];
            }
        }

        return transposed;
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private float* PackPanels(float[] matrix, int rows, int inner)
    {
        int width = MicroKernel<TV>.Columns;
        float[] panels = new float[(long)((rows + width - 1) / width) * width * inner];
        for (int row = 0; row < rows; row++)
        {
            long target = ((long)(row / width) * width * inner) + (row % width);
            for (int i = 0; i < inner; i++)
            {
                panels[target + ((long)i * width)] = matrix[((long)row * inner) + i];
            }
        }

        return Pin(panels);
    }

    private float* Pin(float[] source)
    {
        float[] pinned = GC.AllocateUninitializedArray<float>(source.Length + LinearLayout.LineFloats, pinned: true);
        _pinned.Add(pinned);
        float* start = (float*)Unsafe.AsPointer(ref pinned[0]);
        start = (float*)(((nint)start + 63) & ~(nint)63);
        source.CopyTo(new Span<float>(start, source.Length));
        return start;
    }
}
