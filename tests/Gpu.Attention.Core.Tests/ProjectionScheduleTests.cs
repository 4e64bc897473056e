using System.Runtime.InteropServices;
using System.Security.Cryptography;
using Xunit;

namespace Gpu.Attention.Core.Tests;

public class ProjectionScheduleTests
{
    private static RandomProjection First => RandomProjection.Orthogonal(13, 5, seed: 42);

    [Fact]
    public void Every_DrawsAfterSoManySteps()
    {
        var schedule = ProjectionSchedule.Every(3, First);
        Assert.Equal(First, schedule.Projection);
        bool[] drew = [.. Enumerable.Range(0, 10).Select(_ => schedule.Advance())];
        Assert.Equal([false, false, false, true, false, false, true, false, false, true], drew);
        Assert.Equal(new ProjectionPosition(42, 3, 1), schedule.Position);
    }

    [Fact]
    public void NeverAndOnCall_KeepTheirProjectionHoweverManySteps()
    {
        foreach (ProjectionSchedule schedule in new[] { ProjectionSchedule.Never(First), ProjectionSchedule.OnCall(First) })
        {
            Assert.DoesNotContain(true, Enumerable.Range(0, 1000).Select(_ => schedule.Advance()));
            Assert.Equal(First, schedule.Projection);
            Assert.Equal(new ProjectionPosition(42, 0, 1000), schedule.Position);
        }
    }

    [Fact]
    public void OnCall_DrawsWhenAskedTo()
    {
        var schedule = ProjectionSchedule.OnCall(First);
        schedule.Advance();
        schedule.Redraw();
        Assert.Equal(new ProjectionPosition(42, 1, 0), schedule.Position);
        Assert.NotEqual(First, schedule.Projection);
        Assert.Throws<InvalidOperationException>(ProjectionSchedule.Never(First).Redraw);
    }

    [Fact]
    public void Draws_AreDifferentAndDoNotDependOnWhenOrHowTheyAreMade()
    {
        var every = ProjectionSchedule.Every(2, First);
        var onCall = ProjectionSchedule.OnCall(First);
        var draws = new List<RandomProjection> { every.Projection };
        for (int draw = 1; draw < 20; draw++)
        {
            while (!every.Advance())
            {
            }

            onCall.Redraw();
            draws.Add(every.Projection);
            Assert.Equal(every.Projection, onCall.Projection);
            Assert.Equal(every.Projection, ProjectionSchedule.Never(First).DrawAt(draw));
        }

        Assert.Equal(draws.Count, draws.Distinct().Count());
        Assert.Equal(draws.Count, draws.Select(draw => draw.Seed).Distinct().Count());
        Assert.NotEqual(ProjectionSchedule.OnCall(First).DrawAt(1), ProjectionSchedule.OnCall(First.Redraw(43)).DrawAt(1));
    }

    [Fact]
    public void Draws_KeepTheRecipe()
    {
        RandomProjection[] recipes =
        [
            First, RandomProjection.Gaussian(6, 4, 7), RandomProjection.Orthogonal(6, 4, 7, RowLength.SqrtDimension), First.ToAntithetic(),
        ];
        foreach (RandomProjection recipe in recipes)
        {
            RandomProjection drawn = ProjectionSchedule.OnCall(recipe).DrawAt(long.MaxValue);
            Assert.Equal(
                (recipe.Kind, recipe.NumFeatures, recipe.Dimension, recipe.RowLength, recipe.IsAntithetic),
                (drawn.Kind, drawn.NumFeatures, drawn.Dimension, drawn.RowLength, drawn.IsAntithetic));
            Assert.NotEqual(recipe, drawn);
        }
    }

    // The bits of a draw are a promise: a checkpoint of this version goes on in the next.
    [Fact]
    public void Draws_HaveTheSameBitsEverywhere()
    {
        RandomProjection draw = ProjectionSchedule.OnCall(First).DrawAt(7);
        Assert.Equal(15987342367472525836UL, draw.Seed);
        Assert.Equal(
            "5012d1004d53406cfe84e233499ea5e54612e8664735edbf5605ff0d340cfc60", Convert.ToHexStringLower(SHA256.HashData(MemoryMarshal.AsBytes(draw.Matrix))));
    }

    [Fact]
    public void Resume_GoesOnAsIfNothingHadHappened()
    {
        var whole = ProjectionSchedule.Every(4, First);
        for (int step = 0; step < 30; step++)
        {
            var resumed = ProjectionSchedule.Every(4, First);
            resumed.Resume(whole.Position);
            Assert.Equal(whole.Projection, resumed.Projection);
            for (int further = step; further < 30; further++)
            {
                resumed.Advance();
            }

            whole.Advance();
            if (step == 29)
            {
                Assert.Equal((whole.Position, whole.Projection), (resumed.Position, resumed.Projection));
            }
        }
    }

    [Fact]
    public void Resume_TakesTheEndOfATrainingForEvaluation()
    {
        var training = ProjectionSchedule.Every(1, First);
        Assert.Equal([false, true, true], Enumerable.Range(0, 3).Select(_ => training.Advance()));
        var evaluation = ProjectionSchedule.Never(First);
        evaluation.Resume(training.Position);
        Assert.Equal(training.Projection, evaluation.Projection);
        Assert.False(evaluation.Advance());
    }

    [Fact]
    public void Resume_OfAnotherSeedOrOfNoScheduleIsRefused()
    {
        var schedule = ProjectionSchedule.Every(4, First);
        var matrix = RandomProjection.FromMatrix(1, 1, [1]);
        foreach (ProjectionPosition wrong in new ProjectionPosition[] { new(43, 1, 0), new(42, -1, 0), new(42, 0, -1) })
        {
            Assert.Throws<ArgumentException>("position", () => schedule.Resume(wrong));
            Assert.Equal(new ProjectionPosition(42, 0, 0), schedule.Position);
        }

        Assert.Throws<ArgumentException>("position", () => ProjectionSchedule.Never(matrix).Resume(new ProjectionPosition(0, 1, 0)));
    }

    [Fact]
    public void WrongArguments_AreNamed()
    {
        var matrix = RandomProjection.FromMatrix(1, 1, [1]);
        Assert.Throws<ArgumentNullException>("projection", () => ProjectionSchedule.Never(null!));
        Assert.Throws<ArgumentOutOfRangeException>("steps", () => ProjectionSchedule.Every(0, First));
        Assert.Throws<ArgumentException>("projection", () => ProjectionSchedule.Every(1, matrix));
        Assert.Throws<ArgumentException>("projection", () => ProjectionSchedule.OnCall(matrix));
        Assert.Throws<ArgumentOutOfRangeException>("draw", () => ProjectionSchedule.Never(First).DrawAt(-1));
        Assert.Throws<InvalidOperationException>(() => ProjectionSchedule.Never(matrix).DrawAt(1));
        Assert.Equal(matrix, ProjectionSchedule.Never(matrix).Projection);
    }
}
