using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Security.Cryptography;
using System.Text;

namespace Gpu.Attention;

/// <summary>
/// Which key features a state is made of: a SHA-256 over the key's normal form and the constant added to every feature. The same on every platform for the same
/// numbers; the default value stands for features that are not known.
/// </summary>
/// <remarks>
/// The scale on <c>q·k</c> is part of it, since forms have it folded in. A caller's own function counts by its name. The query's form is not part of it: a
/// state holds nothing of queries.
/// </remarks>
public readonly record struct FeatureIdentity
{
    private readonly Digest _digest;

    private FeatureIdentity(ReadOnlySpan<byte> digest) => digest.CopyTo(_digest);

    /// <summary>True when it says which features.</summary>
    public bool IsKnown => this != default;

    /// <summary>The identity of features made by a form.</summary>
    /// <param name="key">The key's normal form.</param>
    /// <param name="epsilon">What is added to every feature (<see cref="AttentionProblem.FeatureEpsilon"/>).</param>
    public static FeatureIdentity Of(FeatureForm key, float epsilon = 0)
    {
        ArgumentNullException.ThrowIfNull(key);
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        byte[] name = Encoding.UTF8.GetBytes(key.Activation.Name);
        hash.AppendData("GpuAttnK\u0001"u8);
        Append(hash, key.InputDimension);
        Append(hash, key.FeatureDimension);
        Append(hash, (int)key.Activation.Family);
        Append(hash, name.Length);
        hash.AppendData(name);
        Append(hash, BitConverter.SingleToInt32Bits(key.NormCoefficient));
        Append(hash, BitConverter.SingleToInt32Bits(epsilon));
        Append(hash, key.PreMatrix);
        Append(hash, key.PreOffset);
        Append(hash, key.Projection);
        Append(hash, key.Offset);
        Append(hash, key.Linear);
        return new FeatureIdentity(hash.GetHashAndReset());
    }

    /// <inheritdoc/>
    public bool Equals(FeatureIdentity other) => ((ReadOnlySpan<byte>)_digest).SequenceEqual(other._digest);

    /// <inheritdoc/>
    public override int GetHashCode() => BinaryPrimitives.ReadInt32LittleEndian(_digest);

    /// <inheritdoc/>
    public override string ToString() => IsKnown ? Convert.ToHexStringLower(_digest[..8]) : "unknown";

    internal static FeatureIdentity Read(ReadOnlySpan<byte> digest) => new(digest);

    internal void CopyTo(Span<byte> destination) => ((ReadOnlySpan<byte>)_digest).CopyTo(destination);

    // A part that is absent and one of no elements, or parts that lie one after another, must not look alike: each begins with its length.
    private static void Append(IncrementalHash hash, float[]? part)
    {
        Append(hash, part?.Length ?? -1);
        Span<byte> block = stackalloc byte[256 * sizeof(float)];
        for (ReadOnlySpan<float> rest = part; rest.Length > 0;)
        {
            int count = Math.Min(256, rest.Length);
            for (int i = 0; i < count; i++)
            {
                BinaryPrimitives.WriteSingleLittleEndian(block[(i * sizeof(float))..], rest[i]);
            }

            hash.AppendData(block[..(count * sizeof(float))]);
            rest = rest[count..];
        }
    }

    private static void Append(IncrementalHash hash, int number)
    {
        Span<byte> bytes = stackalloc byte[sizeof(int)];
        BinaryPrimitives.WriteInt32LittleEndian(bytes, number);
        hash.AppendData(bytes);
    }

    [InlineArray(SHA256.HashSizeInBytes)]
    private struct Digest
    {
        private byte _first;
    }
}
