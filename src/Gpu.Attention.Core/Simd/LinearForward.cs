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

    private readonly ChainRelay _relay = new();
    private Phase _phase;
    private int _firstChunk;
    private int _chunks;
    private int _pieces;
    private float* _scratch;
    private float* _states;
    private float* _keys;
    private float* _stabilizers;

    private enum Phase
    {
        Stabilize,
        Chain,
        Relay,
        First,
        Reduce,
        Scan,
        ReadChunk,
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
        _chunksApart = _layout.ByChain ? 1 : loop.Degree;
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
                _relay.Start((int)_layout.Chains, _layout.ChainsTogether, loop.Degree, _layout.Stretches);
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
                Stabilize(item, KeysAt(_layout.ByChain ? slot : item * _layout.BlockChunks), scratch);
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
            case Phase.First when HasChunk(item, out long chain, out int chunk):
                FindFirst(chain, chunk, KeysAt(item), scratch);
                break;
            case Phase.Reduce when HasChunk(item, out long chain, out int chunk):
                Reduce(chain, chunk, KeysAt(item), scratch, KeysAt(item).Before);
                break;
            case Phase.Scan:
                Scan(item / _pieces, (int)(item % _pieces), scratch);
                break;
            case Phase.ReadChunk when HasChunk(item, out long chain, out int chunk):
                ReadCausal(chain, chunk, KeysAt(item), scratch, prefixInDelta: true, default);
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
            Import(chain, StateAt(chain));
        }

        // Queries that see no key read the initial state, before any key raises its scale.
        if (_plan is { HasBlindQueries: true })
        {
            Do(Phase.ReadState, _layout.Chains * _layout.QueryBlocks);
        }

        // Chains stand in order of falling length; as the shorter ones end, the longer ones take their room.
        int places = _problem.Sequences;
        for (_firstChunk = 0; _firstChunk < _layout.KeyChunks; _firstChunk += _chunks)
        {
            while (KeyChunks(places - 1) <= _firstChunk)
            {
                places--;
            }

            long chains = (long)places * _problem.Shape.KeyHeads;
            _chunks = (int)Math.Min(_layout.KeysCount / chains, _layout.KeyChunks - _firstChunk);
            if (_mode == FeatureMode.Logarithmic && _problem.Causal)
            {
                Do(Phase.First, chains * _chunks);
                for (long chain = 0; chain < chains; chain++)
                {
                    PredictScales(chain);
                }
            }

            Do(Phase.Reduce, chains * _chunks);
            long floats = chains * _chunks * _layout.StateFloats;
            _pieces = floats < ScanWorthThreads ? 1 : (int)Math.Min((loop.Degree + chains - 1) / chains, _layout.FeatureWidth / TV.Count);
            Do(Phase.Scan, chains * _pieces);
            if (_problem.Causal)
            {
                Do(Phase.ReadChunk, chains * _chunks);
            }
        }

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

    private void RunRelay(int slot, in Scratch scratch)
    {
        try
        {
            while (_relay.TryTake(out int first, out int count, out int stretch))
            {
                RunChains(first, count, first, stretch, stretch + 1, slot, scratch);
                _relay.Return(first, count);
            }
        }
        catch
        {
            _relay.Stop();
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

    /// <summary>The chunk that an item of a block of chunks stands for; false when its chain has ended.</summary>
    private bool HasChunk(long item, out long chain, out int chunk)
    {
        chain = item / _chunks;
        chunk = _firstChunk + (int)(item % _chunks);
        return chunk < KeyChunks(Place(chain));
    }

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
