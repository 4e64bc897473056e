using System.Numerics.Tensors;
using Keys = Gpu.Attention.LinearLayout.Keys;
using Scratch = Gpu.Attention.LinearLayout.Scratch;
using State = Gpu.Attention.LinearLayout.State;

namespace Gpu.Attention;

/// <summary>The forward pass of linear attention on the host; <c>Simd/README.md</c> derives it.</summary>
/// <remarks>Shape tags: C tokens of a chunk, r features, d inputs, dv values; strides round up to whole vectors.</remarks>
internal unsafe partial class LinearForward<TV>(ParallelLoop loop, bool sweepsTokens) : LinearPass<TV>, IParallelBody, IForwardPass
    where TV : struct, ISimdVector<TV>
{
    /// <summary>What lucidrains adds to each summed key feature of a causal normaliser.</summary>
    private const float LucidrainsNormalizerOffset = 1e-6f;

    private readonly ChainRelay _chainRelay = new();
    private Phase _phase;
    private bool _hasScales;
    private float* _scratch;
    private float* _states;
    private float* _keys;
    private float* _stabilizers;

    private enum Phase
    {
        Stabilize,
        Chain,
        Relay,
        Chunks,
        ReadState,
        Export,
        Token,
    }

    /// <summary>The scratch memory that a problem takes.</summary>
    public static long WorkspaceBytes(AttentionProblem problem, int degree, bool sweepsTokens) =>
        new LinearLayout(problem, degree, TV.Count, sweepsTokens).Bytes;

    /// <inheritdoc/>
    public void Run(AttentionProblem problem, in AttentionBuffers buffers)
    {
        Start(problem, buffers, new LinearLayout(problem, loop.Degree, TV.Count, sweepsTokens));
        _chunksApart = _layout.ByChain ? 1 : (int)Math.Max(1, _layout.ChunkThreads / _layout.Chains);
        _scratch = (float*)(((nint)buffers.Workspace.HostPointer + 63) & ~(nint)63);
        _states = _scratch + (_layout.Slots * _layout.ScratchFloats);
        _keys = _states + (_layout.StateCount * _layout.StateFloats);
        _stabilizers = _keys + (_layout.KeysCount * _layout.KeysFloats);

        if (_mode == FeatureMode.Stabilized)
        {
            Do(Phase.Stabilize, _layout.Chains);
        }

        // A state that keeps its scale lies between segments, where one piece would have a chunk.
        if (_layout.ByToken && buffers.InitialState.Maximum.IsEmpty && buffers.FinalState.Maximum.IsEmpty)
        {
            RunByToken();
        }
        else if (_layout.ByChain)
        {
            if (_layout.ByRelay)
            {
                _chainRelay.Start((int)_layout.Chains, _layout.ChainsTogether, loop.Degree, _layout.Stretches);
                Do(Phase.Relay, loop.Degree);
                ExportAll();
            }
            else
            {
                Do(Phase.Chain, _layout.Chains / _layout.ChainsTogether);
            }
        }
        else
        {
            RunByChunk();
        }

        _buffers = default;
    }

    /// <inheritdoc/>
    void IParallelBody.Run(long item, int slot)
    {
        Scratch scratch = ScratchAt(slot);
        switch (_phase)
        {
            case Phase.Stabilize:
                Stabilize(item, KeysAt(slot), scratch);
                break;
            case Phase.Chain:
                long states = (long)slot * _layout.ChainsTogether;
                RunChains(item * _layout.ChainsTogether, _layout.ChainsTogether, states, 0, _layout.Stretches, slot, scratch);
                for (int i = 0; i < _layout.ChainsTogether; i++)
                {
                    Export((item * _layout.ChainsTogether) + i, StateAt(states + i));
                }

                break;
            case Phase.Relay:
                RunRelay(slot, scratch);
                break;
            case Phase.Chunks:
                RunChunks(slot, scratch);
                break;
            case Phase.ReadState:
                ReadStateBlock(item / _layout.QueryBlocks, (int)(item % _layout.QueryBlocks), scratch);
                break;
            case Phase.Export:
                Export(item, StateAt(item));
                break;
            case Phase.Token:
                RunToken(item, slot);
                break;
        }
    }

    private void RunByChunk()
    {
        for (long chain = 0; chain < _layout.Chains; chain++)
        {
            State state = StateAt(chain);
            Import(chain, state);
            Copy(state.LogScale, state.Expected, _layout.FeatureWidth);
        }

        // Queries that see no key read the initial state, before any key raises its scale.
        if (_plan is { HasBlindQueries: true })
        {
            Do(Phase.ReadState, _layout.Chains * _layout.QueryBlocks);
        }

        _hasScales = _mode == FeatureMode.Logarithmic && _problem.Causal;
        _chunkRelay.Start(_layout.ChunkThreads, _layout.ChunksOfThread, (int)_layout.Chains, _layout.StatePieces, _hasScales, hasBehind: _problem.Causal);
        for (long chain = 0; chain < _layout.Chains; chain++)
        {
            _chunkRelay.Add(KeyChunks(Place(chain)));
        }

        Do(Phase.Chunks, _layout.ChunkThreads);
        if (!_problem.Causal)
        {
            Do(Phase.ReadState, _layout.Chains * _layout.QueryBlocks);
        }

        ExportAll();
    }

    private void ExportAll()
    {
        if (!_buffers.FinalState.IsEmpty)
        {
            Do(Phase.Export, _layout.Chains);
        }
    }

    private void RunChunks(int slot, in Scratch scratch)
    {
        try
        {
            while (_chunkRelay.TryTake(slot, out ChunkTask task))
            {
                Keys keys = KeysAt(task.Slot);
                switch (task.Work)
                {
                    case ChunkWork.Project:
                        ProjectKeys(task.Chain, task.Chunk, keys, scratch);
                        break;
                    case ChunkWork.Ahead when _hasScales:
                        ReduceProjected(task.Chain, task.Chunk, keys, scratch);
                        break;
                    case ChunkWork.Ahead:
                        Reduce(task.Chain, task.Chunk, keys, scratch, null);
                        break;
                    case ChunkWork.InTurn:
                        Absorb(task, keys, scratch);
                        break;
                    case ChunkWork.Behind:
                        ReadCausal(task.Chain, task.Chunk, keys, scratch, prefixInDelta: true, default);
                        break;
                }

                _chunkRelay.Return(task, *keys.Irregular != 0);
            }
        }
        catch
        {
            _chunkRelay.Stop();
            throw;
        }
    }

    private void RunRelay(int slot, in Scratch scratch)
    {
        try
        {
            while (_chainRelay.TryTake(out int first, out int count, out int stretch))
            {
                RunChains(first, count, first, stretch, stretch + 1, slot, scratch);
                _chainRelay.Return(first, count);
            }
        }
        catch
        {
            _chainRelay.Stop();
            throw;
        }
    }

    /// <summary>Some stretches of chains of one sequence that a thread takes side by side.</summary>
    private void RunChains(long first, int chains, long states, int stretch, int endStretch, int slot, in Scratch scratch)
    {
        int place = Place(first);
        for (int i = 0; i < chains && stretch == 0; i++)
        {
            Import(first + i, StateAt(states + i));
        }

        if (_problem.Causal && stretch == 0)
        {
            ReadStateBlocks(first, chains, states, 0, int.MaxValue, scratch);
        }

        int endKeys = Math.Min(endStretch, _layout.KeyStretches);
        int endChunk = (int)Math.Min(KeyChunks(place), (long)endKeys * _layout.StretchChunks);
        for (int chunk = stretch * _layout.StretchChunks; chunk < endChunk; chunk++)
        {
            for (int i = 0; i < chains; i++)
            {
                RunChunk(first + i, chunk, StateAt(states + i), KeysAt(slot), scratch);
            }
        }

        int firstQueries = Math.Max(stretch - _layout.KeyStretches, 0);
        int endQueries = endStretch - _layout.KeyStretches;
        if (!_problem.Causal && endQueries > 0)
        {
            ReadStateBlocks(first, chains, states, firstQueries * _layout.StretchChunks, endQueries * _layout.StretchChunks, scratch);
        }
    }

    private void RunChunk(long chain, int chunk, in State state, in Keys keys, in Scratch scratch)
    {
        // The keys are added when the queries have read the state: their sums alone are never written.
        bool isRegular = ReadKeys(chain, chunk, keys, scratch, state.LogScale);
        if (!isRegular)
        {
            ReduceInSegments(chain, chunk, keys, scratch);
        }

        if (IsAtScale(keys))
        {
            RaiseSums(state, keys, 0, _layout.FeatureWidth, scratch);
        }
        else
        {
            Raise(state, keys, 0, _layout.FeatureWidth, scratch);
        }

        if (_problem.Causal)
        {
            ReadCausal(chain, chunk, keys, scratch, prefixInDelta: false, state);
        }

        if (isRegular)
        {
            AddKeys(chain, KeyTokens(Place(chain), chunk), keys, state);
        }
        else
        {
            Absorb(state, keys, 0, _layout.FeatureWidth, keepPrefix: false);
        }
    }

    private void Do(Phase phase, long items)
    {
        _phase = phase;
        loop.Run(this, items);
    }

    private protected Scratch ScratchFrom(float* start) => new(
        start, _layout.Features, _layout.FeatureStride, _layout.ValueStride, _layout.InputStride, _layout.InputDimension, _layout.Segments,
        _layout.Gathers);

    private protected State StateFrom(float* start) => new(start, _layout.Features, _layout.FeatureStride, _layout.ValueStride);

    private protected Keys KeysFrom(float* start) => new(start, _layout.Features, _layout.FeatureStride, _layout.ValueStride);

    private Scratch ScratchAt(int slot) => ScratchFrom(_scratch + (slot * _layout.ScratchFloats));

    private State StateAt(long index) => StateFrom(_states + (index * _layout.StateFloats));

    private Keys KeysAt(long index) => KeysFrom(_keys + (index * _layout.KeysFloats));

    /// <summary>The maximum of W x over every key and feature of a chain.</summary>
    private void Stabilize(long chain, in Keys keys, in Scratch scratch)
    {
        float maximum = float.NegativeInfinity;
        int place = Place(chain);
        for (int chunk = 0; chunk < KeyChunks(place); chunk++)
        {
            TokenList tokens = KeyTokens(place, chunk);
            LinearKeyFeatures(chain, tokens, keys.Transposed, scratch);
            for (int feature = 0; feature < _layout.Features; feature++)
            {
                maximum = MathF.Max(maximum, TensorPrimitives.Max(new ReadOnlySpan<float>(keys.Transposed + ((nint)feature * Chunk), tokens.Count)));
            }
        }

        _stabilizers[chain] = maximum;
    }

    private void Export(long chain, in State state)
    {
        StateBuffers final = _buffers.FinalState;
        if (final.IsEmpty)
        {
            return;
        }

        int r = _layout.Features;
        int dv = _problem.Shape.ValueDimension;
        nint row = StateRow(chain) * r;
        bool keepsScale = !final.Maximum.IsEmpty;
        if (keepsScale)
        {
            Copy(state.LogScale, final.LogScale.HostPointer + row, r);
            Copy(state.Maximum, final.Maximum.HostPointer + row, r);
        }

        for (int feature = 0; feature < r; feature++)
        {
            float factor = 1;
            if (_mode == FeatureMode.Logarithmic && !keepsScale)
            {
                float maximum = state.Maximum[feature];
                factor = maximum == state.LogScale[feature] || float.IsNegativeInfinity(maximum) ? 1 : MathF.Exp(state.LogScale[feature] - maximum);
                final.LogScale.HostPointer[row + feature] = maximum;
            }

            final.Normalizers.HostPointer[row + feature] = state.Normalizers[feature] * factor;
            TensorPrimitives.Multiply(
                new ReadOnlySpan<float>(state.Sums + ((nint)feature * _layout.ValueStride), dv), factor,
                new Span<float>(final.Sums.HostPointer + ((row + feature) * dv), dv));
        }
    }
}
