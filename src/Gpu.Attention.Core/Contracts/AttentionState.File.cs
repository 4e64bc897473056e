using System.Buffers.Binary;

namespace Gpu.Attention;

public sealed partial class AttentionState
{
    /// <summary>Writes the state, in full, at a stream's position.</summary>
    /// <param name="stream">The stream.</param>
    /// <remarks>
    /// Version 1, little-endian: mark "GpuAttnS" (8 bytes), version, family (1 for exponential), N, Hk, r, Dv (32 bits each), the features' identity (32 bytes), c
    /// (exponential family only), z, S (float32), and the SHA-256 of all before.
    /// </remarks>
    /// <exception cref="InvalidOperationException">The state does not say of what features it is made, or holds a number that <see cref="Load"/> would refuse.</exception>
    public void Save(Stream stream)
    {
        ArgumentNullException.ThrowIfNull(stream);
        if (!Features.IsKnown)
        {
            throw new InvalidOperationException($"{this} does not say of what features it is made; make states with LinearAttention.CreateState.");
        }

        if (WhatIsNotANumber() is { } bad)
        {
            throw new InvalidOperationException($"{this} is no use to anyone: {bad}.");
        }

        FileFormat.Write(stream, this);
    }

    /// <summary>Reads a state from a stream's position to its end.</summary>
    /// <param name="stream">The stream.</param>
    /// <param name="features">The features that the state has to be made of; <c>LinearAttention.LoadState</c> knows its own.</param>
    /// <exception cref="ArgumentException"><paramref name="features"/> is not known.</exception>
    /// <exception cref="InvalidDataException">
    /// The stream holds no state, or not all of it, or one of other features, or it was altered, or an element is NaN or infinite; the message says which.
    /// </exception>
    /// <remarks>
    /// The data is taken for untrusted: memory is used in proportion to what the stream holds and not to what its header claims. The checksum
    /// finds accidents; it does not prove who made the file.
    /// </remarks>
    public static AttentionState Load(Stream stream, FeatureIdentity features)
    {
        ArgumentNullException.ThrowIfNull(stream);
        if (!features.IsKnown)
        {
            throw new ArgumentException("Without the identity of the features any file would do.", nameof(features));
        }

        return FileFormat.Read(stream, features);
    }

    /// <summary>The first element that makes a state useless; null for none. c = −∞ is in order: nothing was seen.</summary>
    private string? WhatIsNotANumber()
    {
        for (int i = 0; i < _logScale.Length; i++)
        {
            if (!(_logScale[i] < float.PositiveInfinity))
            {
                return $"element {i} of c is {_logScale[i]}";
            }
        }

        return NotFinite(_normalizers, "z") ?? NotFinite(_sums, "S");

        static string? NotFinite(float[] part, string name)
        {
            int bad = Array.FindIndex(part, x => !float.IsFinite(x));
            return bad < 0 ? null : $"element {bad} of {name} is {part[bad]}";
        }
    }

    private static class FileFormat
    {
        private const int Version = 1;
        private const int HeaderBytes = 64;
        private const int MarkBytes = 12;
        private const int IdentityAt = 32;
        private const string Kind = "state file";

        private static ReadOnlySpan<byte> Magic => "GpuAttnS"u8;

        public static void Write(Stream stream, AttentionState state)
        {
            using var writer = new ChecksummedWriter(stream);
            Span<byte> header = stackalloc byte[HeaderBytes];
            Magic.CopyTo(header);
            int[] numbers = [Version, (int)state.Family, state.Sequences, state.Heads, state.FeatureDimension, state.ValueDimension];
            for (int i = 0; i < numbers.Length; i++)
            {
                BinaryPrimitives.WriteInt32LittleEndian(header[(8 + (i * sizeof(int)))..], numbers[i]);
            }

            state.Features.CopyTo(header[IdentityAt..]);
            writer.Write(header);
            writer.Write(state._logScale);
            writer.Write(state._normalizers);
            writer.Write(state._sums);
            writer.End();
        }

        public static AttentionState Read(Stream stream, FeatureIdentity features)
        {
            using var reader = new ChecksummedReader(stream, Kind);
            reader.ReadMark(Magic, Version);
            Span<byte> header = stackalloc byte[HeaderBytes];
            reader.Read(header[MarkBytes..], "header");
            var family = (FeatureFamily)BinaryPrimitives.ReadInt32LittleEndian(header[12..]);
            int sequences = BinaryPrimitives.ReadInt32LittleEndian(header[16..]);
            int heads = BinaryPrimitives.ReadInt32LittleEndian(header[20..]);
            int featureDimension = BinaryPrimitives.ReadInt32LittleEndian(header[24..]);
            int valueDimension = BinaryPrimitives.ReadInt32LittleEndian(header[28..]);
            FeatureIdentity identity = FeatureIdentity.Read(header[IdentityAt..]);
            if (!Enum.IsDefined(family))
            {
                throw new InvalidDataException($"The state file claims the unknown family {(int)family}.");
            }

            if (sequences < 0 || heads <= 0 || featureDimension <= 0 || valueDimension <= 0 ||
                (Int128)sequences * heads * featureDimension * valueDimension > Array.MaxLength)
            {
                throw new InvalidDataException($"The state file claims the impossible sizes [{sequences}, {heads}, {featureDimension}, {valueDimension}].");
            }

            if (identity != features)
            {
                throw new InvalidDataException(
                    $"The state is made of other key features ({identity}) than these ({features}): another projection, scale, activation or epsilon.");
            }

            int rows = sequences * heads * featureDimension;
            float[] logScale = reader.ReadFloats(family == FeatureFamily.Exponential ? rows : 0, "c");
            float[] normalizers = reader.ReadFloats(rows, "z");
            float[] sums = reader.ReadFloats(rows * valueDimension, "S");
            reader.End();
            var state = new AttentionState(sequences, heads, featureDimension, valueDimension, family, identity, logScale, sums, normalizers);
            return state.WhatIsNotANumber() is { } bad ? throw new InvalidDataException($"The state file is no use: {bad}.") : state;
        }
    }
}
