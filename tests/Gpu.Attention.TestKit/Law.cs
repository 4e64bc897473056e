namespace Gpu.Attention.TestKit;

/// <summary>Runs a law over many generated cases, each of which its seed alone repeats.</summary>
public static class Law
{
    /// <summary>Runs the law; a failure's message names the case and its seed.</summary>
    /// <param name="cases">How many cases.</param>
    /// <param name="seed">The seed of the first; the others follow.</param>
    /// <param name="generate">Makes a case, whose text goes into the message.</param>
    /// <param name="law">Throws when the case breaks the law.</param>
    public static void ForAll<T>(int cases, ulong seed, Func<SeededRandom, T> generate, Action<T> law)
    {
        for (ulong current = seed; current < seed + (ulong)cases; current++)
        {
            T sample = generate(new SeededRandom(current));
            try
            {
                law(sample);
            }
            catch (Exception exception)
            {
                throw new VerificationException($"The law fails for seed {current}, {sample}: {exception.Message}", exception);
            }
        }
    }
}
