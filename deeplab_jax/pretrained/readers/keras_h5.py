"""Reader of Keras weight files, based on h5py.

There are two layouts:

- Keras 3 and `.weights.h5` of Keras 2.15 (`keras/src/saving/saving_lib.py`): one group per layer. Its path gives the
  layer's place in the model and its number among layers of the same class, such as `layers/functional/layers/conv2d_3`.
  Arrays are numbered inside `vars`. Newer versions also record the layer's name, as an attribute of `vars`.
- `.h5` of Keras 1 and 2 (`keras/src/legacy/saving/legacy_h5_format.py`): attributes `layer_names` and `weight_names`,
  and arrays by name, such as `conv1_conv/kernel:0`.

A `.keras` file is a zip archive with a `model.weights.h5` in the first layout and a `config.json`.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from deeplab_jax.errors import UserError

_CONV = ("kernel", "bias")
_ARRAY_NAMES = {
    "conv2d": _CONV,
    "depthwise_conv2d": _CONV,
    "dense": _CONV,
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """The arrays of one layer.

    Attributes:
      path: place of the layer in the model, such as `layers/functional/layers/conv2d_3`; its name in the oldest layout.
      name: name of the layer; None if the file does not record it.
      arrays: arrays by Keras' names (`kernel`, `gamma`), or by number if the class of the layer is unknown.
    """

    path: str
    name: str | None
    arrays: Mapping[str, np.ndarray]


def read(path: pathlib.Path) -> tuple[list[Layer], dict[str, Any]]:
    """Reads the layers of a file.

    Returns:
      The layers that have arrays, and the model's config; {} if the file contains none.

    Raises:
      UserError: the file does not exist or is not a weight file of Keras.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected a .weights.h5, .h5 or .keras file")
    with contextlib.ExitStack() as stack:
        try:
            if zipfile.is_zipfile(path):
                archive = stack.enter_context(zipfile.ZipFile(path))
                config = json.loads(archive.read("config.json"))
                file = stack.enter_context(h5py.File(io.BytesIO(archive.read("model.weights.h5"))))
            else:
                config = {}
                file = stack.enter_context(h5py.File(path))
            root = file.get("model_weights", file)
            layers = list(_by_names(root) if "layer_names" in _attributes(root) else _by_places(root))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is not a weight file of Keras or is damaged: {reason}") from None
    if not layers:
        raise UserError(f"{path} has no layers with weights; expected a .weights.h5, .h5 or .keras file of a model")
    return layers, config


def named_arrays(layers: Sequence[Layer], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Returns the arrays by `layer/array`, such as `conv1_conv/kernel`.

    A layer keeps its recorded name if `names` contains it, otherwise its place decides. Keras numbers unnamed layers in
    the order in which the process created them, so their recorded names are arbitrary.

    Args:
      layers: the layers of `read`.
      names: the name of the layer at each place of the network.

    Raises:
      UserError: two layers get the same name.
    """
    known, arrays = set(names.values()), {}
    for layer in layers:
        name = layer.name if layer.name in known else names.get(layer.path, layer.path)
        for leaf, value in layer.arrays.items():
            if f"{name}/{leaf}" in arrays:
                raise UserError(f"the file has two layers {name}; it contains another network than expected")
            arrays[f"{name}/{leaf}"] = value
    return arrays


def numbered(name: str, number: int) -> str:
    """Returns the name of the n-th layer of a class in Keras 3's layout: `conv2d`, `conv2d_1`, `conv2d_2`..."""
    return f"{name}_{number}" if number else name


def _by_places(root: h5py.Group) -> Iterator[Layer]:
    groups = []
    # visititems does not follow links out of the file
    root.visititems(lambda path, item: groups.append(path) if path.rpartition("/")[2] == "vars" else None)
    for path in groups:
        group = root[path]
        place = path.rpartition("/")[0]
        values = [_value(group[key]) for key in sorted(group, key=int)]
        leaves = _ARRAY_NAMES.get(re.sub(r"_\d+$", "", place.rpartition("/")[2]), ())
        if len(values) > len(leaves):
            leaves = tuple(map(str, range(len(values))))
        if values:
            name = group.attrs.get("name")
            yield Layer(place, None if name is None else _text(name), dict(zip(leaves, values, strict=False)))


def _by_names(root: h5py.Group) -> Iterator[Layer]:
    for layer_name in _attributes(root)["layer_names"]:
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for weight_name in _attributes(root[layer_name]).get("weight_names", ()):
            name, _, leaf = weight_name.rpartition("/")
            # a nested model is one layer here; the name of the weight tells its layer
            arrays.setdefault(name, {})[leaf.partition(":")[0]] = _value(root[layer_name][weight_name])
        for name, values in arrays.items():
            yield Layer(name, name, values)


def _attributes(group: h5py.Group) -> dict[str, list[str]]:
    """Reads `layer_names` and `weight_names`; a long list is split into `layer_names0`, `layer_names1`..."""
    lists: dict[str, list[str]] = {}
    for key in sorted(group.attrs, key=lambda key: (len(key), key)):
        match = re.fullmatch(r"(layer_names|weight_names)\d*", key)
        if match:
            lists.setdefault(match[1], []).extend(_text(item) for item in group.attrs[key])
    return lists


def _value(dataset: h5py.Dataset) -> np.ndarray:
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} is stored outside the file")
    return np.asarray(dataset[()])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
