"""Mixing two images and their labels: by classes, and by a box."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from deeplab_jax.data.transforms.geometry import ImageArray, LabelArray


def copy_paste(
    image: ImageArray, label: LabelArray, other: ImageArray, other_label: LabelArray, *, classes: Sequence[int]
) -> tuple[ImageArray, LabelArray]:
    """Pastes the pixels of some classes of another image, at the same positions: Copy-Paste (arXiv 2012.07177).

    Copy-Paste draws objects from instance masks; labels of classes have no instances, so all pixels of the given
    classes are pasted. ClassMix (arXiv 2007.07936) would draw half of the classes of the other image instead, and
    CutMix (arXiv 1905.04899) a box.

    Args:
      image: the image.
      label: its label.
      other: the image to copy from, of the same size.
      other_label: its label.
      classes: class ids to paste.
    """
    pasted = np.isin(other_label, classes)
    return np.where(pasted[..., None], other, image), np.where(pasted, other_label, label)


def random_cut_box(
    size: Sequence[int],
    rng: np.random.Generator,
    *,
    share: float,
    area: Sequence[float] = (0.02, 0.4),
    ratio: Sequence[float] = (0.3, 1 / 0.3),
) -> Int32[np.ndarray, "4"]:
    """Draws the box that CutMix pastes (arXiv 1905.04899), by default with the sizes of UniMatch (arXiv 2208.09910).

    Args:
      size: (height, width) of the images.
      rng: random generator of this example.
      share: the probability that there is a box.
      area: range of its share of the image.
      ratio: range of its height / width. The box is as high or as wide as the image where it would be larger.

    Returns:
      The first row, the first column, the row after the last and the column after the last; zeros without a box.
    """
    if rng.random() >= share:
        return np.zeros(4, np.int32)
    pixels, shape = rng.uniform(*area) * size[0] * size[1], rng.uniform(*ratio)
    height = min(max(int((pixels * shape) ** 0.5), 1), size[0])
    width = min(max(int((pixels / shape) ** 0.5), 1), size[1])
    top, left = rng.integers(size[0] - height + 1), rng.integers(size[1] - width + 1)
    return np.array([top, left, top + height, left + width], np.int32)
