"""Masks in color, overlays and legends."""

import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from deeplab_jax.data.images import encode_palette_png
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import IGNORE_COLOR, IGNORE_LABEL, LabelSet
from deeplab_jax.text import printable

_ERROR_COLOR = (214, 30, 30)


def colorize(label: UInt8[np.ndarray, "height width"], label_set: LabelSet) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the RGB mask of a label, in the colors of its classes; ignored pixels have `IGNORE_COLOR`."""
    # ten times faster than indexing an array of colors
    return cv2.applyColorMap(np.ascontiguousarray(label), label_set.color_table().reshape(256, 1, 3))


def overlay(
    image: UInt8[np.ndarray, "height width 3"],
    label: UInt8[np.ndarray, "height width"],
    label_set: LabelSet,
    *,
    opacity: int | float = 0.6,
) -> UInt8[np.ndarray, "height width 3"]:
    """Tints an RGB image with the colors of its classes.

    Ignored pixels are opaque. A class 0 named "background" is not tinted.

    Args:
      image: RGB of range 0-255.
      label: class ids, of the same height and width.
      label_set: names and colors of the classes.
      opacity: opacity of the tint, 0 to 1.
    """
    tinted = cv2.addWeighted(image, 1 - opacity, colorize(label, label_set), opacity, 0)
    if label_set.class_names[0] == "background":
        tinted = cv2.copyTo(image, (label == 0).view(np.uint8), tinted)
    ignored = label == IGNORE_LABEL
    if ignored.any():
        tinted[ignored] = IGNORE_COLOR
    return tinted


def mark_errors(
    image: UInt8[np.ndarray, "height width 3"],
    label: UInt8[np.ndarray, "height width"],
    prediction: UInt8[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the image in light gray, with pixels of a wrong class in red and ignored pixels in `IGNORE_COLOR`."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    marked = cv2.addWeighted(gray, 0.5, np.full_like(gray, 255), 0.5, 0)
    ignored = label == IGNORE_LABEL
    marked[ignored] = IGNORE_COLOR
    wrong = (label != prediction) & ~ignored
    marked[wrong] = (0.35 * marked[wrong] + 0.65 * np.array(_ERROR_COLOR)).round().astype(np.uint8)
    return marked


def save_palette_png(path: pathlib.Path, label: UInt8[np.ndarray, "height width"], label_set: LabelSet) -> None:
    """Writes a mask as a palette PNG (VOC's format): its indices are the class ids, and viewers show the colors.

    Raises:
      UserError: the file cannot be written; no partial file remains.
    """
    write_atomically(path, encode_palette_png(label, label_set))


def save_image(path: pathlib.Path, image: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes an RGB PNG.

    Raises:
      UserError: the file cannot be written; no partial file remains.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


@dataclasses.dataclass(frozen=True)
class ClassShare:
    """The share of one class in an image.

    Attributes:
      class_id: class id, or the ignore label.
      name: class name; "unlabeled" for the ignore label.
      fraction: fraction of the pixels, above 0 and at most 1.
    """

    class_id: int
    name: str
    fraction: float

    @property
    def percent(self) -> str:
        """The fraction for people, such as `34.2%` or `<0.1%`."""
        return f"{100 * self.fraction:.1f}%" if self.fraction >= 0.001 else "<0.1%"


def class_shares(label: UInt8[np.ndarray, "height width"], label_set: LabelSet) -> list[ClassShare]:
    """Returns the classes in a label, the largest first.

    Raises:
      ValueError: a value is not a class id.
    """
    counts = sorted(count_labels([label], label_set).items(), key=lambda item: -item[1])
    return [ClassShare(class_id, class_name(class_id, label_set), count / label.size) for class_id, count in counts]


def add_legend(
    image: UInt8[np.ndarray, "height width 3"],
    label: UInt8[np.ndarray, "label_height label_width"],
    label_set: LabelSet,
) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Adds a legend below an image: color, name and share of each class in it, the largest first.

    The text grows with the image and is at least 13 pixels high. A tiny image is widened with white.

    Raises:
      ValueError: a value of the label is not a class id.
    """
    height, width = image.shape[:2]
    size = max(13, round(math.sqrt(height * width) / 36))
    font = ImageFont.load_default(size)
    pad, line = size // 2, round(1.6 * size)
    entries = []
    for share in class_shares(label, label_set):
        text = f"{share.name} {share.percent}"
        entries.append((share.class_id, text, size + pad + math.ceil(font.getlength(text)) + 2 * pad))
    out_width = max(width, pad + max(entry_width for *_, entry_width in entries))

    positions, x, y = [], pad, pad // 2  # entries flow like words of a paragraph
    for *_, entry_width in entries:
        if x + entry_width > out_width and x > pad:
            x, y = pad, y + line
        positions.append((x, y))
        x += entry_width

    drawing = Image.new("RGB", (out_width, height + y + line + pad // 2), "white")
    drawing.paste(Image.fromarray(image), ((out_width - width) // 2, 0))
    draw = ImageDraw.Draw(drawing)
    colors = label_set.color_table()
    for (class_id, text, _), (x, y) in zip(entries, positions, strict=True):
        top = height + y + (line - size) // 2
        draw.rectangle((x, top, x + size, top + size), fill=tuple(colors[class_id].tolist()), outline=(128, 128, 128))
        draw.text((x + size + pad, height + y + line // 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(drawing)


def count_labels(labels: Iterable[np.ndarray], label_set: LabelSet) -> dict[int, int]:
    """Returns the number of pixels of each value that occurs in the labels.

    Raises:
      ValueError: a value is not a class id.
    """
    counts = sum((np.bincount(label.ravel(), minlength=256) for label in labels), np.zeros(256, np.int64))
    for class_id in np.flatnonzero(counts):
        if label_set.num_classes <= class_id < IGNORE_LABEL:
            raise ValueError(f"label {class_id} is not one of the {label_set.num_classes} classes; check label_set")
    return {int(class_id): int(counts[class_id]) for class_id in np.flatnonzero(counts)}


def class_name(class_id: int, label_set: LabelSet) -> str:
    """Returns the name of a class id on one line; "unlabeled" for the ignore label."""
    return "unlabeled" if class_id == IGNORE_LABEL else printable(label_set.class_names[class_id])
