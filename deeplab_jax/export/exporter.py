"""Writes a trained network and its description for another runtime."""

import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deeplab_jax import data
from deeplab_jax.errors import UserError, from_os_error, suggest
from deeplab_jax.export import onnx, onnx_operations, savedmodel, stablehlo, tflite
from deeplab_jax.export.feeding import protocol_of
from deeplab_jax.export.program import ExportOptions, make_program, metadata, to_json
from deeplab_jax.export.recipe import write_script
from deeplab_jax.files import create_folder, write_atomically
from deeplab_jax.ops import XLA
from deeplab_jax.pretrained import PretrainedNetwork
from deeplab_jax.storage.local_copies import local_output

#: Names of the formats.
FORMATS = ("stablehlo", "savedmodel", "tflite", "onnx")

#: Name of the description in a SavedModel, in its folder `assets.extra`.
METADATA_FILE = "deeplab_jax.json"

#: Name of the script in a SavedModel, and the end of its name beside other files.
SCRIPT_FILE = "predict.py"

#: Formats that have `ExportOptions.quantize`.
QUANTIZED_FORMATS = ("tflite", "onnx")


def metadata_path(file_format: str, output: pathlib.Path) -> pathlib.Path:
    """The path of the JSON file that describes an exported network: next to a file, inside a SavedModel."""
    if file_format == "savedmodel":
        return output / "assets.extra" / METADATA_FILE
    return output.with_name(f"{output.name}.json")


def script_path(file_format: str, output: pathlib.Path) -> pathlib.Path:
    """The path of the script that labels an image with an exported network, next to `metadata_path`."""
    if file_format == "savedmodel":
        return output / "assets.extra" / SCRIPT_FILE
    return output.with_name(f"{output.name}.{SCRIPT_FILE}")


def export_network(
    network: PretrainedNetwork,
    file_format: str,
    output: pathlib.Path,
    options: ExportOptions,
    *,
    calibration: Sequence[np.ndarray] = (),
) -> dict[str, Any]:
    """Exports a network. Also writes a JSON file with its classes, palette, input and output, and a script.

    The script labels an image as `deeplab-jax predict` does, without this package. Networks that slide windows have
    none, and those of the protocol `keep_ratio` only if the file takes any size.

    The exported program takes RGB images of range 0-255 and includes the network's normalization. It returns logits, or
    labels with `options.argmax`, at the size of the images.

    Args:
      network: a network with classes.
      file_format: one of `FORMATS`.
      output: path of the file, or of the folder of a SavedModel.
      options: input and output of the exported network.
      calibration: inputs of the network, (height, width, channels) each, from which int8 takes the ranges of values;
        see `read_inputs`.

    Returns:
      The content of the JSON file.

    Raises:
      UserError: the output exists or cannot be written, the format does not support the options, a package is not
        installed, or the network is a backbone without classes.
    """
    if file_format not in FORMATS:
        raise UserError(f"export format {file_format!r} does not exist{suggest(file_format, FORMATS)}")
    _check_options(file_format, options, calibration)
    description, script = metadata_path(file_format, output), script_path(file_format, output)
    for path in (output, description, script):
        if path.exists():
            raise UserError(f"{path} exists; choose another --output or remove it")
    operations = onnx_operations.OPERATIONS if file_format == "onnx" else XLA
    program = make_program(network, options, operations=operations)
    values = metadata(network, program, file_format)
    protocol, pixels = protocol_of(network, options), data.pixels_of_model(network.model)
    recipe = write_script(program, protocol, pixels, file_format, output.name)
    create_folder(output.parent, "the folder of --output")
    if file_format == "savedmodel":
        with local_output(output) as folder:
            _write_folder(folder, lambda part: savedmodel.save(program, part), to_json(values), recipe)
        return values
    serialize = {
        "stablehlo": lambda: stablehlo.serialize(program),
        "tflite": lambda: tflite.serialize(program, calibration),
        "onnx": lambda: onnx.serialize(program, {"deeplab_jax": to_json(values)}, calibration),
    }[file_format]
    write_atomically(output, serialize())
    write_atomically(description, to_json(values).encode())
    if recipe is not None:
        write_atomically(script, recipe.encode())
    return values


def _check_options(file_format: str, options: ExportOptions, calibration: Sequence[np.ndarray]) -> None:
    if options.quantize is not None and file_format not in QUANTIZED_FORMATS:
        raise UserError(
            f"{file_format} cannot be quantized to {options.quantize}; export to {' or '.join(QUANTIZED_FORMATS)}"
        )
    if options.quantize == "int8" and not calibration:
        raise UserError("int8 needs images to calibrate it; give --calibration FOLDER with about 100 training images")
    if file_format == "tflite" and options.size is None:
        raise UserError(
            "tflite needs a fixed image size, because it stores padding and resizing as numbers; "
            "give --size HEIGHTxWIDTH"
        )
    if file_format == "tflite" and options.batch is None:
        raise UserError("tflite needs a fixed batch size; give --batch N")


def _write_folder(
    output: pathlib.Path, save: Callable[[pathlib.Path], None], description: str, recipe: str | None
) -> None:
    """Writes a folder completely or not at all."""
    temporary = output.with_name(output.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save(temporary)
        path = metadata_path("savedmodel", temporary)
        path.parent.mkdir(parents=True)
        path.write_text(description)
        if recipe is not None:
            script_path("savedmodel", temporary).write_text(recipe)
        os.replace(temporary, output)
    except OSError as error:
        raise from_os_error(error, f"cannot write {output}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
