"""Data sets: preparing them, checking them, and streaming them to the network."""

from deeplab_jax.data.dataset import Dataset, Download, RawDataset, RawExample, Source
from deeplab_jax.data.images import IMAGE_SUFFIXES, ImageLike, as_image, read_image, read_mask
from deeplab_jax.data.pipeline import decode_example, decode_examples, eval_batches, pad_color, train_batches
from deeplab_jax.data.registry import (
    dataset_names,
    default_data_dir,
    get_dataset,
    open_source,
    open_split,
    register_dataset,
    split_names,
)
from deeplab_jax.data.transforms import pad_to, resize_image

__all__ = [
    "IMAGE_SUFFIXES",
    "Dataset",
    "Download",
    "ImageLike",
    "RawDataset",
    "RawExample",
    "Source",
    "as_image",
    "dataset_names",
    "decode_example",
    "decode_examples",
    "default_data_dir",
    "eval_batches",
    "get_dataset",
    "open_source",
    "open_split",
    "pad_color",
    "pad_to",
    "read_image",
    "read_mask",
    "register_dataset",
    "resize_image",
    "split_names",
    "train_batches",
]
