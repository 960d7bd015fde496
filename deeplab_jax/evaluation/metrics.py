"""Integer confusion matrices and the scores computed from them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float64, Int32, Int64, Integer

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


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """Pixels of each class, the source of all scores per class. Sums of counts give the scores of several images.

    Attributes:
      intersection: pixels of the class in both labels and predictions.
      truth: pixels of the class in the labels.
      predicted: pixels of the class in the predictions.
    """

    intersection: Int64[np.ndarray, "*leading classes"]
    truth: Int64[np.ndarray, "*leading classes"]
    predicted: Int64[np.ndarray, "*leading classes"]

    @classmethod
    def from_confusion(cls, confusion: Integer[np.ndarray, "classes classes"]) -> "ClassCounts":
        """Counts the pixels in a confusion matrix of true (rows) and predicted (columns) classes."""
        confusion = confusion.astype(np.int64)
        return cls(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0))

    @classmethod
    def from_labels(
        cls, truth: Integer[np.ndarray, "*size"], predicted: Integer[np.ndarray, "*size"], num_classes: int
    ) -> "ClassCounts":
        """Counts true and predicted class ids. Ids of `num_classes` and above are not counted."""
        agreed = truth[truth == predicted]
        counts = (np.bincount(ids.ravel(), minlength=num_classes)[:num_classes] for ids in (agreed, truth, predicted))
        return cls(*(each.astype(np.int64) for each in counts))

    @classmethod
    def zeros(cls, *shape: int) -> "ClassCounts":
        """Returns counts of zero."""
        return cls(*(np.zeros(shape, np.int64) for _ in range(3)))

    def to_json(self) -> list[Any]:
        """Returns the counts as values that JSON can hold."""
        return [self.intersection.tolist(), self.truth.tolist(), self.predicted.tolist()]

    @classmethod
    def from_json(cls, values: list[Any]) -> "ClassCounts":
        """Creates counts from the values that `to_json` returned."""
        return cls(*(np.array(each, np.int64) for each in values))

    def __add__(self, other: "ClassCounts") -> "ClassCounts":
        return ClassCounts(
            self.intersection + other.intersection, self.truth + other.truth, self.predicted + other.predicted
        )

    @property
    def union(self) -> Int64[np.ndarray, "*leading classes"]:
        """Pixels of the class in the labels or the predictions."""
        return self.truth + self.predicted - self.intersection

    def iou(self) -> Float64[np.ndarray, "*leading classes"]:
        """Intersection over union; NaN for a class that is absent from labels and predictions."""
        return _ratio(self.intersection, self.union)

    def dice(self) -> Float64[np.ndarray, "*leading classes"]:
        """Dice coefficient, also called F1; NaN for a class that is absent from labels and predictions."""
        return _ratio(2 * self.intersection, self.truth + self.predicted)

    def precision(self) -> Float64[np.ndarray, "*leading classes"]:
        """Share of predicted pixels that are right; NaN for a class that is never predicted."""
        return _ratio(self.intersection, self.predicted)

    def recall(self) -> Float64[np.ndarray, "*leading classes"]:
        """Share of true pixels that are found, also called class accuracy; NaN for a class absent from the labels."""
        return _ratio(self.intersection, self.truth)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)


def mean_of_present(values: Float64[np.ndarray, "classes"]) -> float | None:
    """Returns the mean of the values that are not NaN; None if all are."""
    return None if np.isnan(values).all() else float(np.nanmean(values))


def by_class(values: Float64[np.ndarray, "classes"], class_names: tuple[str, ...]) -> dict[str, float | None]:
    """Returns a value per class name, None instead of NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(class_names, values, strict=True)}


def scores(confusion: Int64[np.ndarray, "classes classes"], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Computes segmentation scores from the confusion matrix of a whole split, as plain Python values.

    The intersection over union of a class is tp / (tp + fp + fn). A class that appears neither in the labels nor in the
    predictions has no IoU: its entry is None and the mean leaves it out, as Keras' MeanIoU does. The same holds for its
    Dice coefficient. The mean recall, which papers call mean accuracy, leaves out classes that are absent from the
    labels, and the mean precision leaves out those that are never predicted. The frequency-weighted IoU weights by the
    labels' pixels.

    Args:
      confusion: pixels by true class (rows) and predicted class (columns).
      class_names: one name per class.

    Returns:
      `mean_iou`, `pixel_accuracy`, `mean_accuracy`, `frequency_weighted_iou`, `mean_dice`, `mean_precision` (all None
      if no pixel was counted), `per_class_iou`, `per_class_dice`, `per_class_precision` and `per_class_recall` by class
      name, and `num_pixels`.
    """
    counts = ClassCounts.from_confusion(confusion)
    num_pixels = int(counts.truth.sum())
    per_class = {name: getattr(counts, name)() for name in ("iou", "dice", "precision", "recall")}
    return {
        "mean_iou": mean_of_present(per_class["iou"]),
        "pixel_accuracy": float(counts.intersection.sum() / num_pixels) if num_pixels else None,
        "mean_accuracy": mean_of_present(per_class["recall"]),
        "frequency_weighted_iou": (
            float(np.nansum(per_class["iou"] * counts.truth) / num_pixels) if num_pixels else None
        ),
        "mean_dice": mean_of_present(per_class["dice"]),
        "mean_precision": mean_of_present(per_class["precision"]),
        **{f"per_class_{name}": by_class(values, class_names) for name, values in per_class.items()},
        "num_pixels": num_pixels,
    }


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
