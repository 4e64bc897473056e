using System.Numerics.Tensors;
using Gpu.Attention.TestKit;

namespace Gpu.Attention.Tests;

/// <summary>Which keys a query attends to: rows, column sums and largest elements of a matrix that is never made.</summary>
public sealed class WeightsTests : IDisposable
{
    private readonly ComputeDevice _device = ComputeDevice.Open(DeviceKind.Cpu);

    public static TheoryData<string, bool> MapsAndDirections => [.. from map in Maps.Names from causal in new[] { false, true } select (map, causal)];

    public void Dispose() => _device.Dispose();

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void Weights_err_no_more_than_twice_plain_float32(string map, bool causal) =>
        Law.ForAll(20, seed: 31000, random => Case.Next(random, map, causal, maxLength: 80), sample =>
        {
            (float[] q, float[] k) = sample.Rows(1);
            float[] actual = Rows(sample.Problem, q, Sequences.Spoiled(k, sample.Mask, float.NaN), All(sample.Shape.QueryLength));
            if (sample.Normalize)
            {
                RequireOracle(sample, q, k, actual);
                return;
            }

            // One weight may be far above all others, and so what plain float32 errs is a single draw. A log weight made of sums up to about 50 holds 50 · 2⁻²⁴.
            double[] expected = Oracle(sample, q, k);
            double size = expected.DefaultIfEmpty(0).Max();
            Assert.All(expected.Zip(actual), pair => Assert.Equal(pair.First, pair.Second, 1e-5 * size));
        });

    // Float32 holds neither the exponentials of such rows nor, to more than a few digits, their squared norms.
    [Theory]
    [InlineData("favor+", 8)]
    [InlineData("favor+", 30)]
    [InlineData("favor+hyperbolic", 30)]
    [InlineData("general exponential", 8)]
    [InlineData("elu", 30)]
    public void Large_norms_give_the_right_weights(string map, double std)
    {
        foreach (bool causal in new[] { false, true })
        {
            Law.ForAll(10, seed: 32000, random => Case.Next(random, map, causal, maxLength: 80) with { Normalize = true }, sample =>
            {
                (float[] q, float[] k) = sample.Rows(std);
                float[] actual = Rows(sample.Problem, q, k, All(sample.Shape.QueryLength));
                double[] expected = Oracle(sample, q, k);
                for (int i = 0; i < actual.Length; i++)
                {
                    Assert.Equal(expected[i], actual[i], 1e-4);
                }
            });
        }
    }

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void Rows_are_not_negative_and_sum_to_one_or_to_nothing(string map, bool causal) =>
        Law.ForAll(20, seed: 33000, random => Case.Next(random, map, causal, maxLength: 200) with { Normalize = true }, sample =>
        {
            AttentionShape s = sample.Shape;
            (float[] q, float[] k) = sample.Rows(1);
            float[] actual = Rows(sample.Problem, q, k, All(s.QueryLength));
            for (int row = 0; row < s.Batch * s.Heads * s.QueryLength; row++)
            {
                int batch = row / (s.Heads * s.QueryLength);
                ReadOnlySpan<float> weights = actual.AsSpan(row * s.KeyLength, s.KeyLength);
                double sum = 0;
                for (int j = 0; j < weights.Length; j++)
                {
                    bool isVisible = sample.IsVisible(batch, row % s.QueryLength, j);
                    Assert.True(weights[j] >= 0 && (isVisible || weights[j] == 0), $"row {row}, key {j}: {weights[j]}");
                    sum += weights[j];
                }

                // ReLU features of a query may be 0 wherever those of its keys are not.
                bool mayBeNothing = map.StartsWith("relu", StringComparison.Ordinal) || !sample.SeesAny(batch, row % s.QueryLength);
                Assert.True(Math.Abs(sum - 1) < 1e-6 || (sum == 0 && mayBeNothing), $"row {row} sums to {sum}");
            }
        });

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void Weights_are_what_the_operator_makes_of_the_identity(string map, bool causal)
    {
        foreach (bool normalize in new[] { true, false })
        {
            var options = new LinearAttentionOptions { Causal = causal, Normalize = normalize };
            RequireForward(Maps.Create(map, 12), options, Maps.NeedsPositiveRows(map), 1e-5);
        }
    }

    [Fact]
    public void Constants_and_conventions_that_leave_rows_alone_are_kept()
    {
        FeatureMap favor = FeatureMap.FavorPlus(RandomProjection.Orthogonal(40, 12, seed: 6));
        FeatureMap relu = FeatureMap.Relu(RandomProjection.Orthogonal(40, 12, seed: 6));
        foreach (bool causal in new[] { false, true })
        {
            foreach (bool normalize in new[] { false, true })
            {
                var options = new LinearAttentionOptions { Causal = causal, Normalize = normalize };
                RequireForward(favor, options with { FeatureEpsilon = 1e-3f }, false, 2e-5);
                RequireForward(favor, options with { Scale = 0.1f }, false, 1e-5);
                RequireForward(relu, options with { FeatureEpsilon = 0.1f, Scale = 3 }, false, 1e-5);
                RequireForward(relu, options with { Compatibility = ReferenceConvention.Jax }, false, 1e-5);
            }
        }

        RequireForward(relu, new LinearAttentionOptions { Compatibility = ReferenceConvention.Lucidrains }, false, 1e-5);
    }

    [Fact]
    public void Conventions_whose_rows_hang_together_are_refused_with_a_reason()
    {
        var shape = new AttentionShape(1, 5, 1, 4);
        float[] rows = new float[20];
        FeatureMap favor = FeatureMap.FavorPlus(RandomProjection.Orthogonal(8, 4, seed: 6));
        Check(favor, new LinearAttentionOptions { Compatibility = ReferenceConvention.Jax }, "maximum over all keys");
        Check(favor, new LinearAttentionOptions { Compatibility = ReferenceConvention.Lucidrains }, "maximum over all keys");
        Check(FeatureMap.EluPlusOne, new LinearAttentionOptions { Compatibility = ReferenceConvention.Lucidrains, Causal = true }, "belongs to no key");

        void Check(FeatureMap map, LinearAttentionOptions options, string reason)
        {
            using var attention = new LinearAttention(_device, map, options);
            foreach (Action call in new Action[]
            {
                () => attention.Weights(shape, rows, rows, [0], new float[5]),
                () => attention.TopKeys(shape, rows, rows, [0], new int[2], new float[2]),
            })
            {
                Assert.Contains(reason, Assert.Throws<NotSupportedException>(call).Message, StringComparison.Ordinal);
            }
        }
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("elu")]
    public void Chosen_rows_have_the_bits_of_all_rows_whatever_the_order_and_the_threads(string map) =>
        Law.ForAll(20, seed: 34000, random => Case.Next(random, map, random.NextBool(), maxLength: 300), sample =>
        {
            AttentionShape s = sample.Shape;
            (float[] q, float[] k) = sample.Rows(1);
            float[] all = Rows(sample.Problem, q, k, All(s.QueryLength), degree: 1);
            var random = new SeededRandom(sample.Seed);
            int[] tokens = [.. Enumerable.Range(0, s.QueryLength == 0 ? 0 : 7).Select(_ => random.Next(0, s.QueryLength - 1))];
            float[] chosen = Rows(sample.Problem, q, k, tokens, degree: 5);
            for (int head = 0; head < s.Batch * s.Heads; head++)
            {
                for (int i = 0; i < tokens.Length; i++)
                {
                    Assert.Equal(
                        all.AsSpan(((head * s.QueryLength) + tokens[i]) * s.KeyLength, s.KeyLength).ToArray(),
                        chosen.AsSpan(((head * tokens.Length) + i) * s.KeyLength, s.KeyLength).ToArray());
                }
            }
        });

    [Theory]
    [InlineData("favor+")]
    [InlineData("relu")]
    [InlineData("general direct")]
    public void Packed_sequences_have_the_weights_that_they_have_alone(string map) =>
        Law.ForAll(20, seed: 35000, random => (Random: random, Causal: random.NextBool(), Block: random.Next(1, 9), Seed: random.NextWord()), sample =>
        {
            SeededRandom random = sample.Random;
            int[] queries = Sequences.Offsets(random, 4, 60);
            int[] keys = random.NextBool() ? queries : Sequences.Offsets(random, 4, 60);
            var shape = new AttentionShape(1, queries[^1], keys[^1], 4, 2, 12, 1);
            (float[] q, float[] k, _) = TestData.Inputs(shape, sample.Seed);
            AttentionProblem problem = Maps.Problem(map, shape, sample.Causal) with
            {
                CausalBlock = sample.Causal ? sample.Block : 1,
                Layout = SequenceLayout.FromCuSeqlens(queries, keys),
            };
            float[] actual = Rows(problem, q, k, All(shape.QueryLength));
            for (int n = 0; n < 4; n++)
            {
                var own = new AttentionShape(1, queries[n + 1] - queries[n], keys[n + 1] - keys[n], 4, 2, 12, 1);
                float[] qn = Sequences.Gather(q, 4 * 12, Enumerable.Range(queries[n], own.QueryLength));
                float[] kn = Sequences.Gather(k, 2 * 12, Enumerable.Range(keys[n], own.KeyLength));
                for (int head = 0; head < 4; head++)
                {
                    double[][] expected = ReferenceAttention.LinearWeights(own, Oracles.Kernel(problem), qn, kn, 0, head, Oracles.Options(problem));
                    for (int i = 0; i < own.QueryLength; i++)
                    {
                        for (int j = 0; j < shape.KeyLength; j++)
                        {
                            float weight = actual[(((head * shape.QueryLength) + queries[n] + i) * shape.KeyLength) + j];
                            if (j < keys[n] || j >= keys[n + 1])
                            {
                                Assert.Equal(0, weight);
                            }
                            else
                            {
                                Assert.Equal(expected[i][j - keys[n]], weight, 1e-5);
                            }
                        }
                    }
                }
            }
        });

    [Theory]
    [MemberData(nameof(MapsAndDirections))]
    public void Received_mass_is_the_sum_of_weights_over_queries(string map, bool causal) =>
        Law.ForAll(10, seed: 36000, random => Case.Next(random, map, causal, maxLength: 150) with { IsMasked = false }, sample =>
        {
            AttentionShape s = sample.Shape;
            (float[] q, float[] k) = sample.Rows(1);
            using var attention = new LinearAttention(
                _device, Maps.Create(map, s.KeyDimension), new LinearAttentionOptions { Causal = causal, Normalize = sample.Normalize });
            float[] mass = Mass(attention, s, q, k, null);
            float[] weights = new float[s.Batch * s.Heads * s.QueryLength * s.KeyLength];
            attention.Weights(s, q, k, All(s.QueryLength), weights);
            RequireMass(s, weights, mass);
            if (sample.Normalize && !map.StartsWith("relu", StringComparison.Ordinal) && s.KeyLength > 0)
            {
                Assert.Equal(s.Batch * s.Heads * s.QueryLength, mass.Sum(x => (double)x), 1e-5 * Math.Max(1, mass.Length * s.QueryLength));
            }
        });

    [Theory]
    [InlineData("favor+", false)]
    [InlineData("favor+", true)]
    [InlineData("elu", true)]
    public void Received_mass_is_of_keys_that_take_part(string map, bool causal)
    {
        AttentionProblem any = Maps.Problem(map, new AttentionShape(1, 4, 1, 4), causal) with { Layout = SequenceLayout.FromKeyLengths([3], 4) };
        Assert.SkipUnless(new SimdEngine().Supports(any).IsSupported, "Waits for sequence layouts in the host's engine.");
        Law.ForAll(10, seed: 37000, random => Case.Next(random, map, causal, maxLength: 100) with { CausalBlock = 1 }, sample =>
        {
            AttentionShape s = sample.Shape;
            (float[] q, float[] k) = sample.Rows(1);
            var options = new LinearAttentionOptions { Causal = causal, Normalize = sample.Normalize };
            using var attention = new LinearAttention(_device, Maps.Create(map, s.KeyDimension), options);
            RequireMass(s, Rows(sample.Problem, q, k, All(s.QueryLength)), Mass(attention, s, q, k, sample.Layout));
        });
    }

    [Theory]
    [InlineData("favor+")]
    [InlineData("relu")]
    [InlineData("elu")]
    public void Top_keys_are_the_first_of_the_sorted_weights(string map) =>
        Law.ForAll(40, seed: 38000, random => (Case: Case.Next(random, map, random.NextBool(), 150) with { CausalBlock = 1 }, Count: random.Next(1, 12)), sample =>
        {
            AttentionShape s = sample.Case.Shape;
            (float[] q, float[] k) = sample.Case.Rows(1);
            using var attention = new LinearAttention(
                _device, Maps.Create(map, s.KeyDimension), new LinearAttentionOptions { Causal = sample.Case.Causal, Normalize = sample.Case.Normalize });
            float[] all = new float[s.Batch * s.Heads * s.QueryLength * s.KeyLength];
            attention.Weights(s, q, k, All(s.QueryLength), all, sample.Case.Layout);
            int rows = s.Batch * s.Heads * s.QueryLength;
            int[] tokens = new int[rows * sample.Count];
            float[] weights = new float[tokens.Length];
            attention.TopKeys(s, q, k, All(s.QueryLength), tokens, weights, sample.Case.Layout);
            for (int row = 0; row < rows; row++)
            {
                float[] own = all.AsSpan(row * s.KeyLength, s.KeyLength).ToArray();
                int[] expected = [.. Enumerable.Range(0, s.KeyLength)
                    .Where(j => sample.Case.IsVisible(row / (s.Heads * s.QueryLength), row % s.QueryLength, j))
                    .OrderByDescending(j => own[j]).ThenBy(j => j).Take(sample.Count)];
                Assert.Equal([.. expected, .. Enumerable.Repeat(-1, sample.Count - expected.Length)], tokens.AsSpan(row * sample.Count, sample.Count).ToArray());
                Assert.Equal(
                    [.. expected.Select(j => own[j]), .. new float[sample.Count - expected.Length]],
                    weights.AsSpan(row * sample.Count, sample.Count).ToArray());
            }
        });

    // A square of weights would be 16 GB a head, and take minutes.
    [Fact]
    public void Nothing_is_square_in_a_long_sequence()
    {
        const int Length = 1 << 16;
        var shape = new AttentionShape(1, Length, 2, 8);
        (float[] q, float[] k, _) = TestData.Inputs(shape, 3, 0.5);
        using var attention = new LinearAttention(
            _device, FeatureMap.FavorPlus(RandomProjection.Orthogonal(16, 8, seed: 1)), new LinearAttentionOptions { Causal = true });
        int[] rows = [Length - 1, 0, 1000];
        float[] weights = new float[2 * 3 * Length];
        attention.Weights(shape, q, k, rows, weights);
        Assert.Equal(1, weights.AsSpan(0, Length).ToArray().Sum(x => (double)x), 1e-5);
        Assert.Equal(1, weights[Length]);
        Assert.Equal(-1, weights.AsSpan((2 * Length) + 1001, Length - 1001).IndexOfAnyExcept(0));

        int[] tokens = new int[2 * 3 * 2];
        float[] best = new float[tokens.Length];
        attention.TopKeys(shape, q, k, rows, tokens, best);
        Assert.Equal([0, -1], tokens[2..4]);
        Assert.Equal(TensorPrimitives.Max<float>(weights.AsSpan(0, Length)), best[0]);

        // Who sees the last key is the last query alone.
        float[] mass = new float[2];
        attention.ReceivedMass(shape, q, k, [Length - 1], mass);
        Assert.Equal(weights[Length - 1], mass[0], 1e-6f * weights[Length - 1]);
    }

    [Fact]
    public void Numbers_that_are_none_stay_in_their_rows()
    {
        var shape = new AttentionShape(1, 100, 1, 4);
        (float[] q, float[] k, _) = TestData.Inputs(shape, 3);
        k[(70 * 4) + 2] = float.NaN;
        q[5 * 4] = float.PositiveInfinity;
        foreach (string map in new[] { "favor+", "elu" })
        {
            float[] weights = Rows(Maps.Problem(map, shape, causal: true), q, k, [69, 70, 5]);
            Assert.All(weights[..100], (x, j) => Assert.True(float.IsFinite(x) && (j > 69 || x > 0)));
            Assert.All(weights[100..200], (x, j) => Assert.Equal(j <= 70, float.IsNaN(x)));
            Assert.Contains(weights[200..], float.IsNaN);
        }
    }

    [Fact]
    public void Tensors_and_spans_give_the_same_bits()
    {
        var shape = new AttentionShape(2, 70, 90, 4, 2, 12, 1);
        (float[] q, float[] k, _) = TestData.Inputs(shape, 1);
        using var attention = new LinearAttention(_device, FeatureMap.EluPlusOne);
        var query = new ReadOnlyTensorSpan<float>(q, [2, 70, 4, 12]);
        var key = new ReadOnlyTensorSpan<float>(k, [2, 90, 2, 12]);
        int[] chosen = [3, 69, 0];

        float[] flat = new float[2 * 4 * 3 * 90];
        float[] tensor = new float[flat.Length];
        attention.Weights(shape, q, k, chosen, flat);
        attention.Weights(query, key, chosen, new TensorSpan<float>(tensor, [2, 4, 3, 90]));
        Assert.Equal(flat, tensor);

        (int[] flatTokens, int[] tensorTokens) = (new int[2 * 4 * 3 * 5], new int[2 * 4 * 3 * 5]);
        (flat, tensor) = (new float[flatTokens.Length], new float[flatTokens.Length]);
        attention.TopKeys(shape, q, k, chosen, flatTokens, flat);
        attention.TopKeys(query, key, chosen, new TensorSpan<int>(tensorTokens, [2, 4, 3, 5]), new TensorSpan<float>(tensor, [2, 4, 3, 5]));
        Assert.Equal(flatTokens, tensorTokens);
        Assert.Equal(flat, tensor);

        (flat, tensor) = (new float[2 * 4 * 3], new float[2 * 4 * 3]);
        attention.ReceivedMass(shape, q, k, chosen, flat);
        attention.ReceivedMass(query, key, chosen, new TensorSpan<float>(tensor, [2, 4, 3]));
        Assert.Equal(flat, tensor);
    }

    [Fact]
    public void Wrong_arguments_are_named()
    {
        var shape = new AttentionShape(1, 6, 5, 2, 1, 4, 3);
        float[] q = new float[48];
        float[] k = new float[20];
        using var attention = new LinearAttention(_device, FeatureMap.EluPlusOne);
        Check("query", "query has 47 elements", () => attention.Weights(shape, new float[47], k, [0], new float[10]));
        Check("key", "key has 21 elements", () => attention.ReceivedMass(shape, q, new float[21], [0], new float[2]));
        Check("weights", "weights has 11 elements where [B, H, n, S] has 10, n being 1", () => attention.Weights(shape, q, k, [0], new float[11]));
        Check("mass", "mass has 3 elements where [B, H, n] has 4, n being 2", () => attention.ReceivedMass(shape, q, k, [0, 1], new float[3]));
        Check("tokens", "tokens has 5 elements where [B, H, n, k = 2] has 4", () => attention.TopKeys(shape, q, k, [0], new int[5], new float[5]));
        Check("weights", "weights has 6 elements where [B, H, n, k = 2] has 4", () => attention.TopKeys(shape, q, k, [0], new int[4], new float[6]));
        Check("queryTokens", "queryTokens[1] is 6, where tokens are from 0 to 5", () => attention.Weights(shape, q, k, [5, 6], new float[20]));
        Check("queryTokens", "queryTokens[0] is -1", () => attention.TopKeys(shape, q, k, [-1], new int[2], new float[2]));
        Check("keyTokens", "keyTokens[0] is 5, where tokens are from 0 to 4", () => attention.ReceivedMass(shape, q, k, [5], new float[2]));
        Check("layout", "does not fit", () => attention.Weights(shape, q, k, [0], new float[10], SequenceLayout.FromKeyLengths([4], 4)));
        Check("layout", "does not fit", () => attention.ReceivedMass(shape, q, k, [0], new float[2], SequenceLayout.FromKeyLengths([4], 4)));
        Check("weights", "weights overlaps the query", () => attention.Weights(shape, q, k, [0], q.AsSpan(30, 10)));
        Check("shape", "The shape is empty", () => attention.Weights(default, q, k, [0], new float[10]));
        Check("weights", "weights [1, 2, 1, 4] is not [B, H, n, S] = [1, 2, 1, 5]", () => attention.Weights(
            new ReadOnlyTensorSpan<float>(q, [1, 6, 2, 4]), new ReadOnlyTensorSpan<float>(k, [1, 5, 1, 4]), [0], new TensorSpan<float>(q, [1, 2, 1, 4])));
        Check("key", "key [1, 5, 2, 2] does not fit query [1, 6, 2, 4]", () => attention.ReceivedMass(
            new ReadOnlyTensorSpan<float>(q, [1, 6, 2, 4]), new ReadOnlyTensorSpan<float>(k, [1, 5, 2, 2]), [0], new TensorSpan<float>(q, [1, 2, 1])));

        using var causal = new LinearAttention(_device, FeatureMap.EluPlusOne, new LinearAttentionOptions { Causal = true });
        Assert.Contains(
            "as many queries as keys", Assert.Throws<NotSupportedException>(() => causal.Weights(shape, q, k, [0], new float[10])).Message, StringComparison.Ordinal);

        void Check(string name, string expected, Action call) =>
            Assert.Contains(expected, Assert.Throws<ArgumentException>(name, call).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Nothing_chosen_and_nothing_to_see_are_no_mistakes()
    {
        using var attention = new LinearAttention(_device, FeatureMap.EluPlusOne);
        var shape = new AttentionShape(1, 6, 5, 2, 1, 4, 3);
        attention.Weights(shape, new float[48], new float[20], [], []);
        attention.TopKeys(shape, new float[48], new float[20], [], [], []);
        attention.ReceivedMass(shape, new float[48], new float[20], [], []);

        var blind = new AttentionShape(1, 6, 0, 2, 1, 4, 3);
        int[] tokens = [7, 7, 7, 7];
        float[] weights = [7, 7, 7, 7];
        attention.Weights(blind, new float[48], [], [0], []);
        attention.TopKeys(blind, new float[48], [], [0], tokens, weights);
        Assert.Equal([-1, -1, -1, -1], tokens);
        Assert.Equal([0, 0, 0, 0], weights);

        var silent = new AttentionShape(1, 0, 5, 2, 1, 4, 3);
        float[] mass = [7, 7];
        attention.ReceivedMass(silent, [], new float[20], [3], mass);
        Assert.Equal([0, 0], mass);
    }

    [Fact]
    public void A_disposed_operator_says_so()
    {
        var shape = new AttentionShape(1, 6, 1, 4);
        float[] rows = new float[24];
        var attention = new LinearAttention(_device, FeatureMap.EluPlusOne);
        attention.Dispose();
        Assert.Throws<ObjectDisposedException>(() => attention.Weights(shape, rows, rows, [0], new float[6]));
        Assert.Throws<ObjectDisposedException>(() => attention.TopKeys(shape, rows, rows, [0], new int[1], new float[1]));
        Assert.Throws<ObjectDisposedException>(() => attention.ReceivedMass(shape, rows, rows, [0], new float[1]));
    }

    private static int[] All(int length) => [.. Enumerable.Range(0, length)];

    private static unsafe float[] Rows(AttentionProblem problem, float[] query, float[] key, int[] tokens, int degree = 2)
    {
        AttentionShape s = problem.Shape;
        using var weights = new PoisonedBuffer(s.Batch * s.Heads * tokens.Length * s.KeyLength, misalignment: 1);
        fixed (float* q = query)
        fixed (float* k = key)
        {
            FeatureWeights.Rows(problem, q, k, tokens, weights.Address, degree);
        }

        weights.RequireFullyWritten();
        return weights.Span.ToArray();
    }

    /// <summary>The rows of all queries, in float64.</summary>
    private static double[] Oracle(Case sample, float[] query, float[] key)
    {
        AttentionShape s = sample.Shape;
        ReferenceKernel kernel = Oracles.Kernel(sample.Problem);
        ReferenceOptions options = Oracles.Options(sample.Problem, Sequences.Bytes(sample.Mask));
        return [.. from batch in Enumerable.Range(0, s.Batch)
                   from head in Enumerable.Range(0, s.Heads)
                   from row in ReferenceAttention.LinearWeights(s, kernel, query, key, batch, head, options)
                   from weight in row
                   select weight];
    }

    // A weight is what attention makes of a value that is 1 at its key and 0 elsewhere, so that outputs' tolerance is that of weights.
    private static void RequireOracle(Case sample, float[] query, float[] key, float[] actual)
    {
        AttentionShape s = sample.Shape;
        if (s.KeyLength == 0)
        {
            return;
        }

        var shape = new AttentionShape(s.Batch, s.QueryLength, s.KeyLength, s.Heads, s.KeyHeads, s.KeyDimension, s.KeyLength);
        PlainResult plain = PlainAttention.Run(sample.Problem with { Shape = shape }, query, key, Identity(shape), Sequences.Bytes(sample.Mask));
        Tolerance.Require(
            actual, Oracle(sample, query, key),
            new PlainResult(ByRow(shape, plain.Forward), ByRow(shape, plain.Backward), ByRow(shape, plain.Rounding)));
    }

    private void RequireForward(FeatureMap map, LinearAttentionOptions options, bool positive, double tolerance)
    {
        const int Length = 150;
        var shape = new AttentionShape(2, Length, Length, 4, 2, 12, Length);
        (float[] q, float[] k, _) = TestData.Inputs(shape, 9);
        if (positive)
        {
            (q, k) = (Array.ConvertAll(q, MathF.Abs), Array.ConvertAll(k, MathF.Abs));
        }

        using var attention = new LinearAttention(_device, map, options);
        float[] output = new float[shape.OutputElements];
        attention.Forward(shape, q, k, Identity(shape), output);
        float[] expected = ByRow(shape, output);
        float[] actual = new float[expected.Length];
        attention.Weights(shape, q, k, All(Length), actual);
        double size = expected.Max();
        Assert.All(expected.Zip(actual), pair => Assert.Equal(pair.First, pair.Second, tolerance * size));
    }

    private static float[] Mass(LinearAttention attention, AttentionShape shape, float[] query, float[] key, SequenceLayout? layout)
    {
        float[] mass = new float[shape.Batch * shape.Heads * shape.KeyLength];
        attention.ReceivedMass(shape, query, key, All(shape.KeyLength), mass, layout);
        return mass;
    }

    private static void RequireMass(AttentionShape shape, float[] weights, float[] mass)
    {
        for (int head = 0; head < shape.Batch * shape.Heads; head++)
        {
            for (int j = 0; j < shape.KeyLength; j++)
            {
                double sum = 0;
                for (int i = 0; i < shape.QueryLength; i++)
                {
                    sum += weights[(((head * shape.QueryLength) + i) * shape.KeyLength) + j];
                }

                Assert.Equal(sum, mass[(head * shape.KeyLength) + j], 1e-4 * Math.Max(1, sum));
            }
        }
    }

    /// <summary>Values <c>[B, S, Hk, S]</c> of which each is 1 at its own token.</summary>
    private static float[] Identity(AttentionShape shape)
    {
        float[] value = new float[shape.ValueElements];
        for (int row = 0; row < value.Length / shape.KeyLength; row++)
        {
            value[(row * shape.KeyLength) + (row / shape.KeyHeads % shape.KeyLength)] = 1;
        }

        return value;
    }

    /// <summary>Outputs <c>[B, T, H, S]</c> as weights stand, <c>[B, H, T, S]</c>.</summary>
    private static T[] ByRow<T>(AttentionShape s, T[] output)
    {
        var rows = new T[output.Length];
        for (int row = 0; row < output.Length / s.KeyLength; row++)
        {
            (int batch, int query, int head) = (row / s.Heads / s.QueryLength, row / s.Heads % s.QueryLength, row % s.Heads);
            output.AsSpan(row * s.KeyLength, s.KeyLength).CopyTo(rows.AsSpan(((((batch * s.Heads) + head) * s.QueryLength) + query) * s.KeyLength));
        }

        return rows;
    }

    private sealed record Case(string Map, AttentionShape Shape, bool Causal, bool[] KeyMask, int CausalBlock, bool Normalize, ulong Seed)
    {
        public bool IsMasked { get; init; } = true;

        public bool[] Mask => IsMasked ? KeyMask : [.. Enumerable.Repeat(true, KeyMask.Length)];

        public SequenceLayout Layout => SequenceLayout.FromKeyMask(Shape.Batch, Shape.KeyLength, Mask);

        public AttentionProblem Problem =>
            Maps.Problem(Map, Shape, Causal, Normalize) with { Layout = IsMasked ? Layout : null, CausalBlock = IsMasked ? CausalBlock : 1 };

        public static Case Next(SeededRandom random, string map, bool causal, int maxLength)
        {
            AttentionShape shape = Shapes.Next(random, causal, maxLength, maxDimension: 24);
            return new Case(
                map, shape, causal, Sequences.Mask(random, shape.Batch, shape.KeyLength), causal && random.NextBool() ? random.Next(2, 90) : 1, random.NextBool(),
                random.NextWord());
        }

        public (float[] Query, float[] Key) Rows(double std)
        {
            (float[] q, float[] k, _) = TestData.Inputs(Shape, Seed, std);
            return Maps.NeedsPositiveRows(Map) ? (Array.ConvertAll(q, MathF.Abs), Array.ConvertAll(k, MathF.Abs)) : (q, k);
        }

        public bool IsVisible(int batch, int query, int key)
        {
            int block = IsMasked ? CausalBlock : 1;
            return Mask[(batch * Shape.KeyLength) + key] && (!Causal || key < ((query / block) + 1) * block);
        }

        public bool SeesAny(int batch, int query) => Enumerable.Range(0, Shape.KeyLength).Any(key => IsVisible(batch, query, key));

        public override string ToString() => $"{Shape}, causal {Causal}, block {CausalBlock}, normalised {Normalize}, masked {IsMasked}";
    }
}
