"""Pseudo labels: the network learns from unlabeled images what a teacher is sure of (FixMatch, arXiv 2001.07685).

The teacher predicts the weak view of each image in evaluation mode. Where its largest probability reaches a threshold,
the class is the label of that pixel in the strong view, a constant without a gradient. The loss of the step is

    mean loss of the labeled images + weight * (cross-entropy summed over confident pixels / number of all pixels),

where padding is not counted. CutMix (arXiv 1905.04899) pastes boxes between the strong views of two images, and between
their pseudo labels. This is the segmentation form of FixMatch that UniMatch compares with (arXiv 2208.09910).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32, Shaped, UInt8
from ml_collections import ConfigDict

from deeplab_jax.config import unlabeled_batch_size
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.losses import softmax_cross_entropy
from deeplab_jax.parallel import sharding
from deeplab_jax.training.state import TrainState

#: Arrays of a batch that the pseudo labels are made of, see `deeplab_jax.data.unlabeled.unlabeled_batches`.
BATCH_NAMES = ("unlabeled_weak", "unlabeled_strong", "unlabeled_exists", "unlabeled_label", "unlabeled_box")

# Those that a box moves, and the one that `add_pseudo_labels` adds.
_MIXED = ("unlabeled_strong", "unlabeled_exists", "unlabeled_label", "pseudo_label")


@dataclasses.dataclass(frozen=True)
class PseudoLabels:
    """How a step learns from unlabeled images: the fields of `config.unlabeled` that the step needs.

    Attributes:
      teacher: `student` or `average`.
      threshold: smallest probability of a pseudo label.
      weight: weight of the loss.
      cut_mix: whether the batch has boxes.
    """

    teacher: str = "student"
    threshold: float | Array = 0.95
    weight: float | Array = 1.0
    cut_mix: bool = False


def hyperparams(config: ConfigDict) -> dict[str, dict[str, float]]:
    """Returns the numbers of `config.unlabeled` that a compiled step takes as inputs; nothing without such images."""
    fields = config.unlabeled
    if fields.split is None:
        return {}
    return {"unlabeled": {"threshold": float(fields.threshold), "weight": float(fields.weight)}}


def from_config(config: ConfigDict, numbers: Mapping[str, Any]) -> PseudoLabels | None:
    """Returns the options of `config.unlabeled`, with the numbers of `hyperparams`; None without unlabeled images."""
    if config.unlabeled.split is None:
        return None
    return PseudoLabels(config.unlabeled.teacher, cut_mix=bool(config.unlabeled.cut_mix), **numbers["unlabeled"])


def batch_shapes(config: ConfigDict, dtype: np.dtype) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns the global shape and the dtype of each of the arrays of `BATCH_NAMES`; nothing without such images."""
    if config.unlabeled.split is None:
        return {}
    size = (unlabeled_batch_size(config), *config.data.image_size)
    views = ((*size, config.model.in_channels), dtype)
    shapes = (views, views, (size, np.bool_), (size, np.uint8), ((size[0], 4), np.int32))
    return dict(zip(BATCH_NAMES, shapes, strict=True))


def teach(
    model: nn.Module,
    state: TrainState,
    batch: Mapping[str, Array],
    options: PseudoLabels,
    *,
    num_parts: int = 1,
    mesh: Mesh | None = None,
) -> dict[str, Array]:
    """Does what `add_pseudo_labels` does, with the teacher that the options name.

    Args:
      model: the network.
      state: the state before the step.
      batch: see `add_pseudo_labels`.
      options: see `add_pseudo_labels`.
      num_parts: see `add_pseudo_labels`.
      mesh: the mesh that the state is split over; None if it is not split.
    """
    variables = state.variables if options.teacher == "student" else state.ema_variables
    if mesh is not None:
        variables = sharding.gather(variables, mesh)

    def predict(images: Array) -> Array:
        return model.apply(variables, images, train=False)[0]

    return add_pseudo_labels(batch, predict, options, num_parts=num_parts)


def add_pseudo_labels(
    batch: Mapping[str, Array], predict: Callable[[Array], Array], options: PseudoLabels, *, num_parts: int = 1
) -> dict[str, Array]:
    """Adds `pseudo_label` to a batch, and pastes the boxes of CutMix.

    Args:
      batch: arrays by name, with those of `BATCH_NAMES`.
      predict: returns the teacher's logits (batch, height, width, classes) for weak views.
      options: the threshold, and whether to paste boxes.
      num_parts: number of parts of the batch that the teacher predicts one after another to save memory.

    Returns:
      The batch without the weak views and the boxes; `pseudo_label` is uint8 (batch, height, width), with the ignore
      label where the teacher is not sure.
    """

    def label(views: Array) -> Array:
        return find_pseudo_labels(predict(views), options.threshold)

    if num_parts == 1:
        labels = label(batch["unlabeled_weak"])
    else:
        labels = jax.lax.map(label, split_parts(batch["unlabeled_weak"], num_parts))
        labels = jnp.moveaxis(labels, 0, 1).reshape(-1, *labels.shape[2:])
    used = {name: array for name, array in batch.items() if name not in ("unlabeled_weak", "unlabeled_box")}
    used["pseudo_label"] = labels
    if options.cut_mix:
        used |= {name: cut_mix(used[name], batch["unlabeled_box"]) for name in _MIXED}
    return used


def find_pseudo_labels(
    logits: Float[Array, "batch height width classes"], threshold: float | Array
) -> UInt8[Array, "batch height width"]:
    """Returns the most probable class of each pixel; the ignore label where its probability is below the threshold."""
    top = jnp.max(logits, axis=-1)
    # exp(top) / sum(exp(logits)) without storing a softmax; NaN compares as not sure.
    probability = 1 / jnp.sum(jnp.exp(logits - top[..., None]), axis=-1)
    return jnp.where(probability >= threshold, jnp.argmax(logits, axis=-1), IGNORE_LABEL).astype(jnp.uint8)


def cut_mix(
    array: Shaped[Array, "batch height width ..."], boxes: Int32[Array, "batch 4"]
) -> Shaped[Array, "batch height width ..."]:
    """Pastes the pixels inside each image's box from the other image of its pair; images 0 and 1 are a pair, and so on.

    Args:
      array: images, labels or masks.
      boxes: first row, first column, row after the last and column after the last of each image's box.
    """
    pairs = array.reshape(-1, 2, *array.shape[1:])
    other = pairs[:, ::-1].reshape(array.shape)
    return jnp.where(_inside(boxes, array.shape[1:3]).reshape(*array.shape[:3], *[1] * (array.ndim - 3)), other, array)


def _inside(boxes: Int32[Array, "batch 4"], size: tuple[int, int]) -> Bool[Array, "batch height width"]:
    top, left, bottom, right = (boxes[:, i, None, None] for i in range(4))
    rows, columns = jnp.arange(size[0]).reshape(1, -1, 1), jnp.arange(size[1]).reshape(1, 1, -1)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def count_pixels(batch: Mapping[str, Array]) -> Int32[Array, ""]:
    """Counts the pixels that the loss of the unlabeled images is a mean over."""
    return jnp.sum(batch["unlabeled_exists"], dtype=jnp.int32)


def report(logits: Float[Array, "batch height width classes"], batch: Mapping[str, Array]) -> dict[str, Array]:
    """Computes the loss of the strong views, and counts their pixels.

    Args:
      logits: outputs of the network for the strong views.
      batch: a batch of `add_pseudo_labels`, or a part of one.

    Returns:
      `loss_sum`, the cross-entropy summed over confident pixels; `pixels`, the number of all; `confident_pixels`;
      `labeled_pixels`, those of the confident ones whose true label is known, and `correct_pixels` of these.
    """
    exists, truth, pseudo = batch["unlabeled_exists"], batch["unlabeled_label"], batch["pseudo_label"]
    loss_sum, confident = softmax_cross_entropy(logits, pseudo, where=exists)
    is_known = exists & (pseudo != IGNORE_LABEL) & (truth != IGNORE_LABEL)
    return {
        "loss_sum": loss_sum,
        "pixels": count_pixels(batch),
        "confident_pixels": confident,
        "labeled_pixels": jnp.sum(is_known, dtype=jnp.int32),
        "correct_pixels": jnp.sum(is_known & (pseudo == truth), dtype=jnp.int32),
    }


def scores(sums: Mapping[str, int | float]) -> dict[str, Any]:
    """Computes scores of the sums of many reports.

    Returns:
      `unlabeled_loss`, the mean over all pixels; `confident_share` of the pixels; and `pseudo_label_accuracy`, the
      share of correct pixels, if the split has labels to compare with.
    """
    pixels = max(sums["pixels"], 1)
    values = {"unlabeled_loss": sums["loss_sum"] / pixels, "confident_share": sums["confident_pixels"] / pixels}
    if sums["labeled_pixels"]:
        values["pseudo_label_accuracy"] = sums["correct_pixels"] / sums["labeled_pixels"]
    return values


def split_parts(array: Shaped[Array, "batch ..."], num_parts: int) -> Shaped[Array, "parts part ..."]:
    """Splits a batch into parts. Part k has every `num_parts`-th example, so each device keeps its own examples."""
    return jnp.moveaxis(array.reshape(-1, num_parts, *array.shape[1:]), 1, 0)


def join(labeled: Shaped[Array, "labeled ..."], unlabeled: Shaped[Array, "unlabeled ..."]) -> Shaped[Array, "both ..."]:
    """Interleaves two batches in equal groups, so that devices that hold parts of both keep their own examples."""
    groups = math.gcd(len(labeled), len(unlabeled))
    parts = [array.reshape(groups, -1, *array.shape[1:]) for array in (labeled, unlabeled)]
    return jnp.concatenate(parts, axis=1).reshape(-1, *labeled.shape[1:])


def separate(
    both: Shaped[Array, "both ..."], num_labeled: int
) -> tuple[Shaped[Array, "labeled ..."], Shaped[Array, "unlabeled ..."]]:
    """Undoes `join`."""
    groups = math.gcd(num_labeled, len(both) - num_labeled)
    grouped, first = both.reshape(groups, -1, *both.shape[1:]), num_labeled // groups
    parts = grouped[:, :first], grouped[:, first:]
    labeled, unlabeled = (part.reshape(-1, *both.shape[1:]) for part in parts)
    return labeled, unlabeled
