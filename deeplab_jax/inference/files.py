"""Predictions for image files."""

import pathlib
from collections.abc import Iterable

from rich.console import Console
from rich.progress import track

from deeplab_jax import data, visualization
from deeplab_jax.errors import UserError
from deeplab_jax.files import create_folder
from deeplab_jax.inference.predictor import Predictor


def predict_files(
    predictor: Predictor, inputs: Iterable[pathlib.Path], output: pathlib.Path, *, console: Console | None = None
) -> list[pathlib.Path]:
    """Labels image files: `<name>_mask.png`, a palette PNG, and `<name>_overlay.png` with a legend for each.

    Args:
      predictor: the network.
      inputs: images, and folders of images.
      output: the folder for the results; made if needed.
      console: shows progress on it.

    Returns:
      The files written, masks and overlays in turn.

    Raises:
      UserError: see `result_paths`.
    """
    pairs = result_paths(inputs, output).items()
    create_folder(output, "--output")
    written = []
    for path, (mask_path, overlay_path) in track(list(pairs), "predict", console=console, disable=console is None):
        image = data.read_image(path)
        (label_map,) = predictor([image])
        visualization.save_palette_png(mask_path, label_map, predictor.label_set)
        tinted = visualization.overlay(image, label_map, predictor.label_set)
        visualization.save_image(overlay_path, visualization.add_legend(tinted, label_map, predictor.label_set))
        written += [mask_path, overlay_path]
    return written


def result_paths(
    inputs: Iterable[pathlib.Path], output: pathlib.Path
) -> dict[pathlib.Path, tuple[pathlib.Path, pathlib.Path]]:
    """Where `predict_files` writes: the mask and the overlay of each image. Needs no network.

    Raises:
      UserError: an input is missing or no image, two have one name, or a result exists already.
    """
    images = find_images(inputs)
    targets = [(output / f"{path.stem}_mask.png", output / f"{path.stem}_overlay.png") for path in images]
    for path in (path for pair in targets for path in pair):
        if path.exists():
            raise UserError(f"{path} exists; choose another --output or remove it")
    if len(set(targets)) < len(targets):
        twice = next(path for path, target in zip(images, targets, strict=True) if targets.count(target) > 1)
        raise UserError(f"two inputs are named {twice.stem}; predict them into different --output folders")
    return dict(zip(images, targets, strict=True))


def find_images(inputs: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The image files among the inputs and directly inside their folders, sorted within each folder.

    Raises:
      UserError: an input does not exist, or a folder has no image.
    """
    images = []
    for path in inputs:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in data.IMAGE_SUFFIXES)
            if not found:
                raise UserError(f"folder {path} has no images ({', '.join(data.IMAGE_SUFFIXES)})")
            images += found
        elif path.is_file():
            images.append(path)
        else:
            raise UserError(f"{path} does not exist")
    return images
