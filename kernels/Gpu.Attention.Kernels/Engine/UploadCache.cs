using ILGPU.Runtime;

namespace Gpu.Attention;

/// <summary>Something of the host's that was copied to a device.</summary>
internal interface IUpload : IDisposable
{
    /// <summary>Its device memory.</summary>
    long Bytes { get; }
}

/// <summary>Copies that are kept on a device, of those objects that were asked for last.</summary>
/// <typeparam name="TKey">What is copied; the same when it is the same object.</typeparam>
/// <typeparam name="TUpload">Its copy.</typeparam>
/// <param name="stream">Where kernels read the copies.</param>
/// <param name="capacity">How many are kept.</param>
/// <param name="upload">Makes a copy.</param>
internal sealed class UploadCache<TKey, TUpload>(AcceleratorStream stream, int capacity, Func<TKey, TUpload> upload)
    where TKey : class
    where TUpload : class, IUpload
{
    private readonly Dictionary<TKey, (TUpload Upload, long LastUse)> _uploads = new(ReferenceEqualityComparer.Instance);
    private long _uses;

    /// <summary>Device memory of all that is kept.</summary>
    public long Bytes => _uploads.Values.Sum(entry => entry.Upload.Bytes);

    /// <summary>An object's copy, which stays until <paramref name="key"/> is among those that have not been asked for longest.</summary>
    /// <param name="key">The object.</param>
    public TUpload Of(TKey key)
    {
        if (!_uploads.TryGetValue(key, out (TUpload Upload, long LastUse) entry))
        {
            if (_uploads.Count >= capacity)
            {
                TKey oldest = _uploads.MinBy(known => known.Value.LastUse).Key;

                // Kernels that read it may still be running.
                stream.Synchronize();
                _uploads.Remove(oldest, out (TUpload Upload, long LastUse) freed);
                freed.Upload.Dispose();
            }

            entry.Upload = upload(key);
        }

        _uploads[key] = (entry.Upload, ++_uses);
        return entry.Upload;
    }

    /// <summary>Frees all that is kept, once the stream is done with it.</summary>
    public void Clear()
    {
        stream.Synchronize();
        foreach ((TUpload copy, _) in _uploads.Values)
        {
            copy.Dispose();
        }

        _uploads.Clear();
    }
}
