"""Integer confusion matrices, and the scores that follow from them."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32, Int64, Integer

from deeplab_jax.labels import IGNORE_LABEL


def confusion_matrix(
    labels: Integer[Array | np.ndarray, "batch *pixels"],
    predictions: Integer[Array | np.ndarray, "batch *pixels"],
    *,
    num_classes: int,
    void: Literal["ignore", "background"] = "ignore",
    valid: Bool[Array | np.ndarray, " batch"] | None = None,
    formulation: str = "auto",
) -> Int32[Array, "{num_classes} {num_classes}"]:
    """Counts pixels by true class (row) and predicted class (column).

    Jittable, and exact: int32 holds any batch of fewer than 2^31 pixels. Sum over batches in int64 on the host.
    Examples stay apart until the last sum, so that a batch sharded over devices is counted where it lies.

    Args:
      labels: class ids, or `labels.IGNORE_LABEL`.
      predictions: class ids below `num_classes`, as arg-max gives them. Anything else is counted nowhere: the total
        then falls short of the number of labelled pixels.
      num_classes: rows and columns.
      void: "ignore" leaves pixels of the ignore label out; "background" counts them as class 0, as Keras' MeanIoU
        and CategoricalAccuracy do with the all-zero one-hot vectors of such pixels.
      valid: False for the examples that only fill up a batch; they contribute nothing.
      formulation: "scatter" adds one at each pixel's cell; "matmul" multiplies one-hot matrices, which TPUs do fast
        and CPUs slowly; "auto" chooses by platform; "plain" is "scatter".
    """
    labels = jnp.asarray(labels).astype(jnp.int32)
    predictions = jnp.asarray(predictions).astype(jnp.int32)
    if void == "background":
        labels = jnp.where(labels == IGNORE_LABEL, 0, labels)
    labels = labels.reshape(labels.shape[0], -1)
    predictions = predictions.reshape(labels.shape)
    counted = (labels >= 0) & (labels < num_classes) & (predictions >= 0) & (predictions < num_classes)
    if valid is not None:
        counted &= jnp.asarray(valid)[:, None]
    cells = jnp.where(counted, labels * num_classes + predictions, num_classes**2)

    def scatter(cells):
        count = lambda row: jnp.zeros(num_classes**2, jnp.int32).at[row].add(1, mode="drop")  # noqa: E731
        return jnp.sum(jax.vmap(count)(cells), axis=0).reshape(num_classes, num_classes)

    def matmul(cells):
        ids = jnp.arange(num_classes, dtype=jnp.int32).reshape(1, 1, -1)
        rows = (cells // num_classes)[..., None] == ids  # the cell past the end has row num_classes: all False
        columns = (cells % num_classes)[..., None] == ids
        # Zeros and ones are exact in bfloat16; the float32 sums are exact below 2^24 pixels in one example.
        counts = jnp.einsum(
            "bpi,bpj->bij",
            rows.astype(jnp.bfloat16),
            columns.astype(jnp.bfloat16),
            preferred_element_type=jnp.float32,
        )
        return jnp.sum(counts.astype(jnp.int32), axis=0)

    if formulation in ("scatter", "plain"):
        return scatter(cells)
    if formulation == "matmul":
        return matmul(cells)
    if formulation != "auto":
        raise ValueError(f"unknown formulation {formulation!r}: auto, plain, scatter or matmul")
    if cells.shape[1] >= 2**24:
        return scatter(cells)
    return lax.platform_dependent(cells, tpu=matmul, default=scatter)


def scores_from_confusion(confusion: Int64[np.ndarray, "classes classes"], class_names: Sequence[str]) -> dict:
    """The scores of a whole split from its summed confusion matrix.

    A class that is neither in the truth nor predicted has no IoU: it is left out of the mean, as in the papers'
    evaluation code and in Keras. A class that is predicted and never true has IoU 0 and counts.

    Args:
      confusion: pixels by true class (row) and predicted class (column).
      class_names: one per class.

    Returns:
      `mean_iou`; `pixel_accuracy` (share of pixels that are right); `mean_accuracy` (the mean over true classes of the
      share of their pixels that is right); `frequency_weighted_iou` (IoUs weighted by the classes' share of
      the truth); `per_class_iou`, by name, None for absent classes; `num_pixels`. Without a single pixel the four
      scores are NaN.

    Raises:
      ValueError: the names and the matrix do not fit, or a count is negative.
    """
    if len(class_names) != len(confusion):
        raise ValueError(f"{len(class_names)} class names for a confusion matrix of {len(confusion)} classes")
    if (confusion < 0).any():
        raise ValueError("a count of the confusion matrix is negative: sum the int32 matrices of steps in int64")
    correct, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    union = true + predicted - correct
    iou = correct / np.maximum(union, 1)
    num_pixels = int(confusion.sum())
    return {
        "mean_iou": _mean(iou[union > 0]),
        "pixel_accuracy": int(correct.sum()) / num_pixels if num_pixels else float("nan"),
        "mean_accuracy": _mean((correct / np.maximum(true, 1))[true > 0]),
        "frequency_weighted_iou": float((true * iou).sum()) / num_pixels if num_pixels else float("nan"),
        "per_class_iou": {
            name: float(value) if pixels else None for name, value, pixels in zip(class_names, iou, union, strict=True)
        },
        "num_pixels": num_pixels,
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
