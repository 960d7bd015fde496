"""Data sets: preparing them, checking them, and streaming them to the network."""

from deeplab_jax.data.eval_pipeline import eval_batches
from deeplab_jax.data.images import IMAGE_SUFFIXES, ImageLike, as_image, read_image
from deeplab_jax.data.pipeline import decode_example, decoded, train_batches
from deeplab_jax.data.protocol import EvalProtocol, bucket, pad_color, protocol_for, set_input_size
from deeplab_jax.data.registry import SOURCES, default_data_dir, open_source, open_split, split_names
from deeplab_jax.data.transforms import pad_to, resize_image

__all__ = [
    "IMAGE_SUFFIXES",
    "SOURCES",
    "EvalProtocol",
    "ImageLike",
    "as_image",
    "bucket",
    "decode_example",
    "decoded",
    "default_data_dir",
    "eval_batches",
    "open_source",
    "open_split",
    "pad_color",
    "pad_to",
    "protocol_for",
    "read_image",
    "resize_image",
    "set_input_size",
    "split_names",
    "train_batches",
]
