"""Labels made visible: colors, overlays and legends."""

import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from deeplab_jax.files import write_atomically
from deeplab_jax.labels import IGNORE_COLOR, IGNORE_LABEL, LabelSet


def colorize(label_map: UInt8[np.ndarray, "height width"], label_set: LabelSet) -> UInt8[np.ndarray, "height width 3"]:
    """RGB of a label map in the palette of its data set; void has a border color, unused ids are black."""
    # Ten times as fast as an array of colors that is indexed by an array of labels.
    return cv2.applyColorMap(np.ascontiguousarray(label_map), label_set.color_table().reshape(256, 1, 3))


def overlay(
    image: UInt8[np.ndarray, "height width 3"],
    label_map: UInt8[np.ndarray, "height width"],
    label_set: LabelSet,
    *,
    opacity: int | float = 0.6,
) -> UInt8[np.ndarray, "height width 3"]:
    """An RGB image tinted with its classes; void pixels are opaque, a class 0 named "background" is not tinted.

    Args:
      image: RGB of range 0-255.
      label_map: of the same height and width.
      labels: its names and colors.
      opacity: of the tint, 0 to 1.
    """
    tinted = cv2.addWeighted(image, 1 - opacity, colorize(label_map, label_set), opacity, 0)
    if label_set.class_names[0] == "background":
        tinted = cv2.copyTo(image, (label_map == 0).view(np.uint8), tinted)
    void = label_map == IGNORE_LABEL
    if void.any():
        tinted[void] = IGNORE_COLOR
    return tinted


def save_palette_png(path: pathlib.Path, label_map: UInt8[np.ndarray, "height width"], label_set: LabelSet) -> None:
    """Writes a PNG of mode P whose indices are the labels, shown in the palette by every viewer (VOC's format).

    Raises:
      UserError: the file cannot be written; nothing is left half-written.
    """
    image = Image.fromarray(label_map)
    image.putpalette(label_set.color_table().tobytes())
    save_png(path, image)


def save_image(path: pathlib.Path, image: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes an RGB PNG.

    Raises:
      UserError: the file cannot be written; nothing is left half-written.
    """
    save_png(path, Image.fromarray(image))


@dataclasses.dataclass(frozen=True)
class ClassShare:
    """A class in a label map.

    Attributes:
      label: its id.
      name: of the class; "void" for pixels of none.
      fraction: of the pixels, above 0, at most 1.
    """

    label: int
    name: str
    fraction: float

    @property
    def percent(self) -> str:
        """Such as `34.2%` or `<0.1%`."""
        return f"{100 * self.fraction:.1f}%" if self.fraction >= 0.001 else "<0.1%"


def class_shares(label_map: UInt8[np.ndarray, "height width"], label_set: LabelSet) -> list[ClassShare]:
    """The classes in a label map, the largest first.

    Raises:
      ValueError: a label that is no class.
    """
    counts = sorted(present_classes([label_map], label_set).items(), key=lambda item: -item[1])
    return [ClassShare(label, class_name(label, label_set), count / label_map.size) for label, count in counts]


def add_legend(
    image: UInt8[np.ndarray, "height width 3"],
    label_map: UInt8[np.ndarray, "map_height map_width"],
    label_set: LabelSet,
) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Puts a strip under an image: color, name and share of the pixels of each class in it, the largest first.

    The text grows with the image but never gets smaller than 13 pixels: a tiny image is widened with white.

    Raises:
      ValueError: a label that is no class.
    """
    height, width = image.shape[:2]
    size = max(13, round(math.sqrt(height * width) / 36))
    font = ImageFont.load_default(size)
    pad, line = size // 2, round(1.6 * size)
    entries = []
    for share in class_shares(label_map, label_set):
        text = f"{share.name} {share.percent}"
        entries.append((share.label, text, size + pad + math.ceil(font.getlength(text)) + 2 * pad))
    out_width = max(width, pad + max(entry_width for *_, entry_width in entries))

    positions, x, y = [], pad, pad // 2  # words of a paragraph: left to right, then the next line
    for *_, entry_width in entries:
        if x + entry_width > out_width and x > pad:
            x, y = pad, y + line
        positions.append((x, y))
        x += entry_width

    drawing = Image.new("RGB", (out_width, height + y + line + pad // 2), "white")
    drawing.paste(Image.fromarray(image), ((out_width - width) // 2, 0))
    draw = ImageDraw.Draw(drawing)
    colors = label_set.color_table()
    for (label, text, _), (x, y) in zip(entries, positions, strict=True):
        top = height + y + (line - size) // 2
        draw.rectangle((x, top, x + size, top + size), fill=tuple(colors[label].tolist()), outline=(128, 128, 128))
        draw.text((x + size + pad, height + y + line // 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(drawing)


def present_classes(label_maps: Iterable[np.ndarray], label_set: LabelSet) -> dict[int, int]:
    """Pixels of each label that occurs."""
    counts = sum((np.bincount(label_map.ravel(), minlength=256) for label_map in label_maps), np.zeros(256, np.int64))
    for label in np.flatnonzero(counts):
        if label_set.num_classes <= label < IGNORE_LABEL:
            raise ValueError(f"label {label} is none of the {label_set.num_classes} classes; pass the right labels")
    return {int(label): int(counts[label]) for label in np.flatnonzero(counts)}


def class_name(label: int, label_set: LabelSet) -> str:
    return "void" if label == IGNORE_LABEL else label_set.class_names[label]


def save_png(path: pathlib.Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
