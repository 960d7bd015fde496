"""The details of an evaluation: counts near boundaries, calibration, scores per image, and the worst images."""

import base64
import bisect
import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import Float32, UInt8

from deeplab_jax import data
from deeplab_jax.evaluation import boundary, metrics, report
from deeplab_jax.evaluation.calibration import CalibrationCounts
from deeplab_jax.evaluation.metrics import ClassCounts
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.parallel import processes, sharding

#: Default number of images with the lowest scores to keep.
NUM_WORST = 20

_LONGEST_SIDE = 480  # larger images are kept at this size

#: Trimaps by the pixels they surround, each with the function that returns the distance to them.
TRIMAPS = {"ignored": boundary.distance_to_ignored, "labels": boundary.distance_to_other_label}


@dataclasses.dataclass(frozen=True, order=True)
class ImageScore:
    """The score of one image. Images compare by their mean IoU, then by name.

    Attributes:
      mean_iou: mean IoU over the classes in the image's label or prediction.
      id: name of the image.
      pixel_accuracy: share of the counted pixels whose class is right.
      num_pixels: number of counted pixels, at least 1.
    """

    mean_iou: float
    id: str
    pixel_accuracy: float
    num_pixels: int


@dataclasses.dataclass(frozen=True)
class WorstImage:
    """One of the images with the lowest scores, at most 480 pixels wide and high.

    Attributes:
      score: its score, computed at the full size.
      image: RGB.
      label: class ids, or the ignore label.
      prediction: class ids.
    """

    score: ImageScore
    image: UInt8[np.ndarray, "height width 3"]
    label: UInt8[np.ndarray, "height width"]
    prediction: UInt8[np.ndarray, "height width"]


class Details:
    """Sums up, image by image, what a report shows in addition to the scores.

    Args:
      num_classes: number of classes.
      ignored_pixels: how ignored pixels are counted, `config.eval.ignored_pixels`. Trimaps always leave them out.
      num_worst: number of images with the lowest scores to keep.
      max_trimap_width: largest trimap width in pixels.
      draw: draws an image as 8-bit RGB.

    Attributes:
      boundary: pixels on the boundaries of each class, see `boundary.boundary_counts`.
      trimaps: pixels in trimaps of each width, see `TRIMAPS` and `boundary.trimap_counts`.
      calibration: pixels by confidence.
      images: the score of every image that has pixels to count.
      worst: the images with the lowest scores, the worst first.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignored_pixels: str = "exclude",
        num_worst: int = NUM_WORST,
        max_trimap_width: int = boundary.MAX_TRIMAP_WIDTH,
        draw: Callable[[np.ndarray], np.ndarray] = data.to_rgb,
    ):
        self._draw = draw
        self._num_classes, self._ignored_pixels, self._num_worst = num_classes, ignored_pixels, num_worst
        self.boundary = ClassCounts.zeros(num_classes)
        self.trimaps = {name: ClassCounts.zeros(max_trimap_width, num_classes) for name in TRIMAPS}
        self.calibration = CalibrationCounts.zeros()
        self.images: list[ImageScore] = []
        self.worst: list[WorstImage] = []

    def add_batch(self, batch: dict[str, Any], result: dict[str, jax.Array]) -> None:
        """Adds the valid images of a batch.

        Args:
          batch: this process's batch of `deeplab_jax.data.eval_batches`.
          result: what the evaluation step returned for it, with `confidence`.
        """
        confidences = sharding.to_local(result["confidence"])
        examples = report.gallery_examples(batch, result["prediction"], self._draw)
        for i, (image, label, prediction) in zip(np.flatnonzero(batch["valid"]), examples, strict=True):
            height, width = label.shape
            self.add_image(batch["id"][i], image, label, prediction, confidences[i][:height, :width])

    def add_image(
        self,
        name: str,
        image: UInt8[np.ndarray, "height width 3"],
        label: UInt8[np.ndarray, "height width"],
        prediction: UInt8[np.ndarray, "height width"],
        confidence: Float32[np.ndarray, "height width"],
    ) -> None:
        """Adds one image at the size it is scored at; `confidence` is the probability of the predicted class."""
        for trimap, distance in TRIMAPS.items():
            self.trimaps[trimap] += boundary.trimap_counts(
                label, prediction, distance(label), num_classes=self._num_classes,
                max_width=len(self.trimaps[trimap].truth),
            )  # fmt: skip
        shown = label
        if self._ignored_pixels == "background":
            label = np.where(label == IGNORE_LABEL, np.uint8(0), label)
        self.boundary += boundary.boundary_counts(label, prediction, num_classes=self._num_classes)
        counted = label != IGNORE_LABEL
        if not counted.any():
            return
        truth, predicted = label[counted], prediction[counted]
        correct = truth == predicted
        self.calibration += CalibrationCounts.of_pixels(confidence[counted], correct)
        counts = ClassCounts.from_labels(truth, predicted, self._num_classes)
        score = ImageScore(metrics.mean_of_present(counts.iou()), name, float(correct.mean()), len(truth))
        self.images.append(score)
        if len(self.worst) < self._num_worst or score < self.worst[-1].score:
            shrunk = [_shrink(array) for array in (image, shown, prediction)]
            bisect.insort(self.worst, WorstImage(score, *shrunk), key=operator.attrgetter("score"))
            del self.worst[self._num_worst :]

    def gather(self) -> None:
        """Adds the images of all other processes. A collective operation: every process calls it once, at the end."""
        if jax.process_count() == 1:
            return
        parts = [self._from_json(part) for part in processes.gather(self.to_json())]
        self.boundary = functools.reduce(operator.add, [part.boundary for part in parts])
        self.trimaps = {
            name: functools.reduce(operator.add, [part.trimaps[name] for part in parts]) for name in TRIMAPS
        }
        self.calibration = functools.reduce(operator.add, [part.calibration for part in parts])
        self.images = [score for part in parts for score in part.images]
        worst = [image for part in parts for image in part.worst]
        self.worst = sorted(worst, key=operator.attrgetter("score"))[: self._num_worst]

    def to_json(self) -> dict[str, Any]:
        """Returns the details of the images added so far as values that JSON holds without loss."""
        return {
            "boundary": self.boundary.to_json(),
            "trimaps": {name: counts.to_json() for name, counts in self.trimaps.items()},
            "calibration": self.calibration.to_json(),
            "images": [dataclasses.astuple(score) for score in self.images],
            "worst": [
                [dataclasses.astuple(each.score), *map(encode_array, (each.image, each.label, each.prediction))]
                for each in self.worst
            ],
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Sets the details to the values that `to_json` returned."""
        self.boundary = ClassCounts.from_json(values["boundary"])
        self.trimaps = {name: ClassCounts.from_json(counts) for name, counts in values["trimaps"].items()}
        self.calibration = CalibrationCounts.from_json(values["calibration"])
        self.images = [ImageScore(*score) for score in values["images"]]
        self.worst = [WorstImage(ImageScore(*score), *map(decode_array, arrays)) for score, *arrays in values["worst"]]

    def _from_json(self, values: dict[str, Any]) -> "Details":
        part = Details(self._num_classes)
        part.restore(values)
        return part

    def scores(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Returns the scores as values that JSON can hold.

        Returns:
          `mean_boundary_iou` and `per_class_boundary_iou`; `mean_image_iou`, the mean of the images' scores; `trimap`:
          by the name in `TRIMAPS`, `widths` and for each of them `mean_iou`, `pixel_accuracy` and `num_pixels`, without
          trimaps that have no pixels; and `calibration`, see `CalibrationCounts.scores`.
        """
        boundary_iou = self.boundary.iou()
        return {
            "mean_boundary_iou": metrics.mean_of_present(boundary_iou),
            "per_class_boundary_iou": metrics.by_class(boundary_iou, class_names),
            "mean_image_iou": float(np.mean([score.mean_iou for score in self.images])) if self.images else None,
            "trimap": {name: _curve(counts) for name, counts in self.trimaps.items() if counts.truth.any()},
            "calibration": self.calibration.scores(),
        }


def _curve(counts: ClassCounts) -> dict[str, list[Any]]:
    pixels = counts.truth.sum(axis=-1)
    return {
        "widths": list(range(1, len(pixels) + 1)),
        "mean_iou": [metrics.mean_of_present(iou) for iou in counts.iou()],
        "pixel_accuracy": (counts.intersection.sum(axis=-1) / pixels).tolist(),
        "num_pixels": pixels.tolist(),
    }


def _shrink(array: np.ndarray) -> np.ndarray:
    """Shrinks an image, or a map of class ids, to at most `_LONGEST_SIDE`."""
    factor = _LONGEST_SIDE / max(array.shape[:2])
    if factor >= 1:
        return array.copy()  # not a view that keeps the whole batch alive
    height, width = (max(1, round(extent * factor)) for extent in array.shape[:2])
    nearest = array.ndim == 2
    return cv2.resize(array, (width, height), interpolation=cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_AREA)


def encode_array(array: UInt8[np.ndarray, "height width *channels"]) -> str:
    """Encodes an image or a map of class ids as text, without loss."""
    return base64.b64encode(cv2.imencode(".png", array)[1]).decode()


def decode_array(text: str) -> UInt8[np.ndarray, "height width *channels"]:
    """Decodes the text that `encode_array` returned."""
    return cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_UNCHANGED)
