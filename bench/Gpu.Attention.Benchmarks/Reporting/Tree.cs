namespace Gpu.Attention.Benchmarks.Reporting;

/// <summary>The checkout that this program was built from.</summary>
internal static class Tree
{
    private const string Solution = "Gpu.Attention.sln";

    /// <summary>Its folder: the nearest above this program, or above the current folder, that has the solution.</summary>
    /// <exception cref="InvalidOperationException">There is none.</exception>
    public static string Root { get; } =
        Above(AppContext.BaseDirectory) ?? Above(Environment.CurrentDirectory) ?? throw new InvalidOperationException($"No folder above this program has {Solution}.");

    /// <summary>The commit, with <c>+</c> where tracked files differ from it; null without git.</summary>
    public static string? Commit()
    {
        try
        {
            CommandResult head = Command.Run("git", ["rev-parse", "--short", "HEAD"], Root);
            CommandResult changes = Command.Run("git", ["status", "--porcelain", "--untracked-files=no", "--", "src", "kernels", "bench/Gpu.Attention.Benchmarks"], Root);
            return head.ExitCode != 0 ? null : head.Output.Trim() + (changes.Output.Length > 0 ? "+" : "");
        }
        catch (System.ComponentModel.Win32Exception)
        {
            return null;
        }
    }

    private static string? Above(string folder)
    {
        for (DirectoryInfo? at = new(folder); at is not null; at = at.Parent)
        {
            if (File.Exists(Path.Combine(at.FullName, Solution)))
            {
                return at.FullName;
            }
        }

        return null;
    }
}
