"""Prediction for image files."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from deeplab_jax import data, progress, visualization
from deeplab_jax.errors import UserError
from deeplab_jax.files import create_folder
from deeplab_jax.inference.display import reduce_for_display
from deeplab_jax.inference.overlap import map_ahead
from deeplab_jax.inference.predictor import Predictor
from deeplab_jax.inference.stream import Labeled
from deeplab_jax.labels import LabelSet
from deeplab_jax.parallel.preemption import Preemption

logger = logging.getLogger(__name__)

#: What happens to an input whose result exists: an error before any work, it is left as it is, or it is replaced.
Existing = Literal["refuse", "skip", "overwrite"]

#: The files to write for each image, such as its mask and its overlay.
ResultPaths = Mapping[pathlib.Path, tuple[pathlib.Path, ...]]

#: Writes the files of one image: takes the image, its labels, the classes and the files.
Writer = Callable[[np.ndarray, np.ndarray, LabelSet, tuple[pathlib.Path, ...]], None]

_NAMED = 5  # failed inputs that `describe_failures` names


@dataclasses.dataclass(frozen=True)
class FilesReport:
    """The result of predicting files.

    Attributes:
      written: the files of the first image, then of the second, and so on.
      failed: the images that could not be predicted, each with the reason.
      num_left: number of images that were not predicted because a signal asked to stop.
    """

    written: list[pathlib.Path]
    failed: dict[pathlib.Path, str]
    num_left: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns the report as values that JSON can hold, for `merge_reports`."""
        failed = {str(path): reason for path, reason in self.failed.items()}
        return {"written": [str(path) for path in self.written], "failed": failed, "num_left": self.num_left}


def merge_reports(reports: Iterable[Mapping[str, Any]]) -> FilesReport:
    """Merges the reports of several processes, as `FilesReport.to_json` returned them."""
    merged = FilesReport([], {})
    for report in reports:
        merged.written.extend(map(pathlib.Path, report["written"]))
        merged.failed.update({pathlib.Path(path): reason for path, reason in report["failed"].items()})
        merged = dataclasses.replace(merged, num_left=merged.num_left + report["num_left"])
    return merged


def predict_files(
    predictor: Predictor,
    inputs: Iterable[pathlib.Path],
    output: pathlib.Path,
    *,
    existing: Existing = "refuse",
    max_pixels: int | None = None,
    value_range: data.ValueRange | None = None,
) -> list[pathlib.Path]:
    """Labels image files. Writes `<name>_mask.png` (a palette PNG) and `<name>_overlay.png` (with a legend) for each.

    Args:
      predictor: the predictor.
      inputs: images and folders of images.
      output: folder for the results, created if necessary. Subfolders of the inputs are mirrored in it.
      existing: what to do with images whose results exist.
      max_pixels: see `deeplab_jax.data.read_image`.
      value_range: see `deeplab_jax.data.read_image`.

    Returns:
      The files written: the mask and the overlay of the first image, then of the second, and so on.

    Raises:
      UserError: see `result_paths`; or images cannot be read, after the others have been predicted.
    """
    paths = result_paths(inputs, output, existing=existing)
    report = predict_paths(predictor, paths, max_pixels=max_pixels, value_range=value_range)
    if report.failed:
        raise UserError(describe_failures(report.failed, len(paths)))
    return report.written


def write_mask_and_overlay(
    image: np.ndarray | data.LazyTiff,
    label_map: np.ndarray,
    label_set: LabelSet,
    targets: tuple[pathlib.Path, ...],
    *,
    draw: Callable[[np.ndarray], np.ndarray] = data.to_rgb,
) -> None:
    """Writes a palette PNG, and the image under its classes in color with a legend.

    Args:
      image: the image.
      label_map: its labels.
      label_set: the classes.
      targets: the two files.
      draw: draws an image as 8-bit RGB, see `Predictor.draw`.

    Raises:
      UserError: a file cannot be written.
    """
    mask_path, overlay_path = targets
    visualization.save_palette_png(mask_path, label_map, label_set)
    drawn, shown = reduce_for_display(image, label_map, draw)
    tinted = visualization.overlay(drawn, shown, label_set)
    visualization.save_image(overlay_path, visualization.add_legend(tinted, label_map, label_set))


def predict_paths(
    predictor: Predictor,
    paths: ResultPaths,
    *,
    max_pixels: int | None = None,
    value_range: data.ValueRange | None = None,
    write: Writer | None = None,
    preemption: Preemption | None = None,
) -> FilesReport:
    """Labels image files, and goes on after images that cannot be read.

    Threads read the next images and write the last ones while the predictor computes, see `Predictor.map`.

    Args:
      predictor: the predictor.
      paths: the result of `result_paths`.
      max_pixels: see `deeplab_jax.data.read_image`.
      value_range: see `deeplab_jax.data.read_image`.
      write: writes the files of one image; called in other threads; default: `write_mask_and_overlay`.
      preemption: after its signal no more images are read, and those that have been read are finished.

    Raises:
      UserError: a result cannot be written.
    """
    if write is None:
        write = functools.partial(write_mask_and_overlay, draw=predictor.draw)

    def read(path: pathlib.Path) -> np.ndarray | data.LazyTiff:
        return predictor.read(path, max_pixels=max_pixels, value_range=value_range)

    def write_results(each: Labeled[pathlib.Path]) -> Labeled[pathlib.Path]:
        if each.error is None:
            targets = paths[each.item]
            create_folder(targets[0].parent, "--output")
            write(each.image, each.prediction.label_map, predictor.label_set, targets)
        return each

    report, num_left = FilesReport([], {}), len(paths)
    todo = itertools.takewhile(lambda path: preemption is None or not preemption.is_requested, paths)
    with (
        contextlib.closing(predictor.label_items(todo, read)) as labeled,
        contextlib.closing(map_ahead(write_results, labeled, num_pixels=lambda each: each.num_pixels)) as done,
    ):
        for each in progress.track(done, "predict", len(paths)):
            num_left -= 1
            if preemption is not None:
                preemption.is_saved = False  # from now on, images in flight would be lost
            if each.error is None:
                report.written.extend(paths[each.item])
                continue
            report.failed[each.item] = str(each.error)
            if len(paths) > 1:
                logger.warning("%s", each.error)
    if preemption is not None:
        preemption.is_saved = True
    return dataclasses.replace(report, num_left=num_left)


def describe_failures(failed: Mapping[object, str], total: int) -> str:
    """The error message for inputs that failed.

    Args:
      failed: the inputs, each with the reason.
      total: number of all inputs.
    """
    reason = next(iter(failed.values()))
    if total == 1:
        return reason
    names = ", ".join(str(path) for path in list(failed)[:_NAMED]) + (", ..." if len(failed) > _NAMED else "")
    return (
        f"{len(failed)} of {total} inputs failed ({names}): {reason}; the others are done; fix these and run the "
        "command again with --skip-existing instead of --overwrite"
    )


def result_paths(
    inputs: Iterable[pathlib.Path], output: pathlib.Path, *, existing: Existing = "refuse"
) -> dict[pathlib.Path, tuple[pathlib.Path, ...]]:
    """Returns the mask and overlay files that `predict_files` writes for each image.

    The results of `a.jpg` are `a_mask.png` and `a_overlay.png`. If there is an `a.png` too, they are `a.jpg_mask.png`
    and so on. Files that are left out of a folder are named in a warning.

    Args:
      inputs: images and folders of images.
      output: folder for the results.
      existing: what to do with images whose results exist. With "skip", they are not in the result.

    Raises:
      UserError: an input does not exist, a folder contains no images, two images would get the same results, a result
        already exists, or a result would replace an input.
    """
    images = find_images(inputs, output)
    names = {path: name.with_suffix("") for path, name in images.items()}
    several = _repeated(names.values())
    targets = {path: images[path] if name in several else name for path, name in names.items()}
    for name in _repeated(targets.values()):
        first, second, *_ = [path for path, target in targets.items() if target == name]
        raise UserError(
            f"the results of {first} and {second} would have the same names; predict the folder that contains both, or "
            "predict them with different --output folders"
        )
    paths = {path: _result_pair(output / name) for path, name in targets.items()}
    originals = {os.path.realpath(path) for path in images}
    for path, pair in paths.items():
        for result in pair:
            if os.path.realpath(result) in originals:
                raise UserError(f"the result of {path} would replace the input {result}; choose another --output")
    return choose_existing(paths, existing)


def choose_existing(
    paths: Mapping[pathlib.Path, tuple[pathlib.Path, ...]], existing: Existing
) -> dict[pathlib.Path, tuple[pathlib.Path, ...]]:
    """Returns the images to predict, with the files to write for each.

    Args:
      paths: the files of every image.
      existing: what to do with images whose files exist. With "skip", they are not in the result.

    Raises:
      UserError: with "refuse", a file exists.
    """
    if existing == "skip":
        todo = {path: targets for path, targets in paths.items() if not all(target.exists() for target in targets)}
        if len(todo) < len(paths):
            logger.info("Skipped %d images whose results exist", len(paths) - len(todo))
        return todo
    if existing == "refuse":
        refuse_existing(target for targets in paths.values() for target in targets)
    return dict(paths)


def refuse_existing(results: Iterable[pathlib.Path]) -> None:
    """Checks that no result exists.

    Raises:
      UserError: one exists.
    """
    for path in results:
        if path.exists():
            raise UserError(
                f"{path} exists; use --skip-existing to predict only the other inputs, --overwrite, or another --output"
            )


def find_images(
    inputs: Iterable[pathlib.Path], output: pathlib.Path | None = None
) -> dict[pathlib.Path, pathlib.PurePath]:
    """Returns the images among the inputs, and in their folders and subfolders, each once.

    Files that are left out of a folder are named in a warning.

    Args:
      inputs: images and folders of images.
      output: a folder to leave out where it is inside an input, because it contains results of earlier predictions.

    Returns:
      The images in the order of the inputs, in folders sorted. The values are their paths relative to the folder in
      `inputs`, or their names.

    Raises:
      UserError: an input does not exist, a folder contains no images, or is the output folder itself.
    """
    found = {}
    for path in inputs:
        if path.is_dir():
            found |= {image: image.relative_to(path) for image in _find_in_folder(path, output)}
        elif path.is_file():
            found[path] = pathlib.PurePath(path.name)
        else:
            raise UserError(f"{path} does not exist")
    unique = {}
    for path, name in found.items():
        unique.setdefault(os.path.abspath(path), (path, name))
    return dict(unique.values())


def _find_in_folder(folder: pathlib.Path, output: pathlib.Path | None) -> list[pathlib.Path]:
    images, left_out = data.list_images(folder, recursive=True)
    if output is not None and output.exists():
        if output.samefile(folder):
            raise UserError(
                f"--output {output} is also an input, so results would be predicted next time; choose another --output"
            )
        results = output.resolve()
        # An output folder that contains the input is not left out: all images would be.
        inside = set()
        if not folder.resolve().is_relative_to(results):
            parents = {path.parent for path in (*images, *left_out)}
            inside = {parent for parent in parents if parent.resolve().is_relative_to(results)}
        images, left_out = ([path for path in paths if path.parent not in inside] for paths in (images, left_out))
    others = f": {data.describe_left_out(left_out)}" if left_out else ""
    if not images:
        raise UserError(f"folder {folder} contains no images ({', '.join(data.IMAGE_SUFFIXES)}){others}")
    if left_out:
        logger.warning("not predicted in %s, because they are not images%s", folder, others)
    return images


def _result_pair(name: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    return name.with_name(f"{name.name}_mask.png"), name.with_name(f"{name.name}_overlay.png")


def _repeated(names: Iterable[pathlib.PurePath]) -> set[pathlib.PurePath]:
    seen, repeated = set(), set()
    for name in names:
        (repeated if name in seen else seen).add(name)
    return repeated
