"""Writes weight files of Keras without Keras."""

import io
import json
import zipfile

import h5py


def fill_weights(file: h5py.File, layout, values, *, record_names: bool = True) -> None:
    """Keras 3's layout.

    Args:
      file: open and empty.
      layout: rows of the layer's group, its recorded name, the array's number, the variable's path and its shape.
      values: arrays by the variable's path; a number stands for an array full of it.
      record_names: False for Keras before 3.1.
    """
    for group, name, number, path, shape in layout:
        arrays = file.require_group(f"{group}/vars")
        if record_names:
            arrays.attrs["name"] = name
        put(arrays, number, values[path], shape)


def fill_legacy(file: h5py.File, layout, values) -> None:
    """Keras 2's layout of `.h5`: layers and arrays by names."""
    layers: dict[str, list[str]] = {"input_1": []}
    for _, _, _, path, _ in layout:
        layers.setdefault(path.partition("/")[0], []).append(f"{path}:0")
    names = [name.encode() for name in layers]
    # Keras splits lists that do not fit into a header
    file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:100], names[100:]
    for name, weights in layers.items():
        file.create_group(name).attrs["weight_names"] = [weight.encode() for weight in weights]
    for _, _, _, path, shape in layout:
        put(file[path.partition("/")[0]], f"{path}:0", values[path], shape)


def write_archive(path, config: dict, layout, values) -> None:
    """A `.keras` file."""
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        fill_weights(file, layout, values)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights.getvalue())


def put(group: h5py.Group, name: str, value, shape) -> None:
    if isinstance(value, (int, float)):
        group.create_dataset(name, shape, "float32", fillvalue=value)
    else:
        group.create_dataset(name, data=value)
