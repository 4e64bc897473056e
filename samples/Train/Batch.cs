namespace Gpu.Attention.Samples.Training;

/// <summary>Sequences of symbols, and what is to be predicted after each: of one length, or packed one after the other.</summary>
internal sealed record Batch
{
    private Batch(int rows, int length, int[] inputs, int[] targets, int[] positions, SequenceLayout? layout) =>
        (Rows, Length, Inputs, Targets, Positions, Layout, Asked) = (rows, length, inputs, targets, positions, layout, targets.Count(t => t >= 0));

    /// <summary>Rows of the batch: sequences, or 1 when they are packed into it.</summary>
    public int Rows { get; }

    /// <summary>Symbols of a row.</summary>
    public int Length { get; }

    /// <summary>The symbols, <c>[rows, length]</c>.</summary>
    public int[] Inputs { get; }

    /// <summary>The symbols to predict; −1 where nothing is asked.</summary>
    public int[] Targets { get; }

    /// <summary>The place of every symbol in its sequence.</summary>
    public int[] Positions { get; }

    /// <summary>Where sequences lie, as attention is told; null when each fills its row.</summary>
    public SequenceLayout? Layout { get; }

    /// <summary>How many symbols are to be predicted.</summary>
    public int Asked { get; }

    /// <summary>Sequences of one length.</summary>
    public static Batch Whole(int sequences, int length, int[] inputs, int[] targets) =>
        new(sequences, length, inputs, targets, [.. Enumerable.Range(0, inputs.Length).Select(row => row % length)], null);

    /// <summary>Sequences one after the other.</summary>
    /// <param name="starts">Where each begins, and where the last ends.</param>
    /// <param name="inputs">The symbols.</param>
    /// <param name="targets">The symbols to predict.</param>
    public static Batch Packed(int[] starts, int[] inputs, int[] targets)
    {
        int[] positions = new int[inputs.Length];
        for (int sequence = 0; sequence + 1 < starts.Length; sequence++)
        {
            for (int row = starts[sequence]; row < starts[sequence + 1]; row++)
            {
                positions[row] = row - starts[sequence];
            }
        }

        return new Batch(1, inputs.Length, inputs, targets, positions, SequenceLayout.FromCuSeqlens(starts));
    }
}
