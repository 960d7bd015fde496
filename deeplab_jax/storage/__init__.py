"""Object storage: paths in buckets (`gs://`, `s3://`), leases in place of locks, and copies on the local disk."""

from deeplab_jax.storage.bucket_path import BucketPath, is_bucket_address

__all__ = ["BucketPath", "is_bucket_address"]
