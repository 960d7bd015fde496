"""Prediction for image files."""

import pathlib
from collections.abc import Iterable

from deeplab_jax import data, progress, visualization
from deeplab_jax.errors import UserError
from deeplab_jax.files import create_folder
from deeplab_jax.inference.predictor import Predictor


def predict_files(predictor: Predictor, inputs: Iterable[pathlib.Path], output: pathlib.Path) -> list[pathlib.Path]:
    """Labels image files. Writes `<name>_mask.png` (a palette PNG) and `<name>_overlay.png` (with a legend) for each.

    Args:
      predictor: the predictor.
      inputs: images and folders of images.
      output: folder for the results, created if necessary.

    Returns:
      The files written: the mask and the overlay of the first image, then of the second, and so on.

    Raises:
      UserError: see `result_paths`.
    """
    pairs = result_paths(inputs, output).items()
    create_folder(output, "--output")
    written = []
    for path, (mask_path, overlay_path) in progress.track(pairs, "predict"):
        image = data.read_image(path)
        label_map = predictor(image).label_map
        visualization.save_palette_png(mask_path, label_map, predictor.label_set)
        tinted = visualization.overlay(image, label_map, predictor.label_set)
        visualization.save_image(overlay_path, visualization.add_legend(tinted, label_map, predictor.label_set))
        written += [mask_path, overlay_path]
    return written


def result_paths(
    inputs: Iterable[pathlib.Path], output: pathlib.Path
) -> dict[pathlib.Path, tuple[pathlib.Path, pathlib.Path]]:
    """Returns the mask and overlay files that `predict_files` writes for each image.

    Raises:
      UserError: an input does not exist, two inputs have the same name, or a result already exists.
    """
    images = find_images(inputs)
    targets = [(output / f"{path.stem}_mask.png", output / f"{path.stem}_overlay.png") for path in images]
    for path in (path for pair in targets for path in pair):
        if path.exists():
            raise UserError(f"{path} exists; choose another --output or remove it")
    if len(set(targets)) < len(targets):
        twice = next(path for path, target in zip(images, targets, strict=True) if targets.count(target) > 1)
        raise UserError(f"two inputs are named {twice.stem}; predict them with different --output folders")
    return dict(zip(images, targets, strict=True))


def find_images(inputs: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the image files among the inputs and directly inside their folders, sorted within each folder.

    Raises:
      UserError: an input does not exist, or a folder contains no image.
    """
    images = []
    for path in inputs:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in data.IMAGE_SUFFIXES)
            if not found:
                raise UserError(f"folder {path} contains no images ({', '.join(data.IMAGE_SUFFIXES)})")
            images += found
        elif path.is_file():
            images.append(path)
        else:
            raise UserError(f"{path} does not exist")
    return images
