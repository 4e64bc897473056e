using System.Runtime.CompilerServices;
using Gpu.Attention.TestKit;
using Microsoft.Extensions.Logging;

namespace Gpu.Attention.Tests;

/// <summary>What a device's failure, or the end of it, must not take along.</summary>
public sealed class DeviceFaultTests
{
    private const long Plenty = 1L << 30;

    private static readonly AttentionShape Shape = new(1, 4, 1, 2);

    // An engine's own memory is as scarce as the scheduler's, and a driver's word for it is not this library's.
    [Theory]
    [InlineData("compute 0")]
    [InlineData("allocate")]
    public void Too_little_memory_for_a_call_on_tensors_is_not_the_end_of_the_device(string where)
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Lazy);
        using ComputeDevice device = fake.Open();
        using DeviceTensor tokens = DeviceTensor.Allocate(device, 1, 4, 1, 2);
        using DeviceTensor output = DeviceTensor.Allocate(device, 1, 4, 1, 2);
        tokens.Upload(new float[8]);
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        fake.OnStep = step => _ = step == where ? throw new DriverOutOfMemoryException() : 0;
        Assert.Throws<DeviceException>(() => attention.Forward(tokens, tokens, tokens, output));
        fake.OnStep = static _ => { };
        attention.Forward(tokens, tokens, tokens, output);
        Assert.Null(fake.Failure);
        Assert.Equal(fake.Info, attention.LastDevice);
    }

    [Theory]
    [InlineData("session")]
    [InlineData("staging")]
    public void Too_little_memory_to_begin_with_is_not_the_end_of_the_device(string where)
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Lazy);
        using ComputeDevice device = fake.Open();
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        fake.OnStep = step => _ = step == where ? throw new DriverOutOfMemoryException() : 0;
        Forward(attention, Shape);
        Assert.Equal(DeviceKind.Cpu, attention.LastDevice.Kind);
        fake.OnStep = static _ => { };
        Forward(attention, Shape);
        Assert.Equal(fake.Info, attention.LastDevice);
    }

    [Theory]
    [InlineData("upload 0", false)]
    [InlineData("upload 0", true)]
    [InlineData("upload 1", false)]
    [InlineData("upload 1", true)]
    [InlineData("wait Upload", false)]
    [InlineData("wait Upload", true)]
    [InlineData("download 1", false)]
    [InlineData("download 1", true)]
    [InlineData("wait Download", false)]
    [InlineData("wait Download", true)]
    public void Staging_memory_outlives_a_copy_that_failed(string where, bool again)
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Lazy);
        float[] content = TestData.Normal(1, (3 << 20) + 5);
        using (ComputeDevice device = fake.Open())
        {
            using DeviceTensor tensor = DeviceTensor.Allocate(device, content.Length);
            bool thrown = false;
            fake.OnStep = step =>
            {
                if (step == where && !thrown)
                {
                    thrown = true;
                    throw new InvalidOperationException("it burns");
                }
            };
            Assert.Throws<DeviceException>(() => Copy(tensor));
            if (again)
            {
                Assert.Equal(content, Copy(tensor));
            }
        }

        Assert.Equal((0, 0, 0), (fake.Allocated, fake.Sessions, fake.StagingBytes));

        float[] Copy(DeviceTensor tensor)
        {
            float[] back = new float[content.Length];
            tensor.Upload(content);
            tensor.Download(back);
            return back;
        }
    }

    // A driver refuses everything after a fault, the release of memory too.
    [Theory]
    [InlineData("free")]
    [InlineData("close")]
    [InlineData("wait Compute")]
    public void A_failed_device_is_disposed_without_an_exception(string where)
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Eager);
        ComputeDevice device = fake.Open();
        DeviceTensor tensor = DeviceTensor.Allocate(device, 3);
        tensor.Upload([1f, 2, 3]);
        var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        Forward(attention, Shape);
        fake.OnStep = step => _ = step == where ? throw new InvalidOperationException("it burns") : 0;
        device.Dispose();
        tensor.Dispose();
        attention.Dispose();
        Assert.False(fake.IsInUse);
        Assert.Equal((0, 0), (fake.Pool.LiveBytes, fake.Pool.HeldBytes));
    }

    [Fact]
    public void No_step_is_silent_however_many_there_were()
    {
        var logs = new Warnings();
        var fake = new FakeDevice(0, QueueTiming.Eager);
        using ComputeDevice device = fake.Open(new ComputeDeviceOptions { LoggerFactory = logs });
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        for (int length = 1; length <= 100; length++)
        {
            Forward(attention, new AttentionShape(1, length * 100, 1, 2));
            string shape = $"[1, {length * 100}, 1, 2]";
            Assert.Contains(shape, attention.Fallbacks[^1].Reason, StringComparison.Ordinal);
            Assert.Contains(shape, logs.Texts[^1], StringComparison.Ordinal);
        }

        Assert.InRange(attention.Fallbacks.Count, 1, 32);
    }

    [Fact]
    public void A_device_that_is_disposed_while_it_is_opened_is_let_go()
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Eager);
        ComputeDevice? device = null;
        Thread? closing = null;
        device = new ComputeDevice(
            "a test",
            [
                new DeviceCandidate(fake.Info, () =>
                {
                    closing = new Thread(() => device!.Dispose());
                    closing.Start();
                    Assert.True(SpinWait.SpinUntil(
                        () => !closing.IsAlive || (closing.ThreadState & ThreadState.WaitSleepJoin) != 0, TimeSpan.FromSeconds(10)));
                    return fake;
                }),
            ],
            null);
        _ = Record.Exception(() => DeviceTensor.Allocate(device, 3).Dispose());
        closing!.Join();
        Assert.False(fake.IsInUse);
        Assert.Equal((0, 0), (fake.Allocated, fake.Pool.HeldBytes));
    }

    [Fact]
    public void An_operator_that_is_disposed_while_a_size_is_asked_for_leaves_no_session()
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Eager);
        using ComputeDevice device = fake.Open();
        var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        fake.OnStep = step =>
        {
            if (step == "supports")
            {
                fake.OnStep = static _ => { };
                attention.Dispose();
            }
        };
        Assert.Throws<ObjectDisposedException>(() => attention.WorkspaceBytes(Shape));
        Assert.Equal(0, fake.Sessions);
    }

    [Fact]
    public void The_largest_tensor_that_can_be_spoken_of_is_refused_as_too_large()
    {
        using ComputeDevice device = new FakeDevice(Plenty, QueueTiming.Eager).Open();
        Assert.Throws<DeviceException>(() => DeviceTensor.Allocate(device, nint.MaxValue / sizeof(float)));
    }

    // The JIT lets go of arguments early in a release build only.
    [Fact]
    public void Tensors_that_nobody_else_holds_live_as_long_as_the_call()
    {
        var fake = new FakeDevice(Plenty, QueueTiming.Lazy);
        using ComputeDevice device = fake.Open();
        using var attention = new LinearAttention(device, FeatureMap.EluPlusOne);
        (long Before, long After) live = default;
        fake.OnStep = step =>
        {
            if (step == "compute 0")
            {
                live.Before = fake.Pool.LiveBytes;
                GC.Collect();
                GC.WaitForPendingFinalizers();
                live.After = fake.Pool.LiveBytes;
            }
        };
        Call();
        Assert.InRange(live.Before, 4 * 256, Plenty);
        Assert.Equal(live.Before, live.After);

        [MethodImpl(MethodImplOptions.NoInlining)]
        void Call() => attention.Forward(Tensor(), Tensor(), Tensor(), Tensor());

        [MethodImpl(MethodImplOptions.NoInlining)]
        DeviceTensor Tensor() => DeviceTensor.Allocate(device, 1, 4, 1, 2);
    }

    private static void Forward(LinearAttention attention, AttentionShape shape)
    {
        float[] operand = new float[shape.QueryElements];
        attention.Forward(shape, operand, operand, operand, new float[shape.OutputElements]);
    }

    /// <summary>Keeps what is logged as a warning.</summary>
    private sealed class Warnings : ILoggerFactory, ILogger
    {
        public List<string> Texts { get; } = [];

        public void AddProvider(ILoggerProvider provider)
        {
        }

        public ILogger CreateLogger(string categoryName) => this;

        public IDisposable? BeginScope<TState>(TState state)
            where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => logLevel == LogLevel.Warning;

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter) =>
            Texts.Add(formatter(state, exception));

        public void Dispose()
        {
        }
    }
}
