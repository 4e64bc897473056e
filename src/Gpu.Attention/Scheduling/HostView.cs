namespace Gpu.Attention;

/// <summary>Runs of bytes in host memory, in two nested regular steps: the part of a dense tensor that a segment takes.</summary>
/// <param name="Start">The first byte.</param>
/// <param name="Outer">Sequences.</param>
/// <param name="OuterStride">Bytes from one sequence to the next.</param>
/// <param name="Inner">Runs of a sequence.</param>
/// <param name="InnerStride">Bytes from one run to the next.</param>
/// <param name="Run">Bytes of a run.</param>
internal readonly unsafe record struct HostView(nint Start, long Outer, long OuterStride, long Inner, long InnerStride, long Run)
{
    /// <summary>Bytes in all.</summary>
    public long Length => Outer * Inner * Run;

    /// <summary>A view with as few runs as can be.</summary>
    public HostView Merged
    {
        get
        {
            HostView view = this;
            if (view.Inner > 0 && (view.Inner == 1 || view.InnerStride == view.Run))
            {
                view = view with { Inner = 1, Run = view.Inner * view.Run };
            }

            return view.Outer > 0 && view.Inner == 1 && (view.Outer == 1 || view.OuterStride == view.Run)
                ? view with { Outer = 1, Run = view.Outer * view.Run }
                : view;
        }
    }

    /// <summary>Copies bytes <c>first ..</c>, counted without the gaps, to dense memory.</summary>
    /// <param name="first">The first.</param>
    /// <param name="target">Dense memory.</param>
    /// <param name="count">How many.</param>
    public void CopyTo(long first, byte* target, long count) => Copy(first, target, count, isInwards: false);

    /// <summary>Copies dense memory over bytes <c>first ..</c>, counted without the gaps.</summary>
    /// <param name="first">The first.</param>
    /// <param name="source">Dense memory.</param>
    /// <param name="count">How many.</param>
    public void CopyFrom(long first, byte* source, long count) => Copy(first, source, count, isInwards: true);

    private void Copy(long first, byte* dense, long count, bool isInwards)
    {
        while (count > 0)
        {
            (long run, long at) = Math.DivRem(first, Run);
            (long outer, long inner) = Math.DivRem(run, Inner);
            byte* here = (byte*)Start + (outer * OuterStride) + (inner * InnerStride) + at;
            long length = Math.Min(count, Run - at);
            Buffer.MemoryCopy(isInwards ? dense : here, isInwards ? here : dense, length, length);
            dense += length;
            first += length;
            count -= length;
        }
    }
}
