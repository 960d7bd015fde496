"""The format of saved networks: a folder with `config.json`, `model.safetensors` and `README.md`.

`config.json` contains `format` ("deeplab_jax"), `version` (of the config schema), `model` (every field of
`config.model`), `class_names` and `palette` (null for a backbone), `protocol` and `image_size` (how to feed images),
`report` (where the values came from), and `provenance` (author, license, scores and so on; left out if nothing is
known). `model.safetensors` contains every variable under its path, such as `params/backbone/stem_conv/kernel`. Values
are float32; kernels can be float16, at half the size, and become float32 when they are read. `README.md` is the model
card, for people and for the Hugging Face Hub. Saving the same network again gives the same bytes.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util
from ml_collections import ConfigDict

from deeplab_jax import budget
from deeplab_jax import config as config_lib
from deeplab_jax.errors import UserError
from deeplab_jax.files import check_new_folder, create_folder, read_json, write_atomically
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import SegmentationNetwork, abstract_variables
from deeplab_jax.pretrained import model_card
from deeplab_jax.pretrained.network import (
    PretrainedNetwork,
    first_line,
    model_config,
    read_feeding,
    set_feeding,
    variable_shapes,
)
from deeplab_jax.pretrained.provenance import UNKNOWN, Provenance
from deeplab_jax.pretrained.readers import safetensors_file

#: The files of a folder.
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
#: `format` of its config.
FORMAT = "deeplab_jax"


def save_pretrained(
    folder: str | pathlib.Path,
    model: SegmentationNetwork,
    variables: Mapping[str, Any],
    label_set: LabelSet,
    *,
    protocol: str = "whole",
    image_size: Sequence[int] | None = None,
    half: bool = False,
    provenance: Provenance = UNKNOWN,
) -> None:
    """Saves a model, its variables and its classes to a folder that `from_pretrained` loads.

    Args:
      folder: new or empty folder.
      model: the Flax module.
      variables: its `params` and `batch_stats`.
      label_set: its classes.
      protocol: how images are fed to the network, a value of `config.eval.protocol`.
      image_size: (height, width) of the network input under this protocol (default: any size).
      half: save kernels as float16. Biases, BatchNorm parameters and statistics stay float32.
      provenance: what the model card states: author, training data, license, scores.

    Raises:
      UserError: the folder is not empty or not writable, the protocol does not exist, the classes or variables do not
        fit the model, or `half` is set and a kernel has values outside the range of float16.
    """
    config_lib.check_fields("eval", {"protocol": protocol})
    if label_set.num_classes != model.num_classes:
        raise UserError(f"label_set has {label_set.num_classes} classes, but the model has {model.num_classes}")
    shapes = _flat_shapes(abstract_variables(model))
    if misfit := _find_misfit(shapes, _flat_shapes(variables)):
        raise UserError(f"the variables do not fit the model: {misfit}")
    fields = {name: getattr(model, name) for name in model_config() if hasattr(model, name)}
    size = None if image_size is None else (int(image_size[0]), int(image_size[1]))
    network = PretrainedNetwork(model_config(**fields), variables, label_set, protocol, size, (), provenance)
    save(network, pathlib.Path(folder), half=half)


def save(network: PretrainedNetwork, folder: pathlib.Path, *, half: bool = False) -> None:
    """Saves a pretrained network to a folder.

    Args:
      network: the network.
      folder: new or empty folder.
      half: save kernels as float16, rounded to nearest. Biases, BatchNorm parameters and statistics stay float32: they
        are small, and variances span many magnitudes.

    Raises:
      UserError: the folder is not empty or not writable, or `half` is set and a kernel has values outside the range of
        float16.
    """
    check_new_folder(folder)
    create_folder(folder, "folder")
    label_set = network.label_set
    values = {
        "format": FORMAT,
        "version": config_lib.VERSION,
        "model": config_lib.to_dict(ConfigDict({"model": network.model}))["model"],
        "class_names": label_set and label_set.class_names,
        "palette": label_set and label_set.palette,
        "protocol": network.protocol,
        "image_size": network.image_size,
        "report": list(network.report),
    }
    if network.feeding:
        values["feeding"] = dict(network.feeding)
    if facts := network.provenance.to_json():
        values["provenance"] = facts
    flat = traverse_util.flatten_dict(network.variables, sep="/")
    arrays = {path: np.ascontiguousarray(value, np.float32) for path, value in flat.items()}
    if half:
        arrays = {path: _to_half(value, path) if value.ndim > 1 else value for path, value in arrays.items()}
    write_atomically(folder / WEIGHTS_FILE, safetensors.numpy.save(arrays))
    write_atomically(folder / CARD_FILE, model_card.render(network).encode())
    write_atomically(folder / CONFIG_FILE, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def load(folder: pathlib.Path) -> PretrainedNetwork:
    """Loads a network that `save` wrote.

    Raises:
      UserError: a file is missing, damaged or of a newer version, or the arrays do not fit the config.
    """
    values = _read_config(folder / CONFIG_FILE)
    try:
        model = config_lib.from_dict({"model": config_lib.migrate_model(values["model"], values["version"])}).model
        label_set = None
        if values["class_names"] is not None:
            label_set = LabelSet.from_json(values["class_names"], values["palette"])
        image_size, protocol = values["image_size"], values["protocol"]
        report = tuple(str(line) for line in values["report"])
        provenance = Provenance.from_json(values.get("provenance", {}))  # earlier versions wrote none
        fed = config_lib.base_config()
        set_feeding(fed, dict(values.get("feeding", {})))  # nor this
        if image_size is not None:
            image_size = height, width = tuple(int(extent) for extent in image_size)
            if not 1 <= min(height, width) <= max(height, width) <= budget.INPUT_SIDE:
                raise ValueError(f"image_size {height}x{width}")
        if protocol not in config_lib.PROTOCOLS:
            raise ValueError(f"protocol {protocol!r}")
    except UserError as error:
        raise UserError(f"{folder / CONFIG_FILE}: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged: {type(error).__name__}: {first_line(error)}") from None
    arrays = safetensors_file.read(folder / WEIGHTS_FILE)
    try:
        shapes = variable_shapes(model, label_set and label_set.num_classes)
    except UserError as error:
        raise UserError(f"{folder / CONFIG_FILE} does not describe a network: {error}") from None
    if misfit := _find_misfit(shapes, {name: value.shape for name, value in arrays.items()}):
        raise UserError(f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: {misfit}")
    arrays = {name: value.astype(np.float32, copy=False) for name, value in arrays.items()}
    variables, feeding = traverse_util.unflatten_dict(arrays, sep="/"), read_feeding(fed)
    return PretrainedNetwork(model, variables, label_set, protocol, image_size, report, provenance, feeding)


def is_bundle(folder: pathlib.Path) -> bool:
    """Returns True if a folder looks like one that `save` wrote."""
    return (folder / WEIGHTS_FILE).is_file()


def _flat_shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    return {path: np.shape(leaf) for path, leaf in traverse_util.flatten_dict(dict(variables), sep="/").items()}


def _find_misfit(shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str | None:
    """Returns the first path whose shape differs, and the number of others; None if all are equal."""
    wrong = sorted(path for path in {*shapes, *found} if found.get(path) != shapes.get(path))
    if not wrong:
        return None
    return f"{wrong[0]} and {len(wrong) - 1} more" if len(wrong) > 1 else wrong[0]


def _to_half(kernel: np.ndarray, path: str) -> np.ndarray:
    if np.max(np.abs(kernel), initial=0) > np.finfo(np.float16).max:
        raise UserError(f"{path} has values outside the range of float16; save the network as float32")
    return kernel.astype(np.float16)


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise UserError(f'{path} is not the config of a saved network: its "format" is not "{FORMAT}"')
    version = values.get("version")
    if not isinstance(version, int) or not 1 <= version <= config_lib.VERSION:
        raise UserError(f"{path} has version {version}; this deeplab_jax reads versions 1 to {config_lib.VERSION}")
    return values
