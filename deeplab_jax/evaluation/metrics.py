"""Integer confusion matrices and the scores computed from them."""

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
    ignored_pixels: str = "exclude",
    where: Bool[Array, "batch height width"] | None = None,
) -> Int32[Array, "classes classes"]:
    """Counts pixels by true class (rows) and predicted class (columns).

    int32 holds the pixels of one step (up to 2^31). Sum over steps in int64 on the host, see `Totals`.

    Args:
      labels: class ids, or `IGNORE_LABEL`.
      predictions: class ids.
      num_classes: number of rows and columns.
      ignored_pixels: `exclude` leaves out pixels with the ignore label. `background` counts them as class 0, as Keras'
        MeanIoU does for one-hot labels whose ignored rows are zero.
      where: pixels that exist; others are left out in either case.
    """
    labels = labels.astype(jnp.int32)
    is_ignored = labels == IGNORE_LABEL
    if ignored_pixels == "background":
        labels, counted = jnp.where(is_ignored, 0, labels), jnp.ones(labels.shape, bool)
    else:
        counted = ~is_ignored
    if where is not None:
        counted = counted & where
    # Pixels that do not count go to an extra bin, which is dropped.
    cells = jnp.where(counted, labels * num_classes + predictions.astype(jnp.int32), num_classes**2)
    # Not flattened, or devices that hold rows of an image would have to gather it.
    counts = jnp.zeros(num_classes**2 + 1, jnp.int32).at[cells].add(1, mode="drop")
    return counts[:-1].reshape(num_classes, num_classes)


def scores(confusion: Int64[np.ndarray, "classes classes"], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Computes segmentation scores from the confusion matrix of a whole split, as plain Python values.

    The intersection over union of a class is tp / (tp + fp + fn). A class that appears neither in the labels nor in the
    predictions has no IoU: its entry is None and the mean leaves it out, as Keras' MeanIoU does. The mean accuracy
    leaves out classes that are absent from the labels. The frequency-weighted IoU weights by the labels' pixels.

    Args:
      confusion: pixels by true class (rows) and predicted class (columns).
      class_names: one name per class.

    Returns:
      `mean_iou`, `pixel_accuracy`, `mean_accuracy`, `frequency_weighted_iou` (all None if no pixel was counted),
      `per_class_iou` by class name, and `num_pixels`.
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
    """Sums the reports of many steps on the host, in integers that do not overflow.

    Attributes:
      confusion: int64 (classes, classes), pixels by true and predicted class.
      loss_sum: sum of the loss.
      loss_count: number of pixels (or their weight) in the loss.
      loss_terms: sum and count of each term by name, of a loss with several terms.
      num_images: number of images evaluated.
    """

    def __init__(self, num_classes: int):
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.loss_sum = self.loss_count = 0.0
        self.loss_terms: dict[str, list[float]] = {}
        self.num_images = 0

    def add(self, report: dict[str, Any]) -> None:
        """Adds a step's `confusion`, `loss_sum`, `loss_count`, `loss_terms` and `num_images`. Waits for the step.

        The last two may be missing.
        """
        self.confusion += np.asarray(report["confusion"], np.int64)
        self.loss_sum += float(report["loss_sum"])
        self.loss_count += float(report["loss_count"])
        for name, values in report.get("loss_terms", {}).items():
            before = self.loss_terms.get(name, (0.0, 0.0))
            self.loss_terms[name] = [total + float(value) for total, value in zip(before, values, strict=True)]
        self.num_images += int(report.get("num_images", 0))

    def to_json(self) -> dict[str, Any]:
        """Returns the sums as values that JSON holds without loss."""
        sums = {name: getattr(self, name) for name in ("loss_sum", "loss_count", "loss_terms", "num_images")}
        return sums | {"confusion": self.confusion.tolist()}

    @classmethod
    def from_json(cls, sums: dict[str, Any]) -> "Totals":
        """Creates totals from the sums that `to_json` returned."""
        totals = cls(len(sums["confusion"]))
        totals.confusion = np.array(sums["confusion"], np.int64)
        totals.loss_sum, totals.loss_count, totals.num_images = (
            sums[name] for name in ("loss_sum", "loss_count", "num_images")
        )
        totals.loss_terms = dict(sums.get("loss_terms", {}))  # earlier versions had one term
        return totals

    def scores(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Returns `scores` of the summed confusion matrix, and the mean `loss` (None if nothing was counted).

        The loss of several terms is the sum of `loss_terms`, the weighted mean of each over everything that it counts.
        """
        values = scores(self.confusion, class_names)
        if not self.loss_terms:
            return values | {"loss": self.loss_sum / self.loss_count if self.loss_count else None}
        terms = {name: total / count if count else 0.0 for name, (total, count) in self.loss_terms.items()}
        return values | {"loss": sum(terms.values()), "loss_terms": terms}
