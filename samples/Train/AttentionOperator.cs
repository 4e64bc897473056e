namespace Gpu.Attention.Samples.Training;

/// <summary>Exact or linear attention behind one face, and the random features that its training goes by.</summary>
internal sealed class AttentionOperator : IDisposable
{
    private readonly SoftmaxAttention? _exact;
    private readonly LinearAttention? _linear;
    private readonly ProjectionSchedule? _draws;

    public AttentionOperator(SoftmaxAttention exact) => _exact = exact;

    public AttentionOperator(ComputeDevice device, FeatureMap features) =>
        _linear = new LinearAttention(device, features, new LinearAttentionOptions { Causal = true });

    public AttentionOperator(ComputeDevice device, ProjectionSchedule draws)
        : this(device, FeatureMap.FavorPlus(draws.Projection)) => _draws = draws;

    /// <summary>Which random features are in use, for checkpoints.</summary>
    public ProjectionPosition Draws => _draws?.Position ?? default;

    /// <summary>Why calls ran elsewhere than on the device asked for.</summary>
    public IReadOnlyList<FallbackStep> Fallbacks => _exact?.Fallbacks ?? _linear!.Fallbacks;

    /// <summary>Begins a training step: random features that are due are drawn anew. Measurements do not pass here.</summary>
    public void BeginStep()
    {
        if (_draws?.Advance() == true)
        {
            _linear!.ReplaceFeatures(FeatureMap.FavorPlus(_draws.Projection));
        }
    }

    /// <summary>Goes on from where random features stood.</summary>
    public void Resume(ProjectionPosition draws)
    {
        _draws?.Resume(draws);
        UseDraw(draws.Draw);
    }

    /// <summary>Puts any of the random features in place, which does not change where their schedule stands.</summary>
    public void UseDraw(long draw)
    {
        if (_draws is not null)
        {
            _linear!.ReplaceFeatures(FeatureMap.FavorPlus(_draws.DrawAt(draw)));
        }
    }

    public void Forward(AttentionShape shape, float[] query, float[] key, float[] value, float[] output, SequenceLayout? layout)
    {
        _exact?.Forward<float>(shape, query, key, value, output, layout);
        _linear?.Forward<float>(shape, query, key, value, output, layout);
    }

    public void Backward(
        AttentionShape shape, float[] query, float[] key, float[] value, float[] output, float[] outputGradient,
        float[] queryGradient, float[] keyGradient, float[] valueGradient, SequenceLayout? layout)
    {
        _exact?.Backward<float>(shape, query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient, layout);
        _linear?.Backward<float>(shape, query, key, value, output, outputGradient, queryGradient, keyGradient, valueGradient, layout: layout);
    }

    public void Dispose()
    {
        _exact?.Dispose();
        _linear?.Dispose();
    }
}
