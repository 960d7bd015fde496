"""The parts that all annotation formats have in common: classes, images, and finding files.

A reader of a format returns `Annotations`: the class names, and for each image a function that draws its label. In all
formats, a class named `__ignore__` is the ignore label, and `background` or `_background_` is class 0.
"""

import dataclasses
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from deeplab_jax import budget
from deeplab_jax.data.formats.canvas import Canvas
from deeplab_jax.data.formats.class_list import IGNORE_NAME, Color, read_classes
from deeplab_jax.data.formats.file_names import normalize
from deeplab_jax.data.image_files import describe_left_out, is_clutter, is_image_name, list_images
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.files import read_json
from deeplab_jax.labels import IGNORE_COLOR, IGNORE_LABEL, LabelSet

BACKGROUND = "background"
#: Names of class 0.
BACKGROUND_NAMES = (BACKGROUND, "_background_")
_SHOWN = 60  # characters of a name from a file in a message
_NAMED = 3  # files that a message names
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")

#: Folders between the root of an export and its images that say nothing.
_IMAGE_FOLDERS = ("images", "jpegimages", "img")


class Classes:
    """The classes of an export: class 0 is `background`, the others follow in the order of the source.

    Attributes:
      label_set: names and colors, without `__ignore__`.
    """

    def __init__(self, entries: Iterable[tuple[str, Color | None]], source: object):
        """Creates the classes.

        Args:
          entries: name and color of each class; a name may come several times.
          source: file or folder for messages.

        Raises:
          UserError: there are none, or too many.
        """
        colors = {BACKGROUND: None}
        for name, color in entries:
            key = _normalize_class(name)
            if key != IGNORE_NAME:
                colors[key] = colors.get(key) or color
        names = tuple(colors)
        if len(names) == 1:
            raise UserError(f"{source} has no classes")
        if len(names) > IGNORE_LABEL:
            raise UserError(f"{source} has {len(names) - 1} classes; at most {IGNORE_LABEL - 1} and background fit")
        self._source = source
        self._ids = {name: index for index, name in enumerate(names)}
        colors[BACKGROUND] = colors[BACKGROUND] or (0, 0, 0)
        given = list(colors.values())
        usable = None not in given and len(set(given)) == len(given) and IGNORE_COLOR not in given
        self.label_set = LabelSet(names, tuple(given)) if usable else LabelSet.from_names(names)

    def find(self, name: object, entry: str) -> int:
        """The id of a class: `IGNORE_LABEL` for `__ignore__`.

        Args:
          name: the name in the file.
          entry: the file and the shape, for the message.

        Raises:
          UserError: the class is unknown.
        """
        key = _normalize_class(name) if isinstance(name, str) else None
        if key == IGNORE_NAME:
            return IGNORE_LABEL
        if key not in self._ids:
            raise UserError(
                f"{entry} has class {shorten(name)}, which {self._source} does not list{suggest(str(name), self._ids)}"
            )
        return self._ids[key]


def _normalize_class(name: str) -> str:
    """A class name with single spaces, as class lists are read."""
    name = " ".join(name.split())
    return BACKGROUND if name in BACKGROUND_NAMES else name


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
    """An image and its annotations.

    Attributes:
      name: its path in the data set, such as `train/a.jpg`.
      image: the image file, or its content if it is embedded in the annotations.
      entry: file and entry for messages.
      draw: draws the shapes on a canvas.
      size: (height, width) that the annotations state; None if they do not.
      split: the split that the export assigns it to, if any.
      label_files: the mask and the list of its classes, if the annotations are a mask.
    """

    name: str
    image: pathlib.Path | bytes
    entry: str
    draw: Callable[[Canvas], None]
    size: tuple[int, int] | None = None
    split: str | None = None
    label_files: tuple[pathlib.Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The content of an export.

    Attributes:
      classes: its classes.
      images: its images.
      notes: what a person should know of how it is read; one line each.
    """

    classes: Classes
    images: list[AnnotatedImage]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Export:
    """The place of an export: its files are read from here and nowhere else.

    Attributes:
      source: the folder or the annotation file.
      images: a folder with the images, if they are somewhere else.
      classes: a class list that replaces the classes of the export.
    """

    source: pathlib.Path
    images: pathlib.Path | None = None
    classes: pathlib.Path | None = None

    @property
    def root(self) -> pathlib.Path:
        """The folder of the export."""
        return self.source if self.source.is_dir() else self.source.parent

    def find(self, pattern: str) -> list[pathlib.Path]:
        """The files that match a glob pattern anywhere in the folder, sorted; or the source if it is a file itself.

        Raises:
          UserError: a file is a link that leads out of the folder.
        """
        if not self.source.is_dir():
            return [self.source] if self.source.match(pattern) else []
        found = []
        for path in sorted(self.source.rglob(pattern)):
            if path.is_file() and not any(map(is_clutter, path.relative_to(self.source).parts)):
                found.append(check_inside(path, self.source))
        return found

    def find_images(self, folder: str = ".") -> "ImageFiles":
        """The images: those of `--images`, or else those in a folder of the export."""
        if self.images is not None:
            return ImageFiles(self.images)
        return ImageFiles(self.root / folder, is_export=True)

    def read_classes(self, entries: Iterable[tuple[str, Color | None]], source: object) -> Classes:
        """The classes of `--classes`, or else those of the export; see `Classes`."""
        if self.classes is None:
            return Classes(entries, source)
        listed = read_classes(self.classes)
        colors = listed.label_set.palette if listed.has_colors else [None] * listed.label_set.num_classes
        return Classes(zip(listed.label_set.class_names, colors, strict=True), self.classes)


class ImageFiles:
    """The images of a folder, found by the paths that annotations contain, which are often those of other machines."""

    def __init__(self, folder: pathlib.Path, *, is_export: bool = False):
        """Lists the images of a folder and its subfolders.

        Args:
          folder: the folder.
          is_export: the folder comes from someone else, so links that lead out of it are refused.
        """
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; give the folder of the images with --images")
        images, self._left_out = list_images(folder, recursive=True)
        self._folder, self._is_export = folder, is_export
        self._files = {normalize(path.relative_to(folder).as_posix()): path for path in images}
        self._by_name, self._by_stem = defaultdict(list), defaultdict(list)
        for key in self._files:
            name = key.rpartition("/")[2]
            self._by_name[name].append(key)
            self._by_stem[name.rpartition(".")[0]].append(key)

    def __iter__(self) -> Iterator[str]:
        """The paths of the images in the folder."""
        return iter(self._files)

    def path(self, key: str) -> pathlib.Path:
        """The file of a path in the folder.

        Raises:
          UserError: it is a link that leads out of an export.
        """
        return check_inside(self._files[key], self._folder) if self._is_export else self._files[key]

    def find(self, text: object, entry: str) -> str:
        """The path in the folder of the image that annotations name: by its last parts, with or without suffix.

        Args:
          text: a path or an address; folders that do not exist here are ignored.
          entry: the file and the entry, for the message.

        Raises:
          UserError: there is no such image, or there are several.
        """
        if not isinstance(text, str) or not text:
            raise UserError(f"{entry} does not name its image")
        if _URL.match(text):
            text = unquote(text.partition("?")[0])
        parts = [part for part in normalize(text).split("/") if part not in ("", ".", "..")] or [""]
        has_suffix = is_image_name(parts[-1])
        candidates = (self._by_name if has_suffix else self._by_stem).get(parts[-1], [])
        for start in range(len(parts) if candidates else 0):
            tail = "/" + "/".join(parts[start:])
            found = [key for key in candidates if f"/{key if has_suffix else key.rpartition('.')[0]}".endswith(tail)]
            if len(found) == 1:
                return found[0]
            if found:
                names = ", ".join(sorted(found)[:_NAMED])
                raise UserError(f"{entry} names image {shorten(text)}, but {self._folder} has several: {names}")
        others = f"; it contains {describe_left_out(self._left_out)}" if self._left_out and not self._files else ""
        raise UserError(
            f"{entry} names image {shorten(text)}, which is not in {self._folder}{others}; give the folder of the "
            "images with --images"
        )

    def output_name(self, key: str) -> str:
        """The path of an image in the data set: without folders that are called images."""
        *folders, name = key.split("/")
        return "/".join([*(folder for folder in folders if folder.lower() not in _IMAGE_FOLDERS), name])


def check_inside(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Returns a path if it is in a folder after links are resolved.

    Raises:
      UserError: it is a link that leads out of the folder.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is a link that leads out of {folder}; replace it by a copy of the file")
    return path


def read_annotations(path: pathlib.Path, kind: type = dict) -> Any:
    """Reads a JSON file of annotations.

    Raises:
      UserError: see `deeplab_jax.files.read_json`.
    """
    return read_json(path, max_bytes=budget.ANNOTATION_BYTES, kind=kind)


def get_list(values: Mapping[str, Any], key: str, entry: object) -> list[Any]:
    """A list of JSON objects; empty if it is missing.

    Raises:
      UserError: it is something else.
    """
    found = values.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise UserError(f"{entry}: `{key}` is not a list of objects")
    return found


def get_size(values: Mapping[str, Any], height: str, width: str) -> tuple[int, int] | None:
    """The (height, width) that annotations state; None if they do not."""
    size = values.get(height), values.get(width)
    return size if all(type(side) is int and side > 0 for side in size) else None


def shorten(name: object) -> str:
    """A name from a file, for a message."""
    text = repr(name)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def parse_color(text: object) -> Color | None:
    """The color of `#rrggbb`; None if it is something else."""
    if isinstance(text, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return tuple(bytes.fromhex(text[1:]))
    return None
