namespace Gpu.Attention.Samples.Book;

/// <summary>How much of the book is read, and by what.</summary>
internal sealed record BookOptions
{
    /// <summary>How long exact attention on the common prefix may take, about.</summary>
    public double ExactSeconds { get; init; } = 20;

    /// <summary>Characters that all methods are compared on; null for as many as exact attention reads in <see cref="ExactSeconds"/>.</summary>
    public int? Prefix { get; init; }

    /// <summary>Characters of the whole-book pass; null for all.</summary>
    public int? Length { get; init; }

    /// <summary>The longest single call of the timings against length.</summary>
    public int LongestCall { get; init; } = 65_536;

    /// <summary>Feature counts of FAVOR+.</summary>
    public IReadOnlyList<int> Features { get; init; } = [256, 1024];

    /// <summary>The folder of the report.</summary>
    public string Output { get; init; } = Path.Combine("artifacts", "book");
}
