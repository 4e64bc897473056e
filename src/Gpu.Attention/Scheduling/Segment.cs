namespace Gpu.Attention;

/// <summary>Where a sequence's state comes from, or goes to, at the edge of a segment.</summary>
internal enum StateEdge
{
    /// <summary>There is none.</summary>
    None,

    /// <summary>The caller's state, at the scale of its largest log features.</summary>
    Caller,

    /// <summary>The neighbouring segment's, at the scale that it was made at, so that nothing is rounded in between.</summary>
    Neighbor,
}

/// <summary>A part of a problem that runs on a device at once.</summary>
/// <param name="Problem">The part as a problem of its own.</param>
/// <param name="Group">Which sequences and heads: segments of a group follow one another and share a state.</param>
/// <param name="FirstSequence">The first sequence.</param>
/// <param name="FirstRow">Its row of the batch: the first when sequences are packed.</param>
/// <param name="FirstKeyHead">The first key head.</param>
/// <param name="FirstQuery">The first query token.</param>
/// <param name="FirstKey">The first key token.</param>
/// <param name="Before">The state that it begins with.</param>
/// <param name="After">The state that it leaves.</param>
internal sealed record Segment(
    AttentionProblem Problem, int Group, int FirstSequence, int FirstRow, int FirstKeyHead, int FirstQuery, int FirstKey, StateEdge Before, StateEdge After);
