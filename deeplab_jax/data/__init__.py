"""Data sets: preparing them, checking them, and streaming them to the network."""

from deeplab_jax.data.dataset import Dataset, Download, RawDataset, RawExample, Source
from deeplab_jax.data.eval_pipeline import check_labels, eval_batches
from deeplab_jax.data.images import IMAGE_SUFFIXES, ImageLike, as_image, read_image, read_mask
from deeplab_jax.data.pipeline import decode_example, decode_examples, train_batches
from deeplab_jax.data.protocol import EvalProtocol, bucket, pad_color, protocol_for, set_input_size
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
    "EvalProtocol",
    "ImageLike",
    "RawDataset",
    "RawExample",
    "Source",
    "as_image",
    "bucket",
    "check_labels",
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
    "protocol_for",
    "read_image",
    "read_mask",
    "register_dataset",
    "resize_image",
    "set_input_size",
    "split_names",
    "train_batches",
]
