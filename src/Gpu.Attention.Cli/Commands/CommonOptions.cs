using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;

namespace Gpu.Attention.Cli.Commands;

/// <summary>Options that several commands share, and the kinds of options that they are made of.</summary>
internal static class CommonOptions
{
    private const int MaxFeatures = 1 << 20;

    public static Option<bool> Json() => new("--json") { Description = "Print JSON instead of text." };

    public static Option<bool> Causal() => new("--causal") { Description = "Query i sees keys 0..i only." };

    public static Option<int> NumFeatures() => Number("--num-features", "Rows of the random projection.", 1, MaxFeatures, 256);

    /// <summary>Whether an option was given on the command line rather than filled in.</summary>
    public static bool IsGiven(this ParseResult parsed, Option option) => parsed.GetResult(option) is { Implicit: false };

    /// <summary>A path.</summary>
    public static Option<string?> Path(string name, string description, string example, bool required = false) =>
        new(name) { Description = description, HelpName = example, Required = required };

    /// <summary>A whole number from <paramref name="least"/> to <paramref name="most"/>.</summary>
    public static Option<int> Number(string name, string description, int least, int most, int value) => new(name)
    {
        Description = description,
        HelpName = "n",
        DefaultValueFactory = _ => value,
        CustomParser = result =>
        {
            if (!int.TryParse(result.Tokens[0].Value, NumberStyles.None, CultureInfo.InvariantCulture, out int number) || number < least || number > most)
            {
                result.AddError($"{name} takes a whole number from {least} to {most}, not '{result.Tokens[0].Value}'.");
            }

            return number;
        },
    };

    /// <summary>A finite number from <paramref name="least"/> up.</summary>
    public static Option<float?> Real(string name, string description, float least = float.MinValue) => new(name)
    {
        Description = description,
        HelpName = "x",
        CustomParser = result =>
        {
            bool isNumber = float.TryParse(result.Tokens[0].Value, NumberStyles.Float, CultureInfo.InvariantCulture, out float number);
            if (!isNumber || !float.IsFinite(number) || number < least)
            {
                string from = least == float.MinValue ? "" : $" from {least} up";
                result.AddError($"{name} takes a finite number{from}, not '{result.Tokens[0].Value}'.");
            }

            return number;
        },
    };

    /// <summary>One of a few words.</summary>
    public static Option<string?> Choice(string name, string description, string[] words, string? value = null) => new(name)
    {
        Description = description,
        HelpName = string.Join('|', words),
        DefaultValueFactory = value is null ? null : _ => value,
        CustomParser = result => RequireWord(result, name, words, result.Tokens[0].Value),
    };

    /// <summary>Some of a few words, separated by commas.</summary>
    public static Option<string[]> Choices(string name, string description, string[] words, string value) => new(name)
    {
        Description = description,
        HelpName = string.Join(',', words),
        DefaultValueFactory = _ => [value],
        CustomParser = result => [.. result.Tokens[0].Value.Split(',').Distinct().Select(word => RequireWord(result, name, words, word))],
    };

    /// <summary>Whole numbers from <paramref name="least"/> to <paramref name="most"/>, separated by commas.</summary>
    /// <param name="name">The option.</param>
    /// <param name="description">What it means.</param>
    /// <param name="example">An example.</param>
    /// <param name="least">The least of them.</param>
    /// <param name="most">The most.</param>
    /// <param name="value">What holds when the option is not given.</param>
    /// <param name="objection">What else is wrong with the numbers; null when nothing is.</param>
    public static Option<int[]?> Numbers(
        string name, string description, string example, int least, int most, int[]? value = null, Func<int[], string?>? objection = null) => new(name)
        {
            Description = description,
            HelpName = example,
            DefaultValueFactory = value is null ? null : _ => value,
            CustomParser = result =>
            {
                string text = result.Tokens[0].Value;
                var numbers = new List<int>();
                foreach (string part in text.Split(','))
                {
                    if (!int.TryParse(part, NumberStyles.None, CultureInfo.InvariantCulture, out int number) || number < least || number > most)
                    {
                        result.AddError($"{name} takes whole numbers from {least} to {most}, separated by commas, not '{text}'.");
                        return null;
                    }

                    numbers.Add(number);
                }

                if (objection?.Invoke([.. numbers]) is { } wrong)
                {
                    result.AddError($"{name} {wrong}, unlike '{text}'.");
                }

                return [.. numbers];
            },
        };

    private static string RequireWord(ArgumentResult result, string name, string[] words, string word)
    {
        if (!words.Contains(word))
        {
            result.AddError($"{name}: '{word}' is none of {string.Join(", ", words)}.");
        }

        return word;
    }
}
