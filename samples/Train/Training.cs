using System.Diagnostics;

namespace Gpu.Attention.Samples.Training;

/// <summary>Symbols to learn from, and to be measured on.</summary>
internal interface ITask
{
    /// <summary>What it is, for checkpoints: the same name, the same batches.</summary>
    string Name { get; }

    /// <summary>Different symbols.</summary>
    int Symbols { get; }

    /// <summary>Draws sequences to learn from.</summary>
    Batch Draw(int sequences, RandomSource random);

    /// <summary>The sequences that models are measured on.</summary>
    IReadOnlyList<Batch> Measured { get; }
}

/// <summary>One model's training: steps, measurements along the way, and checkpoints that go on to the same bits.</summary>
internal sealed class Training : IDisposable
{
    // Initial weights and batches are the same for all methods.
    private const ulong WeightSeed = 1;
    private const ulong BatchSeed = 2;

    private readonly TrainOptions _options;
    private readonly ITask _task;
    private readonly TextWriter _output;
    private readonly LearningSchedule _schedule;
    private readonly AdamW _optimizer;
    private readonly RandomSource _random = new(BatchSeed);
    private readonly List<CurvePoint> _curve = [];
    private readonly string _name;
    private readonly string _settings;
    private readonly string _device;
    private double _seconds;
    private int _fallbacks;

    /// <summary>Starts from random weights, from given ones, or from a checkpoint.</summary>
    /// <param name="device">Where attention runs.</param>
    /// <param name="task">What is learned.</param>
    /// <param name="method">How the model attends.</param>
    /// <param name="options">Sizes and steps; where <see cref="TrainOptions.Resume"/> is set, a checkpoint of this training is gone on from.</param>
    /// <param name="output">Where progress goes.</param>
    /// <param name="initial">The weights to start from, with a name for them.</param>
    public Training(
        ComputeDevice device, ITask task, AttentionMethod method, TrainOptions options, TextWriter output, (string Name, float[] Values)? initial = null)
    {
        (_task, _options, _output, _device) = (task, options, output, device.ToString());
        Steps = initial is null ? options.Steps : options.TuneSteps;
        _schedule = options.Schedule(Steps);
        Model = new Transformer(device, options.Size(task.Symbols), method, WeightSeed);
        initial?.Values.CopyTo(Model.Parameters.Values, 0);
        _optimizer = new AdamW(Model.Parameters, _schedule);
        _name = initial is null ? method.Name : $"{method.Name} from {initial.Value.Name}";
        _settings = string.Join("; ", task.Name, _name, method, Model.Size, _schedule, $"batches of {options.Batch}");
        string file = string.Concat(_name.ToLowerInvariant().Where(c => char.IsLetterOrDigit(c) || c == ' ')).Replace(' ', '-');
        Path = System.IO.Path.Combine(options.Output, file + ".checkpoint");
        if (options.Resume && File.Exists(Path))
        {
            Restore();
        }
    }

    public Transformer Model { get; }

    /// <summary>Where checkpoints go.</summary>
    public string Path { get; }

    /// <summary>Steps of the whole training.</summary>
    public int Steps { get; }

    /// <summary>Steps so far.</summary>
    public int Step { get; private set; }

    /// <summary>The measurements so far.</summary>
    public IReadOnlyList<CurvePoint> Curve => _curve;

    /// <summary>Trains to the end, or until asked to stop; either way a checkpoint is left.</summary>
    /// <param name="stop">Asks to stop after the step in progress.</param>
    /// <returns>True at the end.</returns>
    public bool Run(CancellationToken stop = default)
    {
        if (_curve.Count == 0)
        {
            AddPoint();
        }

        while (Step < Steps && !stop.IsCancellationRequested)
        {
            TakeStep();
            if (Step % _options.MeasureEvery == 0 || Step == Steps)
            {
                AddPoint();
                Save();
            }
        }

        if (Step < Steps)
        {
            Save();
        }

        return Step == Steps;
    }

    /// <summary>Takes one step.</summary>
    public void TakeStep()
    {
        long start = Stopwatch.GetTimestamp();
        Model.Attention.BeginStep();
        Model.LossAndGradients(_task.Draw(_options.Batch, _random));
        _optimizer.Step(Step);
        Step++;
        _seconds += Stopwatch.GetElapsedTime(start).TotalSeconds;
    }

    /// <summary>Writes a checkpoint.</summary>
    public void Save()
    {
        Directory.CreateDirectory(_options.Output);
        new Checkpoint(
            _settings, _device, Step, _seconds, _random.State, Model.Attention.Draws, Model.Parameters.Values, _optimizer.First, _optimizer.Second,
            _curve).Save(Path);
    }

    /// <summary>The mean loss over sequences with random features that the model was never trained with.</summary>
    public double MeasureWithUnseenFeatures(IReadOnlyList<Batch> batches)
    {
        long current = Model.Attention.Draws.Draw;
        Model.Attention.UseDraw(current + 1);
        double loss = Measure(Model, batches);
        Model.Attention.UseDraw(current);
        return loss;
    }

    /// <summary>The mean loss over sequences.</summary>
    public static double Measure(Transformer model, IReadOnlyList<Batch> batches) =>
        batches.Sum(batch => model.Loss(batch) * batch.Asked) / batches.Sum(batch => batch.Asked);

    public void Dispose() => Model.Dispose();

    private void AddPoint()
    {
        var point = new CurvePoint(Step, _seconds, Measure(Model, _task.Measured));
        _curve.Add(point);
        foreach (FallbackStep fallback in Model.Attention.Fallbacks.Skip(_fallbacks))
        {
            _output.WriteLine($"  {_name}: fallback: {fallback}");
        }

        _fallbacks = Model.Attention.Fallbacks.Count;
        string left = Step == 0 ? "" : $", about {_seconds / Step * (Steps - Step):0} s left";
        _output.WriteLine($"  {_name}: step {Step} of {Steps}, {point.Loss:0.0000} nats a symbol, {_seconds:0.0} s{left}");
    }

    private void Restore()
    {
        Checkpoint from = Checkpoint.Load(Path);
        if (from.Settings != _settings || from.Values.Length != Model.Parameters.Values.Length)
        {
            throw new InvalidDataException($"{Path} is of another training ({from.Settings}) than this one ({_settings}).");
        }

        if (from.Step < 0 || from.Step > Steps)
        {
            throw new InvalidDataException($"{Path} stands at step {from.Step} of {Steps}.");
        }

        (Step, _seconds, _random.State) = (from.Step, from.Seconds, from.RandomState);
        Model.Attention.Resume(from.Draws);
        from.Values.CopyTo(Model.Parameters.Values, 0);
        from.First.CopyTo(_optimizer.First, 0);
        from.Second.CopyTo(_optimizer.Second, 0);
        _curve.AddRange(from.Curve);
        string elsewhere = from.Device == _device ? "" : $", which ran on {from.Device}: not to the bits that it would have had there";
        _output.WriteLine($"  {_name}: goes on from step {Step}{elsewhere}");
    }
}
