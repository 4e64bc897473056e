namespace Gpu.Attention;

/// <summary>
/// Where a <see cref="ProjectionSchedule"/> stands: plain numbers, to be saved beside a model's weights and handed to
/// <see cref="ProjectionSchedule.Resume"/>.
/// </summary>
/// <param name="Seed">The seed of the schedule's first projection; 0 when that was given as a matrix.</param>
/// <param name="Draw">How many times it has drawn anew.</param>
/// <param name="Steps">Training steps that began with the current projection.</param>
public readonly record struct ProjectionPosition(ulong Seed, long Draw, long Steps);

/// <summary>
/// When a training draws its random features anew: never, after every so many steps, or when asked to. It draws nothing but in <see cref="Advance"/>
/// and <see cref="Redraw"/>; an operator never does, so that evaluation and decoding keep the projection that the weights were trained with.
/// </summary>
/// <remarks>
/// <para>Choromanski et al., "Rethinking Attention with Performers" (2020), sections 4.2 and 4.3, find that samples should be redrawn now and then: a model
/// trained with one projection comes to depend on it, and an unlucky one stays.</para>
/// <para>Draw 0 is the projection given; draw i is made by the same recipe from a seed that is a function of the given seed and i
/// alone. So draw i has the same bits on every machine, whenever it is made and whatever was drawn before, and a training that goes on from a saved
/// <see cref="Position"/> goes on to the same bits.</para>
/// <para>The loop: <c>if (schedule.Advance()) attention.ReplaceFeatures(FeatureMap.FavorPlus(schedule.Projection));</c>, then the step. Several
/// operators may share a schedule; to draw for every layer apart, give each a schedule with a seed of its own.</para>
/// <para>Not for several threads at once.</para>
/// </remarks>
public sealed class ProjectionSchedule
{
    // Beside the streams of RandomProjection, which the same seed feeds.
    private const uint SeedStream = 3;

    private readonly RandomProjection _first;
    private readonly int _interval;
    private readonly bool _isDrawnOnCall;
    private long _draw;
    private long _steps;

    private ProjectionSchedule(RandomProjection projection, int interval, bool isDrawnOnCall)
    {
        ArgumentNullException.ThrowIfNull(projection);
        if ((interval > 0 || isDrawnOnCall) && projection.Kind == ProjectionKind.Matrix)
        {
            throw new ArgumentException($"The {projection} has no recipe to draw from again.", nameof(projection));
        }

        (_first, Projection, _interval, _isDrawnOnCall) = (projection, projection, interval, isDrawnOnCall);
    }

    /// <summary>The projection of now.</summary>
    public RandomProjection Projection { get; private set; }

    /// <summary>Where the schedule stands.</summary>
    public ProjectionPosition Position => new(_first.Seed ?? 0, _draw, _steps);

    /// <summary>Keeps one projection: for evaluation, and for a model whose training is over.</summary>
    /// <param name="projection">The projection, or the first of the schedule that is resumed.</param>
    public static ProjectionSchedule Never(RandomProjection projection) => new(projection, interval: 0, isDrawnOnCall: false);

    /// <summary>Draws anew after every so many training steps.</summary>
    /// <param name="steps">Steps that are taken with one projection.</param>
    /// <param name="projection">The first projection, whose recipe and seed the others follow from.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="steps"/> is zero or negative.</exception>
    /// <exception cref="ArgumentException"><paramref name="projection"/> was given as a matrix: there is no recipe.</exception>
    public static ProjectionSchedule Every(int steps, RandomProjection projection)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(steps);
        return new ProjectionSchedule(projection, steps, isDrawnOnCall: false);
    }

    /// <summary>Draws anew when <see cref="Redraw"/> is called, and only then.</summary>
    /// <param name="projection">The first projection, whose recipe and seed the others follow from.</param>
    /// <exception cref="ArgumentException"><paramref name="projection"/> was given as a matrix: there is no recipe.</exception>
    public static ProjectionSchedule OnCall(RandomProjection projection) => new(projection, interval: 0, isDrawnOnCall: true);

    /// <summary>Begins a training step; call it before the step's forward pass, and never in evaluation.</summary>
    /// <returns>True when it has drawn anew: features have to be made of <see cref="Projection"/> again, and older states are of no use.</returns>
    public bool Advance()
    {
        bool isDue = _interval > 0 && _steps >= _interval;
        if (isDue)
        {
            Redraw();
        }

        _steps++;
        return isDue;
    }

    /// <summary>Draws anew now, whatever the steps; those of the new projection count from 0.</summary>
    /// <exception cref="InvalidOperationException">The schedule never draws.</exception>
    public void Redraw()
    {
        if (_interval == 0 && !_isDrawnOnCall)
        {
            throw new InvalidOperationException("This schedule never draws; OnCall makes one that does when asked to.");
        }

        Projection = DrawAt(_draw + 1);
        (_draw, _steps) = (_draw + 1, 0);
    }

    /// <summary>Any of the schedule's draws, which does not change where it stands.</summary>
    /// <param name="draw">Which draw; 0 is the projection that the schedule was made of.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="draw"/> is negative.</exception>
    /// <exception cref="InvalidOperationException">The first projection was given as a matrix, and there is no other.</exception>
    public RandomProjection DrawAt(long draw)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(draw);
        return draw == 0 ? _first : _first.Redraw(SeedOf(_first.Seed ?? 0, draw));
    }

    /// <summary>Goes on from where a schedule of the same first projection stood.</summary>
    /// <param name="position">A saved <see cref="Position"/>.</param>
    /// <exception cref="ArgumentException">It is of a schedule with another seed, or of no schedule.</exception>
    public void Resume(ProjectionPosition position)
    {
        if (position.Seed != (_first.Seed ?? 0))
        {
            throw new ArgumentException($"{position} is of a schedule with another seed than that of {_first}.", nameof(position));
        }

        if (position.Draw < 0 || position.Steps < 0 || (position.Draw > 0 && _first.Kind == ProjectionKind.Matrix))
        {
            throw new ArgumentException($"{position} is not where a schedule of {_first} can stand.", nameof(position));
        }

        Projection = DrawAt(position.Draw);
        (_draw, _steps) = (position.Draw, position.Steps);
    }

    /// <inheritdoc/>
    public override string ToString()
    {
        string when = _isDrawnOnCall ? "when asked to" : _interval == 0 ? "never" : $"every {_interval} steps";
        return $"draw {_draw} of {_first}, anew {when}";
    }

    private static ulong SeedOf(ulong seed, long draw)
    {
        (uint low, uint high, _, _) = Philox.Words(seed, (uint)draw, (uint)(draw >> 32), 0, SeedStream);
        return ((ulong)high << 32) | low;
    }
}
