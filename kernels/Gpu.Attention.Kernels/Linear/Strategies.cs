using System.Runtime.CompilerServices;
using ILGPU.Algorithms;

namespace Gpu.Attention;

/// <summary>The function at the end of a feature map's normal form. A new one is a new struct, not a new kernel.</summary>
internal interface IActivation
{
    /// <summary>True for <c>exp</c>, which is not applied: features are kept as logarithms below a scale.</summary>
    static abstract bool IsLogarithmic { get; }

    /// <summary>Applies the function; NaN stays NaN.</summary>
    /// <param name="x">The argument.</param>
    static abstract float Apply(float x);

    /// <summary>The function's derivative; at a kink, that of the side that <see cref="Apply"/> takes there.</summary>
    /// <param name="x">The argument.</param>
    static abstract float Derivative(float x);
}

/// <summary><c>exp(x)</c>, kept as x.</summary>
internal struct LogarithmicActivation : IActivation
{
    /// <inheritdoc/>
    public static bool IsLogarithmic => true;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Apply(float x) => x;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Derivative(float x) => 1;
}

/// <summary><c>x + 1</c> above zero, else <c>exp(x)</c>.</summary>
internal struct EluPlusOneActivation : IActivation
{
    /// <inheritdoc/>
    public static bool IsLogarithmic => false;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Apply(float x) => x > 0 ? x + 1 : XMath.Exp(x);

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Derivative(float x) => x > 0 ? 1 : XMath.Exp(x);
}

/// <summary><c>max(x, 0)</c>.</summary>
internal struct ReluActivation : IActivation
{
    /// <inheritdoc/>
    public static bool IsLogarithmic => false;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Apply(float x) => x < 0 ? 0 : x;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Derivative(float x)
    {
        // Of a conversion from int, "? 1 : 0", ILGPU's OpenCL code makes a reinterpretation.
        return x > 0 ? 1f : 0f;
    }
}

/// <summary><c>x</c>.</summary>
internal struct IdentityActivation : IActivation
{
    /// <inheritdoc/>
    public static bool IsLogarithmic => false;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Apply(float x) => x;

    /// <inheritdoc/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Derivative(float x) => 1;
}

/// <summary>Which keys a query sees.</summary>
internal interface IDirection
{
    /// <summary>True when a query sees no later key.</summary>
    static abstract bool IsCausal { get; }

    /// <summary>True when how many keys a query sees is read from a <see cref="SequencePlan"/>'s tables.</summary>
    static abstract bool IsStaircase { get; }
}

/// <summary>Query i sees keys 0..i.</summary>
internal struct CausalDirection : IDirection
{
    /// <inheritdoc/>
    public static bool IsCausal => true;

    /// <inheritdoc/>
    public static bool IsStaircase => false;
}

/// <summary>Query i sees as many keys as the tables say, and the next one no fewer.</summary>
internal struct StaircaseDirection : IDirection
{
    /// <inheritdoc/>
    public static bool IsCausal => true;

    /// <inheritdoc/>
    public static bool IsStaircase => true;
}

/// <summary>Every query sees every key.</summary>
internal struct BothDirections : IDirection
{
    /// <inheritdoc/>
    public static bool IsCausal => false;

    /// <inheritdoc/>
    public static bool IsStaircase => false;
}
