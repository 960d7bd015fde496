"""Mixing two images and their labels."""

from collections.abc import Sequence

import numpy as np

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
