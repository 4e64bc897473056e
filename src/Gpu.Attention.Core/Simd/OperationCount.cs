namespace Gpu.Attention;

/// <summary>
/// The operations of a call, a multiplication and an addition each counting one, as the host engine goes about it: the tables of this folder's notes.
/// Exponentials, sums of weights, maxima and divisions are left out.
/// </summary>
internal static class OperationCount
{
    /// <summary>The forward pass of linear attention.</summary>
    /// <param name="shape">The sizes.</param>
    /// <param name="projectionRows">m, the rows of the projection; 0 without one.</param>
    /// <param name="features">r.</param>
    /// <param name="causal">Whether query i sees keys 0..i only.</param>
    public static double Linear(AttentionShape shape, int projectionRows, int features, bool causal)
    {
        (double project, double state, double inChunk) = Stages(shape, projectionRows, features);
        double query = project + state + (causal ? inChunk : 0);
        return (Queries(shape) * query) + (Keys(shape) * (project + state));
    }

    /// <summary>The backward pass of linear attention; of causal sequences so long that keys are reduced once more, without that.</summary>
    /// <inheritdoc cref="Linear"/>
    public static double LinearBackward(AttentionShape shape, int projectionRows, int features, bool causal)
    {
        (double project, double state, double inChunk) = Stages(shape, projectionRows, features);

        // A and P, then dQ̂, dK̂ and dV; across chunks the rest of dQ̂ and R̂ of a query, the rest of dK̂ and dV of a key.
        double inside = causal ? inChunk + (LinearLayout.Chunk + 1) * ((2.0 * features) + shape.ValueDimension) : 0;
        double query = (2 * project) + (2 * state) + inside;

        // Bidirectional, the keys' features are made twice.
        double key = ((causal ? 2 : 3) * project) + (3 * state);
        return (Queries(shape) * query) + (Keys(shape) * key);
    }

    /// <summary>The forward pass of exact attention.</summary>
    public static double Softmax(AttentionShape shape, bool causal) => Pairs(shape, causal) * 2 * (shape.KeyDimension + shape.ValueDimension);

    /// <summary>The backward pass of exact attention: three products over queries and four over keys.</summary>
    public static double SoftmaxBackward(AttentionShape shape, bool causal) =>
        Pairs(shape, causal) * ((8.0 * shape.KeyDimension) + (6.0 * shape.ValueDimension));

    // A row's projection; reading or updating the state by it; the product inside the chunk, of which a row sees half and itself.
    private static (double Project, double State, double InChunk) Stages(AttentionShape shape, int projectionRows, int features) =>
        (2.0 * shape.KeyDimension * projectionRows, 2.0 * features * shape.ValueDimension, (LinearLayout.Chunk + 1.0) * (features + shape.ValueDimension));

    private static double Queries(AttentionShape shape) => (double)shape.Batch * shape.QueryLength * shape.Heads;

    private static double Keys(AttentionShape shape) => (double)shape.Batch * shape.KeyLength * shape.KeyHeads;

    private static double Pairs(AttentionShape shape, bool causal) => Queries(shape) * (causal ? (shape.QueryLength + 1) / 2.0 : shape.KeyLength);
}
