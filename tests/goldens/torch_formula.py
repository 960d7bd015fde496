"""State dicts of PyTorch networks by formula, and samples of outputs: what `make_torch.py` and the tests share."""

import hashlib
import json
import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from tests.goldens import formula

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # ImageNet's, of images in [0, 1]


def state_dict(shapes: Mapping[str, tuple[int, ...]], gain: float = 1.0) -> dict[str, np.ndarray]:
    """A value for every array of a network, by its name and shape.

    Args:
      shapes: by name.
      gain: of every BatchNorm's weight; 1.25 drives some activations beyond the 6 at which ReLU6 clips.
    """
    values = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            values[name] = np.zeros(shape, np.int64)
        else:
            # LayerNorm has no statistics; its name, or that of the list of them, tells it.
            is_norm = f"{module}.running_mean" in shapes or "norm" in ".".join(module.split(".")[-2:])
            values[name] = formula.weight(name, shape, is_norm=is_norm, output_axis=0)
            if is_norm and leaf == "weight":
                values[name] *= np.float32(gain)
    return values


def sample(x: np.ndarray, count: int = 64) -> np.ndarray:
    """About `count` values (batch, height, width, channels), spread over pixels and channels."""
    flat = np.asarray(x, np.float32).ravel()
    return flat[:: max(1, flat.size // count) | 1].copy()


def pack(shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Names and shapes as an array, for an .npz file."""
    return np.frombuffer(json.dumps({name: list(shape) for name, shape in shapes.items()}).encode(), np.uint8)


def unpack(packed: np.ndarray) -> dict[str, tuple[int, ...]]:
    """What was packed."""
    return {name: tuple(shape) for name, shape in json.loads(packed.tobytes()).items()}


def voc_images(folder: pathlib.Path) -> np.ndarray:
    """The first 20 validation images as the EfficientNet-Lites see them: uint8 (20, 224, 224, 3)."""
    names = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:20]
    images = [Image.open(folder / "JPEGImages" / f"{name}.jpg").convert("RGB") for name in names]
    return np.stack([np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)) for image in images])


def digest(x: np.ndarray) -> np.ndarray:
    """Eight bytes that say whether two arrays are the same."""
    return np.frombuffer(hashlib.sha256(x.tobytes()).digest()[:8], np.uint8)
