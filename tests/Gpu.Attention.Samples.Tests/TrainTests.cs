using System.Xml.Linq;
using Gpu.Attention.Samples.Training;
using Xunit;

namespace Gpu.Attention.Samples.Tests;

public sealed class TrainTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("gpu-attention-train-").FullName;
    private readonly StringWriter _output = new();

    private TrainOptions Small => TrainOptions.Copy with
    {
        Length = 16, Width = 32, Heads = 2, Batch = 8, Steps = 10, MeasureEvery = 5, MeasuredSequences = 16, Features = 16, Output = _folder,
    };

    [Fact]
    public void Copying_IsLearnedWithEveryAttentionAndSoonestWithSoftmax()
    {
        TrainOptions options = Small with { Length = 24, Width = 64, Batch = 32, Steps = 150, MeasureEvery = 10, Features = 64 };
        IReadOnlyList<IReadOnlyList<CurvePoint>>? curves = new CopyRun(options, _output).Run();
        Assert.NotNull(curves);

        // A guess costs log 10 = 2.3 nats.
        Assert.All(curves, curve => Assert.True(curve[0].Loss > 2 && curve[^1].Loss < CopyRun.Learned, _output.ToString()));
        int[] learnedAt = [.. curves.Select(curve => curve.First(p => p.Loss < CopyRun.Learned).Step)];
        Assert.True(learnedAt[0] < learnedAt[1], _output.ToString());
        XElement picture = XElement.Load(Path.Combine(_folder, CopyRun.Picture));
        Assert.Equal(3 + 1, picture.Descendants().Count(e => e.Name.LocalName == "polyline"));
    }

    [Fact]
    public void Transplant_IsWorseAtOnceAndBetterThanFromTheStartLater()
    {
        TrainOptions options = TrainOptions.Transplant with
        {
            Length = 64, Width = 64, Heads = 2, Batch = 16, Steps = 200, TuneSteps = 50, MeasureEvery = 50, MeasuredSequences = 32, Features = 32,
            Output = _folder,
        };
        TransplantResults? results = new TransplantRun(options, CharacterTask.Book(), _output).Run();
        Assert.NotNull(results);
        Assert.True(results.Softmax < 4, _output.ToString());
        Assert.True(results.Transplanted[0].Loss > results.Softmax, _output.ToString());
        Assert.True(results.Transplanted[^1].Loss < results.Transplanted[0].Loss, _output.ToString());
        Assert.True(results.Transplanted[^1].Loss < results.Fresh[^1].Loss, _output.ToString());
        Assert.Equal("svg", XElement.Load(Path.Combine(_folder, TransplantRun.Picture)).Name.LocalName);
    }

    [Fact]
    public void Characters_AreLearnedInEveryWay()
    {
        TrainOptions options = Small with { Length = 32, Batch = 16, Steps = 200, MeasureEvery = 50, RedrawEvery = 20 };
        IReadOnlyList<double>? bits = new CharsRun(options, CharacterTask.Book()[..50_000], _output).Run();
        Assert.NotNull(bits);

        // The frequencies of single characters, counted in the first nine tenths, cost 4.33 bits on the last.
        Assert.All(bits, value => Assert.InRange(value, 1, 4.33));
        XElement picture = XElement.Load(Path.Combine(_folder, CharsRun.Picture));
        Assert.Equal(3, picture.Descendants().Count(e => e.Name.LocalName == "polyline"));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(4)]
    public void TenSteps_AreFiveACheckpointAndFive(int redrawEvery)
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        var task = new CopyTask(Small.Length, Small.MeasuredSequences);
        AttentionMethod method = AttentionMethod.FavorPlus(Small.Features, redrawEvery);
        using var whole = new Samples.Training.Training(device, task, method, Small with { Output = Path.Combine(_folder, "whole") }, _output);
        Assert.True(whole.Run());

        using var begun = new Samples.Training.Training(device, task, method, Small, _output);
        Take(begun, 5);
        begun.Save();
        Take(begun, 1);
        using var resumed = new Samples.Training.Training(device, task, method, Small with { Resume = true }, _output);
        Assert.Equal(5, resumed.Step);
        Take(resumed, 5);
        Assert.Equal(whole.Model.Parameters.Values, resumed.Model.Parameters.Values);
        resumed.Save();
        Checkpoint expected = Checkpoint.Load(whole.Path), actual = Checkpoint.Load(resumed.Path);
        Assert.Equal(expected.First, actual.First);
        Assert.Equal(expected.Second, actual.Second);
        Assert.Equal((expected.Step, expected.RandomState, expected.Settings), (actual.Step, actual.RandomState, actual.Settings));
    }

    [Fact]
    public void Interruption_LeavesACheckpointThatIsGoneOnFrom()
    {
        using var stop = new CancellationTokenSource();
        stop.Cancel();
        Assert.Null(new CopyRun(Small, _output).Run(stop.Token));
        Assert.Single(Directory.GetFiles(_folder), file => file.EndsWith(".checkpoint", StringComparison.Ordinal));
        Assert.NotNull(new CopyRun(Small with { Resume = true }, _output).Run());
        Assert.Contains("goes on from step 0", _output.ToString());
    }

    [Fact]
    public void Checkpoint_OfOtherSettingsOrDamagedIsRefused()
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        var task = new CopyTask(Small.Length, Small.MeasuredSequences);
        using var training = new Samples.Training.Training(device, task, AttentionMethod.Softmax, Small, _output);
        training.Save();
        TrainOptions others = Small with { Resume = true, Batch = 9 };
        Assert.Throws<InvalidDataException>(() => new Samples.Training.Training(device, task, AttentionMethod.Softmax, others, _output));

        byte[] whole = File.ReadAllBytes(training.Path);
        int[] places = [0, 8, whole.Length / 2, whole.Length - 1];
        foreach (byte[] damaged in places.Select(place => Flip(whole, place)).Append(whole[..^1]).Append(whole[..20]).Append([]))
        {
            File.WriteAllBytes(training.Path, damaged);
            Assert.Throws<InvalidDataException>(() => Checkpoint.Load(training.Path));
        }
    }

    [Fact]
    public void HeldOutCharacters_AreNeverDrawn()
    {
        string text = new string('a', 900) + new string('b', 100);
        var task = new CharacterTask(text, length: 20, measured: 2);
        var random = new RandomSource(1);
        for (int i = 0; i < 100; i++)
        {
            Batch batch = task.Draw(8, random);
            Assert.DoesNotContain(1, batch.Inputs);
            Assert.DoesNotContain(1, batch.Targets);
        }

        Assert.All(task.HeldOut, batch => Assert.DoesNotContain(0, batch.Inputs));
        Assert.Equal(4, task.HeldOut.Sum(batch => batch.Sequences));
        Assert.Equal(2, task.Measured.Sum(batch => batch.Sequences));
    }

    public void Dispose()
    {
        Directory.Delete(_folder, recursive: true);
        _output.Dispose();
    }

    private static void Take(Samples.Training.Training training, int steps)
    {
        for (int i = 0; i < steps; i++)
        {
            training.TakeStep();
        }
    }

    private static byte[] Flip(byte[] bytes, int at)
    {
        byte[] copy = [.. bytes];
        copy[at] ^= 1;
        return copy;
    }
}
