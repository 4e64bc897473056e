using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text;

namespace Gpu.Attention.Cli.Tests;

/// <summary>Makes the bytes of <c>.npy</c> files, proper and otherwise.</summary>
internal static class NpyBytes
{
    public static byte[] Make(string header, byte[] data, int major = 1)
    {
        byte[] text = Encoding.UTF8.GetBytes(header + "\n");
        byte[] length = new byte[major == 1 ? 2 : 4];
        if (major == 1)
        {
            BinaryPrimitives.WriteUInt16LittleEndian(length, (ushort)text.Length);
        }
        else
        {
            BinaryPrimitives.WriteInt32LittleEndian(length, text.Length);
        }

        return [0x93, .. "NUMPY"u8, (byte)major, 0, .. length, .. text, .. data];
    }

    public static byte[] Of<T>(T[] values)
        where T : unmanaged => MemoryMarshal.AsBytes(values.AsSpan()).ToArray();

    public static byte[] OfDouble(int[] shape, float[] values) => Make(
        $"{{'descr': '<f8', 'fortran_order': False, 'shape': ({string.Concat(shape.Select(size => $"{size}, "))}), }}", Of(Array.ConvertAll(values, x => (double)x)));

    public static byte[] Reversed(byte[] bytes, int elementBytes) => [.. bytes.Chunk(elementBytes).SelectMany(element => element.Reverse())];
}
