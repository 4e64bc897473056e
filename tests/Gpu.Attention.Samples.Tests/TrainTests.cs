using System.Buffers.Binary;
using System.Security.Cryptography;
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
        IReadOnlyList<CharsResult>? results = new CharsRun(options, CharacterTask.Book()[..50_000], _output).Run();
        Assert.NotNull(results);

        // The frequencies of single characters, counted in the first nine tenths, cost 4.33 bits on the last.
        Assert.All(results, result => Assert.InRange(result.Bits, 1, 4.33));

        // The weights come to depend on the features that they see in training, and less so on features that change.
        Assert.Null(results[0].UnseenBits);
        Assert.True(results[2].UnseenBits - results[2].Bits < results[1].UnseenBits - results[1].Bits, _output.ToString());
        XElement picture = XElement.Load(Path.Combine(_folder, CharsRun.Picture));
        Assert.Equal(3, picture.Descendants().Count(e => e.Name.LocalName == "polyline"));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(4)]
    public void TenSteps_AreFiveACheckpointAndFive(int redrawEvery)
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        var task = new CopyTask(Small.Length, Small.Shortest, Small.MeasuredSequences);
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
        Assert.Equal(redrawEvery == 0 ? 0 : 2, actual.Draws.Draw);
        Assert.Equal((expected.Draws, expected.Device), (actual.Draws, actual.Device));
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
    public void Checkpoint_OfAnotherDeviceIsGoneOnFromWithANote()
    {
        using ComputeDevice device = (Small with { Device = "auto" }).Open(_output);
        Assert.Contains(device.Reason, _output.ToString());
        var task = new CopyTask(Small.Length, Small.Shortest, Small.MeasuredSequences);
        using var training = new Samples.Training.Training(device, task, AttentionMethod.Softmax, Small, _output);
        Take(training, 3);
        training.Save();
        (Checkpoint.Load(training.Path) with { Device = "an abacus" }).Save(training.Path);
        using var resumed = new Samples.Training.Training(device, task, AttentionMethod.Softmax, Small with { Resume = true }, _output);
        Assert.Equal(3, resumed.Step);
        Assert.Contains("which ran on an abacus: not to the bits", _output.ToString());
    }

    // Whoever writes such a file can write its checksum too.
    [Theory]
    [InlineData(int.MaxValue)]
    [InlineData(-1)]
    [InlineData(4)]
    public void Checkpoint_WhoseSizesDoNotFitInItIsRefused(int count)
    {
        string path = Path.Combine(Path.GetTempPath(), Path.GetRandomFileName());
        try
        {
            new Checkpoint("s", "d", 0, 0, 0, default, [1, 2, 3], [4, 5, 6], [7, 8, 9], []).Save(path);
            byte[] bytes = File.ReadAllBytes(path);
            int length = bytes.Length - SHA256.HashSizeInBytes;
            int at = length - sizeof(int) - (9 * sizeof(float)) - sizeof(int);
            Assert.Equal(3, BinaryPrimitives.ReadInt32LittleEndian(bytes.AsSpan(at)));
            BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(at), count);
            SHA256.HashData(bytes.AsSpan(0, length)).CopyTo(bytes, length);
            File.WriteAllBytes(path, bytes);
            Assert.Throws<InvalidDataException>(() => Checkpoint.Load(path));
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public void Checkpoint_OfOtherSettingsOrDamagedIsRefused()
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        var task = new CopyTask(Small.Length, Small.Shortest, Small.MeasuredSequences);
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

    [Theory]
    [InlineData(1)]
    [InlineData(5)]
    [InlineData(null)]
    public void Words_AreAskedASecondTime(int? shortest)
    {
        var task = new CopyTask(length: 16, shortest, measured: 2);
        var random = new RandomSource(1);
        var lengths = new HashSet<int>();
        for (int i = 0; i < 100; i++)
        {
            Batch batch = task.Draw(4, random);
            Assert.Equal((1, 4 * 15), (batch.Rows, batch.Length));
            int[] starts = [.. Enumerable.Range(0, batch.Length).Where(row => batch.Positions[row] == 0), batch.Length];
            Assert.Equal(starts.Length - 1, batch.Layout!.Sequences);
            foreach ((int start, int end) in starts.Zip(starts.Skip(1)))
            {
                // 0 w 0 w without the last symbol, which is asked where the one before it is fed.
                int word = (end - start) / 2;
                lengths.Add(word);
                Assert.Equal((2 * word) + 1, end - start);
                Assert.Equal(Enumerable.Range(0, end - start), batch.Positions[start..end]);
                Assert.Equal(0, batch.Inputs[start]);
                Assert.All(batch.Targets[start..(start + word)], target => Assert.Equal(-1, target));
                if (word > 0)
                {
                    int[] symbols = batch.Inputs[(start + 1)..(start + 1 + word)];
                    Assert.All(symbols, symbol => Assert.InRange(symbol, 1, 10));
                    Assert.Equal([0, .. symbols[..^1]], batch.Inputs[(start + word + 1)..end]);
                    Assert.Equal([-1, .. symbols], batch.Targets[(start + word)..end]);
                }
            }
        }

        // What is left of a batch's room takes a shorter one.
        Assert.Equal(7, lengths.Max());
        int first = shortest ?? 7;
        Assert.Superset(Enumerable.Range(first, 8 - first).ToHashSet(), lengths);
        Assert.True(shortest is not null || lengths.Count == 1);
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
        Assert.Equal(4, task.HeldOut.Sum(batch => batch.Rows));
        Assert.Equal(2, task.Measured.Sum(batch => batch.Rows));
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
