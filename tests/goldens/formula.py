"""Weights and images made from names: the same on both sides of a comparison, so that only outputs are stored.

Needs numpy alone: the scripts that run the originals in environments of their own import it too.
"""

import hashlib

import numpy as np


def uniform(name: str, shape, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Float32 values in [low, high), a function of the name and the shape's size."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    values = np.random.Generator(np.random.Philox(key=key)).random(int(np.prod(shape)), dtype=np.float32)
    return (low + (high - low) * values).reshape(shape).astype(np.float32)


def weight(name: str, shape, *, is_norm: bool, output_axis: int = -1, variant: str = "") -> np.ndarray:
    """A plausible value of a layer's array, batch statistics included, by its name in the original.

    Args:
      name: in the original; the value follows from it alone, its last part says what it is.
      shape: of the array.
      is_norm: whether it belongs to a BatchNorm.
      output_axis: of a kernel: the axis of its output features (depthwise: of the multiplier), -1 for TensorFlow's
        order, 0 for PyTorch's.
      variant: another set of values under the same names.
    """
    leaf = name.replace(".", "/").rsplit("/", 1)[-1]
    key = name + variant
    if leaf in ("moving_variance", "running_var", "gamma") or (is_norm and leaf == "weight"):
        return uniform(key, shape, 0.5, 1.5)
    if len(shape) > 1:
        fan_in = np.prod(shape) / shape[output_axis]
        bound = np.sqrt(3.0 / fan_in)  # variance 1 / fan_in
        return uniform(key, shape, -bound, bound)
    return uniform(key, shape, -0.17, 0.17)


def images(name: str, shape) -> np.ndarray:
    """uint8 images."""
    return np.floor(uniform(name, shape, 0, 256)).astype(np.uint8)
