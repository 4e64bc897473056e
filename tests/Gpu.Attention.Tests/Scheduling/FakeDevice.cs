using System.Runtime.InteropServices;

namespace Gpu.Attention.Tests;

/// <summary>When a fake device does what is put in its queues.</summary>
public enum QueueTiming
{
    /// <summary>At once.</summary>
    Eager,

    /// <summary>Not before somebody waits for the queue: whoever uses a result without waiting finds poison.</summary>
    Lazy,
}

/// <summary>
/// A device with memory of its own, so much and no more, that computes with the host's engine and can be made to fail. The scheduler cannot tell it
/// from a GPU.
/// </summary>
internal sealed unsafe class FakeDevice(long capacity, QueueTiming timing, string name = "fake") : DeviceRuntime(
    new DeviceInfo { Kind = DeviceKind.OpenCL, Name = name })
{
    /// <summary>Bytes that are allocated.</summary>
    public long Allocated { get; private set; }

    /// <summary>Allocations ever made.</summary>
    public int Allocations { get; private set; }

    /// <summary>Sessions that are open.</summary>
    public int Sessions { get; private set; }

    /// <summary>Staging memory that is allocated, in bytes.</summary>
    public int StagingBytes { get; private set; }

    /// <summary>What the device was asked to do, in order: "upload 3", "compute 2", "wait Upload", …</summary>
    public List<string> Log { get; } = [];

    /// <summary>Called before each step of <see cref="Log"/>; throws to make the device fail.</summary>
    public Action<string> OnStep { get; set; } = static _ => { };

    /// <summary>What the engine refuses; null for nothing.</summary>
    public string? Refusal { get; set; }

    /// <summary>Why the engine has no backward pass; null when it has.</summary>
    public string? BackwardRefusal { get; set; }

    private QueueTiming Timing { get; } = timing;

    public override long DefaultBudgetBytes => capacity;

    public ComputeDevice Open(ComputeDeviceOptions? options = null, params FakeDevice[] next) => new(
        "a test",
        [
            .. next.Prepend(this).Select(device => new DeviceCandidate(device.Info, () => device)),
            DeviceList.Candidate(DeviceList.Enumerate().First(d => d.Kind == DeviceKind.Cpu), options),
        ],
        options);

    public override object Allocate(long bytes)
    {
        Step("allocate");
        if (bytes > capacity - Allocated)
        {
            throw new DeviceOutOfMemoryException($"the fake has {capacity - Allocated} bytes left, not {bytes}");
        }

        Allocations++;
        Allocated += bytes;
        var memory = new Memory(bytes);
        new Span<float>(memory.Pointer, (int)(bytes / sizeof(float))).Fill(float.NaN);
        return memory;
    }

    public override bool IsOutOfMemory(Exception exception) => exception is DriverOutOfMemoryException || base.IsOutOfMemory(exception);

    public override void Free(object allocation)
    {
        Step("free");
        Allocated -= ((Memory)allocation).Bytes;
        ((Memory)allocation).Free();
    }

    protected override DeviceSession CreateSession()
    {
        Step("session");
        Sessions++;
        return new Session(this);
    }

    private void Step(string step)
    {
        Log.Add(step);
        OnStep(step);
    }

    private sealed class Memory(long bytes)
    {
        public long Bytes => bytes;

        public float* Pointer { get; private set; } = (float*)NativeMemory.AlignedAlloc((nuint)bytes, 256);

        public void Free()
        {
            NativeMemory.AlignedFree(Pointer);
            Pointer = null;
        }
    }

    private sealed class Session(FakeDevice device) : DeviceSession(device)
    {
        private readonly Dictionary<DeviceQueue, Queue<Action>> _queues = Enum.GetValues<DeviceQueue>().ToDictionary(q => q, _ => new Queue<Action>());
        private readonly Dictionary<DeviceQueue, int> _counts = Enum.GetValues<DeviceQueue>().ToDictionary(q => q, _ => 0);
        private FakeEngine? _engine;

        public override IAttentionEngine Engine => _engine ??= new FakeEngine(device, this);

        public override long LiveBytes => 0;

        public override StagingMemory AllocateStaging(int bytes) => new Staging(device, bytes);

        public override void Upload(StagingMemory source, int first, object target, long offset, int bytes) => Enqueue(DeviceQueue.Upload, () =>
            new Span<byte>(source.Pointer + first, bytes).CopyTo(Bytes(target, offset, bytes)));

        public override void Download(object source, long offset, StagingMemory target, int first, int bytes) => Enqueue(DeviceQueue.Download, () =>
            Bytes(source, offset, bytes).CopyTo(new Span<byte>(target.Pointer + first, bytes)));

        public override void Wait(DeviceQueue queue)
        {
            device.Step($"wait {queue}");
            while (_queues[queue].TryDequeue(out Action? action))
            {
                action();
            }
        }

        public void Enqueue(DeviceQueue queue, Action action)
        {
            device.Step($"{queue.ToString().ToLowerInvariant()} {_counts[queue]++}");
            if (device.Timing == QueueTiming.Eager)
            {
                action();
            }
            else
            {
                _queues[queue].Enqueue(action);
            }
        }

        protected override void DisposeCore()
        {
            Assert.All(_queues.Values, queue => Assert.Empty(queue));
            device.Sessions--;
            device.Step("close");
        }

        private static Span<byte> Bytes(object allocation, long offset, int bytes) =>
            new((byte*)((Memory)allocation).Pointer + offset, bytes);
    }

    /// <summary>The host's engine, which finds device memory by its offsets.</summary>
    private sealed class FakeEngine(FakeDevice device, Session session) : IAttentionEngine
    {
        private readonly SimdEngine _engine = new(1);

        public string Name => "a fake";

        public int SegmentMultiple => _engine.SegmentMultiple;

        public EngineSupport Supports(AttentionProblem problem)
        {
            device.Step("supports");
            return device.Refusal is { } refusal ? EngineSupport.No(refusal) : _engine.Supports(problem);
        }

        public long WorkspaceBytes(AttentionProblem problem) => _engine.WorkspaceBytes(problem);

        public long MinimumWorkspaceBytes(AttentionProblem problem) => _engine.MinimumWorkspaceBytes(problem);

        public void Forward(AttentionProblem problem, in AttentionBuffers buffers)
        {
            AttentionBuffers here = Here(buffers);
            session.Enqueue(DeviceQueue.Compute, () => _engine.Forward(problem, here));
        }

        public EngineSupport SupportsBackward(AttentionProblem problem)
        {
            device.Step("supports");
            return (device.Refusal ?? device.BackwardRefusal) is { } refusal ? EngineSupport.No(refusal) : _engine.SupportsBackward(problem);
        }

        public long BackwardWorkspaceBytes(AttentionProblem problem) => _engine.BackwardWorkspaceBytes(problem);

        public long MinimumBackwardWorkspaceBytes(AttentionProblem problem) => _engine.MinimumBackwardWorkspaceBytes(problem);

        public void Backward(AttentionProblem problem, in AttentionBuffers buffers, in GradientBuffers gradients)
        {
            AttentionBuffers here = Here(buffers);
            var gradientsHere = new GradientBuffers
            {
                OutputGradient = Here(gradients.OutputGradient),
                FinalStateGradient = Here(gradients.FinalStateGradient),
                QueryGradient = Here(gradients.QueryGradient),
                KeyGradient = Here(gradients.KeyGradient),
                ValueGradient = Here(gradients.ValueGradient),
                InitialStateGradient = Here(gradients.InitialStateGradient),
            };
            session.Enqueue(DeviceQueue.Compute, () => _engine.Backward(problem, here, gradientsHere));
        }

        private static AttentionBuffers Here(in AttentionBuffers buffers) => new()
        {
            Query = Here(buffers.Query),
            Key = Here(buffers.Key),
            Value = Here(buffers.Value),
            Output = Here(buffers.Output),
            InitialState = Here(buffers.InitialState),
            FinalState = Here(buffers.FinalState),
            Workspace = Here(buffers.Workspace),
        };

        private static TensorBuffer Here(TensorBuffer tensor) => tensor with { Memory = Here(tensor.Memory) };

        private static StateBuffers Here(StateBuffers state) =>
            new(Here(state.LogScale), Here(state.Sums), Here(state.Normalizers)) { Maximum = Here(state.Maximum) };

        private static MemoryRegion Here(MemoryRegion region) => region.Owner is Memory memory
            ? region with { Owner = null, Address = (nint)memory.Pointer + region.Address }
            : region;
    }

    private sealed class Staging : StagingMemory
    {
        private readonly FakeDevice _device;
        private readonly int _bytes;

        public Staging(FakeDevice device, int bytes)
        {
            device.Step("staging");
            (_device, _bytes) = (device, bytes);
            _device.StagingBytes += bytes;
            Pointer = (byte*)NativeMemory.AlignedAlloc((nuint)bytes, 64);
        }

        public override byte* Pointer { get; }

        public override void Dispose()
        {
            _device.StagingBytes -= _bytes;
            NativeMemory.AlignedFree(Pointer);
        }
    }
}

/// <summary>How a driver says that its memory does not suffice, wherever it notices.</summary>
internal sealed class DriverOutOfMemoryException : Exception;
