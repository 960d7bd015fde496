"""Scores, speed and size of exported files, and how much the way of resizing changes labels.

    python -m benchmarks.exports --voc ../shared/data/voc_subset --images 100 net.tflite net_int8.tflite
    python -m benchmarks.exports --voc ../shared/data/voc_subset --images 40 --resizing net.onnx

Files take turns on each image, with two threads. The first file is the reference of the others. All of them must have
logits as their output and a network that resizes images to one size (the protocol `squeeze`).
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from PIL import Image

from deeplab_jax.export import running

THREADS = 2
IGNORE = 255


def _nearest(labels, size):
    return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)


def _linear(array, size):
    return cv2.resize(array, size, interpolation=cv2.INTER_LINEAR)


def _pillow(image, size):
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


#: How the image becomes the network's input, and how the logits become labels of the image's size.
WAYS: dict[str, tuple[Callable, Callable]] = {
    "OpenCV INTER_LINEAR; logits resized (as `predict`)": (_linear, lambda x, size: _linear(x, size).argmax(-1)),
    "the same on float32 pixels, not rounded": (
        lambda image, size: _linear(image.astype(np.float32), size),
        lambda x, size: _linear(x, size).argmax(-1),
    ),
    "Pillow BILINEAR (antialiased); logits resized": (_pillow, lambda x, size: _linear(x, size).argmax(-1)),
    "OpenCV INTER_AREA; logits resized": (
        lambda image, size: cv2.resize(image, size, interpolation=cv2.INTER_AREA),
        lambda x, size: _linear(x, size).argmax(-1),
    ),
    "OpenCV INTER_LINEAR; labels resized (nearest)": (
        _linear,
        lambda x, size: _nearest(x.argmax(-1).astype(np.uint8), size),
    ),
    "Pillow BILINEAR; labels resized (nearest)": (
        _pillow,
        lambda x, size: _nearest(x.argmax(-1).astype(np.uint8), size),
    ),
}


class File:
    """An exported file, and what was measured of it."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        values = json.loads(path.with_name(f"{path.name}.json").read_text())
        self.size = tuple(values["feeding"]["image_size"])
        self.dtype = values["input"]["dtype"]
        self.classes = len(values["class_names"])
        self.run = running.load(values["format"], path, threads=THREADS)
        self.confusion = np.zeros((self.classes, self.classes), np.int64)
        self.seconds, self.equal = [], []

    def logits(self, fed: np.ndarray) -> np.ndarray:
        """Returns the logits of one input."""
        begin = time.perf_counter()
        logits = self.run(fed[None].astype(self.dtype))[0]
        self.seconds.append(time.perf_counter() - begin)
        return logits

    def add(self, labels: np.ndarray, truth: np.ndarray, reference: np.ndarray) -> None:
        """Counts the labels of one image."""
        known = truth != IGNORE
        pairs = truth[known].astype(np.int64) * self.classes + labels[known]
        self.confusion += np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)
        self.equal.append(np.mean(labels == reference))

    def mean_iou(self) -> float:
        """Returns the mean IoU of all classes that occur."""
        correct = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - correct
        return float(np.mean(correct[union > 0] / union[union > 0]))


def examples(voc: pathlib.Path, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images and labels, spread over VOC's val."""
    names = (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    for name in names[:: max(1, len(names) // count)][:count]:
        image = Image.open(voc / "JPEGImages" / f"{name}.jpg").convert("RGB")
        yield np.asarray(image), np.asarray(Image.open(voc / "SegmentationClass" / f"{name}.png"))


def score(files: list[File], voc: pathlib.Path, count: int) -> None:
    """Prints a row per file."""
    resize, to_labels = next(iter(WAYS.values()))
    for image, truth in examples(voc, count):
        reference = None
        for file in files:
            labels = to_labels(file.logits(resize(image, file.size[::-1])), truth.shape[::-1])
            reference = labels if reference is None else reference
            file.add(labels, truth, reference)
    print("| file | MB | mean IoU | equal labels | time per image |\n|---|---|---|---|---|")
    for file in files:
        ratios = np.divide(file.seconds, files[0].seconds)
        print(
            f"| {file.path.name} | {file.path.stat().st_size / 1e6:.1f} | {file.mean_iou():.2%} "
            f"| {np.mean(file.equal):.2%} | {np.median(ratios):.2f} |"
        )


def compare_resizing(file: File, voc: pathlib.Path, count: int) -> None:
    """Prints a row per way of resizing: the pixels with the label of the first."""
    equal = {way: [] for way in WAYS}
    for image, truth in examples(voc, count):
        reference = None
        for way, (resize, to_labels) in WAYS.items():
            labels = to_labels(file.logits(resize(image, file.size[::-1])), truth.shape[::-1])
            reference = labels if reference is None else reference
            file.add(labels, truth, reference)
            equal[way].append(np.mean(labels == reference))
    for way, shares in equal.items():
        print(f"| {way} | {np.mean(shares):.3%} |")


def main() -> None:
    """Measures the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--voc", type=pathlib.Path, required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--resizing", action="store_true")
    args = parser.parse_args()
    files = [File(path) for path in args.files]
    if args.resizing:
        compare_resizing(files[0], args.voc, args.images)
    else:
        score(files, args.voc, args.images)


if __name__ == "__main__":
    main()
