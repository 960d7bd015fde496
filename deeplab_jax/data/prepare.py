"""Preparing a data set: download or open the raw files, check every example, write ArrayRecord files."""

import contextlib
import dataclasses
import logging
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from deeplab_jax.data import archives, bucket_copies, process_pool
from deeplab_jax.data.dataset import Dataset, Download, RawDataset
from deeplab_jax.data.download import download
from deeplab_jax.data.image_files import is_clutter
from deeplab_jax.data.leaks import find_leaks
from deeplab_jax.data.pixel_values import ValueRange
from deeplab_jax.data.prepared import is_complete, prepared_folder, write_dataset
from deeplab_jax.data.registry import dataset_names, default_data_dir, get_dataset
from deeplab_jax.errors import UserError
from deeplab_jax.files import create_folder
from deeplab_jax.storage import BucketPath

logger = logging.getLogger(__name__)

# Options of `prepare`, and the keyword argument of `read_raw` that each becomes.
_OPTIONS = {
    "sbd_source": "sbd_root",
    "val_fraction": "val_fraction",
    "reduce_zero_label": "reduce_zero_label",
    "ignore_ids": "ignore_ids",
}


def prepare(
    name: str,
    *,
    source: pathlib.Path | None = None,
    sbd_source: pathlib.Path | None = None,
    data_dir: pathlib.Path | None = None,
    val_fraction: float | None = None,
    value_range: ValueRange | None = None,
    channels: int | None = None,
    max_pixels: int | None = None,
    tile_size: Sequence[int] | None = None,
    reduce_zero_label: bool | None = None,
    ignore_ids: Sequence[int] | None = None,
    workers: int = 1,
) -> pathlib.Path:
    """Prepares a data set. If it is prepared already, it is left unchanged.

    If anything goes wrong, nothing of it remains in `data_dir`, except files of a large data set that are complete.
    Then the same call continues after them. If `data_dir` is in a bucket, the data set is prepared in the cache folder
    and then uploaded.

    Args:
      name: a data set of `preparable_names`.
      source: folder or archive of the raw data set; default: download the published archive, if there is one.
      sbd_source: folder or archive of SBD, to add the split `trainaug` to `voc2012_segmentation`.
      data_dir: where to write; default: `default_data_dir`.
      val_fraction: fraction of the images of `folder` that go to `val` if the folder has no lists.
      value_range: see `deeplab_jax.data.read_image`; with `channels`, the values that a network sees as 0 and 255
        (default: the smallest usual range that contains the values of all images).
      channels: number of channels of images that keep them and their bit depth (default: make 8-bit RGB).
      max_pixels: see `deeplab_jax.data.read_image`.
      tile_size: cut images larger than this (height, width) into tiles, which are examples of their own.
      reduce_zero_label: id 0 in the masks of `folder` is unlabeled, and the first class is id 1.
      ignore_ids: ids in the masks of `folder` that are unlabeled.
      workers: number of processes that read files. The result does not depend on it. In a script, more than 1 need the
        usual `if __name__ == "__main__":`.

    Returns:
      The folder of the prepared data set.

    Raises:
      UserError: the source is missing, or an example is wrong; the message names the file.
    """
    dataset = _get_preparable(name)
    given = {"reduce_zero_label": reduce_zero_label, "ignore_ids": ignore_ids}
    options = _check_options(dataset, given | {"sbd_source": sbd_source, "val_fraction": val_fraction})
    data_dir = default_data_dir() if data_dir is None else data_dir
    target = prepared_folder(name, data_dir)
    is_in_bucket = isinstance(target, BucketPath)
    if target.is_dir() and not is_complete(target) and not is_in_bucket:  # there, an interrupted upload is repeated
        raise UserError(
            f"{target} is incomplete, perhaps a copy that was interrupted; remove it and prepare {name} again"
        )
    if target.is_dir() and is_complete(target):
        logger.info("%s is already prepared in %s; remove this folder to prepare it again", name, target)
        return target
    if is_in_bucket:
        data_dir.mkdir(parents=True, exist_ok=True)  # its errors come first
    disk = bucket_copies.prepare_folder(name, data_dir)
    for unpacked in disk.glob("unpacked.*"):  # left by a preparation that was killed
        shutil.rmtree(unpacked)
    create_folder(disk, "data folder")
    with tempfile.TemporaryDirectory(dir=disk, prefix="unpacked.") as scratch:
        roots = [_find_root(dataset, source, disk, pathlib.Path(scratch) / name)]
        if "sbd_root" in options:
            roots.append(_find_root(get_dataset("sbd"), sbd_source, disk, pathlib.Path(scratch) / "sbd"))
            options["sbd_root"] = roots[1].folder
        with _errors_name_archives(roots), process_pool.use(workers):
            raw = _read_raw(dataset, roots[0], options)
            for note in (*raw.notes, *_describe_leaks(name, raw)):
                logger.warning("%s", note)
            raw = raw.with_images(
                value_range=value_range, channels=channels, max_pixels=max_pixels, tile_size=tile_size
            )
            write_dataset(name, raw, disk)
    bucket_copies.publish(name, disk, data_dir)
    counts = ", ".join(f"{split} {len(examples)}" for split, examples in raw.splits.items())
    logger.info("Prepared %s in %s: %s", name, target, counts)
    return target


def preparable_names() -> list[str]:
    """The data sets that `prepare` accepts."""
    return [name for name in dataset_names() if get_dataset(name).read_raw is not None]


@contextlib.contextmanager
def open_raw(
    name: str,
    source: pathlib.Path,
    *,
    reduce_zero_label: bool | None = None,
    ignore_ids: Sequence[int] | None = None,
) -> Iterator[tuple[RawDataset, Callable[[str], str]]]:
    """Reads a raw data set, to check it before it is prepared. An archive is unpacked for the duration of the block.

    Args:
      name: a data set of `preparable_names`.
      source: folder or archive of the raw data set.
      reduce_zero_label: see `prepare`.
      ignore_ids: see `prepare`.

    Yields:
      The data set, and a function that puts the name of the archive in place of the folder it is unpacked in.

    Raises:
      UserError: the data set or the source does not exist, or the source has another layout.
    """
    dataset = _get_preparable(name)
    options = _check_options(dataset, {"reduce_zero_label": reduce_zero_label, "ignore_ids": ignore_ids})
    with tempfile.TemporaryDirectory(prefix="deeplab_jax.") as scratch:
        root = _find_root(dataset, source, pathlib.Path(scratch), pathlib.Path(scratch) / name)
        with _errors_name_archives([root]):
            yield _read_raw(dataset, root, options), root.name_archive


def _get_preparable(name: str) -> Dataset:
    dataset = get_dataset(name)
    if dataset.read_raw is None:
        raise UserError(f"{name} has no raw files, so there is nothing to prepare; use it as it is")
    return dataset


def _check_options(dataset: Dataset, given: dict[str, Any]) -> dict[str, Any]:
    """The options that are given, by their names in `read_raw`."""
    options = {}
    for option, value in given.items():
        if value is None:
            continue
        argument = _OPTIONS[option]
        if argument not in dataset.options:
            owners = [other for other in dataset_names() if argument in get_dataset(other).options]
            raise UserError(f"--{option.replace('_', '-')} is an option of {', '.join(owners)}, not of {dataset.name}")
        options[argument] = value
    return options


class _Root(NamedTuple):
    """The folder with the raw data, and where it comes from: the folder itself or an archive."""

    folder: pathlib.Path
    source: pathlib.Path

    def name_archive(self, text: str) -> str:
        """Puts the name of the archive in place of the folder it is unpacked in, which nobody knows."""
        return text.replace(str(self.folder), str(self.source))


@contextlib.contextmanager
def _errors_name_archives(roots: list[_Root]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        text = str(error)
        for root in roots:
            text = root.name_archive(text)
        raise UserError(text) from None


def _read_raw(dataset: Dataset, root: "_Root", options: dict[str, Any]) -> RawDataset:
    """The raw data set, with a note for each split that does not have the published number of examples."""
    raw = dataset.read_raw(root.folder, **options)
    notes = [
        f"split {split} of {dataset.name}: {len(raw.splits[split]):,} images, but {size:,} are published; check that "
        "your copy is complete"
        for split, size in dataset.sizes.items()
        if split in raw.splits and len(raw.splits[split]) != size
    ]
    return dataclasses.replace(raw, notes=(*raw.notes, *notes))


def _describe_leaks(name: str, raw: RawDataset) -> list[str]:
    return find_leaks(
        {f"{name}/{split}": [example.id for example in examples] for split, examples in raw.splits.items()},
        "; scores on images of the training split mean little",
    )


def _find_root(dataset: Dataset, source: pathlib.Path | None, data_dir: pathlib.Path, scratch: pathlib.Path) -> _Root:
    """The folder with the raw data: the source itself, or what archives contain, unpacked into `scratch`."""
    if source is not None and not source.exists():
        raise UserError(f"--source {source} does not exist")
    if source is None and not dataset.archives:
        where = f"download it from {dataset.publisher} and pass it" if dataset.publisher else "pass a copy of yours"
        raise UserError(f"{dataset.name} has no public download; {where} with --source FOLDER_OR_ARCHIVE")
    if source is None:
        packed = [_fetch(published, data_dir) for published in dataset.archives]
    elif source.is_dir():
        packed = _find_archives(dataset, source)
        if not packed:
            return _Root(source, source)
    else:
        packed = [source]

    def is_needed(name: str) -> bool:
        return not any(map(is_clutter, pathlib.PurePosixPath(name).parts)) and dataset.is_needed(name)

    for archive in packed:
        archives.extract(archive, scratch, is_needed=is_needed)
    for nested in sorted(scratch.glob("**/*.zip")):  # COCO packs its panoptic masks twice
        archives.extract(nested, nested.parent, is_needed=is_needed)
        nested.unlink()
    if source is None:
        for published in dataset.extra_lists:
            shutil.copy(_fetch(published, data_dir), next(scratch.glob("**/train.txt")).parent)
    children = list(scratch.iterdir()) if scratch.is_dir() else []
    # Some archives contain the folder, others its content.
    root = children[0] if len(children) == 1 and children[0].is_dir() else scratch
    return _Root(root, packed[0] if len(packed) == 1 else packed[0].parent)


def _find_archives(dataset: Dataset, folder: pathlib.Path) -> list[pathlib.Path]:
    """The official archives in a folder that has no subfolders, as it is after a download by hand."""
    try:
        paths = sorted(path for path in folder.iterdir() if not is_clutter(path.name))
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}") from None
    if any(path.is_dir() for path in paths):
        return []
    names = dataset.archive_names or tuple(published.url.rsplit("/", 1)[-1] for published in dataset.archives)
    return [path for path in paths if any(path.match(name) for name in names)]


def _fetch(published: Download, data_dir: pathlib.Path) -> pathlib.Path:
    path = data_dir / "downloads" / published.name
    if not path.is_file():
        otherwise = "download it yourself and pass --source FILE"
        download(published.url, path, digest=published.digest, otherwise=otherwise)
    return path
