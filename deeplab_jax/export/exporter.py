"""Writes a trained network and its description for another runtime."""

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from deeplab_jax.errors import UserError, from_os_error, suggest
from deeplab_jax.export import onnx, savedmodel, stablehlo, tflite
from deeplab_jax.export.program import ExportOptions, make_program, metadata, to_json
from deeplab_jax.files import create_folder, write_atomically
from deeplab_jax.pretrained import PretrainedNetwork
from deeplab_jax.storage.local_copies import local_output

#: Names of the formats.
FORMATS = ("stablehlo", "savedmodel", "tflite", "onnx")

#: Name of the description in a SavedModel, in its folder `assets.extra`.
METADATA_FILE = "deeplab_jax.json"


def metadata_path(file_format: str, output: pathlib.Path) -> pathlib.Path:
    """The path of the JSON file that describes an exported network: next to a file, inside a SavedModel."""
    if file_format == "savedmodel":
        return output / "assets.extra" / METADATA_FILE
    return output.with_name(f"{output.name}.json")


def export_network(
    network: PretrainedNetwork, file_format: str, output: pathlib.Path, options: ExportOptions
) -> dict[str, Any]:
    """Exports a network, and writes a JSON file with its classes, palette, input and output.

    The exported program takes RGB images of range 0-255 and includes the network's normalization. It returns logits, or
    labels with `options.argmax`, at the size of the images.

    Args:
      network: a network with classes.
      file_format: one of `FORMATS`.
      output: path of the file, or of the folder of a SavedModel.
      options: input and output of the exported network.

    Returns:
      The content of the JSON file.

    Raises:
      UserError: the output exists or cannot be written, the format does not support the options, a package is not
        installed, or the network is a backbone without classes.
    """
    if file_format not in FORMATS:
        raise UserError(f"export format {file_format!r} does not exist{suggest(file_format, FORMATS)}")
    _check_options(file_format, options)
    description = metadata_path(file_format, output)
    for path in (output, description):
        if path.exists():
            raise UserError(f"{path} exists; choose another --output or remove it")
    program = make_program(network, options)
    values = metadata(network, program, file_format)
    create_folder(output.parent, "the folder of --output")
    if file_format == "savedmodel":
        with local_output(output) as folder:
            _write_folder(folder, lambda part: savedmodel.save(program, part), to_json(values))
        return values
    serialize = {
        "stablehlo": stablehlo.serialize,
        "tflite": tflite.serialize,
        "onnx": lambda program: onnx.serialize(program, {"deeplab_jax": to_json(values)}),
    }[file_format]
    write_atomically(output, serialize(program))
    write_atomically(description, to_json(values).encode())
    return values


def _check_options(file_format: str, options: ExportOptions) -> None:
    if file_format in ("tflite", "onnx") and options.size is None:
        raise UserError(
            f"{file_format} needs a fixed image size, because it stores padding and resizing as numbers; "
            "give --size HEIGHTxWIDTH"
        )
    if file_format == "tflite" and options.batch is None:
        raise UserError("tflite needs a fixed batch size; give --batch N")


def _write_folder(output: pathlib.Path, save: Callable[[pathlib.Path], None], description: str) -> None:
    """Writes a folder completely or not at all."""
    temporary = output.with_name(output.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save(temporary)
        path = metadata_path("savedmodel", temporary)
        path.parent.mkdir(parents=True)
        path.write_text(description)
        os.replace(temporary, output)
    except OSError as error:
        raise from_os_error(error, f"cannot write {output}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
