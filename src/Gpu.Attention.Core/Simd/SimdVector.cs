using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Gpu.Attention;

/// <summary>
/// One width of float32 vector. The engine's bodies are written once against it and compiled once for each width; every member is one
/// instruction or a handful.
/// </summary>
internal unsafe interface ISimdVector<TSelf>
    where TSelf : struct, ISimdVector<TSelf>
{
    /// <summary>Lanes.</summary>
    static abstract int Count { get; }

    /// <summary>Sums that the micro-kernel's tile keeps: as many as the registers of this width hold beside its factors.</summary>
    static abstract int TileSums { get; }

    /// <summary>Vectors that the tile is wide at most: four, or two where a multiply-add that is not fused wants a register besides.</summary>
    static abstract int TileVectors { get; }

    static abstract TSelf Load(float* source);

    static abstract void Store(TSelf value, float* destination);

    static abstract TSelf Broadcast(float value);

    static abstract TSelf Add(TSelf left, TSelf right);

    static abstract TSelf Subtract(TSelf left, TSelf right);

    static abstract TSelf Multiply(TSelf left, TSelf right);

    /// <summary><c>left · right + addend</c>, fused where the machine fuses.</summary>
    static abstract TSelf MultiplyAdd(TSelf left, TSelf right, TSelf addend);

    /// <summary><c>sum += left · right</c>, as <see cref="MultiplyAdd"/>.</summary>
    static abstract void AddProduct(TSelf left, TSelf right, ref TSelf sum);

    /// <summary>The larger of each lane by one instruction; which operand wins beside a NaN is the machine's choice.</summary>
    static abstract TSelf Max(TSelf left, TSelf right);

    /// <summary>The nearest value between two bounds, which are numbers; NaN where the value is.</summary>
    static abstract TSelf Clamp(TSelf value, TSelf low, TSelf high);

    /// <summary>The larger of each lane; NaN beside a NaN.</summary>
    static abstract TSelf MaxOrNaN(TSelf left, TSelf right);

    /// <summary>The nearest finite number; NaN stays NaN.</summary>
    static abstract TSelf Finite(TSelf value);

    /// <summary><c>whenTrue</c> in lanes where <c>value &gt; 0</c>, else <c>whenFalse</c>.</summary>
    static abstract TSelf SelectPositive(TSelf value, TSelf whenTrue, TSelf whenFalse);

    /// <summary><c>whenTrue</c> in lanes where <c>left &gt; right</c>, else <c>whenFalse</c>.</summary>
    static abstract TSelf SelectGreater(TSelf left, TSelf right, TSelf whenTrue, TSelf whenFalse);

    /// <summary>True when all lanes are equal: none is NaN.</summary>
    static abstract bool AreEqual(TSelf left, TSelf right);

    /// <summary>The number that has a lane's lowest bits for its exponent, and nothing else.</summary>
    static abstract TSelf ShiftToExponent(TSelf value);

    /// <summary>The lanes' sum, in an order that depends on the width only.</summary>
    static abstract float Sum(TSelf value);

    /// <summary>The lanes' maximum, NaN aside.</summary>
    static abstract float MaxAcross(TSelf value);
}

internal unsafe struct V512(Vector512<float> value) : ISimdVector<V512>
{
    private Vector512<float> _value = value;

    public static int Count => 16;

    public static int TileSums => 24;

    public static int TileVectors => 4;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 Load(float* source) => new(Vector512.Load(source));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(V512 value, float* destination) => value._value.Store(destination);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 Broadcast(float value) => new(Vector512.Create(value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 Add(V512 left, V512 right) => new(left._value + right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 Subtract(V512 left, V512 right) => new(left._value - right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 Multiply(V512 left, V512 right) => new(left._value * right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 MultiplyAdd(V512 left, V512 right, V512 addend) =>
        new(Vector512.MultiplyAddEstimate(left._value, right._value, addend._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AddProduct(V512 left, V512 right, ref V512 sum) => sum._value = Vector512.MultiplyAddEstimate(left._value, right._value, sum._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 Max(V512 left, V512 right) => new(Vector512.MaxNative(left._value, right._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 Clamp(V512 value, V512 low, V512 high) =>
        new(Vector512.MaxNative(low._value, Vector512.MinNative(high._value, value._value)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 MaxOrNaN(V512 left, V512 right) => new(Vector512.Max(left._value, right._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 Finite(V512 value) =>
        new(Vector512.Min(Vector512.Max(value._value, Vector512.Create(float.MinValue)), Vector512.Create(float.MaxValue)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 SelectPositive(V512 value, V512 whenTrue, V512 whenFalse) =>
        new(Vector512.ConditionalSelect(Vector512.GreaterThan(value._value, Vector512<float>.Zero), whenTrue._value, whenFalse._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 SelectGreater(V512 left, V512 right, V512 whenTrue, V512 whenFalse) =>
        new(Vector512.ConditionalSelect(Vector512.GreaterThan(left._value, right._value), whenTrue._value, whenFalse._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AreEqual(V512 left, V512 right) => Vector512.EqualsAll(left._value, right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V512 ShiftToExponent(V512 value) => new((value._value.AsInt32() << 23).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(V512 value) => V256.Sum(new V256(value._value.GetLower() + value._value.GetUpper()));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float MaxAcross(V512 value) =>
        V256.MaxAcross(new V256(Vector256.MaxNative(value._value.GetLower(), value._value.GetUpper())));
}

internal unsafe struct V256(Vector256<float> value) : ISimdVector<V256>
{
    private Vector256<float> _value = value;

    public static int Count => 8;

    public static int TileSums => 12;

    public static int TileVectors => 4;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 Load(float* source) => new(Vector256.Load(source));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(V256 value, float* destination) => value._value.Store(destination);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 Broadcast(float value) => new(Vector256.Create(value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 Add(V256 left, V256 right) => new(left._value + right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 Subtract(V256 left, V256 right) => new(left._value - right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 Multiply(V256 left, V256 right) => new(left._value * right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 MultiplyAdd(V256 left, V256 right, V256 addend) =>
        new(Vector256.MultiplyAddEstimate(left._value, right._value, addend._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AddProduct(V256 left, V256 right, ref V256 sum) => sum._value = Vector256.MultiplyAddEstimate(left._value, right._value, sum._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 Max(V256 left, V256 right) => new(Vector256.MaxNative(left._value, right._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 Clamp(V256 value, V256 low, V256 high) =>
        new(Vector256.MaxNative(low._value, Vector256.MinNative(high._value, value._value)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 MaxOrNaN(V256 left, V256 right) => new(Vector256.Max(left._value, right._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 Finite(V256 value) =>
        new(Vector256.Min(Vector256.Max(value._value, Vector256.Create(float.MinValue)), Vector256.Create(float.MaxValue)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 SelectPositive(V256 value, V256 whenTrue, V256 whenFalse) =>
        new(Vector256.ConditionalSelect(Vector256.GreaterThan(value._value, Vector256<float>.Zero), whenTrue._value, whenFalse._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 SelectGreater(V256 left, V256 right, V256 whenTrue, V256 whenFalse) =>
        new(Vector256.ConditionalSelect(Vector256.GreaterThan(left._value, right._value), whenTrue._value, whenFalse._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AreEqual(V256 left, V256 right) => Vector256.EqualsAll(left._value, right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V256 ShiftToExponent(V256 value) => new((value._value.AsInt32() << 23).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(V256 value) => V128.Sum(new V128(value._value.GetLower() + value._value.GetUpper()));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float MaxAcross(V256 value) =>
        V128.MaxAcross(new V128(Vector128.MaxNative(value._value.GetLower(), value._value.GetUpper())));
}

internal unsafe struct V128(Vector128<float> value) : ISimdVector<V128>
{
    private Vector128<float> _value = value;

    public static int Count => 4;

    public static int TileSums => 12;

    public static int TileVectors => 2;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 Load(float* source) => new(Vector128.Load(source));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(V128 value, float* destination) => value._value.Store(destination);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 Broadcast(float value) => new(Vector128.Create(value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 Add(V128 left, V128 right) => new(left._value + right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 Subtract(V128 left, V128 right) => new(left._value - right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 Multiply(V128 left, V128 right) => new(left._value * right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 MultiplyAdd(V128 left, V128 right, V128 addend) =>
        new(Vector128.MultiplyAddEstimate(left._value, right._value, addend._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AddProduct(V128 left, V128 right, ref V128 sum) => sum._value = Vector128.MultiplyAddEstimate(left._value, right._value, sum._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 Max(V128 left, V128 right) => new(Vector128.MaxNative(left._value, right._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 Clamp(V128 value, V128 low, V128 high) =>
        new(Vector128.MaxNative(low._value, Vector128.MinNative(high._value, value._value)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 MaxOrNaN(V128 left, V128 right) => new(Vector128.Max(left._value, right._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 Finite(V128 value) =>
        new(Vector128.Min(Vector128.Max(value._value, Vector128.Create(float.MinValue)), Vector128.Create(float.MaxValue)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 SelectPositive(V128 value, V128 whenTrue, V128 whenFalse) =>
        new(Vector128.ConditionalSelect(Vector128.GreaterThan(value._value, Vector128<float>.Zero), whenTrue._value, whenFalse._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 SelectGreater(V128 left, V128 right, V128 whenTrue, V128 whenFalse) =>
        new(Vector128.ConditionalSelect(Vector128.GreaterThan(left._value, right._value), whenTrue._value, whenFalse._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AreEqual(V128 left, V128 right) => Vector128.EqualsAll(left._value, right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V128 ShiftToExponent(V128 value) => new((value._value.AsInt32() << 23).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(V128 value) => Vector128.Sum(value._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float MaxAcross(V128 value)
    {
        Vector128<float> pairs = Vector128.MaxNative(value._value, Vector128.Shuffle(value._value, Vector128.Create(2, 3, 0, 1)));
        return Vector128.MaxNative(pairs, Vector128.Shuffle(pairs, Vector128.Create(1, 0, 3, 2))).ToScalar();
    }
}

/// <summary>One float: the form for machines, and settings, without vector instructions.</summary>
internal unsafe struct V32(float value) : ISimdVector<V32>
{
    private float _value = value;

    public static int Count => 1;

    public static int TileSums => 12;

    public static int TileVectors => 2;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 Load(float* source) => new(*source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(V32 value, float* destination) => *destination = value._value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 Broadcast(float value) => new(value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 Add(V32 left, V32 right) => new(left._value + right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 Subtract(V32 left, V32 right) => new(left._value - right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 Multiply(V32 left, V32 right) => new(left._value * right._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 MultiplyAdd(V32 left, V32 right, V32 addend) => new((left._value * right._value) + addend._value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AddProduct(V32 left, V32 right, ref V32 sum) => sum._value += left._value * right._value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 Max(V32 left, V32 right) => left._value > right._value ? left : right;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 Clamp(V32 value, V32 low, V32 high) =>
        high._value < value._value ? high : low._value > value._value ? low : value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 MaxOrNaN(V32 left, V32 right) => new(MathF.Max(left._value, right._value));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 Finite(V32 value) => new(Math.Clamp(value._value, float.MinValue, float.MaxValue));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 SelectPositive(V32 value, V32 whenTrue, V32 whenFalse) => value._value > 0 ? whenTrue : whenFalse;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 SelectGreater(V32 left, V32 right, V32 whenTrue, V32 whenFalse) => left._value > right._value ? whenTrue : whenFalse;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AreEqual(V32 left, V32 right) => left._value == right._value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static V32 ShiftToExponent(V32 value) => new(BitConverter.Int32BitsToSingle(BitConverter.SingleToInt32Bits(value._value) << 23));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(V32 value) => value._value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float MaxAcross(V32 value) => value._value;
}
