using System.CommandLine;
using Gpu.Attention.Cli.Files;

namespace Gpu.Attention.Cli.Commands;

/// <summary>The options that say which tokens belong to which sequence, and which keys take part.</summary>
internal sealed class LayoutOptions
{
    private readonly Option<int[]?> _keyLengths = CommonOptions.Numbers(
        "--key-lengths", "How many keys of each sequence take part; the others are padding.", "3,7,0", 0, int.MaxValue);

    private readonly Option<string?> _padding = CommonOptions.Choice(
        "--padding", "With --key-lengths, where the padding stands.", ["left", "right"], "right");

    private readonly Option<string?> _keyMask = CommonOptions.Path("--key-mask", "Keys that take part, .npy [B, S], bool or uint8.", "mask.npy");

    private readonly Option<int[]?> _cuSeqlens = Offsets(
        "--cu-seqlens", "Where sequences end that are packed one after the other in tensors of batch 1, after a 0.");

    private readonly Option<int[]?> _cuSeqlensKey = Offsets(
        "--cu-seqlens-key", "With --cu-seqlens, where their keys end; as many as queries when not given.");

    public void AddTo(Command command)
    {
        command.Add(_keyLengths);
        command.Add(_padding);
        command.Add(_keyMask);
        command.Add(_cuSeqlens);
        command.Add(_cuSeqlensKey);
    }

    /// <summary>Refuses options that contradict each other.</summary>
    /// <exception cref="UsageException">They do.</exception>
    public void RequireSense(ParseResult parsed)
    {
        Option[] given = [.. new Option[] { _keyLengths, _keyMask, _cuSeqlens }.Where(parsed.IsGiven)];
        if (given.Length > 1)
        {
            throw new UsageException($"{given[0].Name} and {given[1].Name} exclude each other: which keys take part is said once.");
        }

        RequireWith(parsed, _padding, _keyLengths);
        RequireWith(parsed, _cuSeqlensKey, _cuSeqlens);
        if (Numbers(parsed, _cuSeqlensKey) is { } keys && Numbers(parsed, _cuSeqlens) is { } queries && keys.Length != queries.Length)
        {
            throw new UsageException(
                $"{_cuSeqlens.Name} has {queries.Length} offsets and {_cuSeqlensKey.Name} {keys.Length}; both have one more than there are sequences.");
        }
    }

    /// <summary>The layout of the tensors; null when sequences fill them.</summary>
    /// <exception cref="ArgumentException">The tensors cannot have it; the message says why.</exception>
    /// <exception cref="InvalidDataException">The mask's file is no mask of these tensors.</exception>
    public SequenceLayout? Make(ParseResult parsed, AttentionShape shape)
    {
        if (parsed.GetValue(_keyMask) is { } path)
        {
            return SequenceLayout.FromKeyMask(shape.Batch, shape.KeyLength, NpyFile.ReadMask(path, shape.Batch, shape.KeyLength));
        }

        if (Numbers(parsed, _keyLengths) is { } lengths)
        {
            PaddingSide padding = parsed.GetValue(_padding) == "left" ? PaddingSide.Left : PaddingSide.Right;
            string? wrong = lengths.Length != shape.Batch ? $"{lengths.Length} lengths for B = {shape.Batch} sequences"
                : lengths.Max() > shape.KeyLength ? $"{lengths.Max()}, more than the S = {shape.KeyLength} keys there are"
                : null;
            return wrong is null
                ? SequenceLayout.FromKeyLengths(lengths, shape.KeyLength, padding)
                : throw new ArgumentException($"{_keyLengths.Name} has {wrong}.");
        }

        if (Numbers(parsed, _cuSeqlens) is not { } queries)
        {
            return null;
        }

        int[] keys = Numbers(parsed, _cuSeqlensKey) ?? queries;
        string? misfit = shape.Batch != 1 ? $"{_cuSeqlens.Name}: packed sequences stand in tensors of batch 1, not {shape.Batch}."
            : queries[^1] != shape.QueryLength ? $"{_cuSeqlens.Name} ends at {queries[^1]}, but there are T = {shape.QueryLength} queries."
            : keys[^1] == shape.KeyLength ? null
            : keys == queries ? $"{_cuSeqlens.Name} ends at {queries[^1]}, but there are S = {shape.KeyLength} keys: say with {_cuSeqlensKey.Name} where theirs end."
            : $"{_cuSeqlensKey.Name} ends at {keys[^1]}, but there are S = {shape.KeyLength} keys.";
        return misfit is null ? SequenceLayout.FromCuSeqlens(queries, keys) : throw new ArgumentException(misfit);
    }

    private static Option<int[]?> Offsets(string name, string description) => CommonOptions.Numbers(
        name, description, "0,1,4,9", 0, int.MaxValue,
        objection: offsets => offsets[0] == 0 && offsets.Order().SequenceEqual(offsets) ? null : "starts at 0 and never falls");

    // Of an option that was not given the parser makes an array of no numbers.
    private static int[]? Numbers(ParseResult parsed, Option<int[]?> option) => parsed.IsGiven(option) ? parsed.GetValue(option) : null;

    private static void RequireWith(ParseResult parsed, Option option, Option other)
    {
        if (parsed.IsGiven(option) && !parsed.IsGiven(other))
        {
            throw new UsageException($"{option.Name} says something of {other.Name}, which is not given.");
        }
    }
}
