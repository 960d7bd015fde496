"""Reader of Keras weight files, based on h5py.

There are two layouts:

- Keras 3 and `.weights.h5` of Keras 2.15 (`keras/src/saving/saving_lib.py`): one group per layer. Its path gives the
  layer's place in the model and its number among layers of the same class, such as `layers/functional/layers/conv2d_3`.
  Arrays are numbered inside `vars`. Newer versions also record the layer's name, as an attribute of `vars`.
- `.h5` of Keras 1 and 2 (`keras/src/legacy/saving/legacy_h5_format.py`): attributes `layer_names` and `weight_names`,
  and arrays by name, such as `conv1_conv/kernel:0`.

A `.keras` file is a zip archive with a `model.weights.h5` in the first layout and a `config.json`.

Keras writes plain arrays and hard links. Links to other files, compressed arrays, whose chunks can expand without a
limit, and types other than numbers are refused.
"""

import contextlib
import dataclasses
import io
import math
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from deeplab_jax import budget
from deeplab_jax.data import archives
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
    left = budget.Budget(str(path), budget.file_size(path))
    with contextlib.ExitStack() as stack:
        try:
            if zipfile.is_zipfile(path):
                archive = stack.enter_context(zipfile.ZipFile(path))
                config = budget.parse_json(archives.read_zip_entry(archive, "config.json", left))
                if not isinstance(config, dict):
                    raise ValueError("its config.json is not a JSON object")
                weights = archives.read_zip_entry(archive, "model.weights.h5", left)
                file = stack.enter_context(h5py.File(io.BytesIO(weights)))
            else:
                config = {}
                file = stack.enter_context(h5py.File(path))
            layers = _read_layers(file, left)
        except (*archives.DAMAGED, KeyError, TypeError, AttributeError) as error:
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


def _read_layers(file: h5py.File, left: budget.Budget) -> list[Layer]:
    root = _child(file, "model_weights") if "model_weights" in file else file
    names = _attributes(root, left)
    return list(_by_names(root, names["layer_names"], left) if "layer_names" in names else _by_places(root, left))


def _by_places(root: h5py.Group, left: budget.Budget) -> Iterator[Layer]:
    for path, group in _groups(root):
        place, _, last = path.rpartition("/")
        if last != "vars":
            continue
        values = [_value(_child(group, key), left) for key in sorted(group, key=int)]
        leaves = _ARRAY_NAMES.get(re.sub(r"_\d+$", "", place.rpartition("/")[2]), ())
        if len(values) > len(leaves):
            leaves = tuple(map(str, range(len(values))))
        if values:
            name = _attribute(group, "name", left) if "name" in group.attrs else None
            yield Layer(place, None if name is None else _text(name), dict(zip(leaves, values, strict=False)))


def _by_names(root: h5py.Group, layer_names: Sequence[str], left: budget.Budget) -> Iterator[Layer]:
    for layer_name in layer_names:
        layer = _child(root, layer_name)
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for weight_name in _attributes(layer, left).get("weight_names", ()):
            name, _, leaf = weight_name.rpartition("/")
            # a nested model is one layer here; the name of the weight tells its layer
            arrays.setdefault(name, {})[leaf.partition(":")[0]] = _value(_child(layer, weight_name), left)
        for name, values in arrays.items():
            yield Layer(name, name, values)


def _groups(root: h5py.Group) -> Iterator[tuple[str, h5py.Group]]:
    """Yields the groups below a group with their paths, in the order of their names.

    HDF5's own visitor descends recursively, so a deeply nested file would exhaust the stack of the process.
    """
    waiting, count = [("", root)], 0
    while waiting:
        path, group = waiting.pop()
        if path:
            yield path, group
        children = []
        for key in group:
            count += 1
            if count > budget.HDF5_OBJECTS or path.count("/") >= budget.HDF5_DEPTH:
                raise ValueError("it has too many or too deeply nested groups")
            child = _child(group, key)
            if isinstance(child, h5py.Group):
                children.append((f"{path}/{key}".lstrip("/"), child))
        waiting += reversed(children)


def _child(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    """Returns an item that is stored in the file itself."""
    item = group
    for key in filter(None, path.split("/")):
        if not isinstance(item.get(key, getlink=True), h5py.HardLink):
            raise ValueError(f"{path!r} is missing or a link to another place")
        item = item[key]
    return item


def _attributes(group: h5py.Group, left: budget.Budget) -> dict[str, list[str]]:
    """Reads `layer_names` and `weight_names`; a long list is split into `layer_names0`, `layer_names1`..."""
    lists: dict[str, list[str]] = {}
    for key in sorted(group.attrs, key=lambda key: (len(key), key)):
        match = re.fullmatch(r"(layer_names|weight_names)\d*", key)
        if match:
            lists.setdefault(match[1], []).extend(_text(item) for item in _attribute(group, key, left))
    return lists


def _attribute(group: h5py.Group, key: str, left: budget.Budget) -> Any:
    stored = group.attrs.get_id(key)
    left.spend(math.prod(stored.shape) * max(1, stored.dtype.itemsize))
    return group.attrs[key]


def _value(dataset: h5py.Dataset, left: budget.Budget) -> np.ndarray:
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{dataset.name!r} is not an array")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} is stored outside the file")
    if dataset.dtype.kind not in "fiub" or dataset.shape is None:
        raise ValueError(f"{dataset.name!r} is not an array of numbers but of {dataset.dtype}")
    if dataset.id.get_create_plist().get_nfilters():
        raise ValueError(f"{dataset.name!r} is compressed; store it plainly with `h5repack -f NONE`")
    left.spend(math.prod((*(dataset.chunks or (0,)), dataset.dtype.itemsize)) + dataset.size * dataset.dtype.itemsize)
    return np.asarray(dataset[()])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
