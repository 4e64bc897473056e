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
        float* states = memory + _layout.ScratchFloats;
        Keys keys = KeysFrom(states + (_layout.ChainsTogether * _layout.StateFloats));
        Array.Clear(_ticks);
        for (long chain = 0; chain < _layout.Chains; chain += _layout.ChainsTogether)
        {
            for (int i = 0; i < _layout.ChainsTogether; i++)
            {
                Import(chain + i, StateFrom(states + (i * _layout.StateFloats)));
            }

            _last = Stopwatch.GetTimestamp();
            for (int chunk = 0; chunk < KeyChunks(Place(chain)); chunk++)
            {
                for (int i = 0; i < _layout.ChainsTogether; i++)
                {
                    MeasureChunk(chain + i, chunk, StateFrom(states + (i * _layout.StateFloats)), keys, scratch);
                }
            }
        }

        return [.. _ticks.Select(t => t / (double)Stopwatch.Frequency)];
    }

    private void MeasureChunk(long chain, int chunk, State state, Keys keys, Scratch scratch)
    {
        int n = KeyTokens(Place(chain), chunk).Count;
        ReadKeys(chain, chunk, keys, scratch, state.LogScale);
        Stop(ForwardStage.Keys);
        bool isLogarithmic = _mode == FeatureMode.Logarithmic;
        if (isLogarithmic)
        {
            RaiseSums(state, keys, 0, _layout.FeatureWidth, scratch);
        }

        Stop(ForwardStage.State);

        int head = KeyHead(chain);
        float* x = StoredRows.Read(
            _buffers.Query, Place(chain), head, new TokenList(chunk * Chunk, n), _problem.Shape.KeyDimension, scratch.Rows, out nint stride);
        if (ReadsFeatures(_query))
        {
            QueryFeatures(x, n, stride, scratch, keys.Scale, state.Normalizers);
        }
        else
        {
            ProjectRows(_query, n, x, stride, scratch.Queries, isLogarithmic ? null : scratch.RowTerm, scratch);
            Stop(ForwardStage.ProjectQueries);
            ActivateQueries(0, n, scratch, keys.Scale, state.Normalizers);
        }

        Stop(ForwardStage.QueryFeatures);
        int* seen = stackalloc int[Chunk];
        for (int row = 0; row < n; row++)
        {
            seen[row] = row + 1;
        }

        Scores(n, seen, scratch, keys.Transposed);
        Stop(ForwardStage.Scores);
        Read(n, chunk * Chunk, head, Place(chain), scratch, state.Sums, seen, keys.Values);
        Stop(ForwardStage.Read);
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
