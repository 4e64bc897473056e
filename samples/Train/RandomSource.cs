namespace Gpu.Attention.Samples.Training;

/// <summary>SplitMix64: random numbers from a state that is one number, so that it can be kept and gone on from.</summary>
/// <param name="state">The seed, or a state that was kept.</param>
internal sealed class RandomSource(ulong state)
{
    /// <summary>All that decides what comes next.</summary>
    public ulong State { get; set; } = state;

    /// <summary>A whole number from 0 to <paramref name="limit"/> − 1.</summary>
    public int Below(int limit) => (int)(((UInt128)Next() * (ulong)limit) >> 64);

    /// <summary>A number of the standard normal distribution.</summary>
    public float Normal()
    {
        // The first is above 0, whose logarithm would be infinite.
        double first = ((Next() >> 11) + 1) * (1.0 / (1L << 53));
        double second = (Next() >> 11) * (1.0 / (1L << 53));
        return (float)(Math.Sqrt(-2 * Math.Log(first)) * Math.Cos(2 * Math.PI * second));
    }

    private ulong Next()
    {
        State += 0x9E3779B97F4A7C15;
        ulong mixed = (State ^ (State >> 30)) * 0xBF58476D1CE4E5B9;
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB;
        return mixed ^ (mixed >> 31);
    }
}
