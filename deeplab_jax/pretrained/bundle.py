"""The project's own format of a pretrained network: a folder with `config.json` and `model.safetensors`.

`config.json` holds `format` ("deeplab_jax"), `version` (of the config schema), `model` (every field of `config.model`), `class_names` and
`palette` (null for a backbone alone), `protocol` and `image_size` (how images are fed), and `report` (where the
values came from). `model.safetensors` holds every variable under its path, such as `params/backbone/stem_conv/kernel`:
as float32, or kernels as float16 in half the size. Either is read as float32. The same network gives the same bytes.
"""

import json
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained.network import PretrainedNetwork, variable_shapes

#: The two files of a folder.
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_FORMAT = "deeplab_jax"


def save(network: PretrainedNetwork, folder: pathlib.Path, *, half: bool = False) -> None:
    """Writes a network into a folder, which is made if needed.

    Args:
      network: what to write.
      folder: where to.
      half: kernels as float16, rounded to the nearest. Biases, BatchNorm's parameters and statistics stay float32:
        they are few, and variances span many magnitudes.

    Raises:
      UserError: the folder holds something already, or cannot be written; with `half`, a kernel that float16 cannot
        hold.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; choose another folder or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from None
    label_set = network.label_set
    values = {
        "format": _FORMAT,
        "version": config_lib.VERSION,
        "model": config_lib.to_dict(ConfigDict({"model": network.model}))["model"],
        "class_names": label_set and label_set.class_names,
        "palette": label_set and label_set.palette,
        "protocol": network.protocol,
        "image_size": network.image_size,
        "report": list(network.report),
    }
    flat = traverse_util.flatten_dict(network.variables, sep="/")
    arrays = {path: np.ascontiguousarray(value, np.float32) for path, value in flat.items()}
    if half:
        arrays = {path: _halved(value, path) if value.ndim > 1 else value for path, value in arrays.items()}
    write_atomically(folder / WEIGHTS_FILE, safetensors.numpy.save(arrays))
    write_atomically(folder / CONFIG_FILE, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def load(folder: pathlib.Path) -> PretrainedNetwork:
    """Reads what `save` wrote.

    Raises:
      UserError: a file is missing, damaged or of a newer version, or arrays do not fit the config.
    """
    values = _read_config(folder / CONFIG_FILE)
    try:
        model = config_lib.from_dict({"model": config_lib.migrate_model(values["model"], values["version"])}).model
        label_set = None
        if values["class_names"] is not None:
            label_set = LabelSet(tuple(values["class_names"]), tuple(tuple(color) for color in values["palette"]))
        image_size, protocol = values["image_size"], values["protocol"]
        report = tuple(str(line) for line in values["report"])
        if image_size is not None:
            image_size = height, width = tuple(int(extent) for extent in image_size)
            if min(height, width) < 1:
                raise ValueError(f"image_size {height}x{width}")
        if protocol not in config_lib.PROTOCOLS:
            raise ValueError(f"protocol {protocol!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged: {type(error).__name__}: {_first_line(error)}") from None
    path = folder / WEIGHTS_FILE
    try:
        arrays = safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    try:
        shapes = variable_shapes(model, label_set and label_set.num_classes)
    except UserError:
        raise
    except Exception as error:  # whatever values that no network has lead to
        raise UserError(
            f"{folder / CONFIG_FILE} is no network's: {type(error).__name__}: {_first_line(error)}"
        ) from None
    wrong = sorted(name for name in {*shapes, *arrays} if name not in arrays or arrays[name].shape != shapes.get(name))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{path} does not fit its {CONFIG_FILE}: {wrong[0]}{more}")
    arrays = {name: value.astype(np.float32, copy=False) for name, value in arrays.items()}
    return PretrainedNetwork(
        model, traverse_util.unflatten_dict(arrays, sep="/"), label_set, protocol, image_size, report
    )


def is_native(folder: pathlib.Path) -> bool:
    """Whether a folder looks like one that `save` wrote."""
    return (folder / WEIGHTS_FILE).is_file()


def _halved(kernel: np.ndarray, path: str) -> np.ndarray:
    if np.max(np.abs(kernel), initial=0) > np.finfo(np.float16).max:
        raise UserError(f"{path} has values that float16 cannot hold; save the network as float32")
    return kernel.astype(np.float16)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise UserError(f'{path} is no config of a pretrained network: its "format" is not "{_FORMAT}"')
    version = values.get("version")
    if not isinstance(version, int) or not 1 <= version <= config_lib.VERSION:
        raise UserError(f"{path} has version {version}; this deeplab_jax reads versions 1 to {config_lib.VERSION}")
    return values
