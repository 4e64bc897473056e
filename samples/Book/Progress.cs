using System.Diagnostics;

namespace Gpu.Attention.Samples.Book;

/// <summary>Shows what is being done: one line that changes on a terminal, a line a step elsewhere.</summary>
internal sealed class Progress(TextWriter output, bool isTerminal) : IDisposable
{
    private readonly Lock _gate = new();
    private readonly Stopwatch _clock = new();
    private Timer? _timer;
    private string _step = "";
    private double _expectedSeconds;
    private double _fraction;
    private int _shown;

    /// <summary>Starts a step.</summary>
    /// <param name="step">What it does.</param>
    /// <param name="expectedSeconds">How long it may take, where that is known before; 0 otherwise.</param>
    public void Begin(string step, double expectedSeconds = 0)
    {
        (_step, _expectedSeconds, _fraction) = (step, expectedSeconds, 0);
        _clock.Restart();
        if (isTerminal)
        {
            _timer = new Timer(_ => Show(), null, TimeSpan.Zero, TimeSpan.FromMilliseconds(200));
        }
        else
        {
            output.WriteLine(expectedSeconds > 1 ? $"  {step}, about {expectedSeconds:0} s ..." : $"  {step} ...");
        }
    }

    /// <summary>Says how much of the step is done.</summary>
    /// <param name="fraction">From 0 to 1.</param>
    public void Report(double fraction) => Volatile.Write(ref _fraction, fraction);

    /// <summary>Ends the step and takes its line away.</summary>
    public void End()
    {
        _timer?.Dispose();
        _timer = null;
        lock (_gate)
        {
            if (_shown > 0)
            {
                output.Write($"\r{new string(' ', _shown)}\r");
                _shown = 0;
            }

            _step = "";
        }
    }

    public void Dispose() => End();

    private void Show()
    {
        lock (_gate)
        {
            // A call of the timer may still be on its way when the step has ended.
            if (_step.Length == 0)
            {
                return;
            }

            double seconds = _clock.Elapsed.TotalSeconds;
            double fraction = Volatile.Read(ref _fraction);
            string state = fraction > 0 ? $"{fraction:0%}"
                : _expectedSeconds > 1 ? $"{seconds:0} of about {_expectedSeconds:0} s"
                : $"{seconds:0} s";
            string line = $"  {_step}: {state}";
            output.Write("\r" + line.PadRight(_shown));
            _shown = line.Length;
        }
    }
}
