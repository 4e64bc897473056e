using System.Numerics.Tensors;

namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>An operator of the library, or a copy of the values in its place, as the report calls it.</summary>
internal sealed class ReportOperator : IDisposable
{
    // The floor is that of all cores: a block is what one of them copies at a time.
    private const int CopyBlock = 1 << 18;

    private readonly ComputeDevice _device;
    private readonly LinearAttention? _linear;
    private readonly SoftmaxAttention? _exact;
    private readonly Dictionary<int, List<DeviceTensor>> _deviceTensors = [];

    public ReportOperator(ComputeDevice device, string map, bool causal)
    {
        (_device, Map, Causal) = (device, map, causal);
        if (map == MapNames.Exact)
        {
            _exact = new SoftmaxAttention(device, new SoftmaxAttentionOptions { Causal = causal });
        }
        else if (map != MapNames.Copy)
        {
            _linear = new LinearAttention(device, new AttentionCase(map, causal, 1).Map, new LinearAttentionOptions { Causal = causal });
        }
    }

    public string Map { get; }

    public bool Causal { get; }

    public string Direction => Causal ? "causal" : "bidirectional";

    /// <summary>A call of a length. On the host it works on host memory, on a device on tensors that lie there.</summary>
    public Action ForwardCall(AttentionShape shape, ReportTensors tensors)
    {
        if (Map == MapNames.Copy)
        {
            return () => Copy(shape, tensors);
        }

        if (_device.Info.Kind == DeviceKind.Cpu)
        {
            return () => Forward(shape, tensors);
        }

        DeviceTensor[] on = OnDevice(shape, tensors, hasGradients: false);
        return _exact is null ? () => _linear!.Forward(on[0], on[1], on[2], on[3]) : () => _exact.Forward(on[0], on[1], on[2], on[3]);
    }

    /// <summary>Forward and backward, on the same memory.</summary>
    public Action TrainingCall(AttentionShape shape, ReportTensors tensors)
    {
        if (_device.Info.Kind == DeviceKind.Cpu)
        {
            return () =>
            {
                Forward(shape, tensors);
                Backward(shape, tensors);
            };
        }

        Action forward = ForwardCall(shape, tensors);
        DeviceTensor[] on = OnDevice(shape, tensors, hasGradients: true);
        Action backward = _exact is null
            ? () => _linear!.Backward(on[0], on[1], on[2], on[3], on[4], on[5], on[6], on[7])
            : () => _exact.Backward(on[0], on[1], on[2], on[3], on[4], on[5], on[6], on[7]);
        return forward + backward;
    }

    /// <summary>Forward on host memory.</summary>
    public void Forward(AttentionShape shape, ReportTensors tensors)
    {
        long count = shape.QueryElements;
        if (_exact is not null)
        {
            _exact.Forward(shape, tensors.Query(count), tensors.Key(count), tensors.Value(count), tensors.Output(count));
        }
        else
        {
            _linear!.Forward(shape, tensors.Query(count), tensors.Key(count), tensors.Value(count), tensors.Output(count));
        }
    }

    /// <summary>Backward on host memory, after <see cref="Forward"/>.</summary>
    public void Backward(AttentionShape shape, ReportTensors tensors)
    {
        long count = shape.QueryElements;
        if (_exact is not null)
        {
            _exact.Backward(
                shape, tensors.Query(count), tensors.Key(count), tensors.Value(count), tensors.Output(count), tensors.OutputGradient(count),
                tensors.QueryGradient(count), tensors.KeyGradient(count), tensors.ValueGradient(count));
        }
        else
        {
            _linear!.Backward(
                shape, tensors.Query(count), tensors.Key(count), tensors.Value(count), tensors.Output(count), tensors.OutputGradient(count),
                tensors.QueryGradient(count), tensors.KeyGradient(count), tensors.ValueGradient(count));
        }
    }

    /// <summary>Why there is no backward pass here; null when there is.</summary>
    public string? WhyNoBackward()
    {
        try
        {
            BackwardWorkspaceBytes(ReportTensors.Shape(64));
            return null;
        }
        catch (NotSupportedException e)
        {
            return e.Message;
        }
    }

    public long WorkspaceBytes(AttentionShape shape) => _exact?.WorkspaceBytes(shape) ?? _linear?.WorkspaceBytes(shape) ?? 0;

    public long BackwardWorkspaceBytes(AttentionShape shape) => _exact?.BackwardWorkspaceBytes(shape) ?? _linear?.BackwardWorkspaceBytes(shape) ?? 0;

    public void Dispose()
    {
        foreach (DeviceTensor tensor in _deviceTensors.Values.SelectMany(t => t))
        {
            tensor.Dispose();
        }

        _linear?.Dispose();
        _exact?.Dispose();
    }

    private static void Copy(AttentionShape shape, ReportTensors tensors)
    {
        long elements = shape.ValueElements;
        if (elements <= CopyBlock)
        {
            tensors.Value(elements).CopyTo(tensors.Output(elements));
            return;
        }

        Parallel.For(0, (elements + CopyBlock - 1) / CopyBlock, block =>
        {
            int first = (int)(block * CopyBlock);
            int count = (int)Math.Min(CopyBlock, elements - first);
            tensors.Value(elements).Slice(first, count).CopyTo(tensors.Output(elements)[first..]);
        });
    }

    private DeviceTensor[] OnDevice(AttentionShape shape, ReportTensors tensors, bool hasGradients)
    {
        nint[] sizes = [1, shape.QueryLength, shape.Heads, shape.KeyDimension];
        long count = shape.QueryElements;
        if (!_deviceTensors.TryGetValue(shape.QueryLength, out List<DeviceTensor>? on))
        {
            on = [Upload(tensors.Query(count)), Upload(tensors.Key(count)), Upload(tensors.Value(count)), DeviceTensor.Allocate(_device, sizes)];
            _deviceTensors.Add(shape.QueryLength, on);
        }

        if (hasGradients && on.Count == 4)
        {
            on.Add(Upload(tensors.OutputGradient(count)));
            on.AddRange([DeviceTensor.Allocate(_device, sizes), DeviceTensor.Allocate(_device, sizes), DeviceTensor.Allocate(_device, sizes)]);
        }

        return [.. on];

        DeviceTensor Upload(ReadOnlySpan<float> rows) => DeviceTensor.From(_device, new ReadOnlyTensorSpan<float>(rows, sizes));
    }
}
