using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>The engine's building blocks, at every vector width that the machine has.</summary>
public sealed unsafe class SimdTests
{
    [Fact]
    public void The_micro_kernel_multiplies_matrices_of_any_size() => AtEveryWidth<MicroKernelCheck>();

    [Fact]
    public void Products_have_the_same_bits_however_their_factors_lie() => AtEveryWidth<OtherProductsCheck>();

    [Fact]
    public void The_causal_product_reads_nothing_beyond_its_diagonal() => AtEveryWidth<CausalProductCheck>();

    [Fact]
    public void Rows_at_the_diagonal_have_the_bits_of_each_alone() => AtEveryWidth<DiagonalCheck>();

    [Fact]
    public void Transposition_writes_columns_and_clears_up_to_whole_vectors() => AtEveryWidth<TransposeCheck>();

    [Fact]
    public void Exp_errs_by_little_more_than_a_unit_in_the_last_place() => AtEveryWidth<ExpCheck>();

    [Fact]
    public void Weights_are_those_of_softmax_however_logits_rise() => AtEveryWidth<OnlineSoftmaxCheck>();

    [Fact]
    public void A_loop_runs_every_item_once_and_hands_on_a_failure()
    {
        var loop = new ParallelLoop(4);
        var body = new Counting(loop.Degree);
        for (int repeat = 0; repeat < 200; repeat++)
        {
            int[] counts = body.Reset(repeat % 37);
            loop.Run(body, counts.Length);
            Assert.All(counts, count => Assert.Equal(1, count));
        }

        body.Reset(100)[40] = -1000;
        Assert.Throws<InvalidOperationException>(() => loop.Run(body, 100));
        int[] after = body.Reset(64);
        loop.Run(body, 64);
        Assert.All(after, count => Assert.Equal(1, count));
    }

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void Sizes_of_the_longest_problems_do_not_overflow(int degree)
    {
        var longest = new LinearLayout(Maps.Problem("elu", new AttentionShape(1, int.MaxValue, 1, 1), causal: true), degree, 16);
        Assert.Equal(1 << 25, longest.KeyChunks);
        Assert.Equal(1 << 25, longest.QueryBlocks);
        Assert.Equal(ChunkRelay.MaxSlots * degree, longest.KeysCount);
        var most = new LinearLayout(Maps.Problem("elu", new AttentionShape(65536, 1, 40000, 1), causal: true), degree, 16);
        Assert.Equal(65536L * 40000, most.Chains);
        Assert.True(most.ByChain);
        Assert.InRange(most.Bytes, 4 * most.Chains, 5 * most.Chains);
    }

    [Fact]
    public void A_loop_of_no_blocks_over_more_heads_than_fit_32_bits_is_empty()
    {
        using ComputeDevice device = ComputeDevice.Open(DeviceKind.Cpu);
        using var softmax = new SoftmaxAttention(device);
        softmax.Forward<float>(new AttentionShape(65536, 0, 65536, 1), [], [], [], []);
    }

    // Free chains side by side that are furthest behind, and no more than a thread's share of those that are not far ahead.
    [Fact]
    public Task A_relay_hands_out_the_chains_that_are_furthest_behind_and_none_twice() => Task.Run(() =>
        Law.ForAll(400, 1, random => (Together: 1 << random.Next(0, 2), Groups: random.Next(1, 7), Stretches: random.Next(1, 9), Threads: random.Next(1, 5), Seed: random.NextWord()), s =>
        {
            var random = new SeededRandom(s.Seed);
            var relay = new ChainRelay();
            relay.Start(40, 4, 3, 2);
            Assert.True(relay.TryTake(out _, out _, out _));
            int chains = s.Groups * s.Together;
            relay.Start(chains, s.Together, s.Threads, s.Stretches);
            int[] next = new int[chains];
            bool[] isTaken = new bool[chains];
            var held = new List<(int First, int Count)>();
            while (true)
            {
                // With one chain each, or none left to hand on, there is nothing to wait for.
                bool isLeft = Enumerable.Range(0, chains).Any(i => !isTaken[i] && next[i] < s.Stretches);
                bool waits = !isLeft && Enumerable.Range(0, chains).Count(i => isTaken[i] && next[i] < s.Stretches) > held.Count;
                if (held.Count < s.Threads && !waits && relay.TryTake(out int first, out int count, out int stretch) is bool isGiven && (isGiven || isLeft))
                {
                    Assert.True(isGiven);
                    int[] free = [.. Enumerable.Range(0, chains).Where(i => !isTaken[i])];
                    Assert.Equal(free.Min(i => next[i]), stretch);
                    Assert.InRange(first, 0, chains - count);
                    Assert.Equal(0, first % count);
                    Assert.True(count <= s.Together && int.IsPow2(count));
                    Assert.True(count == 1 || count * s.Threads <= Enumerable.Range(0, chains).Count(i => next[i] <= stretch + 1 && (isTaken[i] || next[i] < s.Stretches)));
                    for (int i = first; i < first + count; i++)
                    {
                        Assert.False(isTaken[i]);
                        Assert.Equal(stretch, next[i]++);
                        isTaken[i] = true;
                    }

                    held.Add((first, count));
                }
                else if (held.Count > 0)
                {
                    // Whoever is last in this list is slow.
                    int returned = random.Next(0, 3) == 0 ? held.Count - 1 : 0;
                    (first, count) = held[returned];
                    held.RemoveAt(returned);
                    Array.Clear(isTaken, first, count);
                    relay.Return(first, count);
                }
                else
                {
                    break;
                }
            }

            Assert.All(next, n => Assert.Equal(s.Stretches, n));
        })).WaitAsync(TimeSpan.FromSeconds(100));

    [Fact]
    public void A_relay_lets_a_thread_take_all_that_it_can_until_another_waits_for_a_share()
    {
        var relay = new ChainRelay();
        relay.Start(8, 4, 2, 5);
        Assert.Equal((0, 4, 0), Take(relay));
        for (int stretch = 0; stretch < 3; stretch++)
        {
            Assert.Equal((4, 4, stretch), Take(relay));
            relay.Return(4, 4);
        }

        // The first comes late: three stretches behind, it leaves half of its chains to the second.
        relay.Return(0, 4);
        Assert.Equal((0, 2, 1), Take(relay));
        Assert.Equal((2, 2, 1), Take(relay));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_relay_lets_a_thread_wait_while_another_has_several(bool fails)
    {
        var relay = new ChainRelay();
        relay.Start(4, 2, 2, 3);
        Assert.Equal((0, 2, 0), Take(relay));
        for (int stretch = 0; stretch < 3; stretch++)
        {
            Assert.Equal((2, 2, stretch), Take(relay));
            relay.Return(2, 2);
        }

        (int, int, int) taken = default;
        var thread = new Thread(() => taken = Take(relay)) { IsBackground = true };
        thread.Start();
        Assert.True(SpinWait.SpinUntil(() => thread.ThreadState.HasFlag(ThreadState.WaitSleepJoin), TimeSpan.FromSeconds(60)));
        if (fails)
        {
            relay.Stop();
            Assert.True(thread.Join(TimeSpan.FromSeconds(60)));
            Assert.Equal((-1, 0, 3), taken);
            relay.Return(0, 2);
            Assert.Equal((-1, 0, 1), Take(relay));
        }
        else
        {
            relay.Return(0, 2);
            Assert.True(thread.Join(TimeSpan.FromSeconds(60)));
            Assert.Equal((0, 1, 1), taken);
            Assert.Equal((1, 1, 1), Take(relay));
        }
    }

    // Every chunk goes through its stages once, with a turn for its scale and one at each piece of the state; a thread that could do something is given something.
    [Fact]
    public Task A_relay_takes_each_chunk_through_its_stages_and_lets_nobody_wait_for_nothing() => Task.Run(() =>
        Law.ForAll(
            600, 2,
            random => (Threads: random.Next(1, 5), Slots: random.Next(1, ChunkRelay.MaxSlots), Chains: random.Next(1, 5), Pieces: random.Next(1, 4), HasScales: random.NextBool(), HasBehind: random.NextBool(), Seed: random.NextWord()),
            s =>
            {
                var random = new SeededRandom(s.Seed);
                var relay = new ChunkRelay();
                relay.Start(3, 2, 2, 2, hasScales: true, hasBehind: true);
                relay.Add(3);
                Assert.True(relay.TryTake(2, out _));
                relay.Start(s.Threads, s.Slots, s.Chains, s.Pieces, s.HasScales, s.HasBehind);
                var chunks = new List<ModelChunk>();
                int[] cutFrom = new int[s.Chains];
                for (int chain = 0; chain < s.Chains; chain++)
                {
                    int length = random.Next(0, 8);
                    chunks.AddRange(Enumerable.Range(0, length).Select(chunk => new ModelChunk(chain, chunk, s.Pieces)));
                    relay.Add(length);
                    cutFrom[chain] = int.MaxValue;
                }

                ChunkTask?[] tasks = new ChunkTask?[s.Threads];
                while (chunks.Exists(chunk => !chunk.IsDone))
                {
                    int thread = random.Next(0, s.Threads - 1);
                    if (tasks[thread] is { } done)
                    {
                        ModelChunk ended = chunks.Single(chunk => chunk.Is(done));
                        if (s.HasScales && done.Work == ChunkWork.Ahead && !ended.HasScale)
                        {
                            ended.HasScale = true;
                            relay.EndTurn(done.Chain);
                            continue;
                        }

                        bool isCut = done.Work == ChunkWork.Ahead && random.Next(0, 12) == 0;
                        cutFrom[done.Chain] = isCut ? Math.Min(cutFrom[done.Chain], done.Chunk) : cutFrom[done.Chain];
                        ended.End(done, s.HasBehind);
                        relay.Return(done, isCut);
                        tasks[thread] = null;
                        continue;
                    }

                    ModelChunk[] kept = [.. chunks.Where(chunk => chunk.Slot >= 0 && !chunk.IsDone)];
                    bool canBegin = chunks.Exists(chunk => chunk.Slot < 0) && kept.Count(chunk => chunk.Slot / s.Slots == thread) < s.Slots;
                    bool canScale = Array.Exists(kept, CanScale);
                    bool canFinish = Array.Exists(kept, chunk => chunk.CanFinish);
                    bool canAdd = Array.Exists(kept, chunk => Enumerable.Range(0, s.Pieces).Any(piece => CanAdd(chunk, piece)));
                    if (canBegin || canScale || canFinish || canAdd)
                    {
                        Assert.True(relay.TryTake(thread, out ChunkTask task));
                        tasks[thread] = task;
                        ModelChunk chunk = chunks.Single(chunk => chunk.Is(task));
                        switch (task.Work)
                        {
                            case ChunkWork.Ahead when s.HasScales:
                                Assert.True(CanScale(chunk));
                                break;
                            case ChunkWork.Project or ChunkWork.Ahead:
                                Assert.Equal(s.HasScales, task.Work == ChunkWork.Project);
                                Assert.True(canBegin);
                                Assert.Equal(thread, task.Slot / s.Slots);
                                Assert.DoesNotContain(kept, other => other.Slot == task.Slot);
                                Assert.Equal(chunk, chunks.Find(other => other.Chain == task.Chain && other.Slot < 0));
                                break;
                            case ChunkWork.InTurn:
                                Assert.Equal(s.Pieces == 1 || task.Chunk >= cutFrom[task.Chain], task.Piece < 0);
                                Assert.All(ModelChunk.Pieces(task, s.Pieces), piece => Assert.True(CanAdd(chunk, piece)));
                                break;
                            case ChunkWork.Behind:
                                Assert.True(chunk.CanFinish && s.HasBehind);
                                break;
                        }

                        chunk.Begin(task);
                    }
                    else if (chunks.Count(chunk => !chunk.IsDone) <= tasks.Count(task => task is not null))
                    {
                        // Whoever has the others ends them.
                        Assert.False(relay.TryTake(thread, out _));
                    }
                }

                Assert.All(Enumerable.Range(0, s.Threads), thread => Assert.False(relay.TryTake(thread, out _)));

                bool CanScale(ModelChunk chunk) => s.HasScales && chunk.IsProjected && !chunk.IsTaken && !chunk.HasScale && chunks.TrueForAll(other => other.Chain != chunk.Chain || other.Chunk >= chunk.Chunk || other.HasScale);

                // Behind a cut all pieces have to be ready.
                bool CanAdd(ModelChunk chunk, int piece) => chunk.Chunk >= cutFrom[chunk.Chain]
                    ? Enumerable.Range(0, s.Pieces).All(any => IsNext(chunk, any))
                    : IsNext(chunk, piece);

                bool IsNext(ModelChunk chunk, int piece) => chunk.IsReduced && chunk.Added[piece] == 0 &&
                    (chunk.Chunk == 0 || chunks.Single(other => other.Chain == chunk.Chain && other.Chunk == chunk.Chunk - 1).Added[piece] == 2);
            })).WaitAsync(TimeSpan.FromSeconds(100));

    // The second thread has begun what it may keep, and waits; when work stops neither it nor another gets more.
    [Fact]
    public void Chunks_that_wait_for_another_are_given_up_when_work_stops()
    {
        var relay = new ChunkRelay();
        relay.Start(2, 2, 1, 1, hasScales: true, hasBehind: true);
        relay.Add(5);
        Assert.True(relay.TryTake(0, out ChunkTask first));
        Assert.Equal(new ChunkTask(ChunkWork.Project, 0, 0, 0), first);
        for (int chunk = 1; chunk < 3; chunk++)
        {
            Assert.True(relay.TryTake(1, out ChunkTask task));
            Assert.Equal(new ChunkTask(ChunkWork.Project, 0, chunk, chunk + 1), task);
            relay.Return(task);
        }

        bool? isGiven = null;
        var thread = new Thread(() => isGiven = relay.TryTake(1, out _)) { IsBackground = true };
        thread.Start();
        Assert.True(SpinWait.SpinUntil(() => thread.ThreadState.HasFlag(ThreadState.WaitSleepJoin), TimeSpan.FromSeconds(60)));
        relay.Stop();
        Assert.True(thread.Join(TimeSpan.FromSeconds(60)));
        Assert.False(isGiven);
        relay.Return(first);
        Assert.False(relay.TryTake(0, out _));
    }

    private static (int First, int Count, int Stretch) Take(ChainRelay relay) => relay.TryTake(out int first, out int count, out int stretch) ? (first, count, stretch) : (-1, 0, stretch);

    // Vectors that the processor does not have are made of those that it has: what is wrong at a width is wrong on every machine.
    private static void AtEveryWidth<TCheck>()
        where TCheck : ICheck
    {
        TCheck.Run<V32>();
        TCheck.Run<V128>();
        TCheck.Run<V256>();
        TCheck.Run<V512>();
    }

    private sealed record ModelChunk(int Chain, int Chunk, int PieceCount)
    {
        public int Slot { get; private set; } = -1;

        public bool IsProjected { get; private set; }

        public bool HasScale { get; set; }

        public bool IsReduced { get; private set; }

        public bool IsDone { get; private set; }

        public bool IsTaken { get; private set; }

        /// <summary>0 before, 1 while, and 2 when the chunk was added to a piece of the state.</summary>
        public int[] Added { get; } = new int[PieceCount];

        public bool CanFinish => !IsTaken && !IsDone && Array.TrueForAll(Added, stage => stage == 2);

        public static IEnumerable<int> Pieces(ChunkTask task, int pieces) => task.Piece < 0 ? Enumerable.Range(0, pieces) : [task.Piece];

        public bool Is(ChunkTask task) => (Chain, Chunk) == (task.Chain, task.Chunk);

        public void Begin(ChunkTask task)
        {
            Assert.True(Slot < 0 || task.Slot == Slot);
            Slot = task.Slot;
            IsTaken = task.Work != ChunkWork.InTurn;
            Mark(task, 1);
        }

        public void End(ChunkTask task, bool hasBehind)
        {
            IsProjected = true;
            IsReduced |= task.Work == ChunkWork.Ahead;
            IsTaken = false;
            Mark(task, 2);
            IsDone = task.Work == ChunkWork.Behind || (!hasBehind && CanFinish);
        }

        private void Mark(ChunkTask task, int stage)
        {
            foreach (int piece in task.Work == ChunkWork.InTurn ? Pieces(task, PieceCount) : [])
            {
                Added[piece] = stage;
            }
        }
    }

    private interface ICheck
    {
        static abstract void Run<TV>()
            where TV : struct, ISimdVector<TV>;
    }

    private sealed class MicroKernelCheck : ICheck
    {
        public static void Run<TV>()
            where TV : struct, ISimdVector<TV> =>
            Law.ForAll(60, 1, random => (M: random.Next(0, 20), N: random.Next(1, 9) * TV.Count, K: random.NextLength(80), Add: random.NextBool(), Seed: random.NextWord()), s =>
            {
                float[] a = TestData.Normal(s.Seed, Math.Max(1, s.M * s.K));
                float[] b = TestData.Normal(s.Seed + 1, Math.Max(1, s.K * s.N));
                float[] c = TestData.Normal(s.Seed + 2, Math.Max(1, s.M * s.N));
                using var result = new PoisonedBuffer(c, misalignment: 1);
                if (!s.Add)
                {
                    result.Span.Fill(float.NaN);
                }

                fixed (float* pa = a)
                fixed (float* pb = b)
                {
                    MicroKernel<TV>.Multiply(s.M, s.N, s.K, pa, s.K, pb, s.N, result.Address, s.N, s.Add);
                }

                result.RequireGuardsIntact();
                for (int i = 0; i < s.M * s.N; i++)
                {
                    double sum = s.Add ? c[i] : 0;
                    double size = Math.Abs(sum);
                    for (int k = 0; k < s.K; k++)
                    {
                        double term = (double)a[(i / s.N * s.K) + k] * b[(k * s.N) + (i % s.N)];
                        sum += term;
                        size += Math.Abs(term);
                    }

                    Assert.Equal(sum, result.Span[i], 1e-6 * (size + 1e-30));
                }
            });
    }

    // The other ways to the same product: A laid out by columns, B in panels, and a product that is added in the end.
    private sealed class OtherProductsCheck : ICheck
    {
        public static void Run<TV>()
            where TV : struct, ISimdVector<TV> =>
            Law.ForAll(60, 1, random => (M: random.Next(1, 40), N: random.Next(1, 9) * TV.Count, K: random.NextLength(random.NextBool() ? 80 : 300), Seed: random.NextWord()), s =>
            {
                float[] a = TestData.Normal(s.Seed, Math.Max(1, s.M * s.K));
                float[] b = TestData.Normal(s.Seed + 1, Math.Max(1, s.K * s.N));
                float[] x = TestData.Normal(s.Seed + 2, s.M * s.N);
                float[] w = TestData.Normal(s.Seed + 3, s.M);
                float[] turned = new float[a.Length];
                for (int i = 0; i < s.M * s.K; i++)
                {
                    turned[(i % s.K * s.M) + (i / s.K)] = a[i];
                }

                int width = MicroKernel<TV>.Columns;
                float[] panels = new float[(s.N + width - 1) / width * width * Math.Max(1, s.K)];
                for (int i = 0; i < s.K * s.N; i++)
                {
                    panels[(i % s.N / width * width * s.K) + (i / s.N * width) + (i % s.N % width)] = b[i];
                }

                float[] product = new float[s.M * s.N];
                using var result = new PoisonedBuffer(x, misalignment: 1);
                fixed (float* pa = a)
                fixed (float* pt = turned)
                fixed (float* pb = b)
                fixed (float* pp = panels)
                fixed (float* px = x)
                fixed (float* pw = w)
                fixed (float* pc = product)
                {
                    LinesAhead ahead = default;
                    ahead.AddStretch(pb, b.Length);
                    MicroKernel<TV>.Multiply(s.M, s.N, s.K, pa, s.K, pb, s.N, pc, s.N, false, &ahead);
                    MicroKernel<TV>.MultiplyTransposed(s.M, s.N, s.K, pt, s.M, pb, s.N, result.Address, s.N, false);
                    Assert.Equal(product, result.Span.ToArray());
                    MicroKernel<TV>.MultiplyPanels(s.M, s.N, s.K, pa, s.K, pp, result.Address, s.N);
                    Assert.Equal(product, result.Span.ToArray());
                    MicroKernel<TV>.AddProduct(s.M, s.N, s.K, pa, s.K, pb, s.N, result.Address, s.N, px);
                    Assert.Equal(product.Select((p, i) => x[i] + p), result.Span.ToArray());
                    x.CopyTo(result.Span);
                    MicroKernel<TV>.AddTransposedProduct(s.M, s.N, s.K, pt, s.M, pb, s.N, result.Address, s.N, result.Address, pw);
                    for (int i = 0; i < product.Length; i++)
                    {
                        Assert.Equal(x[i] + ((double)w[i / s.N] * product[i]), result.Span[i], 1e-6 * (1 + Math.Abs(x[i]) + Math.Abs(product[i])));
                    }

                    x.CopyTo(result.Span);
                    MicroKernel<TV>.AddProduct(s.M, s.N, s.K, pa, s.K, pb, s.N, pc, s.N, px, pw);
                    MicroKernel<TV>.AddTransposedProduct(s.M, s.N, s.K, pt, s.M, pb, s.N, result.Address, s.N, result.Address, pw);
                    Assert.Equal(product, result.Span.ToArray());
                }

                result.RequireGuardsIntact();
            });
    }

    [Theory]
    [InlineData(5)]
    [InlineData(64)]
    public void Lines_ahead_reach_every_row_and_stretch(int steps)
    {
        // Addresses only: nothing of them is read.
        const int Rows = 21, Tokens = 2 * Rows, Heads = 2, Width = 32, LineBytes = 64, StretchLines = 100;
        float* start = (float*)(1 << 20);
        float* stretch = (float*)(1 << 24);
        TensorBuffer tensor = TensorBuffer.Dense(MemoryRegion.Host(start, Tokens * Heads * Width), Tokens, Heads, Width);
        LinesAhead ahead = default;
        ahead.AddRows(tensor, batch: 0, token: 3, head: 1, Width, Rows);
        ahead.AddStretch(stretch, StretchLines * LineBytes / sizeof(float));
        HashSet<nint> missing = [.. Enumerable.Range(0, StretchLines).Select(i => (nint)stretch + (i * LineBytes))];
        for (int row = 0; row < Rows; row++)
        {
            nint line = (nint)tensor.Row(0, 3 + row, 1);
            missing.UnionWith([line, line + LineBytes]);
        }

        int tiles = missing.Count;
        ahead.Expect(tiles);
        for (int tile = 0; tile < tiles; tile++)
        {
            if (ahead.TryTake(steps, out nint line, out nint step))
            {
                missing.ExceptWith(Enumerable.Range(0, steps).Select(i => line + (i * step)));
            }
        }

        Assert.Empty(missing);
    }

    private sealed class CausalProductCheck : ICheck
    {
        public static void Run<TV>()
            where TV : struct, ISimdVector<TV> =>
            Law.ForAll(60, 1, random => (Rows: random.Next(1, 20), Columns: random.Next(1, 64), Seed: random.NextWord()), s =>
            {
                int n = 2 * TV.Count;
                float[] p = TestData.Normal(s.Seed, s.Rows * 64);
                float[] v = TestData.Normal(s.Seed + 1, s.Columns * n);
                float[] expected = new float[s.Rows * n];
                var random = new SeededRandom(s.Seed);
                int[] seen = [.. Enumerable.Range(0, s.Rows).Select(_ => random.Next(0, s.Columns)).Order()];
                v.AsSpan(seen[^1] * n).Fill(float.NaN);
                for (int i = 0; i < s.Rows; i++)
                {
                    for (int j = 0; j < seen[i]; j++)
                    {
                        for (int c = 0; c < n; c++)
                        {
                            expected[(i * n) + c] += p[(i * 64) + j] * v[(j * n) + c];
                        }
                    }
                }

                float[] actual = new float[s.Rows * n];
                fixed (float* pp = p)
                fixed (float* pv = v)
                fixed (float* po = actual)
                fixed (int* ps = seen)
                {
                    SimdBlas<TV>.AddCausalProduct(s.Rows, ps, pp, 64, pv, n, n, po, n);
                }

                Assert.All(Enumerable.Range(0, actual.Length), i => Assert.Equal(expected[i], actual[i], 1e-4f));
            });
    }

    // Rows that see, or are seen by, one more each or as many are taken together; what lies beyond any of them is NaN.
    private sealed class DiagonalCheck : ICheck
    {
        public static void Run<TV>()
            where TV : struct, ISimdVector<TV> =>
            Law.ForAll(
                60, 1,
                random =>
                {
                    bool isLevel = random.NextBool();
                    return (IsLevel: isLevel, Rows: random.Next(1, isLevel ? 70 : 40), Before: random.Next(0, 9), Vectors: random.Next(1, 9), K: random.NextBool() ? random.Next(1, 9) : random.Next(120, 300), Odd: random.Next(0, 60), Seed: random.NextWord());
                },
                s =>
                {
                    int n = s.Vectors * TV.Count;
                    int columns = (s.IsLevel ? s.Odd : s.Rows + s.Before) + 1;
                    float[] a = TestData.Normal(s.Seed, s.Rows * s.K);
                    float[] b = TestData.Normal(s.Seed + 1, s.K * n);
                    float[] p = TestData.Normal(s.Seed + 2, s.Rows * 64);
                    float[] v = TestData.Normal(s.Seed + 3, columns * n);
                    int[] seen = [.. Enumerable.Range(0, s.Rows).Select(i => s.IsLevel ? s.Odd : i + s.Before + (i >= s.Odd ? 1 : 0))];
                    int[] first = [.. Enumerable.Range(0, s.Rows).Select(i => s.IsLevel ? 0 : Math.Min(columns, i + s.Before + (i >= s.Odd ? 1 : 0)))];
                    for (int row = 0; row < s.Rows; row++)
                    {
                        p.AsSpan((row * 64) + columns, 64 - columns).Fill(float.NaN);
                    }

                    v.AsSpan(Math.Min(columns, seen[^1]) * n).Fill(float.NaN);
                    using var both = new PoisonedBuffer(s.Rows * n);
                    using var added = new PoisonedBuffer(s.Rows * n);
                    using var alone = new PoisonedBuffer(s.Rows * n);
                    using var suffix = new PoisonedBuffer(s.Rows * n);
                    using var suffixAlone = new PoisonedBuffer(s.Rows * n);
                    fixed (float* pa = a, pb = b, pp = p, pv = v)
                    fixed (int* ps = seen, pf = first)
                    {
                        SimdBlas<TV>.CausalProduct(s.Rows, n, s.K, pa, s.K, pb, n, ps, pp, 64, pv, n, both.Address, n);
                        MicroKernel<TV>.Multiply(s.Rows, n, s.K, pa, s.K, pb, n, added.Address, n, false);
                        MicroKernel<TV>.Multiply(s.Rows, n, s.K, pa, s.K, pb, n, alone.Address, n, false);
                        MicroKernel<TV>.Multiply(s.Rows, n, s.K, pa, s.K, pb, n, suffix.Address, n, false);
                        MicroKernel<TV>.Multiply(s.Rows, n, s.K, pa, s.K, pb, n, suffixAlone.Address, n, false);
                        SimdBlas<TV>.AddCausalProduct(s.Rows, ps, pp, 64, pv, n, n, added.Address, n);
                        for (int row = 0; row < s.Rows; row++)
                        {
                            SimdBlas<TV>.AddCausalProduct(1, ps + row, pp + (row * 64), 64, pv, n, n, alone.Address + (row * n), n);
                        }

                        v.AsSpan().Fill(1.25f);
                        v.AsSpan(0, Math.Min(columns, first[0]) * n).Fill(float.NaN);
                        SimdBlas<TV>.AddSuffixProduct(s.Rows, columns, pf, pp, 64, false, pv, n, n, suffix.Address, n);
                        for (int row = 0; row < s.Rows; row++)
                        {
                            SimdBlas<TV>.AddSuffixProduct(1, columns, pf + row, pp + (row * 64), 64, false, pv, n, n, suffixAlone.Address + (row * n), n);
                        }
                    }

                    Assert.Equal(alone.Span.ToArray(), added.Span.ToArray());
                    Assert.Equal(alone.Span.ToArray(), both.Span.ToArray());
                    Assert.Equal(suffixAlone.Span.ToArray(), suffix.Span.ToArray());
                    Assert.DoesNotContain(float.NaN, both.Span.ToArray());
                    Assert.DoesNotContain(float.NaN, suffix.Span.ToArray());
                    both.RequireGuardsIntact();
                    added.RequireGuardsIntact();
                    suffix.RequireGuardsIntact();
                });
    }

    private sealed class TransposeCheck : ICheck
    {
        public static void Run<TV>()
            where TV : struct, ISimdVector<TV> =>
            Law.ForAll(40, 1, random => (Rows: random.Next(1, 64), Width: random.Next(1, 30), Seed: random.NextWord()), s =>
            {
                float[] source = TestData.Normal(s.Seed, s.Rows * 31);
                using var target = new PoisonedBuffer(s.Width * 64);
                fixed (float* x = source)
                {
                    SimdBlas<TV>.Transpose(s.Rows, s.Width, x, 31, target.Address, 64);
                }

                target.RequireGuardsIntact();
                for (int column = 0; column < s.Width; column++)
                {
                    for (int row = 0; row < PackedForm<TV>.RoundUp(s.Rows); row++)
                    {
                        Assert.Equal(row < s.Rows ? source[(row * 31) + column] : 0, target.Span[(column * 64) + row]);
                    }
                }
            });
    }

    // Logits that rise little enough for the shift to stay, so far that it must follow, and beyond anything that exp holds; tiles of −∞ and part of a tile.
    private sealed class OnlineSoftmaxCheck : ICheck
    {
        private const int Tile = OnlineSoftmax<V32>.TileKeys;

        public static void Run<TV>()
            where TV : struct, ISimdVector<TV> =>
            Law.ForAll(
                80, 1,
                random => (Tiles: random.Next(1, 9), Rise: random.Choose(0f, 0.5f, 4, 9, 60, 800, -3, -200), Blind: random.Next(0, 3), Last: random.Next(1, Tile), Seed: random.NextWord()),
                s =>
                {
                    // A scale that rounds nothing: what is looked at is the weights.
                    const float Scale = 0.25f;
                    float[] scores = TestData.Normal(s.Seed, s.Tiles * Tile, 8);
                    int keys = ((s.Tiles - 1) * Tile) + s.Last;
                    for (int j = 0; j < scores.Length; j++)
                    {
                        scores[j] = j / Tile < s.Blind ? float.NegativeInfinity : scores[j] + (j / Tile * s.Rise / Scale);
                    }

                    scores.AsSpan(keys).Fill(float.NaN);
                    using var weights = new PoisonedBuffer(Tile);
                    using var sums = new PoisonedBuffer(TV.Count);
                    sums.Span.Clear();
                    float sum = 0;
                    float shift = float.NegativeInfinity;
                    float mostSum = 0;
                    float[] tile = (float[])scores.Clone();
                    fixed (float* x = tile)
                    {
                        for (int first = 0; first < keys; first += Tile)
                        {
                            int seen = Math.Min(Tile, keys - first);
                            float before = sum;
                            float shiftBefore = shift;
                            OnlineSoftmax<TV>.Weigh(seen, Scale, x + first, weights.Address, &shift, &sum, TV.Count, sums.Address);
                            mostSum = shift == shiftBefore ? Math.Max(mostSum, sum - before) : mostSum;
                            for (int j = 0; j < seen; j++)
                            {
                                sums.Span[0] += weights.Span[j] * (first + j);
                            }

                            for (int j = seen; j < PackedForm<TV>.RoundUp(seen); j++)
                            {
                                Assert.Equal(0, weights.Span[j]);
                            }
                        }
                    }

                    weights.RequireGuardsIntact();
                    sums.RequireGuardsIntact();
                    double top = scores.Take(keys).Max();
                    double expectedSum = 0;
                    double expected = 0;
                    for (int j = 0; j < keys; j++)
                    {
                        double weight = double.IsNegativeInfinity(top) ? 0 : Math.Exp(Scale * (scores[j] - top));
                        expectedSum += weight;
                        expected += weight * j;
                    }

                    Assert.True(mostSum <= 256.1, $"A tile's weights came to {mostSum}.");
                    if (expectedSum == 0)
                    {
                        Assert.Equal((0, 0), (sum, sums.Span[0]));
                        return;
                    }

                    Assert.InRange(sums.Span[0] / sum / (expected / expectedSum), 1 - 3e-6, 1 + 3e-6);
                    Assert.InRange(sum * Math.Exp(shift - (Scale * top)) / expectedSum, 1 - 3e-6, 1 + 3e-6);
                });
    }

    private sealed class ExpCheck : ICheck
    {
        public static void Run<TV>()
            where TV : struct, ISimdVector<TV>
        {
            float* lanes = stackalloc float[64];
            (double Units, float At) worst = default;
            for (float x = -86.98f; x < 88.72f; x += 0.0031f)
            {
                double expected = Math.Exp(x);
                double unit = (double)MathF.BitIncrement((float)expected) - (float)expected;
                double units = Math.Abs(Of(x) - expected) / unit;
                worst = units > worst.Units ? (units, x) : worst;
            }

            Assert.True(worst.Units < 1.2, $"{typeof(TV).Name}: {worst.Units} units in the last place at {worst.At}");
            Assert.Equal(1, Of(0));
            Assert.Equal(0, Of(float.NegativeInfinity));
            Assert.InRange(Of(88.72283f), 3.4e38f, float.MaxValue);
            Assert.Equal(float.PositiveInfinity, Of(88.7229f));
            Assert.Equal(0, Of(-87));
            Assert.Equal(0, Of(-1e30f));
            Assert.Equal(float.PositiveInfinity, Of(89));
            Assert.Equal(float.PositiveInfinity, Of(float.PositiveInfinity));
            Assert.True(float.IsNaN(Of(float.NaN)));
            Assert.True(float.IsNaN(Of(-float.NaN)));

            float Of(float x)
            {
                TV.Store(SimdExp.Exp(TV.Broadcast(x)), lanes);
                TV one = TV.Broadcast(1);
                TV none = TV.Broadcast(float.NaN);
                (TV y0, TV y1, TV y2, TV y3) = (TV.Broadcast(x), one, TV.Broadcast(x), none);
                SimdExp.Exp(ref y0, ref y1, ref y2, ref y3);
                RequireSame(y0, y2);
                (y0, y1, y2, y3) = (one, TV.Broadcast(x), none, TV.Broadcast(x));
                SimdExp.Exp(ref y0, ref y1, ref y2, ref y3);
                RequireSame(y1, y3);
                return lanes[0];
            }

            // Whichever of four a number is, and whatever stands beside it, its exponential has the bits of one alone.
            void RequireSame(TV first, TV second)
            {
                TV.Store(first, lanes + TV.Count);
                TV.Store(second, lanes + (2 * TV.Count));
                Assert.Equal(Bits(0), Bits(TV.Count));
                Assert.Equal(Bits(0), Bits(2 * TV.Count));
            }

            int Bits(int lane) => BitConverter.SingleToInt32Bits(lanes[lane]);
        }
    }

    private sealed class Counting(int slots) : IParallelBody
    {
        private readonly int[] _busy = new int[slots];
        private int[] _counts = [];

        public int[] Reset(int count) => _counts = new int[count];

        public void Run(long item, int slot)
        {
            if (Interlocked.Exchange(ref _busy[slot], 1) != 0 || _counts[item] < 0)
            {
                Volatile.Write(ref _busy[slot], 0);
                throw new InvalidOperationException("two items ran in one slot, or this one was to fail");
            }

            Interlocked.Increment(ref _counts[item]);
            Thread.SpinWait(20);
            Volatile.Write(ref _busy[slot], 0);
        }
    }
}
