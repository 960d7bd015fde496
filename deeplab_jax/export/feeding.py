"""Images for an exported network, fitted as prediction fits them: for calibration and for verification."""

import pathlib
from collections.abc import Sequence

import numpy as np

from deeplab_jax import data, pretrained
from deeplab_jax.errors import UserError
from deeplab_jax.export.program import ExportOptions
from deeplab_jax.pretrained import PretrainedNetwork


def protocol_of(network: PretrainedNetwork, options: ExportOptions) -> data.EvalProtocol:
    """Returns how prediction feeds images to a network, with the exported size."""
    protocol = data.protocol_for(pretrained.preset_config(network))
    return protocol if options.size is None else protocol.with_input_size(options.size)


def read_inputs(
    network: PretrainedNetwork, options: ExportOptions, folder: pathlib.Path, *, most: int
) -> list[np.ndarray]:
    """Reads the images of a folder and its subfolders, and fits them to the exported network.

    Args:
      network: the network.
      options: the input of the exported network.
      folder: the folder.
      most: the largest number of images to read. They are spread over all images, ordered by name.

    Returns:
      Inputs of the network, (height, width, channels) each.

    Raises:
      UserError: the folder does not exist or contains no image, or an image cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of images")
    paths, _ = data.list_images(folder, recursive=True)
    if not paths:
        raise UserError(f"the folder {folder} contains no images")
    protocol = protocol_of(network, options)
    chosen = [paths[i * len(paths) // most] for i in range(most)] if len(paths) > most else paths
    return [_fit(protocol, _read(network, path), options.size) for path in chosen]


def _read(network: PretrainedNetwork, path: pathlib.Path) -> np.ndarray:
    pixels = data.pixels_of_model(network.model)
    if pixels.is_rgb:
        return data.read_image(path)
    image = data.read_channels(path, pixels.channels)
    data.check_image(image, f"image {path}", pixels)
    return image


def _fit(protocol: data.EvalProtocol, image: np.ndarray, size: Sequence[int] | None) -> np.ndarray:
    fed, _ = protocol.fit(image)
    if size is None or fed.shape[:2] == tuple(size):
        return fed
    return data.resize_image(image, size, antialias=protocol.antialias)  # its views have sizes of their own
