using System.CommandLine;
using Gpu.Attention;
using Gpu.Attention.Samples.Training;

using var stop = new CancellationTokenSource();
Console.CancelKeyPress += (_, pressed) =>
{
    // The step in progress ends, and a checkpoint is written.
    pressed.Cancel = true;
    stop.Cancel();
};

var command = new RootCommand("Trains a small transformer on this library's attention.")
{
    Make("copy", "Copies a word: loss against gradient step of softmax, elu+1 and FAVOR+.", TrainOptions.Copy,
        options => new CopyRun(options, Console.Out).Run(stop.Token) is not null),
    Make("chars", "Learns a book by character: softmax against FAVOR+ with and without new random features now and then.", TrainOptions.Chars,
        options => new CharsRun(options, CharacterTask.Book(), Console.Out).Run(stop.Token) is not null),
    Make("transplant", "Learns a book with softmax, then puts FAVOR+ in its place and trains on.", TrainOptions.Transplant,
        options => new TransplantRun(options, CharacterTask.Book(), Console.Out).Run(stop.Token) is not null),
};
return command.Parse(args).Invoke();

static Command Make(string name, string description, TrainOptions defaults, Func<TrainOptions, bool> run)
{
    Option<int> length = Count("--length", "Symbols of a sequence", defaults.Length);
    var shortest = new Option<int?>("--shortest") { Description = "Symbols of the shortest word; when left out, all words are as long as the longest" };
    Option<int> width = Count("--width", "Elements of a token's row; a multiple of the heads", defaults.Width);
    Option<int> heads = Count("--heads", "Attention heads", defaults.Heads);
    Option<int> layers = Count("--layers", "Layers", defaults.Layers);
    Option<int> batch = Count("--batch", "Sequences of a step", defaults.Batch);
    Option<int> steps = Count("--steps", "Gradient steps", defaults.Steps);
    Option<int> tuneSteps = Count("--tune-steps", "Gradient steps after attention was changed", defaults.TuneSteps);
    Option<int> features = Count("--features", "Random features of a head", defaults.Features);
    Option<int> redraw = Count("--redraw-every", "Steps after which random features are drawn anew", defaults.RedrawEvery);
    Option<int> measure = Count("--measure-every", "Steps from one measurement, and checkpoint, to the next", defaults.MeasureEvery);
    var rate = new Option<float>("--rate") { Description = "The largest learning rate", DefaultValueFactory = _ => defaults.Rate };
    var device = new Option<string>("--device")
    {
        Description = "Where attention runs: cpu, cuda, opencl, simulator, or auto for the best; what it cannot run the host does, and says why",
        DefaultValueFactory = _ => defaults.Device,
    };
    var output = new Option<string>("--output") { Description = "The folder of pictures and checkpoints", DefaultValueFactory = _ => defaults.Output };
    var resume = new Option<bool>("--resume") { Description = "Go on from the checkpoints in the folder" };
    var command = new Command(name, description) { length, width, heads, layers, batch, steps, features, measure, rate, device, output, resume };
    if (name == "copy")
    {
        command.Add(shortest);
    }

    if (name == "chars")
    {
        command.Add(redraw);
    }

    if (name == "transplant")
    {
        command.Add(tuneSteps);
    }

    length.Validators.Add(result =>
    {
        if (name == "copy" && (result.GetValue(length) < 4 || result.GetValue(length) % 2 != 0))
        {
            result.AddError("--length takes an even number from 4.");
        }
    });
    shortest.Validators.Add(result =>
    {
        if (result.GetValue(shortest) < 1)
        {
            result.AddError("--shortest takes a whole number above zero.");
        }
    });
    command.SetAction(arguments =>
    {
        var options = defaults with
        {
            Length = arguments.GetValue(length),
            Shortest = name == "copy" ? arguments.GetValue(shortest) : null,
            Width = arguments.GetValue(width),
            Heads = arguments.GetValue(heads),
            Layers = arguments.GetValue(layers),
            Batch = arguments.GetValue(batch),
            Steps = arguments.GetValue(steps),
            TuneSteps = name == "transplant" ? arguments.GetValue(tuneSteps) : defaults.TuneSteps,
            Features = arguments.GetValue(features),
            RedrawEvery = name == "chars" ? arguments.GetValue(redraw) : defaults.RedrawEvery,
            MeasureEvery = arguments.GetValue(measure),
            Rate = arguments.GetValue(rate),
            Device = arguments.GetValue(device)!,
            Output = arguments.GetValue(output)!,
            Resume = arguments.GetValue(resume),
        };
        if (options.Width % options.Heads != 0)
        {
            Console.Error.WriteLine("--width takes a multiple of --heads.");
            return 1;
        }

        try
        {
            return run(options) ? 0 : 1;
        }
        catch (Exception e) when (e is InvalidDataException or ArgumentException or NotSupportedException or DeviceException)
        {
            Console.Error.WriteLine(e.Message);
            return 1;
        }
    });
    return command;
}

static Option<int> Count(string name, string description, int value)
{
    var option = new Option<int>(name) { Description = description, DefaultValueFactory = _ => value };
    option.Validators.Add(result =>
    {
        if (result.GetValue(option) < 1)
        {
            result.AddError($"{name} takes a whole number above zero.");
        }
    });
    return option;
}
