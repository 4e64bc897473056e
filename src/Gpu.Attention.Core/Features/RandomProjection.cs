using System.Buffers.Binary;
using System.Runtime.InteropServices;

namespace Gpu.Attention;

/// <summary>How the rows of a random projection came about.</summary>
public enum ProjectionKind
{
    /// <summary>Given as a matrix.</summary>
    Matrix,

    /// <summary>Rows drawn independently.</summary>
    Gaussian,

    /// <summary>Rows orthogonal inside every block of d rows.</summary>
    Orthogonal,
}

/// <summary>How long the rows of a random projection are.</summary>
public enum RowLength
{
    /// <summary>As long as a standard normal vector, so that each row is one and estimates of the softmax kernel are unbiased.</summary>
    Chi,

    /// <summary>
    /// √d exactly. Then the features estimate the regularised softmax kernel, which is at most the softmax kernel, with a much
    /// smaller variance.
    /// </summary>
    SqrtDimension,
}

/// <summary>
/// The matrix W, <c>[m, d]</c>, of a random feature map. A value: immutable, made from its recipe with the same bits on every machine, compared by
/// content, and meant to be saved with the weights of the model that used it.
/// </summary>
/// <remarks>
/// <para>Nothing redraws a projection behind its owner's back: features, and states summed from them, make sense under one W only.</para>
/// <para>A projection of more features starts with the rows of a smaller one of the same seed and dimension.</para>
/// </remarks>
public sealed class RandomProjection : IEquatable<RandomProjection>
{
    private const uint GaussianStream = 0;
    private const uint OrthogonalStream = 1;
    private const uint LengthStream = 2;

    private readonly float[] _matrix;
    private readonly ulong _seed;
    private readonly RowLength _rowLength;

    private RandomProjection(ProjectionKind kind, int numFeatures, int dimension, ulong seed, RowLength rowLength, bool antithetic, float[] matrix)
    {
        (Kind, NumFeatures, Dimension, IsAntithetic) = (kind, numFeatures, dimension, antithetic);
        (_seed, _rowLength, _matrix) = (seed, rowLength, matrix);
    }

    /// <summary>m, the number of rows.</summary>
    public int NumFeatures { get; }

    /// <summary>d, the size of a row.</summary>
    public int Dimension { get; }

    /// <summary>How the rows came about.</summary>
    public ProjectionKind Kind { get; }

    /// <summary>True when the second half of the rows is the negated first half.</summary>
    public bool IsAntithetic { get; }

    /// <summary>How long the rows are; null when they were given as a matrix.</summary>
    public RowLength? RowLength => Kind == ProjectionKind.Matrix ? null : _rowLength;

    /// <summary>The seed that the rows were drawn from; null when they were given as a matrix.</summary>
    public ulong? Seed => Kind == ProjectionKind.Matrix ? null : _seed;

    /// <summary>W, <c>[m, d]</c> row-major.</summary>
    public ReadOnlySpan<float> Matrix => _matrix;

    /// <summary>
    /// Draws rows that are orthogonal inside every block of d rows and independent between blocks: each block is Haar-distributed and each row, with
    /// <see cref="RowLength.Chi"/>, standard normal.
    /// </summary>
    /// <param name="numFeatures">m.</param>
    /// <param name="dimension">d.</param>
    /// <param name="seed">The seed.</param>
    /// <param name="rowLength">How long the rows are.</param>
    /// <exception cref="ArgumentOutOfRangeException">
    /// A size is zero or negative, <c>m·d</c> is more than an array can hold, or <paramref name="rowLength"/> is no such value.
    /// </exception>
    /// <remarks>
    /// <para>Choromanski et al., "Rethinking Attention with Performers" (2020), section 2.4. The blocks are the Q of a QR decomposition with
    /// a positive diagonal of R, without which Q is not Haar-distributed and the estimates are biased: Mezzadri, "How to generate random
    /// matrices from the classical compact groups" (2007).</para>
    /// <para>Costs about <c>8/3·d³</c> operations in float64 for a block of d rows, and <c>16·d²</c> bytes for each block in work; blocks run in
    /// parallel. Milliseconds for a block of d = 128, minutes for one of d = 4096.</para>
    /// </remarks>
    public static RandomProjection Orthogonal(
        int numFeatures, int dimension, ulong seed, RowLength rowLength = Gpu.Attention.RowLength.Chi)
    {
        float[] matrix = Allocate(numFeatures, dimension);
        RequireDefined(rowLength);
        int blocks = (int)(((long)numFeatures + dimension - 1) / dimension);
        Parallel.For(0, blocks, block =>
        {
            int firstRow = block * dimension;
            int rows = Math.Min(dimension, numFeatures - firstRow);
            double[] directions = HaarRows(seed, firstRow, rows, dimension);
            double[] normal = new double[dimension];
            for (int row = 0; row < rows; row++)
            {
                double length = Math.Sqrt(dimension);
                if (rowLength == Gpu.Attention.RowLength.Chi)
                {
                    Philox.Normal(seed, LengthStream, (uint)(firstRow + row), normal);
                    length = Math.Sqrt(Dot(normal, normal));
                }

                Scale(directions.AsSpan(row * dimension, dimension), length, matrix.AsSpan((firstRow + row) * dimension, dimension));
            }
        });
        return new RandomProjection(ProjectionKind.Orthogonal, numFeatures, dimension, seed, rowLength, antithetic: false, matrix);
    }

    /// <summary>Draws every row independently: standard normal, or uniform on the sphere of radius √d.</summary>
    /// <param name="numFeatures">m.</param>
    /// <param name="dimension">d.</param>
    /// <param name="seed">The seed.</param>
    /// <param name="rowLength">How long the rows are.</param>
    /// <exception cref="ArgumentOutOfRangeException">
    /// A size is zero or negative, <c>m·d</c> is more than an array can hold, or <paramref name="rowLength"/> is no such value.
    /// </exception>
    public static RandomProjection Gaussian(
        int numFeatures, int dimension, ulong seed, RowLength rowLength = Gpu.Attention.RowLength.Chi)
    {
        float[] matrix = Allocate(numFeatures, dimension);
        RequireDefined(rowLength);
        double[] normal = new double[dimension];
        for (int row = 0; row < numFeatures; row++)
        {
            Philox.Normal(seed, GaussianStream, (uint)row, normal);
            double factor = rowLength == Gpu.Attention.RowLength.Chi ? 1 : Math.Sqrt(dimension / Dot(normal, normal));
            Scale(normal, factor, matrix.AsSpan(row * dimension, dimension));
        }

        return new RandomProjection(ProjectionKind.Gaussian, numFeatures, dimension, seed, rowLength, antithetic: false, matrix);
    }

    /// <summary>Takes any matrix, such as one drawn by another framework.</summary>
    /// <param name="numFeatures">m.</param>
    /// <param name="dimension">d.</param>
    /// <param name="matrix">W, <c>[m, d]</c> row-major; copied.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is zero or negative, or <c>m·d</c> is more than an array can hold.</exception>
    /// <exception cref="ArgumentException"><paramref name="matrix"/> has another length, or an entry that is not finite.</exception>
    public static RandomProjection FromMatrix(int numFeatures, int dimension, ReadOnlySpan<float> matrix)
    {
        long elements = RequireSizes(numFeatures, dimension);
        if (matrix.Length != elements)
        {
            throw new ArgumentException($"A matrix [{numFeatures}, {dimension}] has {elements} elements, not {matrix.Length}.", nameof(matrix));
        }

        int bad = IndexOfNonFinite(matrix);
        if (bad >= 0)
        {
            throw new ArgumentException($"Row {bad / dimension}, column {bad % dimension} of the matrix is {matrix[bad]}.", nameof(matrix));
        }

        return new RandomProjection(
            ProjectionKind.Matrix, numFeatures, dimension, seed: 0, Gpu.Attention.RowLength.Chi, antithetic: false, matrix.ToArray());
    }

    /// <summary>The projection <c>[W; −W]</c> of 2m rows; an antithetic projection is returned as it is, since its rows would only repeat.</summary>
    /// <exception cref="InvalidOperationException"><c>2m·d</c> is more than an array can hold.</exception>
    /// <remarks>Its FAVOR+ features are the hyperbolic ones: Choromanski et al. (2020), Lemma 1.</remarks>
    public RandomProjection ToAntithetic()
    {
        if (IsAntithetic)
        {
            return this;
        }

        if (2L * _matrix.Length > Array.MaxLength)
        {
            throw new InvalidOperationException($"{this} has too many elements to be doubled.");
        }

        float[] matrix = new float[2 * _matrix.Length];
        _matrix.CopyTo(matrix, 0);
        for (int i = 0; i < _matrix.Length; i++)
        {
            matrix[_matrix.Length + i] = -_matrix[i];
        }

        return new RandomProjection(Kind, 2 * NumFeatures, Dimension, _seed, _rowLength, antithetic: true, matrix);
    }

    /// <summary>Another draw by the same recipe; a <see cref="ProjectionSchedule"/> makes one after the other.</summary>
    /// <param name="seed">The seed of the new draw.</param>
    /// <exception cref="InvalidOperationException">The rows were given as a matrix: there is no recipe.</exception>
    public RandomProjection Redraw(ulong seed)
    {
        int drawn = IsAntithetic ? NumFeatures / 2 : NumFeatures;
        RandomProjection projection = Kind switch
        {
            ProjectionKind.Gaussian => Gaussian(drawn, Dimension, seed, _rowLength),
            ProjectionKind.Orthogonal => Orthogonal(drawn, Dimension, seed, _rowLength),
            _ => throw new InvalidOperationException("A projection given as a matrix has no recipe to draw from again."),
        };
        return IsAntithetic ? projection.ToAntithetic() : projection;
    }

    /// <summary>Writes the projection, in full, to a file that is created or overwritten.</summary>
    /// <param name="path">The file.</param>
    public void Save(string path)
    {
        using FileStream stream = File.Create(path);
        Save(stream);
    }

    /// <summary>Writes the projection, in full, at a stream's position.</summary>
    /// <param name="stream">The stream.</param>
    public void Save(Stream stream)
    {
        ArgumentNullException.ThrowIfNull(stream);
        FileFormat.Write(stream, this);
    }

    /// <summary>Reads a projection from a file.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="InvalidDataException">The file holds no projection, or not all of it, or it was altered; the message says which.</exception>
    public static RandomProjection Load(string path)
    {
        using FileStream stream = File.OpenRead(path);
        return Load(stream);
    }

    /// <summary>Reads a projection from a stream's position to its end.</summary>
    /// <param name="stream">The stream.</param>
    /// <exception cref="InvalidDataException">The stream holds no projection, or not all of it, or it was altered; the message says which.</exception>
    /// <remarks>
    /// The data is taken for untrusted: memory is used in proportion to what the stream holds and not to what its header claims. The checksum
    /// finds accidents; it doesn't prove who made the file, nor that the matrix is what the recipe would draw.
    /// </remarks>
    public static RandomProjection Load(Stream stream)
    {
        ArgumentNullException.ThrowIfNull(stream);
        return FileFormat.Read(stream);
    }

    /// <summary>True for a projection of the same sizes and the same bits, however it came about.</summary>
    /// <param name="other">The other projection.</param>
    public bool Equals(RandomProjection? other) =>
        other is not null && NumFeatures == other.NumFeatures && Dimension == other.Dimension &&
        MemoryMarshal.AsBytes(Matrix).SequenceEqual(MemoryMarshal.AsBytes(other.Matrix));

    /// <inheritdoc/>
    public override bool Equals(object? obj) => Equals(obj as RandomProjection);

    /// <inheritdoc/>
    public override int GetHashCode()
    {
        const int EnoughToTellApart = 64;
        var hash = default(HashCode);
        hash.Add(NumFeatures);
        hash.Add(Dimension);
        hash.AddBytes(MemoryMarshal.AsBytes(Matrix[..Math.Min(EnoughToTellApart, _matrix.Length)]));
        return hash.ToHashCode();
    }

    /// <inheritdoc/>
    public override string ToString()
    {
        string antithetic = IsAntithetic ? " antithetic" : "";
        string recipe = Kind == ProjectionKind.Matrix ? "" : $", {_rowLength} rows, seed {_seed}";
        return $"projection [{NumFeatures}, {Dimension}] ({Kind}{antithetic}{recipe})";
    }

    private static long RequireSizes(int numFeatures, int dimension)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(numFeatures);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(dimension);
        long elements = (long)numFeatures * dimension;
        if (elements > Array.MaxLength)
        {
            throw new ArgumentOutOfRangeException(
                nameof(numFeatures), numFeatures, $"A matrix [{numFeatures}, {dimension}] has more elements than an array can hold.");
        }

        return elements;
    }

    private static float[] Allocate(int numFeatures, int dimension) => new float[RequireSizes(numFeatures, dimension)];

    private static void RequireDefined(RowLength rowLength)
    {
        if (!Enum.IsDefined(rowLength))
        {
            throw new ArgumentOutOfRangeException(nameof(rowLength), rowLength, "There is no such row length.");
        }
    }

    /// <summary>
    /// The first <paramref name="rows"/> rows of a Haar-distributed <c>d × d</c> matrix: of the decomposition <c>G = R Q</c> of a Gaussian G
    /// into a lower triangle with a positive diagonal and an orthogonal matrix. Row i of Q follows from rows 0..i of G.
    /// </summary>
    private static double[] HaarRows(ulong seed, int firstRow, int rows, int dimension)
    {
        double[] reflectors = new double[rows * dimension];
        double[] signs = new double[rows];
        for (int row = 0; row < rows; row++)
        {
            Span<double> current = reflectors.AsSpan(row * dimension, dimension);
            Philox.Normal(seed, OrthogonalStream, (uint)(firstRow + row), current);
            for (int k = 0; k < row; k++)
            {
                Reflect(reflectors, k, dimension, current);
            }

            signs[row] = MakeReflector(current[row..]);
            current[..row].Clear();
        }

        // Row i of Q is ±H_0 … H_i e_i: the reflectors after i leave e_i alone.
        double[] orthogonal = new double[rows * dimension];
        for (int row = 0; row < rows; row++)
        {
            Span<double> current = orthogonal.AsSpan(row * dimension, dimension);
            current[row] = signs[row];
            for (int k = row; k >= 0; k--)
            {
                Reflect(reflectors, k, dimension, current);
            }
        }

        return orthogonal;
    }

    /// <summary>
    /// Overwrites x by the v of the Householder reflection <c>H = I − v vᵀ</c> (so <c>|v|² = 2</c>) with <c>H x = r e_0</c>, and returns the sign of r,
    /// which <c>r e_0</c> has to be multiplied by to become positive.
    /// </summary>
    private static double MakeReflector(Span<double> x)
    {
        double norm = Math.Sqrt(Dot(x, x));

        // v = x + sign(x_0)|x| e_0 adds numbers of one sign, so nothing cancels; it makes r = −sign(x_0)|x|.
        double sign = x[0] < 0 ? -1 : 1;
        x[0] += sign * norm;
        double squared = Dot(x, x);
        double factor = squared > 0 ? Math.Sqrt(2 / squared) : 0;
        for (int i = 0; i < x.Length; i++)
        {
            x[i] *= factor;
        }

        return -sign;
    }

    private static void Reflect(double[] reflectors, int k, int dimension, Span<double> x)
    {
        ReadOnlySpan<double> v = reflectors.AsSpan((k * dimension) + k, dimension - k);
        Span<double> tail = x.Slice(k, v.Length);
        double product = Dot(v, tail);
        for (int i = 0; i < tail.Length; i++)
        {
            tail[i] -= product * v[i];
        }
    }

    /// <summary>A dot product in one order on every machine; four sums, because one would wait for each addition.</summary>
    private static double Dot(ReadOnlySpan<double> a, ReadOnlySpan<double> b)
    {
        b = b[..a.Length];
        double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        int i = 0;
        for (; i <= a.Length - 4; i += 4)
        {
            s0 += a[i] * b[i];
            s1 += a[i + 1] * b[i + 1];
            s2 += a[i + 2] * b[i + 2];
            s3 += a[i + 3] * b[i + 3];
        }

        for (; i < a.Length; i++)
        {
            s0 += a[i] * b[i];
        }

        return (s0 + s1) + (s2 + s3);
    }

    private static void Scale(ReadOnlySpan<double> source, double factor, Span<float> destination)
    {
        for (int i = 0; i < source.Length; i++)
        {
            destination[i] = (float)(source[i] * factor);
        }
    }

    private static int IndexOfNonFinite(ReadOnlySpan<float> values)
    {
        for (int i = 0; i < values.Length; i++)
        {
            if (!float.IsFinite(values[i]))
            {
                return i;
            }
        }

        return -1;
    }

    /// <summary>
    /// Version 1, little-endian: magic (8 bytes), version, m, d (32 bits each), kind, row length, antithetic, zero (a byte each), seed (64
    /// bits), the matrix (float32, row-major), and the SHA-256 of all before.
    /// </summary>
    private static class FileFormat
    {
        private const int Version = 1;
        private const int HeaderBytes = 32;
        private const int MarkBytes = 12;
        private const string Kind = "projection file";

        private static ReadOnlySpan<byte> Magic => "GpuAttnW"u8;

        public static void Write(Stream stream, RandomProjection projection)
        {
            using var writer = new ChecksummedWriter(stream);
            Span<byte> header = stackalloc byte[HeaderBytes];
            header.Clear();
            Magic.CopyTo(header);
            BinaryPrimitives.WriteInt32LittleEndian(header[8..], Version);
            BinaryPrimitives.WriteInt32LittleEndian(header[12..], projection.NumFeatures);
            BinaryPrimitives.WriteInt32LittleEndian(header[16..], projection.Dimension);
            header[20] = (byte)projection.Kind;
            header[21] = (byte)projection._rowLength;
            header[22] = projection.IsAntithetic ? (byte)1 : (byte)0;
            BinaryPrimitives.WriteUInt64LittleEndian(header[24..], projection._seed);
            writer.Write(header);
            writer.Write(projection.Matrix);
            writer.End();
        }

        public static RandomProjection Read(Stream stream)
        {
            using var reader = new ChecksummedReader(stream, Kind);
            reader.ReadMark(Magic, Version);
            Span<byte> header = stackalloc byte[HeaderBytes];
            reader.Read(header[MarkBytes..], "header");
            int numFeatures = BinaryPrimitives.ReadInt32LittleEndian(header[12..]);
            int dimension = BinaryPrimitives.ReadInt32LittleEndian(header[16..]);
            long elements = (long)numFeatures * dimension;
            if (numFeatures <= 0 || dimension <= 0 || elements > Array.MaxLength)
            {
                throw new InvalidDataException($"The projection file claims the impossible sizes [{numFeatures}, {dimension}].");
            }

            var kind = (ProjectionKind)header[20];
            var rowLength = (RowLength)header[21];
            ulong seed = BinaryPrimitives.ReadUInt64LittleEndian(header[24..]);
            if (!Enum.IsDefined(kind) || !Enum.IsDefined(rowLength) || header[22] > 1 || header[23] != 0 ||
                (kind == ProjectionKind.Matrix && (seed != 0 || rowLength != default)))
            {
                throw new InvalidDataException($"The projection file has an unknown recipe ({header[20]}, {header[21]}, {header[22]}, {header[23]}).");
            }

            bool antithetic = header[22] == 1;
            float[] matrix = reader.ReadFloats((int)elements, "matrix");
            reader.End();
            int bad = IndexOfNonFinite(matrix);
            if (bad >= 0)
            {
                throw new InvalidDataException($"Row {bad / dimension}, column {bad % dimension} of the projection file's matrix is {matrix[bad]}.");
            }

            if (antithetic && !IsNegatedHalf(matrix, numFeatures))
            {
                throw new InvalidDataException("The projection file says [W; −W], but its second half is not the negated first.");
            }

            return new RandomProjection(kind, numFeatures, dimension, seed, rowLength, antithetic, matrix);
        }

        private static bool IsNegatedHalf(ReadOnlySpan<float> matrix, int numFeatures)
        {
            if (numFeatures % 2 != 0)
            {
                return false;
            }

            int half = matrix.Length / 2;
            for (int i = 0; i < half; i++)
            {
                if (matrix[half + i] != -matrix[i])
                {
                    return false;
                }
            }

            return true;
        }
    }
}
