"""Integer confusion matrices, and the scores that follow from them."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Int64, Integer

from deeplab_jax.labels import IGNORE_LABEL


def confusion_matrix(
    labels: Integer[Array, "batch height width"],
    predictions: Integer[Array, "batch height width"],
    *,
    num_classes: int,
    void: str = "ignore",
    where: Bool[Array, "batch height width"] | None = None,
) -> Int32[Array, "classes classes"]:
    """Counts pixels by true class (rows) and predicted class (columns).

    int32 holds the pixels of one step (up to 2^31); sums over steps belong in int64 on the host, see `Totals`.

    Args:
      labels: class ids, `IGNORE_LABEL` for void.
      predictions: class ids.
      num_classes: rows and columns.
      void: `ignore` leaves void pixels out; `background` counts them as class 0, which is what Keras' MeanIoU makes
        of one-hot labels whose void rows are zero.
      where: pixels that exist; others are left out in either case.
    """
    labels = labels.astype(jnp.int32)
    is_void = labels == IGNORE_LABEL
    if void == "background":
        labels, counted = jnp.where(is_void, 0, labels), jnp.ones(labels.shape, bool)
    else:
        counted = ~is_void
    if where is not None:
        counted = counted & where
    # Pixels that do not count go to a bin of their own, which is cut off.
    cells = jnp.where(counted, labels * num_classes + predictions.astype(jnp.int32), num_classes**2)
    # Not flattened: devices that hold rows of an image would have to gather it.
    counts = jnp.zeros(num_classes**2 + 1, jnp.int32).at[cells].add(1, mode="drop")
    return counts[:-1].reshape(num_classes, num_classes)


def scores(confusion: Int64[np.ndarray, "classes classes"], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Segmentation scores of a whole split's confusion matrix, as plain Python values.

    Intersection over union of a class is tp / (tp + fp + fn). A class that appears neither in the truth nor in the
    predictions has none: its entry is None and the mean leaves it out (as Keras' MeanIoU does). The mean accuracy
    leaves out classes absent from the truth. The frequency-weighted IoU weights by the truth's pixels.

    Returns:
      `mean_iou`, `pixel_accuracy`, `mean_accuracy`, `frequency_weighted_iou` (None if there is no pixel),
      `per_class_iou` by class name, `num_pixels`.
    """
    confusion = confusion.astype(np.int64)
    true_positive = np.diag(confusion)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    union = truth + predicted - true_positive
    num_pixels = int(confusion.sum())
    iou = np.divide(true_positive, union, out=np.full(len(union), np.nan), where=union > 0)
    accuracy = np.divide(true_positive, truth, out=np.full(len(truth), np.nan), where=truth > 0)
    if num_pixels == 0:
        means = dict.fromkeys(("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"))
    else:
        means = {
            "mean_iou": float(np.nanmean(iou)),
            "pixel_accuracy": float(true_positive.sum() / num_pixels),
            "mean_accuracy": float(np.nanmean(accuracy)),
            "frequency_weighted_iou": float(np.nansum(iou * truth) / num_pixels),
        }
    per_class = {
        name: None if math.isnan(value) else float(value) for name, value in zip(class_names, iou, strict=True)
    }
    return means | {"per_class_iou": per_class, "num_pixels": num_pixels}


class Totals:
    """Sums of the reports of many steps, on the host, in integers that do not overflow."""

    def __init__(self, num_classes: int):
        self._num_classes = num_classes
        self.reset()

    def reset(self) -> None:
        """Forgets everything added."""
        self.confusion = np.zeros((self._num_classes, self._num_classes), np.int64)
        self.loss_sum = self.loss_count = 0.0
        self.num_images = 0

    def add(self, report: dict[str, Array]) -> None:
        """Adds a step's `confusion`, `loss_sum`, `loss_count` and, if it has one, `num_images`; waits for the step."""
        self.confusion += np.asarray(report["confusion"], np.int64)
        self.loss_sum += float(report["loss_sum"])
        self.loss_count += float(report["loss_count"])
        self.num_images += int(report.get("num_images", 0))

    def to_json(self) -> dict[str, Any]:
        """The sums as JSON holds them without loss, for `from_json`."""
        sums = {name: getattr(self, name) for name in ("loss_sum", "loss_count", "num_images")}
        return sums | {"confusion": self.confusion.tolist()}

    def from_json(self, sums: dict[str, Any]) -> None:
        """Goes on from the sums that `to_json` gave."""
        self.confusion = np.array(sums["confusion"], np.int64)
        self.loss_sum, self.loss_count, self.num_images = (
            sums[name] for name in ("loss_sum", "loss_count", "num_images")
        )

    def scores(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """`scores` of the summed confusion matrix, and the mean `loss` (None if nothing was counted)."""
        loss = self.loss_sum / self.loss_count if self.loss_count else None
        return scores(self.confusion, class_names) | {"loss": loss}
