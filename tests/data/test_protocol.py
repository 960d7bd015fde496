"""Evaluation protocols: padded sizes."""

from deeplab_jax import data


def test_buckets_contain_their_sizes_add_little_and_are_few():
    extents = range(1, 4097)
    buckets = [data.bucket(extent) for extent in extents]
    assert all(extent <= size for extent, size in zip(extents, buckets, strict=True))
    assert all(size - extent < max(64, extent / 4) for extent, size in zip(extents, buckets, strict=True))
    assert [len({size for size in buckets if size <= most}) for most in (512, 1024, 2048, 4096)] == [8, 12, 16, 20]
    assert buckets == sorted(buckets)
