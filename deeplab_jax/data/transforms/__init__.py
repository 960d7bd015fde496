"""Joint transforms of an image and its label: positions, colors, mixing, and functions of your own."""

from deeplab_jax.data.transforms.augmentation import augment
from deeplab_jax.data.transforms.color import photometric_distortion, random_blur, random_color, random_grayscale
from deeplab_jax.data.transforms.custom import CustomTransform, find_transform, register_transform
from deeplab_jax.data.transforms.geometry import (
    pad_to,
    random_box,
    random_crop,
    random_flip,
    random_rotation,
    random_scale,
    resize_image,
    resize_label,
)
from deeplab_jax.data.transforms.mixing import copy_paste, random_cut_box

__all__ = [
    "CustomTransform",
    "augment",
    "copy_paste",
    "find_transform",
    "pad_to",
    "photometric_distortion",
    "random_blur",
    "random_box",
    "random_color",
    "random_crop",
    "random_cut_box",
    "random_flip",
    "random_grayscale",
    "random_rotation",
    "random_scale",
    "register_transform",
    "resize_image",
    "resize_label",
]
