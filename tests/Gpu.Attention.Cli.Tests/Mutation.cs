using Gpu.Attention.TestKit;

namespace Gpu.Attention.Cli.Tests;

/// <summary>Damages bytes the way that files get damaged, and the way that someone who means harm would.</summary>
internal static class Mutation
{
    public static byte[] Apply(SeededRandom random, byte[] original)
    {
        List<byte> bytes = [.. original];
        for (int count = random.Next(1, 4); count > 0 && bytes.Count > 0; count--)
        {
            int at = random.NextBool() ? random.Next(0, bytes.Count - 1) : random.Next(0, Math.Min(80, bytes.Count - 1));
            switch (random.Next(0, 6))
            {
                case 0:
                    bytes[at] = (byte)random.NextWord();
                    break;
                case 1:
                    bytes[at] ^= (byte)(1 << random.Next(0, 7));
                    break;
                case 2:
                    bytes.RemoveRange(at, bytes.Count - at);
                    break;
                case 3:
                    bytes.RemoveRange(at, Math.Min(random.Next(1, 8), bytes.Count - at));
                    break;
                case 4:
                    bytes.InsertRange(at, random.Choose("9"u8.ToArray(), "9999999999"u8.ToArray(), ","u8.ToArray(), "("u8.ToArray(), "\0"u8.ToArray(), "'"u8.ToArray()));
                    break;
                case 5:
                    bytes[at] = random.Choose((byte)0, (byte)0xff, (byte)0x7f, (byte)'0', (byte)'9', (byte)'{', (byte)'}', (byte)')');
                    break;
                default:
                    bytes.AddRange(bytes.GetRange(at, Math.Min(random.Next(1, 16), bytes.Count - at)));
                    break;
            }
        }

        return [.. bytes];
    }
}
