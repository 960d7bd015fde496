"""Exporting masks as annotations, so that predictions can be corrected instead of drawn."""

import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from deeplab_jax import progress
from deeplab_jax.data import images, masks
from deeplab_jax.data.annotation_formats import find_format
from deeplab_jax.data.formats.class_list import read_classes
from deeplab_jax.data.formats.file_names import match_masks, name_of
from deeplab_jax.data.formats.labeled_image import LabeledImage
from deeplab_jax.data.image_files import list_images
from deeplab_jax.errors import UserError
from deeplab_jax.files import create_folder, local_path
from deeplab_jax.labels import LabelSet


def export_annotations(
    name: str,
    image_folder: pathlib.Path,
    mask_folder: pathlib.Path,
    output: pathlib.Path,
    *,
    classes: pathlib.Path,
    tolerance: int | float = 1.0,
) -> int:
    """Writes masks as annotations. Each region becomes a polygon; a background class is left out.

    If anything goes wrong, nothing is added to `output`.

    Args:
      name: a format of `deeplab_jax.data.annotation_formats` that has a writer.
      image_folder: folder of the images.
      mask_folder: folder of their masks, such as the output of `predict`; images without a mask are left out.
      output: where to write the annotations.
      classes: the class list of the masks.
      tolerance: largest distance in pixels between a region and its polygon; 0 keeps every corner.

    Returns:
      The number of images.

    Raises:
      UserError: a file is missing or damaged, or a mask does not fit its image.
    """
    tool = find_format(name, writable=True)
    output = local_path(output)
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise UserError(f"{output} exists; choose another --output or remove it")
    label_set = read_classes(classes).label_set
    pairs = _match(image_folder, mask_folder)
    create_folder(output, "--output")
    with tempfile.TemporaryDirectory(dir=output, prefix="export.") as scratch:
        folder = pathlib.Path(scratch)
        tool.write(_read(pairs, image_folder, label_set, tolerance), folder)
        for path in list(folder.iterdir()):
            shutil.move(path, output / path.name)
    return len(pairs)


def _match(image_folder: pathlib.Path, mask_folder: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """The images and their masks."""
    image_files, mask_files = (_index(folder) for folder in (image_folder, mask_folder))
    names = match_masks(image_files, mask_files)
    if not names:
        raise UserError(
            f"no image in {image_folder} has a mask in {mask_folder}; masks are named like their images, or as "
            "`predict` names them"
        )
    return [(image_files[name], mask_files[mask]) for name, mask in names.items()]


def _index(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The images of a folder by their names without suffix."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    files = {}
    for path in list_images(folder, recursive=True)[0]:
        other = files.setdefault(name_of(path, folder), path)
        if other != path:
            raise UserError(f"{path} and {other.name} differ only in their suffix; rename one of them")
    return files


def _read(
    pairs: list[tuple[pathlib.Path, pathlib.Path]], root: pathlib.Path, label_set: LabelSet, tolerance: int | float
) -> Iterator[LabeledImage]:
    for image, mask in progress.track(pairs, "export"):
        label = masks.read_mask(mask, label_set)
        size = images.read_header(image, image).size
        if label.shape != size:
            raise UserError(
                f"image {image} is {size[0]}x{size[1]} (height x width), but its mask {mask} is "
                f"{label.shape[0]}x{label.shape[1]}"
            )
        yield LabeledImage(image.relative_to(root).as_posix(), image, label, label_set, tolerance)
