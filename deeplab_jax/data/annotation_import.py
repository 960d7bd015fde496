"""Importing annotations: from what annotation tools write to a folder of images and masks."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from deeplab_jax import progress
from deeplab_jax.data import archives, images
from deeplab_jax.data.annotation_formats import find_format
from deeplab_jax.data.formats.annotations import AnnotatedImage, Annotations, Export
from deeplab_jax.data.formats.canvas import Canvas
from deeplab_jax.data.formats.class_list import read_classes
from deeplab_jax.data.image_files import is_clutter
from deeplab_jax.errors import UserError, from_os_error
from deeplab_jax.files import create_folder, local_path
from deeplab_jax.labels import LabelSet

logger = logging.getLogger(__name__)

_NAMED = 3  # skipped shapes that a note names
_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """The result of an import.

    Attributes:
      images: number of images and masks written.
      shapes: number of shapes drawn.
      skipped: the shapes that cover no area, each with the reason.
      empty: images without annotations, which are left out.
      label_set: the classes.
      pixels: number of pixels of each label.
      notes: what a person should know of how the annotations are read; one line each.
    """

    images: int
    shapes: int
    skipped: list[str]
    empty: list[str]
    label_set: LabelSet
    pixels: Counter
    notes: tuple[str, ...]


def import_annotations(
    name: str,
    source: pathlib.Path,
    output: pathlib.Path,
    *,
    image_folder: pathlib.Path | None = None,
    classes: pathlib.Path | None = None,
    keep_empty: bool = False,
) -> ImportReport:
    """Writes annotations as a folder for the data set `folder`: `images/`, `masks/` and `classes.txt`.

    If anything goes wrong, `output` is not created.

    Args:
      name: a format of `deeplab_jax.data.annotation_formats`.
      source: the export: a folder, an annotation file, or a zip or tar archive.
      output: the folder to create.
      image_folder: folder of the images, if they are not in the export.
      classes: a class list that sets names and ids (default: the order of the export, after `background`).
      keep_empty: import images without annotations too, as background.

    Raises:
      UserError: a file is missing or damaged, or an annotation does not fit its image; the message names both.
    """
    tool = find_format(name)
    output = local_path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} exists; choose another --output or remove it")
    create_folder(output.parent, "the parent of --output")
    with contextlib.ExitStack() as stack:
        folder, name_archive = stack.enter_context(_open(local_path(source)))
        stack.enter_context(_errors_name_archives(name_archive))
        annotations = tool.read(Export(folder, image_folder, classes))
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.") as scratch:
            target = pathlib.Path(scratch) / "data"
            report = _write(annotations, target, keep_empty=keep_empty)
            try:
                if output.exists():
                    output.rmdir()  # it is empty; Windows does not replace folders
                os.replace(target, output)
            except OSError as error:
                raise from_os_error(error, f"cannot create --output {output}") from None
    return dataclasses.replace(
        report, skipped=[name_archive(text) for text in report.skipped], notes=tuple(map(name_archive, report.notes))
    )


@contextlib.contextmanager
def _open(source: pathlib.Path) -> Iterator[tuple[pathlib.Path, "_ArchiveNames"]]:
    """The export itself, or what an archive contains."""
    if not source.exists():
        raise UserError(f"{source} does not exist")
    if source.is_dir() or source.suffix.lower() not in _SUFFIXES:
        yield source, _ArchiveNames(source, source)
        return
    with tempfile.TemporaryDirectory(prefix="deeplab_jax.") as scratch:
        folder = pathlib.Path(scratch) / "export"
        folder.mkdir()
        archives.extract(
            source, folder, is_needed=lambda name: not any(map(is_clutter, pathlib.PurePosixPath(name).parts))
        )
        children = list(folder.iterdir())
        root = children[0] if len(children) == 1 and children[0].is_dir() else folder
        yield root, _ArchiveNames(root, source)


@dataclasses.dataclass(frozen=True)
class _ArchiveNames:
    """Puts the name of an archive in place of the folder it is unpacked in."""

    folder: pathlib.Path
    source: pathlib.Path

    def __call__(self, text: str) -> str:
        return text.replace(str(self.folder), str(self.source))


@contextlib.contextmanager
def _errors_name_archives(name_archive: _ArchiveNames) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(name_archive(str(error))) from None


def read_label(annotated: AnnotatedImage) -> UInt8[np.ndarray, "height width"]:
    """Draws the label of an image, see `draw_label`."""
    return draw_label(annotated)[0]


def draw_label(annotated: AnnotatedImage) -> tuple[UInt8[np.ndarray, "height width"], Canvas]:
    """Draws the label of an image, upright as `read_image` returns the image.

    The size that annotations state tells whether they are those of the upright image or of the pixels as they are
    stored, before the EXIF rotation. If both sizes are equal, they are those of the upright image.

    Returns:
      The label, and the canvas with the number of shapes and those that are skipped.

    Raises:
      UserError: the size is neither, or the annotations do not fit the image.
    """
    header = images.read_header(
        annotated.image, annotated.image if isinstance(annotated.image, pathlib.Path) else f"in {annotated.entry}"
    )
    size = annotated.size or header.size
    if size not in (header.size, header.stored_size):
        raise UserError(
            f"{annotated.entry} is annotated at {size[0]}x{size[1]} (height x width), but image {annotated.name} is "
            f"{header.size[0]}x{header.size[1]}; use the images that were annotated"
        )
    canvas = Canvas(size)
    annotated.draw(canvas)
    label = canvas.label if size == header.size else header.turn_upright(canvas.label)
    return label, canvas


def _write(annotations: Annotations, folder: pathlib.Path, *, keep_empty: bool) -> ImportReport:
    _check_names(annotations.images)
    label_set = annotations.classes.label_set
    folder.mkdir()
    _write_classes(label_set, folder / "classes.txt")
    skipped, empty, splits = [], [], defaultdict(list)
    pixels, shapes, count = Counter(), 0, 0
    for annotated in progress.track(annotations.images, "import"):
        label, canvas = draw_label(annotated)
        skipped += canvas.skipped
        if not canvas.shapes and not annotated.label_files and not keep_empty:
            empty.append(annotated.name)
            continue
        count, shapes = count + 1, shapes + canvas.shapes
        values, counts = np.unique(label, return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        _write_example(annotated, label, label_set, folder)
        splits[annotated.split].append(annotated.name)
    if not count:
        raise UserError(f"none of the {len(annotations.images)} images has an annotation that covers an area")
    if len(splits) > 1 and None not in splits:
        for split, names in splits.items():
            (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return ImportReport(count, shapes, skipped, empty, label_set, pixels, annotations.notes)


def _write_example(annotated: AnnotatedImage, label: np.ndarray, label_set: LabelSet, folder: pathlib.Path) -> None:
    image = folder / "images" / annotated.name
    mask = (folder / "masks" / annotated.name).with_suffix(".png")
    try:
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(annotated.image, bytes):
            image.write_bytes(annotated.image)
        else:
            shutil.copyfile(annotated.image, image)
        mask.write_bytes(images.encode_palette_png(label, label_set))
    except OSError as error:
        raise from_os_error(error) from None


def _check_names(annotated: list[AnnotatedImage]) -> None:
    """Rejects images whose masks would have the same name, also on file systems that ignore case."""
    seen = {}
    for item in annotated:
        key = unicodedata.normalize("NFC", item.name.rpartition(".")[0]).casefold()
        if key in seen:
            raise UserError(
                f"{item.entry} and {seen[key].entry} are of images with the same name ({seen[key].name}, {item.name}); "
                "names must differ in more than case and suffix"
            )
        seen[key] = item


def _write_classes(label_set: LabelSet, path: pathlib.Path) -> None:
    """Writes a class list, and checks that it is read as it was meant: names can look like colors or comments."""
    lines = [
        f"{name} {' '.join(map(str, color))}\n"
        for name, color in zip(label_set.class_names, label_set.palette, strict=True)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    try:
        names = read_classes(path).label_set.class_names
    except UserError:
        names = ()
    for name, found in zip(label_set.class_names, [*names, *[None] * label_set.num_classes], strict=False):
        if name != found:
            raise UserError(f"class name {name!r:.80} cannot be a line of classes.txt; rename the class")


def describe_import(report: ImportReport) -> list[str]:
    """The notes about an import: shapes and images that are left out, and classes that do not occur."""
    notes = list(report.notes)
    if report.skipped:
        more = "; ..." if len(report.skipped) > _NAMED else ""
        notes.append(f"{len(report.skipped)} shapes are skipped: {'; '.join(report.skipped[:_NAMED])}{more}")
    if report.empty:
        more = ", ..." if len(report.empty) > _NAMED else ""
        notes.append(
            f"{len(report.empty)} images without annotations are left out ({', '.join(report.empty[:_NAMED])}{more}); "
            "--keep-empty imports them as background"
        )
    unused = [name for index, name in enumerate(report.label_set.class_names) if not report.pixels[index]]
    if unused:
        notes.append(f"no pixel has class {', '.join(unused[:_NAMED])}{', ...' if len(unused) > _NAMED else ''}")
    return notes
