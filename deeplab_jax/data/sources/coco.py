"""COCO's annotation files and images of 2017 (Lin et al., 2014), which several data sets share."""

import pathlib
from typing import Any

from deeplab_jax import budget
from deeplab_jax.data.dataset import Download
from deeplab_jax.errors import UserError
from deeplab_jax.files import read_json

# Checksums of TensorFlow Datasets (tensorflow_datasets/url_checksums/coco.txt).
IMAGES = (
    Download(
        "http://images.cocodataset.org/zips/train2017.zip",
        "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    Download(
        "http://images.cocodataset.org/zips/val2017.zip",
        "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
)
INSTANCES = Download(
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
)
PANOPTIC = Download(
    "http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip",
    "sha256:c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
)


def find_images(root: pathlib.Path, name: str) -> pathlib.Path:
    """The folder of images, `{name}` or `images/{name}`.

    Raises:
      UserError: there is none.
    """
    for folder in (root / name, root / "images" / name):
        if folder.is_dir():
            return folder
    raise UserError(f"{root} has annotations of {name}, but no folder {name}/ or images/{name}/ with its images")


def read_annotations(
    path: pathlib.Path, lists: tuple[str, ...], *, max_bytes: int = budget.ANNOTATION_BYTES
) -> dict[str, list[dict[str, Any]]]:
    """Reads the lists of objects in an annotation file.

    Args:
      path: the file.
      lists: their names.
      max_bytes: largest file that is read.

    Raises:
      UserError: the file is damaged, or a list is missing.
    """
    content = read_json(path, max_bytes=max_bytes)
    for name in lists:
        entries = content.get(name)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path} is damaged: it has no list of {name}")
        if name == "images" and not all(isinstance(entry.get("id", entry.get("image_id")), int) for entry in entries):
            raise UserError(f"{path} is damaged: an image has no id")
    return {name: content[name] for name in lists}


def file_name(name: Any, path: pathlib.Path) -> str:
    """Checks the name of a file in an annotation file.

    Args:
      name: the value.
      path: the annotation file, for the message.

    Raises:
      UserError: it is not the name of a file, or it contains a folder.
    """
    if not isinstance(name, str) or pathlib.PurePath(name).name != name:
        raise UserError(f"{path} is damaged: {name!r:.40} is not the name of a file")
    return name


def image_size(entry: dict[str, Any], path: pathlib.Path) -> tuple[int, int]:
    """The (height, width) of an image in an annotation file.

    Args:
      entry: the image's entry.
      path: the annotation file, for the message.

    Raises:
      UserError: it has no size, or an implausible one.
    """
    size = entry.get("height"), entry.get("width")
    if not all(type(extent) is int and 0 < extent < 2**15 for extent in size):
        name = entry.get("id", entry.get("image_id"))
        raise UserError(f"{path} is damaged: image {name} has no size, or an implausible one")
    return size
