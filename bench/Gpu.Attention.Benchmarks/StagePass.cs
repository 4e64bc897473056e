using System.Diagnostics;
using Keys = Gpu.Attention.LinearLayout.Keys;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;

namespace Gpu.Attention.Benchmarks;

/// <summary>The parts of a causal forward pass as the engine runs them in one thread, with a clock between them.</summary>
internal sealed unsafe class StagePass<TV>() : LinearForward<TV>(new ParallelLoop(1), sweepsTokens: false)
    where TV : struct, ISimdVector<TV>
{
    private readonly long[] _ticks = new long[(int)ForwardStage.Count];
    private long _last;

    /// <summary>One pass over all chains, and the seconds of its stages.</summary>
    public double[] Measure(AttentionProblem problem, in AttentionBuffers buffers)
    {
        Start(problem, buffers, new LinearLayout(problem, degree: 1, TV.Count, sweepsTokens: false));
        float* memory = (float*)(((nint)buffers.Workspace.HostPointer + 63) & ~(nint)63);
        Scratch scratch = ScratchFrom(memory);
        State state = StateFrom(memory + _layout.ScratchFloats);
        Keys keys = KeysFrom(memory + _layout.ScratchFloats + _layout.StateFloats);
        Array.Clear(_ticks);
        for (long chain = 0; chain < _layout.Chains; chain++)
        {
            Import(chain, state);
            _last = Stopwatch.GetTimestamp();
            for (int chunk = 0; chunk < KeyChunks(Place(chain)); chunk++)
            {
                MeasureChunk(chain, chunk, state, keys, scratch);
            }
        }

        return [.. _ticks.Select(t => t / (double)Stopwatch.Frequency)];
    }

    private void MeasureChunk(long chain, int chunk, State state, Keys keys, Scratch scratch)
    {
        int n = KeyTokens(Place(chain), chunk).Count;
        StartChunk(chain, chunk, keys);
        Stop(ForwardStage.Values);
        LinearKeyFeatures(chain, KeyTokens(Place(chain), chunk), keys.Transposed, scratch);
        Stop(ForwardStage.ProjectKeys);
        FinishKeyFeatures(chain, n, keys, scratch);
        Stop(ForwardStage.KeyFeatures);
        Raise(state, keys, scratch);
        float* features = keys.Transposed;
        if (_mode == FeatureMode.Logarithmic)
        {
            features = scratch.LogFeatures;
            ScaleKeys(keys, features);
        }

        Stop(ForwardStage.State);

        int head = KeyHead(chain);
        float* x = StoredRows.Read(
            _buffers.Query, Place(chain), head, new TokenList(chunk * Chunk, n), _problem.Shape.KeyDimension, scratch.Rows, out nint stride);
        ProjectRows(_query, n, x, stride, scratch.Queries, _mode == FeatureMode.Logarithmic ? null : scratch.RowTerm, scratch);
        Stop(ForwardStage.ProjectQueries);
        ActivateQueries(n, scratch, keys.Scale, state.Normalizers);
        Stop(ForwardStage.QueryFeatures);
        int* seen = stackalloc int[Chunk];
        for (int row = 0; row < n; row++)
        {
            seen[row] = row + 1;
        }

        Scores(n, seen, scratch, features);
        Stop(ForwardStage.Scores);
        int dvs = _layout.ValueStride;
        ReadSums(n, chunk * Chunk, head, Place(chain), scratch, state.Sums);
        Stop(ForwardStage.Read);
        SimdBlas<TV>.AddCausalProduct(n, seen, scratch.Scores, Chunk, keys.Values, dvs, dvs, scratch.Output, dvs);
        Stop(ForwardStage.ReadChunk);
        WriteOutput(_buffers.Output.Row(Place(chain), chunk * Chunk, head), n, (nint)_buffers.Output.TokenStride, scratch);
        Stop(ForwardStage.Write);
        AddKeys(chain, KeyTokens(Place(chain), chunk), keys, state);
        Stop(ForwardStage.Reduce);
    }

    private void Stop(ForwardStage stage)
    {
        long now = Stopwatch.GetTimestamp();
        _ticks[(int)stage] += now - _last;
        _last = now;
    }
}
