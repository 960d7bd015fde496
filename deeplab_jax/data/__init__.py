"""Data sets: preparing them, checking them, and streaming them to the network."""

from deeplab_jax.data.channels import LazyTiff, as_stored, open_lazily, open_windows, read_channels
from deeplab_jax.data.dataset import Dataset, Download, RawDataset, RawExample, Source
from deeplab_jax.data.eval_pipeline import eval_batches
from deeplab_jax.data.fingerprint import describe_change, fingerprint
from deeplab_jax.data.image_files import IMAGE_SUFFIXES, describe_left_out, list_images
from deeplab_jax.data.images import ImageLike, as_image, read_image
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.masks import read_mask
from deeplab_jax.data.pipeline import decode_example, decode_examples, train_batches
from deeplab_jax.data.pixel_format import (
    PixelFormat,
    check_augmentation,
    check_display,
    check_image,
    check_model,
    fit_model,
    pixels_of,
    pixels_of_model,
    to_rgb,
)
from deeplab_jax.data.pixel_values import ValueRange
from deeplab_jax.data.protocol import (
    EvalProtocol,
    bucket,
    describe_protocol,
    pad_color,
    protocol_for,
    set_input_size,
)
from deeplab_jax.data.registry import (
    dataset_names,
    default_data_dir,
    get_dataset,
    open_source,
    open_split,
    register_dataset,
    split_names,
)
from deeplab_jax.data.transforms import find_transform, pad_to, register_transform, resize_image

__all__ = [
    "IMAGE_SUFFIXES",
    "Dataset",
    "Download",
    "EvalProtocol",
    "ImageLike",
    "LabelMap",
    "LazyTiff",
    "PixelFormat",
    "RawDataset",
    "RawExample",
    "Source",
    "ValueRange",
    "as_image",
    "as_stored",
    "bucket",
    "check_augmentation",
    "check_display",
    "check_image",
    "check_model",
    "dataset_names",
    "decode_example",
    "decode_examples",
    "default_data_dir",
    "describe_change",
    "describe_left_out",
    "describe_protocol",
    "eval_batches",
    "find_transform",
    "fingerprint",
    "fit_model",
    "get_dataset",
    "list_images",
    "open_lazily",
    "open_source",
    "open_split",
    "open_windows",
    "pad_color",
    "pad_to",
    "pixels_of",
    "pixels_of_model",
    "protocol_for",
    "read_channels",
    "read_image",
    "read_mask",
    "register_dataset",
    "register_transform",
    "resize_image",
    "set_input_size",
    "split_names",
    "to_rgb",
    "train_batches",
]
