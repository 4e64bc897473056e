namespace Gpu.Attention.Samples.Training;

/// <summary>What is trained, and how long.</summary>
internal sealed record TrainOptions
{
    /// <summary>The copy task: defaults that bring exact attention and elu+1 to the end of it.</summary>
    public static TrainOptions Copy { get; } = new()
    {
        Length = 128, Width = 128, Heads = 4, Batch = 16, Steps = 1_000, Rate = 0.003f, Output = Path.Combine("artifacts", "train", "copy"),
    };

    /// <summary>The character model.</summary>
    public static TrainOptions Chars { get; } = new()
    {
        Length = 256, Width = 128, Heads = 4, Batch = 16, Steps = 1_000, Rate = 0.002f, Output = Path.Combine("artifacts", "train", "chars"),
    };

    /// <summary>The change of attention under a trained character model.</summary>
    public static TrainOptions Transplant { get; } = Chars with { Features = 128, Output = Path.Combine("artifacts", "train", "transplant") };

    /// <summary>Symbols of a sequence.</summary>
    public int Length { get; init; }

    /// <summary>Symbols of the shortest word; null for words of one length. The copy task only.</summary>
    public int? Shortest { get; init; }

    /// <summary>Elements of a token's row.</summary>
    public int Width { get; init; }

    /// <summary>Attention heads.</summary>
    public int Heads { get; init; }

    /// <summary>Layers.</summary>
    public int Layers { get; init; } = 2;

    /// <summary>Sequences of a step.</summary>
    public int Batch { get; init; }

    /// <summary>Gradient steps.</summary>
    public int Steps { get; init; }

    /// <summary>Gradient steps after attention was changed; the transplant only.</summary>
    public int TuneSteps { get; init; } = 300;

    /// <summary>The largest learning rate.</summary>
    public float Rate { get; init; }

    /// <summary>Random features of a head.</summary>
    public int Features { get; init; } = 64;

    /// <summary>Steps after which random features are drawn anew; the character model only.</summary>
    public int RedrawEvery { get; init; } = 100;

    /// <summary>Steps from one measurement to the next.</summary>
    public int MeasureEvery { get; init; } = 25;

    /// <summary>Sequences of a measurement.</summary>
    public int MeasuredSequences { get; init; } = 64;

    /// <summary>The device, as <see cref="ComputeDevice.Open(string, ComputeDeviceOptions?)"/> takes it.</summary>
    public string Device { get; init; } = "cpu";

    /// <summary>The folder of pictures and checkpoints.</summary>
    public string Output { get; init; } = "";

    /// <summary>True to go on from the checkpoints in the folder.</summary>
    public bool Resume { get; init; }

    /// <summary>Opens the device, and says which and why.</summary>
    public ComputeDevice Open(TextWriter output)
    {
        ComputeDevice device = ComputeDevice.Open(Device);
        output.WriteLine($"Attention on {device}, {device.Reason}.");
        return device;
    }

    /// <summary>The model's sizes, for so many symbols.</summary>
    public ModelSize Size(int symbols) => new(symbols, Length, Width, Heads, Layers);

    /// <summary>The rate's course over so many steps.</summary>
    public LearningSchedule Schedule(int steps) => new(Rate, WarmUp: Math.Min(50, steps / 10), steps);
}
