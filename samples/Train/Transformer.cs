using System.Numerics.Tensors;

namespace Gpu.Attention.Samples.Training;

/// <summary>
/// A small transformer that predicts the next symbol. Attention is this library's, and its gradients; everything else is written out here.
/// </summary>
internal sealed class Transformer : IDisposable
{
    private Activations? _activations;

    public Transformer(ComputeDevice device, ModelSize size, AttentionMethod method, ulong seed)
    {
        Size = size;
        Parameters = new Parameters(size, seed);
        Attention = method.Create(device, size.HeadDimension);
    }

    public ModelSize Size { get; }

    public Parameters Parameters { get; }

    /// <summary>The attention of every layer.</summary>
    public AttentionOperator Attention { get; }

    /// <summary>The mean loss of a batch, in nats a symbol.</summary>
    public double Loss(Batch batch)
    {
        Activations a = Forward(batch);
        return CrossEntropyOf(batch, a);
    }

    /// <summary>The mean loss of a batch, and its gradients in <see cref="Parameters"/>.</summary>
    public double LossAndGradients(Batch batch)
    {
        Activations a = Forward(batch);
        double loss = CrossEntropyOf(batch, a);
        Backward(batch, a);
        return loss;
    }

    public void Dispose() => Attention.Dispose();

    private Activations Forward(Batch batch)
    {
        if (_activations is null || _activations.Sequences != batch.Rows || _activations.Length != batch.Length)
        {
            _activations = new Activations(Size, batch.Rows, batch.Length);
        }

        Activations a = _activations;
        int rows = batch.Inputs.Length;
        Embed(batch, a.Layers[0].Input);
        for (int i = 0; i < a.Layers.Length; i++)
        {
            LayerParameters p = Parameters.Layers[i];
            LayerActivations layer = a.Layers[i];
            float[] next = i + 1 < a.Layers.Length ? a.Layers[i + 1].Input : a.Last;
            Normalize(layer.Input, p.Norm1Gain, p.Norm1Bias, layer.Normal1, rows);
            Matrix.Apply(layer.Normal1, p.Query.Values, default, layer.Query, rows);
            Matrix.Apply(layer.Normal1, p.Key.Values, default, layer.Key, rows);
            Matrix.Apply(layer.Normal1, p.Value.Values, default, layer.Value, rows);
            Attention.Forward(a.Shape, layer.Query, layer.Key, layer.Value, layer.Attended, batch.Layout);
            Matrix.Apply(layer.Attended, p.Join.Values, default, layer.Middle, rows);
            TensorPrimitives.Add(layer.Middle, layer.Input, layer.Middle);
            Normalize(layer.Middle, p.Norm2Gain, p.Norm2Bias, layer.Normal2, rows);
            Matrix.Apply(layer.Normal2, p.Up.Values, p.UpBias.Values, layer.Up, rows);
            Rows.ForEachBlock(rows, (_, first, count) =>
                Gelu.Forward(layer.Up.AsSpan(first * Size.Hidden, count * Size.Hidden), layer.Active.AsSpan(first * Size.Hidden, count * Size.Hidden)));
            Matrix.Apply(layer.Active, p.Down.Values, p.DownBias.Values, next, rows);
            TensorPrimitives.Add(next, layer.Middle, next);
        }

        Normalize(a.Last, Parameters.NormGain, Parameters.NormBias, a.LastNormal, rows);
        Matrix.Apply(a.LastNormal, Parameters.Output.Values, default, a.Logits, rows);
        return a;
    }

    private void Backward(Batch batch, Activations a)
    {
        int rows = batch.Inputs.Length;
        Array.Clear(Parameters.Gradients);
        Matrix.AddWeightGradient(a.LastNormal, a.Logits, Parameters.Output.Gradients, default, rows);
        Array.Clear(a.NormalGradient);
        Matrix.AddInputGradient(a.Logits, Parameters.Output.Values, a.NormalGradient, rows);

        // From here on, Gradient belongs to the sum that all layers add to.
        Array.Clear(a.Gradient);
        NormalizeBackward(a.Last, Parameters.NormGain, Parameters.NormBias, a.NormalGradient, a.Gradient, rows);
        for (int i = a.Layers.Length - 1; i >= 0; i--)
        {
            LayerParameters p = Parameters.Layers[i];
            LayerActivations layer = a.Layers[i];
            Matrix.AddWeightGradient(layer.Active, a.Gradient, p.Down.Gradients, p.DownBias.Gradients, rows);
            Array.Clear(a.HiddenGradient);
            Matrix.AddInputGradient(a.Gradient, p.Down.Values, a.HiddenGradient, rows);
            Rows.ForEachBlock(rows, (_, first, count) =>
            {
                // What came out of the step is not needed any more, and makes room.
                Range part = (first * Size.Hidden)..((first + count) * Size.Hidden);
                Gelu.Backward(layer.Up.AsSpan(part), a.HiddenGradient.AsSpan(part), layer.Active.AsSpan(part));
            });
            Matrix.AddWeightGradient(layer.Normal2, a.HiddenGradient, p.Up.Gradients, p.UpBias.Gradients, rows);
            Array.Clear(a.NormalGradient);
            Matrix.AddInputGradient(a.HiddenGradient, p.Up.Values, a.NormalGradient, rows);
            NormalizeBackward(layer.Middle, p.Norm2Gain, p.Norm2Bias, a.NormalGradient, a.Gradient, rows);

            Matrix.AddWeightGradient(layer.Attended, a.Gradient, p.Join.Gradients, default, rows);
            Array.Clear(a.AttendedGradient);
            Matrix.AddInputGradient(a.Gradient, p.Join.Values, a.AttendedGradient, rows);
            Attention.Backward(
                a.Shape, layer.Query, layer.Key, layer.Value, layer.Attended, a.AttendedGradient, a.QueryGradient, a.KeyGradient, a.ValueGradient,
                batch.Layout);
            Matrix.AddWeightGradient(layer.Normal1, a.QueryGradient, p.Query.Gradients, default, rows);
            Matrix.AddWeightGradient(layer.Normal1, a.KeyGradient, p.Key.Gradients, default, rows);
            Matrix.AddWeightGradient(layer.Normal1, a.ValueGradient, p.Value.Gradients, default, rows);
            Array.Clear(a.NormalGradient);
            Matrix.AddInputGradient(a.QueryGradient, p.Query.Values, a.NormalGradient, rows);
            Matrix.AddInputGradient(a.KeyGradient, p.Key.Values, a.NormalGradient, rows);
            Matrix.AddInputGradient(a.ValueGradient, p.Value.Values, a.NormalGradient, rows);
            NormalizeBackward(layer.Input, p.Norm1Gain, p.Norm1Bias, a.NormalGradient, a.Gradient, rows);
        }

        EmbedBackward(batch, a.Gradient);
    }

    private void Embed(Batch batch, float[] rows)
    {
        int width = Size.Width;
        for (int row = 0; row < batch.Inputs.Length; row++)
        {
            TensorPrimitives.Add(
                Parameters.Tokens.Values.Span.Slice(batch.Inputs[row] * width, width),
                Parameters.Positions.Values.Span.Slice(batch.Positions[row] * width, width),
                rows.AsSpan(row * width, width));
        }
    }

    private void EmbedBackward(Batch batch, float[] gradient)
    {
        int width = Size.Width;
        for (int row = 0; row < batch.Inputs.Length; row++)
        {
            ReadOnlySpan<float> of = gradient.AsSpan(row * width, width);
            Span<float> token = Parameters.Tokens.Gradients.Span.Slice(batch.Inputs[row] * width, width);
            Span<float> position = Parameters.Positions.Gradients.Span.Slice(batch.Positions[row] * width, width);
            TensorPrimitives.Add(token, of, token);
            TensorPrimitives.Add(position, of, position);
        }
    }

    private void Normalize(float[] x, Parameter gain, Parameter bias, float[] y, int rows) => Rows.ForEachBlock(rows, (_, first, count) =>
    {
        for (int row = first; row < first + count; row++)
        {
            LayerNorm.Forward<float>(
                x.AsSpan(row * Size.Width, Size.Width), gain.Values.Span, bias.Values.Span, y.AsSpan(row * Size.Width, Size.Width));
        }
    });

    // Adds to the rows' gradient, and to those of gain and bias by way of a sum for every block.
    private void NormalizeBackward(float[] x, Parameter gain, Parameter bias, float[] outputGradient, float[] inputGradient, int rows)
    {
        int width = Size.Width;
        float[] sums = new float[Rows.Blocks(rows) * 2 * width];
        Rows.ForEachBlock(rows, (block, first, count) =>
        {
            float[] scratch = new float[2 * width];
            Span<float> gains = sums.AsSpan(block * 2 * width, width);
            Span<float> biases = sums.AsSpan(((block * 2) + 1) * width, width);
            for (int row = first; row < first + count; row++)
            {
                LayerNorm.Backward(
                    x.AsSpan(row * width, width), gain.Values.Span, outputGradient.AsSpan(row * width, width), inputGradient.AsSpan(row * width, width),
                    gains, biases, scratch);
            }
        });
        for (int block = 0; block < Rows.Blocks(rows); block++)
        {
            TensorPrimitives.Add(gain.Gradients.Span, sums.AsSpan(block * 2 * width, width), gain.Gradients.Span);
            TensorPrimitives.Add(bias.Gradients.Span, sums.AsSpan(((block * 2) + 1) * width, width), bias.Gradients.Span);
        }
    }

    // The mean over what is asked; logits become their gradients.
    private double CrossEntropyOf(Batch batch, Activations a)
    {
        float weight = 1f / batch.Asked;
        double[] sums = new double[Rows.Blocks(batch.Targets.Length)];
        Rows.ForEachBlock(batch.Targets.Length, (block, first, count) =>
        {
            for (int row = first; row < first + count; row++)
            {
                Span<float> logits = a.Logits.AsSpan(row * Size.Symbols, Size.Symbols);
                if (batch.Targets[row] >= 0)
                {
                    sums[block] += CrossEntropy.LossAndGradient(logits, batch.Targets[row], weight);
                }
                else
                {
                    logits.Clear();
                }
            }
        });
        return sums.Sum() * weight;
    }

    /// <summary>What the forward pass leaves for the backward pass, and room for gradients.</summary>
    private sealed class Activations(ModelSize size, int sequences, int length)
    {
        public int Sequences => sequences;

        public int Length => length;

        public AttentionShape Shape { get; } = new(sequences, length, size.Heads, size.HeadDimension);

        public LayerActivations[] Layers { get; } =
            [.. Enumerable.Range(0, size.Layers).Select(_ => new LayerActivations(sequences * length * size.Width, sequences * length * size.Hidden))];

        public float[] Last { get; } = new float[sequences * length * size.Width];

        public float[] LastNormal { get; } = new float[sequences * length * size.Width];

        public float[] Logits { get; } = new float[sequences * length * size.Symbols];

        public float[] Gradient { get; } = new float[sequences * length * size.Width];

        public float[] NormalGradient { get; } = new float[sequences * length * size.Width];

        public float[] AttendedGradient { get; } = new float[sequences * length * size.Width];

        public float[] QueryGradient { get; } = new float[sequences * length * size.Width];

        public float[] KeyGradient { get; } = new float[sequences * length * size.Width];

        public float[] ValueGradient { get; } = new float[sequences * length * size.Width];

        public float[] HiddenGradient { get; } = new float[sequences * length * size.Hidden];
    }

    /// <summary>What one layer leaves.</summary>
    private sealed class LayerActivations(int elements, int hidden)
    {
        public float[] Input { get; } = new float[elements];

        public float[] Normal1 { get; } = new float[elements];

        public float[] Query { get; } = new float[elements];

        public float[] Key { get; } = new float[elements];

        public float[] Value { get; } = new float[elements];

        public float[] Attended { get; } = new float[elements];

        public float[] Middle { get; } = new float[elements];

        public float[] Normal2 { get; } = new float[elements];

        public float[] Up { get; } = new float[hidden];

        public float[] Active { get; } = new float[hidden];
    }
}
