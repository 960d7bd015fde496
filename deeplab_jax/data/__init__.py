"""Data sets: preparing them, checking them, and streaming them to the network."""

from deeplab_jax.data.images import IMAGE_SUFFIXES, ImageLike, as_image, read_image
from deeplab_jax.data.pipeline import decode_example, decoded, eval_batches, pad_color, train_batches
from deeplab_jax.data.registry import SOURCES, default_data_dir, open_source, open_split, split_names
from deeplab_jax.data.transforms import pad_to, resize_image

__all__ = [
    "IMAGE_SUFFIXES",
    "SOURCES",
    "ImageLike",
    "as_image",
    "decode_example",
    "decoded",
    "default_data_dir",
    "eval_batches",
    "open_source",
    "open_split",
    "pad_color",
    "pad_to",
    "read_image",
    "resize_image",
    "split_names",
    "train_batches",
]
