namespace Gpu.Attention.Core.Tests;

/// <summary>A stream that can't tell its length and delivers little at a time, as a network does.</summary>
internal sealed class ForwardStream(byte[] content) : Stream
{
    private int _position;

    public override bool CanRead => true;

    public override bool CanSeek => false;

    public override bool CanWrite => false;

    public override long Length => throw new NotSupportedException();

    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    public override int Read(byte[] buffer, int offset, int count)
    {
        int delivered = Math.Min(Math.Min(count, 7), content.Length - _position);
        content.AsSpan(_position, delivered).CopyTo(buffer.AsSpan(offset));
        _position += delivered;
        return delivered;
    }

    public override void Flush() => throw new NotSupportedException();

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void SetLength(long value) => throw new NotSupportedException();

    public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();
}
